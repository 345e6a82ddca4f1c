"""Whether a model can be sent packed: its attention is known, and its numbers are its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from recast.items.catalog import Catalog
from recast.policy.body import text_config
from recast.policy.encoder_decoder import is_encoder_decoder, start_token
from recast.policy.packed import pack, packed_forward
from recast.types import RecastError

LARGEST_GAP = 1e-4
"""Of the logits' norm. Rounding in float32 is some 1e-6 of it, also in models of 30 layers; one
token that should not be seen, or a missing one, moves it by 1e-2 and more. Training can make a
model that rounding moves further: `allowed_gap`."""

_BRANCHES = torch.tensor(
    [[[8, 9, 0], [8, 10, 0], [11, 9, 0]], [[11, 10, 0], [11, 8, 0], [9, 8, 0]]]
)
_CANDIDATES = 128  # embeddings that are compared, of the model's own tokens and of the items'


def is_packable(model: Any) -> bool:
    """Whether all layers have an attention that the packed one can replace.

    Others would run without the layout, that is, with wrong numbers and no error. A T5 is given its
    masks otherwise.
    """
    if is_encoder_decoder(model):
        return True
    layers = set(getattr(text_config(model), "layer_types", None) or ["full_attention"])
    known = layers <= {"full_attention", "sliding_attention"}
    return known and bool(model._supports_attention_backend)


@torch.no_grad()
def packed_gap(model: PreTrainedModel, catalog: Catalog) -> float:
    """How far the logits of the packed forward are from those of the model alone, in its own
    attention: the largest distance behind one token, as a share of the norm.

    Two prompts of unequal lengths, three branches each, of which two begin alike. Infinite where
    the layout reached no attention or a logit is none.
    """
    tokens = _telling_tokens(model, catalog)
    lengths = torch.tensor([5, 3], device=tokens.device)
    prompts = torch.stack([tokens[:5], tokens[5:10]])  # the second is padded with what tells too
    branches = tokens[_BRANCHES.to(tokens.device)]
    with _in_float32(model):
        packed = pack(prompts, lengths, branches, start_token=start_token(model))
        logits = model.get_output_embeddings()(packed_forward(model, packed))
        with own_attention(model):
            alone = [
                _last_logits(model, prompt[:length].expand(3, -1), own[:, :2])
                for prompt, length, own in zip(prompts, lengths, branches, strict=True)
            ]
    if not packed.layout.was_used:
        return torch.inf
    found = torch.stack([row[place] for row, place in zip(logits, packed.places, strict=True)])
    wanted = torch.stack(alone)
    gap = ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max()
    return float(gap) if bool(gap.isfinite()) else torch.inf


@torch.no_grad()
def allowed_gap(model: PreTrainedModel, catalog: Catalog) -> float:
    """The most that rounding explains: 100 times as far as the last bit of its input embeddings
    moves the logits of the model alone, as every layer rounds several times; at most 1e-2."""
    tokens = _telling_tokens(model, catalog)
    draw = torch.Generator().manual_seed(0)

    def jitter(module: object, sent: object, embedded: Tensor) -> Tensor:
        bits = torch.randn(embedded.shape, generator=draw).to(embedded.device)
        return embedded * (1 + torch.finfo(torch.float32).eps * bits)

    with _in_float32(model), own_attention(model):
        logits = partial(_last_logits, model, tokens[None, :5], tokens[None, 5:7])
        wanted = logits()
        weight = model.get_input_embeddings().weight
        tables = [x for x in model.modules() if getattr(x, "weight", None) is weight]
        inputs = [x for x in tables if isinstance(x, torch.nn.Embedding)]
        hooks = [x.register_forward_hook(jitter) for x in inputs]
        try:
            found = torch.cat([logits() for _ in range(3)])
        finally:
            for hook in hooks:
                hook.remove()
    moved = float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
    return 100 * min(moved, LARGEST_GAP)


def _last_logits(
    model: PreTrainedModel, prompts: Int[Tensor, "B P"], branches: Int[Tensor, "B 2"]
) -> Float[Tensor, "B 3 V"]:
    sent = {"input_ids": torch.cat([prompts, branches], dim=1)}
    if (start := start_token(model)) is not None:
        written = torch.cat([torch.full_like(branches[:, :1], start), branches], dim=1)
        sent = {"input_ids": prompts, "decoder_input_ids": written}
    logits: Tensor = model(**sent, use_cache=False).logits
    return logits[:, -3:]


def _telling_tokens(model: PreTrainedModel, catalog: Catalog) -> Int[Tensor, " 12"]:
    """Twelve tokens whose embeddings are as far apart as can be: of tokens that look alike a wrong
    mask would leave no trace. New rows may be, and that of a padding token may be zero."""
    weight: Tensor = model.get_input_embeddings().weight
    own, last = max(catalog.first_token - 1, 0), len(weight) - 1
    spaced = [torch.linspace(0, own, _CANDIDATES), torch.linspace(own, last, _CANDIDATES)]
    tokens = torch.cat(spaced).long().unique().to(weight.device)
    rows = weight[tokens].float()
    tokens, rows = tokens[rows.any(1)], rows[rows.any(1)]
    if not len(tokens):
        raise RecastError("all embeddings of the model are zero: give a trained model")
    chosen = [int(rows.norm(dim=1).argmax())]
    apart = torch.full((len(rows),), torch.inf, device=rows.device)
    while len(chosen) < 12:
        apart = apart.minimum((rows - rows[chosen[-1]]).norm(dim=1))
        chosen.append(int(apart.argmax()))
    found: Tensor = tokens[chosen]
    return found


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention that transformers wrote for this model, on the same weights."""
    configs = {id(x.config): x.config for x in model.modules() if hasattr(x, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Weights of 16 bits become 32 for the length of their own module's call, so that rounding
    hides nothing and there is never a second copy of them all."""
    narrow: dict[int, list[tuple[Any, Tensor]]] = {}

    def widen(module: torch.nn.Module, _: object) -> None:
        own = [x for x in _weights_of(module) if x.dtype.itemsize < 4]
        narrow[id(module)] = [(x, x.data) for x in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def restore(module: torch.nn.Module, *_: object) -> None:
        for parameter, data in narrow.pop(id(module), []):
            parameter.data = data

    hooks: list[Any] = []
    try:
        for module in model.modules():
            if any(x.dtype.itemsize < 4 for x in _weights_of(module)):
                hooks.append(module.register_forward_pre_hook(widen))
                hooks.append(module.register_forward_hook(restore, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weights_of(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """That a module's call reads: its own; a T5's feed-forward block looks at those of its layers,
    to whose precision it rounds."""
    return module.parameters(recurse=hasattr(module, "wo"))


def other_attention(name: str, kind: str) -> RecastError:
    return RecastError(
        f"{name} is a {kind}, whose attention the packed forward cannot "
        "replace: choose a model of plain or sliding-window attention, such as Qwen3 or Llama"
    )
