"""A policy in memory and on disk: a folder or a causal LM in, a `Policy` out, and back."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from recast.config import Precision, PromptConfig
from recast.config.check import MOST_WINDOW, as_path
from recast.config.prompt import UNSET
from recast.items.catalog import Catalog, load_catalog
from recast.items.new_items import in_place_of
from recast.items.titles import check_writer
from recast.policy.attention import DROPS_NOTHING
from recast.policy.body import text_config
from recast.policy.device import find_device
from recast.policy.folder import ADAPTERS, read_object
from recast.policy.lora import has_adapters, load_adapters, read_adapters, save_adapters
from recast.policy.masters import take_masters
from recast.policy.packable import (
    LARGEST_GAP,
    allowed_gap,
    is_packable,
    other_attention,
    packed_gap,
)
from recast.policy.room import beside_answers, prompt_of, read_prompt, require_room
from recast.policy.save import save_generation, save_weights
from recast.policy.tokenizer import load_tokenizer
from recast.policy.weights import load_model, no_bars, require_finite
from recast.run.doors import require_kind
from recast.run.files import staged_folder
from recast.run.reading import LOADING, reading, reason_of
from recast.types import LogprobSpace, RecastError, in_short, require

_KERNELS = "32"
"""Kernels that oneDNN and torch keep of products on a CPU, one for each shape, megabytes each. As
no pass is as wide as another, their own 1,024 fill with gigabytes that are not used again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A causal language model that writes the items of one catalogue."""

    model: Any
    """A causal LM of transformers (`PreTrainedModel`), plain or with PEFT's adapters around it."""
    catalog: Catalog
    window: int
    """Items per training window: a prompt that is not rendered holds the latest `window - 1`."""
    logprob_space: LogprobSpace = "full"
    """What supervised training normalised its loss over; its items are ranked in it."""
    tokenizer: Any = None
    """Of the backbone, with the names of the semantic IDs; None for a model that never had one."""
    prompt: PromptConfig = UNSET
    """How its prompts are rendered; unset: histories are BOS and items."""

    def computing_in(self, precision: Precision) -> AbstractContextManager[object]:
        """A context in which matrix products are made in that precision; weights stay as they are.

        What is added up or normalised stays in float32.
        """
        kind = self.catalog.device.type
        if precision == "float32":
            is_inside = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
            return torch.autocast(kind, enabled=False) if is_inside else nullcontext()
        for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
            os.environ.setdefault(cache, _KERNELS)
        return torch.autocast(kind, torch.bfloat16)

    def to(self, device: str) -> Policy:
        """The same policy with its model and catalogue on a device such as `cpu` or `cuda:1`.

        Raises `RecastError` when this machine has no such device.
        """
        place = find_device(device)
        model = self.model.to(place)
        model.tie_weights()  # some devices get their own copy of every shared weight
        return replace(self, model=model, catalog=self.catalog.to(place))


def save_policy(policy: Policy, folder: str | Path, *, merge: bool = True) -> None:
    """A plain Hugging Face folder (safetensors) with the catalogue in `catalog/`.

    What came with the backbone stays: its tokenizer and chat template, its settings of generation
    but for `do_sample`, which is off, and the precision of its weights, to which trained ones are
    rounded; `masters/` holds these as they were. Adapters are added to the weights they belong to,
    unless `merge` is False: then the folder holds them alone, as PEFT reads them.

    Raises `RecastError` when a weight is not finite.
    """
    require_finite(policy.model, "the policy")
    with staged_folder(folder) as stage:
        with no_bars():
            if merge or not has_adapters(policy.model):
                save_weights(policy.model, stage)
            else:
                save_adapters(policy.model, stage)
        save_generation(policy.model, stage)
        if policy.tokenizer is not None:
            policy.tokenizer.save_pretrained(stage)
        record: dict[str, Any] = {
            "window": policy.window,
            "logprob_space": policy.logprob_space,
            "catalog": _digest(policy.catalog),
        }
        if policy.prompt.is_set:
            record["prompt"] = policy.prompt.given
        (stage / "recast.json").write_text(json.dumps(record) + "\n")
        (stage / "catalog").mkdir()
        policy.catalog.write(stage / "catalog")


def load_policy(
    folder: str | Path, catalog: str | Path | None = None, *, masters: bool = False
) -> Policy:
    """A policy written by `save_policy`, in evaluation mode; with another `catalog` it writes the
    items of that one, which `recast tokenize --extend` made of its own: no weight is touched. To
    train on it takes its `masters`: the weights in float32 that are saved in 16 bits.

    Raises `RecastError` when the folder holds none or its vocabulary does not fit its catalogue.
    """
    path = Path(as_path("policy", folder))
    require_kind("policy", path)
    record, window, space = read_record(path)
    own = load_catalog(path / "catalog")
    tokenizer, prompt = load_tokenizer(path), read_prompt(record, path)
    if os.path.isfile(path / ADAPTERS):
        model = load_adapters(load_model(Path(read_adapters(path))), path)
        require_finite(model, str(path))
    else:
        model = load_model(path)
        if masters:
            take_masters(model, path)
    policy = as_policy(model, own, window, str(path), prompt)
    if "catalog" in record and record["catalog"] != _digest(own):  # older folders note none
        raise RecastError(
            f"{path / 'catalog'} is not the catalogue that this policy was trained with: use the "
            "folder as it was saved"
        )
    prompt_of(tokenizer, prompt, own, str(path))
    if catalog is not None:
        own = in_place_of(own, load_catalog(catalog), str(path))
        _require_written(model, tokenizer, own, str(path))
        prompt = beside_answers(prompt, model, own)
    return replace(policy, catalog=own, logprob_space=space, tokenizer=tokenizer, prompt=prompt)


def _require_written(model: Any, tokenizer: Any, catalog: Catalog, name: str) -> None:
    """Raise `RecastError` for titles that the model has no tokens for."""
    if tokenizer is not None and catalog.form is not None:
        check_writer(tokenizer, catalog, name)
    rows = model.get_input_embeddings().weight.shape[0]
    remedy = f"{name} has {rows}, those of the titles it was trained on: start from a model of more"
    require(catalog.vocab_size <= rows, "tokens of the catalogue", catalog.vocab_size, remedy)


def read_record(folder: Path) -> tuple[dict[str, Any], int, LogprobSpace]:
    """What `recast.json` of a policy's folder says, checked: all of it, window and space."""
    with reading(folder / "recast.json", "use the folder as it was saved"):
        record = read_object(folder / "recast.json")
        window = record["window"]
        if type(window) is not int or not 2 <= window <= MOST_WINDOW:
            raise ValueError(f"window {window!r} is no whole number from 2 to {MOST_WINDOW}")
        space = record.get("logprob_space", "full")  # older folders note none
        if space not in get_args(LogprobSpace):
            raise ValueError(f"logprob_space is {in_short(space)}")
    return record, window, space


def _digest(catalog: Catalog) -> str:
    """Of the items, in their order, of what each writes, and of what their domains are."""
    digest = hashlib.sha256("\n".join(catalog.item_ids).encode())
    digest.update(catalog.tokens.cpu().long().numpy().tobytes())
    if len(catalog.domains) > 1:
        digest.update("\n".join(catalog.domains[d] for d in catalog.domain_of.tolist()).encode())
    return digest.hexdigest()


def trained_parameters(policy: Policy) -> list[torch.nn.Parameter]:
    """All weights, or those that have a gradient: of the adapters alone, or of some rows."""
    return [p for p in policy.model.parameters() if p.requires_grad]


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout rate to 0, so that train mode, which checkpointing needs, is harmless.

    A rate is that of a `Dropout` or a number of a module whose name says so: many models call
    dropout as a function. Some layers look it up in the model's settings, which are saved with it
    and stay as they are; the packed attention heeds a mark instead.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name):
                setattr(module, name, 0.0)
        setattr(module, DROPS_NOTHING, True)


def as_policy(
    model: PreTrainedModel,
    catalog: Catalog,
    window: int,
    name: str,
    prompt: PromptConfig = UNSET,
) -> Policy:
    """A policy of any causal LM in evaluation mode; `name` is what errors call the model.

    Raises `RecastError` when its attention cannot be the packed one, when its vocabulary or context
    is too small, and when its logits are not plainly those of its output layer.
    """
    if not is_packable(model):
        raise other_attention(name, type(model).__name__)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < catalog.vocab_size:
        raise RecastError(
            f"{name} has {rows} tokens, its catalogue needs {catalog.vocab_size}: use the policy "
            "with the catalogue it was trained on"
        )
    require_room(model, catalog, window, prompt, name)
    model.eval()
    head = model.get_output_embeddings()
    capped = getattr(text_config(model), "final_logit_softcapping", None) is not None
    try:
        plain = type(head) is torch.nn.Linear and not capped
        gap = packed_gap(model, catalog) if plain else torch.inf
    except RecastError:
        raise
    except LOADING as error:
        raise RecastError(
            f"{name} is a {type(model).__name__} that does not run ({reason_of(error)}): "
            "use the folder as it was saved"
        ) from error
    if gap == torch.inf or (gap > LARGEST_GAP and gap > allowed_gap(model, catalog)):
        how = "" if gap == torch.inf else f" (by {gap:.1g} of their norm)"
        raise RecastError(
            f"{name} is a {type(model).__name__}: sent packed, with its output layer apart, it "
            f"gives other numbers than by itself{how}: scaled or capped logits, or an attention of "
            "its own; choose a plain one, such as Qwen3 or Llama"
        )
    return Policy(model=model, catalog=catalog, window=window, prompt=prompt)
