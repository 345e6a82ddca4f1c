"""Rows of prompt and completion, as trainers of text models batch them, packed: each distinct
prompt once, with the completions of all its rows as branches.

Legend: N rows | U distinct prompts | P prompt columns | K branches of a prompt at most |
C completion columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

NO_LABEL = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Prompts padded on the right; row n is branch `slots[n]` of prompt `owners[n]`.

    Example, rows `[0 7 | 5 6]`, `[8 9 | 5 0]`, `[0 7 | 4 0]` with 0 as padding:
    `prompts=[[7, 0], [8, 9]]  lengths=[1, 2]  owners=[0, 1, 0]  slots=[0, 0, 1]`
    `labels=[[[5, 6], [4, -100]], [[5, -100], [-100, -100]]]`.
    """

    prompts: Int[Tensor, "U P"]
    lengths: Int[Tensor, " U"]
    labels: Int[Tensor, "U K C"]
    """The completions' tokens, `NO_LABEL` where there is none."""
    owners: Int[Tensor, " N"]
    slots: Int[Tensor, " N"]


def pack_rows(
    tokens: Int[Tensor, "N P_plus_C"], mask: Int[Tensor, "N P_plus_C"], completion: int
) -> PackedRows:
    """Rows whose prompt is padded on the left and whose completion, the last `completion` columns,
    is padded on the right; `mask` is 0 at the padding."""
    width = tokens.shape[1] - completion
    # A padding token may be a token of the text as well, so prompts are compared without it.
    prompts = tokens[:, :width].masked_fill(mask[:, :width] == 0, -1)
    prompts, owners = prompts.unique(dim=0, return_inverse=True)
    lengths = (prompts >= 0).sum(1)
    columns = torch.arange(width, device=tokens.device) + (width - lengths)[:, None]
    prompts = prompts.gather(1, columns.clamp(max=width - 1)).masked_fill(columns >= width, 0)
    order = owners.argsort(stable=True)
    counts = owners.bincount(minlength=len(prompts))
    slots = torch.empty_like(owners)
    slots[order] = torch.arange(len(owners), device=owners.device) - (
        counts.cumsum(0) - counts
    ).repeat_interleave(counts)
    labels = tokens.new_full((len(prompts), int(counts.max()), completion), NO_LABEL)
    labels[owners, slots] = tokens[:, width:].masked_fill(mask[:, width:] == 0, NO_LABEL)
    return PackedRows(prompts=prompts, lengths=lengths, labels=labels, owners=owners, slots=slots)
