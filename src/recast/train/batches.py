"""What an update sends: a Signal in; mini-batches, micro-batches and the counts to divide by out.

A *mini-batch* is one optimizer step, a part of the signal with denominators of its own. A
*micro-batch* is one pass through the models, whose size changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import counted_tokens, select
from recast.policy.passes import MOST_PASS_TOKENS, by_length
from recast.policy.thoughts import Begun, begun_of
from recast.run.world import share, world
from recast.types import Prompts, Signal, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The part of a signal that is sent: K rollouts and T targets per prompt, N = K + T.

    The branches are the rollouts, then the targets; T is 0 where no likelihood is asked for.
    Example, ReCast's pair (rows 3 and 0 of 4) of a prompt, no likelihood: K = 2, T = 0,
    `branches=[[y_0, y_3]]  advantages=[[[-1, -1, -1], [1, 1, 1]]]  loss_mask` all True. A prompt of
    the same call that keeps one rollout has a second row of `loss_mask` False.
    """

    prompts: Prompts
    branches: Int[Tensor, "B N L"]
    branch_mask: Bool[Tensor, "B N L"]
    """Tokens that are read: those that count, and those of targets with a likelihood."""
    advantages: Float[Tensor, "B K S"]
    loss_mask: Bool[Tensor, "B K S"]
    """S is L; of rollouts behind thoughts the M tokens of a thought and these L."""
    nll_weight: Float[Tensor, "B T L"]
    begun: Begun | None = None
    """The thoughts that the rollouts follow."""
    old_logprobs: Float[Tensor, "B K S"] | None = None
    """Of the policy before the first step on these rollouts; None: the next pass gives them."""
    ref_logprobs: Float[Tensor, "B K S"] | None = None


def mini_batches(signal: Signal, num_rows: int | None) -> list[Signal]:
    """Disjoint parts of a signal with `num_rows` kept rollouts each, the last with what is left.

    Rollouts take turns: the first that every prompt keeps, then the second of every prompt, and so
    on. Prompts with a likelihood are dealt out evenly, in their order. Rollouts without a token
    that counts are in no part.

    Two prompts that keep 3 rollouts and 1, in parts of 2:

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[1], [2], [3]]] * 2, [[[9]]] * 2)
    >>> keep = torch.tensor([[True, True, True], [False, True, False]])
    >>> whole = Signal(groups=groups, advantages=torch.ones(2, 3, 1), keep=keep,
    ...                nll_weight=torch.zeros(2), metrics={})
    >>> [part.keep.int().tolist() for part in mini_batches(whole, 2)]
    [[[1, 0, 0], [0, 1, 0]], [[0, 1, 1], [0, 0, 0]]]
    """
    if num_rows is None:
        return [signal]
    counted = signal.keep & signal.groups.exists
    row, rollout = counted.nonzero(as_tuple=True)
    order = counted.cumsum(1)[row, rollout].argsort(stable=True)
    parts = order.split(num_rows)
    learns = (signal.nll_weight != 0).nonzero()[:, 0].tensor_split(len(parts))
    found = []
    for part, prompts in zip(parts, learns, strict=True):
        keep = torch.zeros_like(counted)
        keep[row[part], rollout[part]] = True
        weight = torch.zeros_like(signal.nll_weight)
        weight[prompts] = signal.nll_weight[prompts]
        found.append(replace(signal, keep=keep, nll_weight=weight))
    return found


def micro_batches(
    signal: Signal,
    sent: Bool[Tensor, "B G"],
    max_tokens: int,
    pass_tokens: int = MOST_PASS_TOKENS,
) -> Iterator[Batch]:
    """Prompts with a rollout to send or a likelihood, bucketed by length, in the cheapest batches
    of at most `max_tokens` tokens; a prompt and its branches are never split."""
    prompts = signal.groups.prompts
    rows, branch_tokens = _rows_to_send(signal, sent)
    for index in by_length(prompts.lengths[rows], branch_tokens, max_tokens, pass_tokens):
        yield _gather(signal, sent, rows[index])


def shortest(signal: Signal, sent: Bool[Tensor, "B G"]) -> Batch:
    """The shortest prompt of those that are sent, alone."""
    rows, _ = _rows_to_send(signal, sent)
    least = signal.groups.prompts.lengths[rows].argmin()
    return _gather(signal, sent, rows[least][None])


def own_part(signal: Signal, sent: Bool[Tensor, "B G"]) -> Signal:
    """The prompts that this rank sends, of those that are sent, with what they carry; the others
    carry nothing. All ranks have about as many tokens."""
    if world().size == 1:
        return signal
    rows, branch_tokens = _rows_to_send(signal, sent)
    costs = (signal.groups.prompts.lengths[rows] + branch_tokens).tolist()
    own = torch.zeros_like(signal.nll_weight, dtype=torch.bool)
    own[rows[share(costs)]] = True
    return replace(
        signal, keep=signal.keep & own[:, None], nll_weight=signal.nll_weight.where(own, 0.0)
    )


def _rows_to_send(
    signal: Signal, sent: Bool[Tensor, "B G"]
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Prompts with a rollout to send or a likelihood, and the tokens of their branches."""
    has_nll = signal.nll_weight != 0
    rows = (sent.any(1) | has_nll).nonzero()[:, 0]
    of_rollouts = _sent_tokens(signal.groups.loss_mask) * sent
    of_targets = _sent_tokens(signal.groups.prompts.target_mask) * has_nll[:, None]
    branch_tokens = of_rollouts.sum(1) + of_targets.sum(1)
    if signal.groups.thoughts is not None:
        check_thoughts(signal)
        branch_tokens += signal.groups.thoughts.lengths.sum(1)
    return rows, branch_tokens[rows]


def _sent_tokens(mask: Bool[Tensor, "B N L"]) -> Int[Tensor, "B N"]:
    """Of every branch: all before the last one that counts, whether they count or not."""
    return (mask * torch.arange(mask.shape[2], device=mask.device)).amax(-1)


def _gather(signal: Signal, sent: Bool[Tensor, "B G"], rows: Int[Tensor, " N"]) -> Batch:
    groups = select(signal.groups, rows)
    prompts = groups.prompts
    prompts = replace(prompts, tokens=prompts.tokens[:, : int(prompts.lengths.max())])
    keep, nll_weight = sent[rows], signal.nll_weight[rows]
    # Rollouts to send first, in their order; short groups are filled with rows of no weight.
    kept = int(keep.sum(1).max())
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
    token = order[..., None].expand(-1, -1, groups.tokens.shape[2])
    mask = groups.loss_mask & keep[..., None]
    branches, masks = [groups.tokens.gather(1, token)], [mask.gather(1, token)]
    advantages = signal.advantages[rows].expand(groups.tokens.shape).gather(1, token)
    loss_mask, begun, weight = masks[0], None, advantages[:, :0]
    if groups.thoughts is not None:
        counted = counted_tokens(groups) & keep[..., None]
        loss_mask = counted.gather(1, order[..., None].expand(-1, -1, counted.shape[2]))
        of_thoughts = loss_mask[..., : -mask.shape[2]]
        followed = groups.thoughts.of.gather(1, order)
        begun = begun_of(groups.thoughts, followed, of_thoughts, loss_mask.any(-1))
        advantages = advantages[..., :1].expand(loss_mask.shape)
    if bool((nll_weight != 0).any()):
        count = prompts.target_mask.any(-1).sum(1)[:, None, None].clamp(min=1)
        weight = nll_weight[:, None, None] * prompts.target_mask / count
        branches.append(prompts.targets)
        masks.append(weight != 0)
    return Batch(
        prompts=prompts,
        branches=torch.cat(branches, dim=1),
        branch_mask=torch.cat(masks, dim=1),
        advantages=advantages,
        loss_mask=loss_mask,
        nll_weight=weight,
        begun=begun,
    )


def check_thoughts(signal: Signal) -> None:
    """Raise `RecastError` for what has no meaning behind a thought."""
    need = "behind thoughts a rollout has one advantage, choose a signal with one for all tokens"
    shape = list(signal.advantages.shape)
    require(shape[2] == 1, "shape of the advantages", shape, need)
    has_nll = bool((signal.nll_weight != 0).any())
    need = "a target stands behind no thought of its own, choose a method without a likelihood"
    require(not has_nll, "nll_weight", "above 0", need)


def tokens_of(batches: Sequence[Batch]) -> tuple[int, int]:
    """Tokens of prompts and branches: with what pads them, and without."""
    sent = real = 0
    for batch in batches:
        branch_tokens = _sent_tokens(batch.branch_mask).sum(1)
        if batch.begun is not None:
            branch_tokens = branch_tokens + batch.begun.sent
        lengths = batch.prompts.lengths
        sent += len(lengths) * int(lengths.max() + branch_tokens.max())
        real += int((lengths + branch_tokens).sum())
    return sent, real


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What the sums are divided by."""

    units: tuple[int, int, int]
    """Groups, rollouts and tokens that are kept: by the dimensions of a loss, less one."""
    nll_tokens: float
    """A prompt counts once however many targets it has, with their mean length: they share its
    weight."""


def counts_of(signal: Signal) -> Counts:
    kept = counted_tokens(signal.groups) & signal.keep[..., None]
    prompts = signal.groups.prompts
    lengths = prompts.target_mask.sum(-1)
    mean_length = lengths.sum(1).double() / (lengths > 0).sum(1).clamp(min=1)
    units = (kept.any(-1).any(-1), kept.any(-1), kept)
    groups, rollouts, tokens = (max(int(unit.sum()), 1) for unit in units)
    return Counts(
        units=(groups, rollouts, tokens),
        nll_tokens=max(float(mean_length[signal.nll_weight != 0].sum()), 1.0),
    )
