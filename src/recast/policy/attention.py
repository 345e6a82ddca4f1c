"""The packed attention: who may attend to whom in one call, inside transformers' own models.

`AttentionInterface` knows it as `ATTENTION`; the `Layout` of a call reaches it as a keyword
argument of `model(...)`. Over a prompt plain causal attention is exact, so no mask of prompt x
prompt is ever built. Without a layout a row is all prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from recast.types import RecastError

ATTENTION = "recast_packed"
DROPS_NOTHING = "drops_nothing"
"""Set on modules whose dropout is off, whatever rate they ask for."""


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
    num_tokens: Int[Tensor, ""] | int = 0
    """Queries of this call, the prompt's too, that are no filling; 0: they are not counted."""

    _biases: dict[Any, Tensor] = field(default_factory=dict, init=False)

    def at(self, queries: Int[Tensor, "B N"]) -> Layout:
        """These queries alone, sent before: what goes on from them sees what they see."""
        index = queries[:, None, :, None].expand(-1, -1, -1, self.mask.shape[3])
        return Layout(
            prompt_width=0,
            mask=self.mask.gather(2, index),
            query_positions=self.query_positions.gather(1, queries),
            key_positions=self.key_positions,
        )

    @property
    def was_used(self) -> bool:
        """Whether the attention of any layer has seen it."""
        return bool(self._biases)

    def bias(
        self, window: int | None, dtype: torch.dtype, copies: int = 1
    ) -> Float[Tensor, "B 1 M S"]:
        """0 where a layer that sees `window` positions back, its own included, may look, else -inf;
        the N queries `copies` times: M.

        Made once for all layers: of a boolean mask each layer would make, and keep, its own.
        """
        if (window, dtype, copies) not in self._biases:
            mask = self.mask
            if window is not None:
                distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
                mask = mask & (distance < window)[:, None]
            batch, _, queries, keys = mask.shape
            # Rows begin at multiples of 8 numbers; kernels of a GPU would copy others, each layer.
            rows = (batch, copies, queries, -(-keys // 8) * 8)
            nothing = torch.zeros(rows, dtype=dtype, device=mask.device)[..., :keys]
            nothing.masked_fill_(~mask, -torch.inf)
            self._biases[window, dtype, copies] = nothing.flatten(1, 2)[:, None]
        return self._biases[window, dtype, copies]


def some_rows(layout: Layout, index: Int[Tensor, " B"]) -> Layout:
    """The layout of some rows of a call."""
    return Layout(
        prompt_width=layout.prompt_width,
        mask=layout.mask[index],
        query_positions=layout.query_positions[index],
        key_positions=layout.key_positions[index],
    )


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B heads Q D"],
    key: Float[Tensor, "B kv_heads S D"],
    value: Float[Tensor, "B kv_heads S D"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B Q heads D"], None]:
    """Attention of one layer; without a `layout` the whole call is a right-padded prompt.

    Raises `RecastError` for models with score soft-capping, attention sinks or a mask of their own
    (`no_mask` gave them none), and for keys of a cache without a layout.
    """
    if layout is None and query.shape[2] != key.shape[2]:
        raise RecastError(
            f"{query.shape[2]} queries meet {key.shape[2]} keys under attention {ATTENTION!r} "
            "without a layout: for generate() call model.set_attn_implementation('sdpa') first"
        )
    foreign = {"a mask of its own": attention_mask}
    foreign |= {name: kwargs.get(name) for name in ("softcap", "s_aux", "position_bias")}
    for name, part in foreign.items():
        if part is not None:
            raise RecastError(
                f"{type(module).__name__} uses {name}: the packed forward has no such attention; "
                "choose a model without it"
            )
    width = query.shape[2] if layout is None else layout.prompt_width
    settings: dict[str, Any] = {
        "scale": scaling,
        "dropout_p": 0.0 if getattr(module, DROPS_NOTHING, False) else dropout,
    }
    parts = []
    with _kernels_without_plans(query.device):
        if width and layout is not None and _is_last(module):
            # Nobody reads what the last layer makes of the prompt: its keys and values are enough.
            parts.append(query.new_zeros(*query.shape[:2], width, value.shape[3]))
        elif width:
            q, k, v = (x[:, :, :width] for x in (query, key, value))
            parts.append(_causal(q, k, v, window=sliding_window, **settings))
        if layout is not None:
            parts.append(
                _masked(query[:, :, width:], key, value, layout, window=sliding_window, **settings)
            )
    # Contiguous, as transformers' own functions return it: some models take a view of it.
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _is_last(module: Any) -> bool:
    number = getattr(module, "layer_idx", None)  # a model that does not say computes it all
    return number is not None and bool(number == module.config.num_hidden_layers - 1)


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    window: int | None,
    **settings: Any,
) -> Tensor:
    """Attention by the layout's mask. Heads that share keys go as one head of more queries: the
    kernels that take a mask know no shared keys, and would get a copy of them for each head."""
    share = query.shape[1] // key.shape[1]
    bias = layout.bias(window, query.dtype, share)
    query = query.unflatten(1, (key.shape[1], share)).flatten(2, 3)
    found = F.scaled_dot_product_attention(query, key, value, bias, **settings)
    each: Tensor = found.unflatten(2, (share, -1)).flatten(1, 2)
    return each


@contextmanager
def _kernels_without_plans(device: torch.device) -> Iterator[None]:
    """cuDNN plans its attention anew for every shape, for as long as a whole call of the model
    takes, and the shapes of prompts and their branches hardly repeat."""
    enabled = device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()
    if enabled:
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if enabled:
            torch.backends.cuda.enable_cudnn_sdp(True)


def _causal(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | None, **settings: Any
) -> Tensor:
    """Causal attention; past a window, query blocks of it meet their own and the previous block."""
    settings["enable_gqa"] = query.shape[1] != key.shape[1]
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
