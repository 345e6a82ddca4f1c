"""Policies on disk and in memory: make one, extend a vocabulary, save, load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.utils import logging as hf_logging

from recast.config import ModelConfig, Precision
from recast.items.catalog import Catalog, load_catalog
from recast.policy.attention import ATTENTION
from recast.policy.extend import add_sid_tokens, choose_new_rows, is_policy
from recast.policy.lora import (
    ADAPTERS,
    has_adapters,
    load_adapters,
    read_adapters,
    save_adapters,
)
from recast.policy.packable import agrees, is_packable, other_attention, text_config
from recast.policy.save import save_generation, save_weights
from recast.policy.tokenizer import load_tokenizer
from recast.run.files import LOADING, reading, reason_of, staged_folder
from recast.types import RecastError


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A causal language model that writes the items of one catalogue."""

    model: Any
    """A causal LM of transformers (`PreTrainedModel`), plain or with PEFT's adapters around it."""
    catalog: Catalog
    window: int
    """Items per training window: a prompt holds the latest `window - 1` items."""
    tokenizer: Any = None
    """Of the backbone, with the names of the semantic IDs; None for a model that never had one."""

    def computing_in(self, precision: Precision) -> AbstractContextManager[object]:
        """A context in which matrix products are made in that precision; weights stay as they are.

        What is added up or normalised stays in float32.
        """
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.catalog.device.type, torch.bfloat16)

    def to(self, device: str) -> Policy:
        """The same policy with its model and catalogue on a device such as `cpu` or `cuda:1`.

        Raises `RecastError` when this machine has no such device.
        """
        try:
            place = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise RecastError(
                f"device is {device!r}: torch {torch.__version__} finds no such device here "
                f"({reason_of(error, 80)}), give cpu"
            ) from error
        model = self.model.to(place)
        model.tie_weights()  # some devices get their own copy of every shared weight
        return replace(self, model=model, catalog=self.catalog.to(place))


def create_policy(config: ModelConfig, catalog: Catalog, window: int, seed: int) -> Policy:
    """A Qwen3 with random weights, or the model of `config.path` with the SID tokens added.

    Added tokens come behind the model's own ones (`recast.policy.extend`), so the policy's
    catalogue may differ from `catalog` in its token numbers, never in its codes. A policy of the
    same semantic IDs has them already.

    Raises `RecastError` when the context of a given model is shorter than a window, or when its
    attention cannot be replaced by the packed one.
    """
    name, tokenizer = config.path or "the model", None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.path is None:
            model = _from_config(_qwen3(config, catalog, window))
        elif is_policy(name):
            policy = load_policy(name)
            if not torch.equal(policy.catalog.codes, catalog.codes):
                raise RecastError(
                    f"{name} writes other semantic IDs than this catalogue: use its own"
                )
            choose_new_rows(config, catalog, policy.tokenizer)
            model, catalog, tokenizer = policy.model, policy.catalog, policy.tokenizer
        else:
            model, catalog, tokenizer = _with_sid_tokens(name, config, catalog, seed)
    return replace(as_policy(model, catalog, window, name), tokenizer=tokenizer)


def save_policy(policy: Policy, folder: str | Path, *, merge: bool = True) -> None:
    """A plain Hugging Face folder (safetensors) with the catalogue in `catalog/`.

    What came with the backbone stays: its tokenizer and chat template, its settings of generation
    but for `do_sample`, which is off, and the precision of its weights, to which trained ones are
    rounded. Adapters are added to the weights they belong to, unless `merge` is False: then the
    folder holds them alone, as PEFT reads them. Raises `RecastError` when a weight is not finite.
    """
    _require_finite(policy.model, "the policy")
    with staged_folder(folder) as stage:
        with _no_bars():
            if merge or not has_adapters(policy.model):
                save_weights(policy.model, stage)
            else:
                save_adapters(policy.model, stage)
        save_generation(policy.model, stage)
        if policy.tokenizer is not None:
            policy.tokenizer.save_pretrained(stage)
        (stage / "recast.json").write_text(json.dumps({"window": policy.window}) + "\n")
        policy.catalog.save(stage / "catalog")


def load_policy(folder: str | Path) -> Policy:
    """A policy written by `save_policy`, in evaluation mode.

    Raises `RecastError` when the folder holds none or its vocabulary does not fit its catalogue.
    """
    path = Path(folder)
    if not is_policy(path):
        raise RecastError(f"{path} holds no policy (recast.json): make one with `recast sft`")
    with reading(path / "recast.json", "use the folder as it was saved"):
        window = json.loads((path / "recast.json").read_text())["window"]
        if type(window) is not int or window < 2:
            raise ValueError(f"window {window!r} is no whole number of 2 or more")
    if (path / ADAPTERS).is_file():
        model = load_adapters(_load_model(Path(read_adapters(path))), path)
        _require_finite(model, str(path))
    else:
        model = _load_model(path)
    policy = as_policy(model, load_catalog(path / "catalog"), window, str(path))
    return replace(policy, tokenizer=load_tokenizer(path))


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout rate to 0, so that train mode, which checkpointing needs, is harmless.

    A rate is that of a `Dropout` or a number of a module whose name says so: many models call
    dropout as a function.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name):
                setattr(module, name, 0.0)


def _qwen3(config: ModelConfig, catalog: Catalog, window: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=catalog.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=1 + window * catalog.max_length,
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=catalog.bos_token,
        pad_token_id=catalog.pad_token,
        eos_token_id=None,
    )


def _from_config(config: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of the lines of a run."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _load_model(path: Path) -> PreTrainedModel:
    if not (path / "config.json").is_file():
        raise RecastError(f"{path} holds no model (config.json): give a Hugging Face folder")
    try:
        with _no_bars():
            config = AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
            _require_decoder(config, path)
            model, found = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                attn_implementation=ATTENTION,
                local_files_only=True,
                trust_remote_code=False,  # never asks on stdin whether to run a folder's code
                dtype="auto",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except RecastError:
        raise
    except LOADING as error:
        if ATTENTION in str(error):
            raise other_attention(str(path), "model") from error
        raise RecastError(
            f"{path} does not load ({reason_of(error, 200)}): "
            "give a whole Hugging Face folder with safetensors"
        ) from error
    # transformers would fill these with random numbers and go on.
    wrong = sorted(found["missing_keys"] | {key for key, *_ in found["mismatched_keys"]})
    if wrong:
        raise RecastError(
            f"{path}: {len(wrong)} of its weights are missing or do not fit its config.json, "
            f"{wrong[0]} first: use the folder as it was saved"
        )
    _require_finite(model, str(path))
    return model


def _require_decoder(config: PreTrainedConfig, path: Path) -> None:
    """Raise `RecastError` for a model that transformers has no causal language model for, and for
    an encoder-decoder, whose prompt is not part of the row that the packed forward sends."""
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
        raise RecastError(
            f"{path} holds a {config.model_type} model, {kind}: choose a decoder-only one, such as "
            "Qwen3 or Llama"
        )


def _require_finite(model: torch.nn.Module, name: str) -> None:
    for key, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise RecastError(
                f"{name}: {key} holds NaN or infinity: the run diverged, use a lower lr"
            )


def _with_sid_tokens(
    name: str, config: ModelConfig, catalog: Catalog, seed: int
) -> tuple[PreTrainedModel, Catalog, Any]:
    """The model of a folder with rows for the semantic IDs, the catalogue in its tokens, and its
    tokenizer."""
    if not catalog.codebook_sizes:
        raise RecastError(
            f"{name} has a vocabulary of its own, and this catalogue writes tokens of another: "
            "give semantic IDs, or leave model.path out"
        )
    tokenizer = load_tokenizer(Path(name))
    new_rows = choose_new_rows(config, catalog, tokenizer)
    model = _load_model(Path(name))
    assert new_rows is not None
    return model, add_sid_tokens(model, tokenizer, catalog, new_rows, seed, name), tokenizer


def as_policy(model: PreTrainedModel, catalog: Catalog, window: int, name: str) -> Policy:
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
    longest = 1 + window * catalog.max_length
    context = getattr(text_config(model), "max_position_embeddings", None)
    if context is not None and context < longest:
        raise RecastError(
            f"{name} has a context of {context} tokens, a window of {window} items needs "
            f"{longest}: choose a smaller window"
        )
    model.eval()
    capped = getattr(text_config(model), "final_logit_softcapping", None) is not None
    if capped or not agrees(model, catalog):
        raise RecastError(
            f"{name} is a {type(model).__name__}: sent packed, with its output layer apart, it "
            "gives other numbers than by itself (scaled or capped logits, or an attention of its "
            "own); choose a plain one, such as Qwen3 or Llama"
        )
    return Policy(model=model, catalog=catalog, window=window)
