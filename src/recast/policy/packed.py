"""The packed forward: every prompt goes through the model once, however many branches it has.

A *branch* is one rollout or one target of the prompt. One row of a call is
`[prompt without its last token | root | branches]`. The prompt is padded on the right, so plain
causal attention is exact for its real tokens; the *root* is the prompt's last token, moved to a
fixed column so that the first token's distribution sits in the same place for every row. A branch
query attends to its prompt, to the root and to its own ancestors; its position continues from the
prompt's length. No mask of prompt x prompt is ever built. Without a layout (SFT) a row is all
prompt.

The attention runs inside transformers' own models: `AttentionInterface` knows it as `ATTENTION`,
and the `Layout` of a call reaches it as a keyword argument of `model(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from recast.types import RecastError

ATTENTION = "recast_packed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Who may attend to whom in one call: N branch queries against S keys (cached ones first)."""

    prompt_width: int
    """Prompt queries of this call, before the branch queries; 0 when decoding from a cache."""
    mask: Bool[Tensor, "B 1 N S"]
    query_positions: Int[Tensor, "B N"]
    key_positions: Int[Tensor, "B S"]

    def within(self, window: int | None) -> Bool[Tensor, "B 1 N S"]:
        """The branch mask of a layer that sees `window` positions back, its own included."""
        if window is None:
            return self.mask
        distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        return self.mask & (distance < window)[:, None]


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
    scaled_dot_product_attention cannot express.
    """
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
    if width:
        q, k, v = (x[:, :, :width] for x in (query, key, value))
        parts.append(_causal(q, k, v, window=sliding_window, **settings))
    if layout is not None:
        mask = layout.within(sliding_window)
        parts.append(
            F.scaled_dot_product_attention(query[:, :, width:], key, value, mask, **settings)
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


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


def root_layout(
    lengths: Int[Tensor, " B"], width: int, branch_tokens: int, num_branches: int
) -> Layout:
    """Layout of `[prompt of width | root | num_branches x branch_tokens]` in one call.

    `lengths` counts the whole prompt, its last token (the root) included.
    """
    device = lengths.device
    depth = torch.arange(branch_tokens, device=device).repeat(num_branches)
    branch = torch.arange(num_branches, device=device).repeat_interleave(branch_tokens)
    own = (branch[:, None] == branch) & (depth[:, None] >= depth)
    visible = F.pad(own, (1, 0, 1, 0), value=False)
    visible[:, 0] = True
    columns = torch.arange(width, device=device)
    positions = (lengths[:, None] - 1) + F.pad(depth + 1, (1, 0))
    in_prompt = (columns < (lengths - 1)[:, None])[:, None].expand(-1, len(visible), -1)
    mask = torch.cat([in_prompt, visible.expand(len(lengths), -1, -1)], dim=-1)
    return Layout(
        prompt_width=width,
        mask=mask[:, None],
        query_positions=positions,
        key_positions=torch.cat([columns.expand(len(lengths), -1), positions], dim=-1),
    )


def split_root(
    tokens: Int[Tensor, "B P"], lengths: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B W"], Int[Tensor, "B 1"]]:
    """A right-padded prompt as (all tokens but the last, the last); W = longest prompt - 1.

    The column that a prompt's last token leaves behind is never attended to.
    """
    return tokens[:, : int(lengths.max()) - 1], tokens.gather(1, (lengths - 1)[:, None])


def packed_logits(
    model: PreTrainedModel,
    tokens: Int[Tensor, "B P"],
    lengths: Int[Tensor, " B"],
    branches: Int[Tensor, "B K L"],
) -> tuple[Float[Tensor, "B 1 V"], Float[Tensor, "B K L_minus_1 V"]]:
    """Next-token logits after each prompt and after every branch token but the last one.

    Gradients flow through both. K may be 0 and L may be 1.
    """
    prompt, root = split_root(tokens, lengths)
    batch, num_branches, branch_length = branches.shape
    layout = root_layout(lengths, prompt.shape[1], branch_length - 1, num_branches)
    columns = torch.arange(prompt.shape[1], device=tokens.device)
    logits = model(
        input_ids=torch.cat([prompt, root, branches[:, :, :-1].flatten(1)], dim=1),
        position_ids=torch.cat([columns.expand(batch, -1), layout.query_positions], dim=1),
        layout=layout,
        use_cache=False,
        logits_to_keep=layout.mask.shape[2],
    ).logits
    return logits[:, :1], logits[:, 1:].unflatten(1, (num_branches, branch_length - 1))
