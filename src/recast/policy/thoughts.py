"""Branches behind thoughts in one packed forward: a thought is the beginning of its branches.

So the prompt is sent once however many thoughts it has, and a thought once however many branches
follow it. Letter: M the tokens of the longest thought.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from recast.policy.load import Policy
from recast.policy.logprobs import BranchScores, Reading, read_branches
from recast.policy.packed import pack, packed_forward
from recast.types import LogprobSpace, Prompts, Thoughts


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """What each of K branches of a prompt begins with.

    Example, the prompt 1 5 9 of which 2 tokens are read, a branch behind the thought 7 8:
    `begins=[2]  tokens=[[[7, 8]]]  lengths=[[2]]  mask=[[[True, True]]]  sent=[2]`.
    """

    tokens: Int[Tensor, "B K M"]
    lengths: Int[Tensor, "B K"]
    mask: Bool[Tensor, "B K M"]
    """Tokens whose probability is asked for."""
    begins: Int[Tensor, " B"]
    """Tokens of the prompt that they stand behind."""
    sent: Int[Tensor, " B"]
    """Tokens of the distinct thoughts that some branch follows."""


def begun_of(
    thoughts: Thoughts,
    index: Int[Tensor, "B K"],
    mask: Bool[Tensor, "B K M"],
    exists: Bool[Tensor, "B K"],
) -> Begun:
    """The beginnings of the branches that follow the thoughts `index`, if they exist."""
    at = index[..., None].expand(-1, -1, thoughts.tokens.shape[2])
    followed = torch.zeros_like(thoughts.lengths).scatter_add(1, index, exists.long()) > 0
    return Begun(
        tokens=thoughts.tokens.gather(1, at),
        lengths=thoughts.lengths.gather(1, index),
        mask=mask,
        begins=thoughts.begins,
        sent=(thoughts.lengths * followed).sum(1),
    )


def begun_scores(
    policy: Policy,
    prompts: Prompts,
    branches: Int[Tensor, "B K L"],
    space: LogprobSpace,
    mask: Bool[Tensor, "B K L"],
    begun: Begun,
    *,
    with_entropy: bool = True,
) -> BranchScores:
    """`branch_scores` of branches behind thoughts: M columns of these, over the whole vocabulary,
    then the L of the branches in `space`; 0 where nothing is asked for."""
    reading = read_branches(policy.catalog, prompts, branches, mask, space)
    most, length = begun.tokens.shape[2], branches.shape[2]
    place = torch.arange(most + length, device=branches.device)
    at = place - begun.lengths[..., None]  # within the branch
    inside = at.clamp(0, length - 1)
    both = torch.where(at < 0, F.pad(begun.tokens, (0, length)), branches.gather(2, inside))
    asked = reading.asked.gather(2, inside) & (at < length)
    asked = torch.where(at < 0, F.pad(begun.mask, (0, length)), asked)
    packed = pack(prompts.tokens, begun.begins, both.masked_fill(at >= length, 0), asked)
    hidden = packed_forward(policy.model, packed)
    thoughts = Reading(branches=begun.tokens, asked=begun.mask, space="full")
    behind = begun.lengths[..., None] + place[:length]
    parts = [
        part.scores(policy, replace(packed, places=places), hidden, with_entropy=with_entropy)
        for part, places in (
            (thoughts, packed.places[:, :, :most]),
            (reading, packed.places.gather(2, behind)),
        )
    ]
    return BranchScores(*(torch.cat(pair, dim=2) for pair in zip(*parts, strict=True)))
