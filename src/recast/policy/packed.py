"""The packed forward: every prompt goes through the model once, however many branches it has.

A *branch* is one rollout or one target of the prompt; branches that begin alike share their
beginning. One row of a call is `[prompt without its last token | root | nodes]`, a node for every
distinct beginning. The prompt is padded on the right, so plain causal attention is exact for its
real tokens; the *root* is the prompt's last token, moved to a fixed column so that the first
token's distribution sits in the same place for every row. A node's query attends to its prompt, to
the root and to its own ancestors; its position continues from the prompt's length. No mask of
prompt x prompt is ever built. Without a layout (SFT) a row is all prompt.

The attention runs inside transformers' own models: `AttentionInterface` knows it as `ATTENTION`,
and the `Layout` of a call reaches it as a keyword argument of `model(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from recast.types import RecastError

ATTENTION = "recast_packed"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who may attend to whom in one call: the root's and nodes' N queries against S keys (cached
    ones first).

    Example, the prompt 1 7 beside a longer one, branches 3 8 and 4 8: its row is `1 7 | 7 | 3 4`.
    The second column was left behind by the root, nobody looks at it; each of the nodes 3 and 4
    sees the prompt, the root and itself: `prompt_width=2  query_positions=[[1, 2, 2]]
    mask=[[[[1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 0, 1]]]]`.
    """

    prompt_width: int
    """Prompt queries of this call, before the others; 0 when decoding from a cache."""
    mask: Bool[Tensor, "B 1 N S"]
    query_positions: Int[Tensor, "B N"]
    key_positions: Int[Tensor, "B S"]

    _biases: dict[Any, Tensor] = field(default_factory=dict, init=False)

    @property
    def was_used(self) -> bool:
        """Whether the attention of any layer has seen it."""
        return bool(self._biases)

    def bias(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "B 1 N S"]:
        """0 where a layer that sees `window` positions back, its own included, may look, else -inf.

        Made once for all layers: of a boolean mask each layer would make, and keep, its own.
        """
        if (window, dtype) not in self._biases:
            mask = self.mask
            if window is not None:
                distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
                mask = mask & (distance < window)[:, None]
            nothing = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            self._biases[window, dtype] = nothing.masked_fill_(~mask, -torch.inf)
        return self._biases[window, dtype]


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B heads Q D"],
    key: Float[Tensor, "B kv_heads S D"],
    value: Float[Tensor, "B kv_heads S D"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B Q heads D"], None]:
    """Attention of one layer; without a `layout` the whole call is a right-padded prompt.

    Raises `RecastError` for models with score soft-capping or attention sinks, which
    scaled_dot_product_attention cannot express, and for keys of a cache without a layout.
    """
    if layout is None and query.shape[2] != key.shape[2]:
        raise RecastError(
            f"{query.shape[2]} queries meet {key.shape[2]} keys under attention {ATTENTION!r} "
            "without a layout: for generate() call model.set_attn_implementation('sdpa') first"
        )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise RecastError(
                f"{type(module).__name__} uses {name}: the packed forward has no such attention; "
                "choose a model without it"
            )
    width = query.shape[2] if layout is None else layout.prompt_width
    settings: dict[str, Any] = {
        "scale": scaling,
        "dropout_p": dropout,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    parts = []
    if width and layout is not None and _is_last(module):
        # Nobody reads what the last layer makes of the prompt: its keys and values are enough.
        parts.append(query.new_zeros(*query.shape[:2], width, value.shape[3]))
    elif width:
        q, k, v = (x[:, :, :width] for x in (query, key, value))
        parts.append(_causal(q, k, v, window=sliding_window, **settings))
    if layout is not None:
        bias = layout.bias(sliding_window, query.dtype)
        parts.append(
            F.scaled_dot_product_attention(query[:, :, width:], key, value, bias, **settings)
        )
    # Contiguous, as transformers' own functions return it: some models take a view of it.
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _is_last(module: Any) -> bool:
    number = getattr(module, "layer_idx", None)  # a model that does not say computes it all
    return number is not None and bool(number == module.config.num_hidden_layers - 1)


def _causal(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | None, **settings: Any
) -> Tensor:
    """Causal attention; past a window, query blocks of it meet their own and the previous block."""
    width = query.shape[2]
    if window is None or width <= window:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, **settings)
    blocks = -(-width // window)
    query, key, value = (
        F.pad(x, (0, 0, 0, blocks * window - width)).unflatten(2, (blocks, window))
        for x in (query, key, value)
    )
    first = F.scaled_dot_product_attention(
        query[:, :, 0], key[:, :, 0], value[:, :, 0], is_causal=True, **settings
    )
    keys, values = (torch.cat([x[:, :, :-1], x[:, :, 1:]], dim=3) for x in (key, value))
    step = torch.arange(window, device=query.device)
    distance = (step[:, None] + window) - torch.arange(2 * window, device=query.device)
    band = (distance >= 0) & (distance < window)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query[:, :, 1:], keys, values))
    rest = F.scaled_dot_product_attention(q, k, v, band, **settings)
    rest = rest.unflatten(0, (query.shape[0], blocks - 1)).transpose(1, 2).flatten(2, 3)
    return torch.cat([first, rest], dim=2)[:, :, :width]


def no_mask(*args: Any, **kwargs: Any) -> None:
    """transformers asks for a mask before every call; the layout makes it unnecessary."""


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, no_mask)


def root_layout(lengths: Int[Tensor, " B"], width: int) -> Layout:
    """Layout of `[prompt of width | root]`; `lengths` counts the root too."""
    columns = torch.arange(width, device=lengths.device).expand(len(lengths), -1)
    positions = lengths[:, None] - 1
    mask = torch.cat([columns < positions, torch.ones_like(positions, dtype=torch.bool)], dim=1)
    return Layout(
        prompt_width=width,
        mask=mask[:, None, None],
        query_positions=positions,
        key_positions=torch.cat([columns, positions], dim=1),
    )


def split_root(
    tokens: Int[Tensor, "B P"], lengths: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B W"], Int[Tensor, "B 1"]]:
    """A right-padded prompt as (all tokens but the last, the last); W = longest prompt - 1.

    The column that a prompt's last token leaves behind is never attended to.
    """
    return tokens[:, : int(lengths.max()) - 1], tokens.gather(1, (lengths - 1)[:, None])


def merge(
    parents: Int[Tensor, "B N"], tokens: Int[Tensor, "B N"]
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B M"], Int[Tensor, "B M"]]:
    """Branches that continue the same parent by the same token as one: the node of each branch, and
    the parents and tokens of the M nodes. A row with fewer nodes is filled with some of parent 0.

    >>> index, parents, tokens = merge(torch.tensor([[0, 1, 0]]), torch.tensor([[7, 7, 7]]))
    >>> index.tolist(), parents.tolist(), tokens.tolist()
    ([[0, 1, 0]], [[0, 1]], [[7, 7]])
    """
    if not tokens.shape[1]:
        return tokens, parents, tokens
    key, order = (parents << 32 | tokens).sort(dim=1)
    rank = F.pad((key[:, 1:] != key[:, :-1]).long().cumsum(1), (1, 0))
    index = torch.empty_like(rank).scatter_(1, order, rank)
    nodes = parents.new_zeros(len(rank), int(rank[:, -1].max()) + 1)
    return index, nodes.scatter(1, index, parents), nodes.scatter(1, index, tokens)


def grow(layout: Layout, parents: Int[Tensor, "B M"]) -> Layout:
    """Layout of M nodes one token deeper; `parents` index the queries of `layout`."""
    ancestors = layout.mask.gather(
        2, parents[:, None, :, None].expand(-1, -1, -1, layout.mask.shape[3])
    )
    itself = torch.eye(parents.shape[1], dtype=torch.bool, device=parents.device)
    positions = layout.query_positions[:, :1].expand(-1, parents.shape[1]) + 1
    return Layout(
        prompt_width=0,
        mask=torch.cat([ancestors, itself.expand(len(parents), 1, -1, -1)], dim=-1),
        query_positions=positions,
        key_positions=torch.cat([layout.key_positions, positions], dim=1),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One call of the model for prompts and all their branches.

    A branch's last token is not sent, nothing is read after it. Example, the prompts 1 5 9 and 1 7
    with two branches each; those of the first begin alike and share a node, the fifth column of its
    row is filling:

    >>> prompts, lengths = torch.tensor([[1, 5, 9], [1, 7, 0]]), torch.tensor([3, 2])
    >>> branches = torch.tensor([[[2, 8], [2, 9]], [[3, 8], [4, 8]]])
    >>> packed = pack(prompts, lengths, branches)
    >>> packed.tokens.tolist(), packed.positions.tolist()
    ([[1, 5, 9, 2, 0], [1, 7, 7, 3, 4]], [[0, 1, 2, 3, 3], [0, 1, 1, 2, 2]])
    >>> packed.places.tolist()
    [[[1], [1]], [[1], [2]]]
    """

    tokens: Int[Tensor, "B S"]
    positions: Int[Tensor, "B S"]
    layout: Layout
    places: Int[Tensor, "B K L_minus_1"]
    """Column, counted from the root (0), of every branch token but the last one."""


def pack(
    tokens: Int[Tensor, "B P"], lengths: Int[Tensor, " B"], branches: Int[Tensor, "B K L"]
) -> Packed:
    """Prompts and branches as one row each. K may be 0 and L may be 1."""
    prompt, root = split_root(tokens, lengths)
    width = prompt.shape[1]
    columns = torch.arange(width, device=tokens.device).expand(len(tokens), -1)
    layers, row = [root_layout(lengths, width)], [prompt, root]
    index, places, nodes = torch.zeros_like(branches[:, :, 0]), [], 1
    for depth in range(branches.shape[2] - 1):
        index, parents, found = merge(index, branches[:, :, depth])
        layers.append(grow(layers[-1], parents))
        row.append(found)
        places.append(index + nodes)
        nodes += found.shape[1]
    positions = torch.cat([layer.query_positions for layer in layers], dim=1)
    masks = [F.pad(x.mask, (0, width + nodes - x.mask.shape[3])) for x in layers]
    return Packed(
        tokens=torch.cat(row, dim=1),
        positions=torch.cat([columns, positions], dim=1),
        layout=Layout(
            prompt_width=width,
            mask=torch.cat(masks, dim=2),
            query_positions=positions,
            key_positions=layers[-1].key_positions,
        ),
        places=torch.stack(places, dim=2) if places else branches[:, :, :0],
    )


def packed_forward(model: PreTrainedModel, packed: Packed) -> Float[Tensor, "B N W"]:
    """Last hidden states of the roots and the nodes."""
    found = model.base_model(
        input_ids=packed.tokens,
        position_ids=packed.positions,
        layout=packed.layout,
        use_cache=False,
    )
    hidden: Tensor = found.last_hidden_state[:, packed.layout.prompt_width :]
    return hidden


def packed_hidden(
    model: PreTrainedModel,
    tokens: Int[Tensor, "B P"],
    lengths: Int[Tensor, " B"],
    branches: Int[Tensor, "B K L"],
) -> tuple[Float[Tensor, "B 1 W"], Float[Tensor, "B K L_minus_1 W"]]:
    """Last hidden states (W wide) after each prompt and after every branch token but the last one.

    They are what the output layer reads; gradients flow through both. K may be 0 and L may be 1.
    """
    packed = pack(tokens, lengths, branches)
    hidden = packed_forward(model, packed)
    places = packed.places.flatten(1)[..., None].expand(-1, -1, hidden.shape[2])
    return hidden[:, :1], hidden.gather(1, places).unflatten(1, packed.places.shape[1:])
