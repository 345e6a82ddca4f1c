"""A step's rollouts as a table: groups, rewards and signal in, one row per rollout out."""

from __future__ import annotations

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import RolloutGroups, Signal, Thoughts


def rollout_table(
    step: int,
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    signal: Signal,
    given: RolloutGroups,
    tasks: list[str] | None = None,
) -> pl.DataFrame:
    """One row per rollout, as it was drawn and rewarded, with the weight the signal gave its place.

    `rank` is the place in the group (0 = first), `logprob` the sum over the rollout's tokens,
    `advantage` the mean over them. `injected` marks a place where the groups that the signal was
    `given` hold `add_gt`'s target, `repaired` one where the signal put other tokens: its advantage
    and `keep` belong to those. Rows that the signal added are left out. `tasks` names that of each
    prompt, where there are several. Behind thoughts `thought` is the number of the one that a
    rollout follows, `thought_tokens` what it writes, without what is forced behind it,
    `weights_step` the step behind which the weights were that wrote it.
    """
    num_prompts, group_size = groups.items.shape
    repaired = (signal.groups.tokens[:, :group_size] != given.tokens).any(-1)
    injected = torch.zeros_like(repaired) if given.injected is None else given.injected
    learned = signal.groups.loss_mask[:, :group_size]
    advantages = signal.advantages[:, :group_size].expand(groups.tokens.shape) * learned
    columns = {
        "row_id": groups.prompts.row_ids.repeat_interleave(group_size),
        "rank": torch.arange(group_size).repeat(num_prompts),
        "item": groups.items,
        "tokens": groups.tokens.flatten(0, 1),
        "logprob": (groups.rollout_logprobs * groups.loss_mask).sum(-1),
        "reward": rewards,
        "advantage": advantages.sum(-1) / learned.sum(-1).clamp(min=1),
        "keep": signal.keep[:, :group_size],
        "repaired": repaired,
        "injected": injected,
    }
    flat = {
        name: (value if name == "tokens" else value.flatten()).detach().cpu().numpy()
        for name, value in columns.items()
    }
    tokens = pl.Series("tokens", flat.pop("tokens")).cast(pl.List(pl.Int32))
    table = pl.DataFrame(flat).insert_column(3, tokens)
    if groups.thoughts is not None:
        table = table.with_columns(_thoughts(groups.thoughts))
    if tasks is not None:
        named = [name for name in tasks for _ in range(group_size)]
        table.insert_column(1, pl.Series("task", named))
    step_column = pl.Series("step", [step], dtype=pl.Int32).new_from_index(0, len(table))
    return table.insert_column(0, step_column)


def _thoughts(thoughts: Thoughts) -> list[pl.Series]:
    """Of every rollout: which thought it follows, and that one's tokens."""
    written = [
        [row[:length] for row, length in zip(rows, lengths, strict=True)]
        for rows, lengths in zip(
            thoughts.tokens.tolist(), thoughts.num_written.tolist(), strict=True
        )
    ]
    of = thoughts.of.tolist()
    tokens = [rows[place] for rows, places in zip(written, of, strict=True) for place in places]
    by = thoughts.weights_step.gather(1, thoughts.of).flatten().tolist()
    return [
        pl.Series("thought", thoughts.of.flatten().tolist(), dtype=pl.Int32),
        pl.Series("thought_tokens", tokens, dtype=pl.List(pl.Int32)),
        pl.Series("weights_step", by, dtype=pl.Int32),
    ]
