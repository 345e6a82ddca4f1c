"""The typed artefacts that walk from stage to stage.

Legend, used in every shape of the package:

B prompts in a batch | G rollouts per prompt (`group_size`) | K rollouts kept for the update |
L tokens of the longest item | D decisions of an item at most (levels of a semantic ID, then L) |
P prompt tokens | T targets per prompt | H history items | S seen items | R items that a rollout
names | I catalogue items | E events | V vocabulary | N any number of rows. A file that needs more
letters names them itself.

Padding: `-1` in columns of items, the pad token in columns of tokens; always on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.draws import uniforms
from recast.errors import LARGEST_FACTOR as LARGEST_FACTOR
from recast.errors import LogprobSpace as LogprobSpace
from recast.errors import RecastError as RecastError
from recast.errors import in_short as in_short
from recast.errors import one_line as one_line
from recast.errors import require as require
from recast.errors import require_range as require_range

Metrics = dict[str, float]
"""One step's numbers under slash names, e.g. `{"group/all_zero_frac": 0.85}`."""

SPLITS = ("train", "rl", "valid", "test")
"""Values of `Interactions.splits`, by index. `rl` is the latest slice of the training period:
the supervised model never trains on it, baselines do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interactions:
    """Every event of a data set, sorted by user, then by time; an event's index is its row id.

    The history of row `e` is `items[starts[e]:e]`, its target is `items[e]`.

    Example, user 0 with items 5, 7 and user 1 with item 5:
    `users=[0,0,1]  items=[5,7,5]  times=[10,20,15]  starts=[0,0,2]  splits=[0,3,0]`.
    """

    users: Int[Tensor, " E"]
    items: Int[Tensor, " E"]
    times: Int[Tensor, " E"]
    starts: Int[Tensor, " E"]
    splits: Int[Tensor, " E"]
    num_users: int
    num_items: int
    exclude_seen: bool
    """True: an item of the row's own history is no candidate, and no row has such a target."""
    split_name: str
    """How the events were split, in words; printed above every table."""

    def rows(self, split: str) -> Int[Tensor, " N"]:
        """Row ids of one split in time order, those with at least one earlier event."""
        index = torch.arange(len(self.items))
        chosen = index[(self.splits == SPLITS.index(split)) & (self.starts < index)]
        return chosen[torch.argsort(self.times[chosen], stable=True)]

    def within(self, splits: Iterable[str]) -> Bool[Tensor, " E"]:
        """Which events are of one of these splits, the first of a user among them."""
        return torch.isin(self.splits, torch.tensor([SPLITS.index(split) for split in splits]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """A batch of rows ready for a policy.

    Example, one prompt whose history is item 5 = tokens (2, 9) and whose target is item 7:
    `tokens=[[1, 2, 9]]  lengths=[3]  targets=[[[3, 8]]]  target_items=[[7]]  history=[[5]]`
    `target_mask=[[[True, True]]]  target_sids=[[[3, 8]]]`, as
    `recast.policy.prompts.make_prompts` fills them.
    """

    tokens: Int[Tensor, "B P"]
    lengths: Int[Tensor, " B"]
    targets: Int[Tensor, "B T L"]
    target_items: Int[Tensor, "B T"]
    target_mask: Bool[Tensor, "B T L"]
    """Tokens of the targets, without what pads them; none where there is no target."""
    target_sids: Int[Tensor, "B T D"]
    """What the targets are named by: of semantic IDs the tokens, of texts the token at every place
    where items differ; -1 behind the last one and where there is no target."""
    history: Int[Tensor, "B H"]
    """Items of `tokens`, oldest first."""
    seen: Int[Tensor, "B S"]
    """Items that are no candidates for this row; width 0 when nothing is excluded."""
    row_ids: Int[Tensor, " B"]
    domains: Int[Tensor, " B"]
    """Whose items a row asks for, an index in the catalogue's `domains`: its candidates are of this
    domain, and its answers start from the domain's root of the trie."""

    def __len__(self) -> int:
        return len(self.row_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """What supervised training reads: N token sequences, end to end, and what counts in them.

    Example, BOS = 1 and the item (2, 9), then BOS and the items (3, 8) and (2, 9):
    `tokens=[1, 2, 9, 1, 3, 8, 2, 9]  loss_mask=[0, 1, 1, 0, 1, 1, 1, 1]  lengths=[3, 5]`.
    """

    tokens: Int[Tensor, " _tokens"]
    loss_mask: Bool[Tensor, " _tokens"]
    """Tokens that the model is to write; never the first of a sequence."""
    lengths: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, index: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
        """Tokens and loss mask of some sequences; what pads them on the right counts nothing."""
        lengths = self.lengths[index]
        starts = self.lengths.cumsum(0)[index] - lengths
        column = torch.arange(int(lengths.max()), device=lengths.device)
        place = starts[:, None] + column.minimum(lengths[:, None] - 1)
        return self.tokens[place].long(), self.loss_mask[place] & (column < lengths[:, None])

    def take(self, index: Int[Tensor, " M"]) -> Sequences:
        """Some sequences in this order, one twice if it is named twice."""
        lengths = self.lengths[index]
        starts = self.lengths.cumsum(0)[index] - lengths
        shift = (starts - lengths.cumsum(0) + lengths).repeat_interleave(lengths)
        place = shift + torch.arange(len(shift), device=shift.device)
        return Sequences(
            tokens=self.tokens[place], loss_mask=self.loss_mask[place], lengths=lengths
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What a sampler is told besides policy, prompts and group size: its randomness and its record.

    Example, the draws of step 3 of seed 0, recorded over the allowed children:
    `Draw(logprob_space="trie", seed=0, step=3)`.
    """

    logprob_space: LogprobSpace = "full"
    """In which the log-probability of a token is recorded (and by which a search ranks)."""
    seed: int = 0
    step: int = 0

    def uniforms(self, prompts: Prompts, name: str, width: int) -> Float[Tensor, "B width"]:
        """Draws in [0, 1) for every prompt; they depend on (seed, step, row, name) alone."""
        return uniforms(self.seed, self.step, prompts.row_ids, name, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thoughts:
    """What a policy writes between a prompt and its rollouts: N thoughts, and the tokens that are
    forced behind each; of M tokens together, right-padded.

    Example, one prompt of 3 tokens with the thoughts (7, 8) and (9,), 4 forced behind them and two
    rollouts below each: `begins=[3]  tokens=[[[7, 8, 4], [9, 4, 0]]]  lengths=[[3, 2]]
    num_written=[[2, 1]]  of=[[0, 0, 1, 1]]`.
    """

    tokens: Int[Tensor, "B N M"]
    lengths: Int[Tensor, "B N"]
    num_written: Int[Tensor, "B N"]
    """Tokens of the thought itself, what closes it included."""
    loss_mask: Bool[Tensor, "B N M"]
    """Tokens that count, in every rollout below; none of what pads."""
    logprobs: Float[Tensor, "B N M"]
    """Of the policy over the whole vocabulary, in every `logprob_space`."""
    is_closed: Bool[Tensor, "B N"]
    """Ended by `</think>`, neither by the limit nor by the end of the turn."""
    has_format: Bool[Tensor, "B N"]
    """Closed, and more than 10 characters behind `<think>` that are no space (OpenOneRec's format
    reward)."""
    begins: Int[Tensor, " B"]
    """Tokens of the prompt that they stand behind: what begins an item comes after them."""
    of: Int[Tensor, "B G"]
    """The thought that each rollout follows."""
    weights_step: Int[Tensor, "B N"]
    """Steps behind the weights that wrote them; the rollout's own unless they lag behind it."""
    server_gap: Float[Tensor, "B N"] | None = None
    """Mean distance, in nats, of the server's log-probability of a token from the policy's; None
    where no server wrote them and where it says those of another temperature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroups:
    """G rollouts for each of B prompts, never torn apart, most probable first.

    Lists of N items keep their own order, row g N + k being rank k of list g; a target that
    `add_gt` put last stays last.

    Example, G = 2 rollouts of L = 2 tokens for the prompt above, the second one a hit:
    `tokens=[[[2, 8], [3, 8]]]  items=[[4, 7]]  loss_mask=[[[True, True], [True, True]]]`
    `predictions=[[[[2, 8]], [[3, 8]]]]`.
    """

    prompts: Prompts
    tokens: Int[Tensor, "B G L"]
    items: Int[Tensor, "B G"]
    """-1 = not in the catalogue, or no rollout at all (then its `loss_mask` is all False)."""
    predictions: Int[Tensor, "B G R D"]
    """What each rollout names, apart from what it writes: its items as `target_sids` names them,
    -1 = none. A rollout that is one item has R = 1."""
    rollout_logprobs: Float[Tensor, "B G L"]
    target_logprobs: Float[Tensor, "B T L"]
    loss_mask: Bool[Tensor, "B G L"]
    """Tokens that count; no pad is one. Whoever replaces a rollout sets it."""
    seed: int
    step: int
    weights: Float[Tensor, "B G"] | None = None
    """Importance weights w: sum_i w_i f(y_i) is an unbiased estimate of the policy's mean of f.
    None for draws of equal weight and for a search."""
    injected: Bool[Tensor, "B G"] | None = None
    """Rows that are no draws, in whose place `add_gt` put the target; None where it did not run."""
    thoughts: Thoughts | None = None
    """What the rollouts follow where the sampler thinks first; they then stand thought by thought,
    and a token's log-probability is that behind its thought, a target's behind the first one."""

    @property
    def exists(self) -> Bool[Tensor, "B G"]:
        """False where fewer than G valid paths were left for a prompt."""
        return self.loss_mask.any(-1)

    def uniforms(self, name: str, width: int) -> Float[Tensor, "B width"]:
        """Seeded draws in [0, 1) for a signal; they depend on (seed, step, row, name) alone."""
        return uniforms(self.seed, self.step, self.prompts.row_ids, name, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """What the actor learns from: a weight per rollout token and a likelihood weight per prompt.

    `keep=False` takes a rollout out of the update and out of every denominator; an advantage of 0
    with `keep=True` stays in the denominator and in the KL. Example, ReCast on G = 4 with the pair
    (3, 0): `advantages=[[[-1.], [0.], [0.], [1.]]]  keep=[[True, False, False, True]]`.
    """

    groups: RolloutGroups
    """The groups the weights refer to, possibly repaired."""
    advantages: Float[Tensor, "B G L"] | Float[Tensor, "B G 1"]
    keep: Bool[Tensor, "B G"]
    nll_weight: Float[Tensor, " B"]
    metrics: Metrics


Ranker = Callable[[Prompts, Int[Tensor, "B N"]], Float[Tensor, "B N"]]
"""Scores of N items (all >= 0) for each prompt, higher is better; any scale."""

Loss = Callable[..., Float[Tensor, "B K L"] | Float[Tensor, "B K"] | Float[Tensor, " B"]]
"""One value per token, per rollout or per group of the rollouts that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """Facts about a part that others act on; a part without an entry has none of them.

    Each room keeps the entries of its parts beside their names: `recast.losses.TRAITS` and so on;
    `recast.methods.parts.traits_of` reads them all.
    """

    is_silent_at_zero: bool = False
    """Loss: a rollout of advantage 0 adds nothing, neither by itself nor to what others add."""
    has_rewards: bool = False
    """Loss: reads the advantages as rewards. Signal: gives the rewards as advantages."""
    is_over_children: bool = False
    """Sampler, signal: its formula needs probabilities over the allowed children."""
    is_weighted: bool = False
    """Sampler: its groups carry importance weights."""
    has_fixed_rows: bool = False
    """Sampler: no rollout may be overwritten by the target (`add_gt`)."""
    thinks: bool = False
    """Sampler: its rollouts follow thoughts; a target, which follows none, has no likelihood.
    Reward: is of thoughts."""
    reads_batch: bool = False
    """Signal: a prompt's weights depend on the other prompts of the batch."""
