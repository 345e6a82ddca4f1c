"""Scores of a response on padded sets of SIDs: its SIDs and the targets in, `Float[B, G]` out.

A response names 0, 1 or several items, `Int[B, G, R, D]` in the order of its text; the targets are
`Int[B, T, D]`. Both are named by their SIDs, or, where items are texts, by the tokens that decide
between them, of which some have fewer than others: -1 behind the last one, and all -1 for none. A
SID that no item has is a miss like any other. Rewards and signals share these.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import is_first


def sid_first_hit(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> Float[Tensor, "B G"]:
    """1 where the first SID that the response names is a target.

    >>> predictions = torch.tensor([[[[-1, -1, -1], [1, 2, 3]], [[4, 4, 4], [1, 2, 3]]]])
    >>> sid_first_hit(predictions, torch.tensor([[[1, 2, 3]]]))
    tensor([[1., 0.]])
    """
    named = _named(predictions)
    return (_is_target(predictions, targets) & named & (named.cumsum(-1) == 1)).any(-1).float()


def sid_any_hit(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> Float[Tensor, "B G"]:
    """1 where the response names a target anywhere.

    >>> predictions = torch.tensor([[[[4, 4, 4], [1, 2, 3]], [[4, 4, 4], [-1, -1, -1]]]])
    >>> sid_any_hit(predictions, torch.tensor([[[1, 2, 3]]]))
    tensor([[1., 0.]])
    """
    return (_is_target(predictions, targets) & _named(predictions)).any(-1).float()


def sid_set_ratio(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> Float[Tensor, "B G"]:
    """|P & T| / |P| of the sets P of a response's SIDs and T of targets, 0 where either is empty.

    >>> predictions = torch.tensor([[[[1, 2, 3], [4, 5, 8], [9, 9, 9]]]])
    >>> sid_set_ratio(predictions, torch.tensor([[[1, 2, 3], [4, 5, 6]]]))
    tensor([[0.3333]])
    """
    counts = _named(predictions) & is_first(predictions)
    hits = (_is_target(predictions, targets) & counts).sum(-1)
    return hits / counts.sum(-1).clamp(min=1)


def structural_score(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> Float[Tensor, "B G"]:
    """Mean over the set P of max over T of phi = 10^-(levels after the common prefix), 0 for none.

    On three levels phi is 1, 0.1, 0.01, and 0 when the first level differs. Levels are the target's
    own: where items are texts, the places at which it differs from others.

    >>> predictions = torch.tensor([[[[1, 2, 9]], [[1, 9, 9]], [[7, 7, 7]], [[-1, -1, -1]]]])
    >>> structural_score(predictions, torch.tensor([[[1, 2, 3]]]))
    tensor([[0.1000, 0.0100, 0.0000, 0.0000]])
    >>> structural_score(predictions, torch.tensor([[[1, 2, -1]]]))  # a target of two decisions
    tensor([[1.0000, 0.1000, 0.0000, 0.0000]])
    """
    prefix, levels = _prefix(predictions, targets)
    phi = torch.where(prefix > 0, 10.0 ** (prefix - levels), 0.0).amax(-1)
    counts = _named(predictions) & is_first(predictions)
    return (phi * counts).sum(-1) / counts.sum(-1).clamp(min=1)


def shared_frac(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> Float[Tensor, "B G R"]:
    """Part of a target's levels that each named SID shares from the first on, at most over T.

    >>> predictions = torch.tensor([[[[1, 2, 9, 4]], [[9, 2, 3, 4]]]])
    >>> shared_frac(predictions, torch.tensor([[[1, 2, 3, 4]]]))
    tensor([[[0.5000],
             [0.0000]]])
    """
    prefix, levels = _prefix(predictions, targets)
    return (prefix / levels.clamp(min=1)).amax(-1)


def _prefix(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> tuple[Int[Tensor, "B G R T"], Int[Tensor, "B 1 1 T"]]:
    """Levels that each named SID shares with each target from the first on, and a target's own."""
    wanted = targets[:, None, None]
    same = (predictions[:, :, :, None] == wanted) & (wanted >= 0)
    return same.cumprod(-1).sum(-1), (wanted >= 0).sum(-1)


def _named(predictions: Int[Tensor, "B G R D"]) -> Bool[Tensor, "B G R"]:
    return predictions[..., 0] >= 0


def _is_target(
    predictions: Int[Tensor, "B G R D"], targets: Int[Tensor, "B T D"]
) -> Bool[Tensor, "B G R"]:
    wanted = targets[:, None, None]
    same = (predictions[:, :, :, None] == wanted).all(-1) & (wanted[..., 0] >= 0)
    return same.any(-1)
