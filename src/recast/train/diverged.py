"""Where a run diverged: a step that is not made in, its prompts in a file of the run out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.run.files import staged_file
from recast.run.reading import reason_of
from recast.run.world import is_first
from recast.types import RecastError, Signal

FILE = "diverged.jsonl"

Rows = Iterator[dict[str, Any]]


class DivergedError(RecastError):
    """A loss or a gradient that is not finite; the step is not made."""


@contextmanager
def prompts_kept(folder: str | Path, rows: Callable[[], Rows]) -> Iterator[None]:
    """Around a step: what it learned from goes to `diverged.jsonl`, a line per prompt, when it
    cannot be made, and the error names the file."""
    try:
        yield
    except DivergedError as error:
        file = Path(folder) / FILE
        where = f"its prompts are in {file}"
        try:
            if is_first():  # all ranks learn from the same
                with staged_file(file) as stage, stage.open("w", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in rows())
        except RecastError as unwritten:
            where = reason_of(unwritten)
        raise DivergedError(f"{error}; {where}") from error


def rollouts_learned(signal: Signal, rewards: Float[Tensor, "B G"]) -> Rows:
    """The prompts of a signal that carry weight, each with its rollouts.

    `tokens` are the prompt's own, `rollouts` those that the signal gave back, `rewards` those of
    the places that it was given.
    """
    groups, prompts = signal.groups, signal.groups.prompts
    advantages = signal.advantages.expand(groups.tokens.shape)
    learned = signal.keep.any(1) | (signal.nll_weight != 0)
    for row in learned.nonzero()[:, 0].tolist():
        yield {
            "step": groups.step + 1,
            "row_id": int(prompts.row_ids[row]),
            "tokens": prompts.tokens[row, : int(prompts.lengths[row])].tolist(),
            "targets": prompts.targets[row].tolist(),
            "nll_weight": float(signal.nll_weight[row]),
            "rollouts": groups.tokens[row].tolist(),
            "rewards": rewards[row].tolist(),
            "advantages": advantages[row].tolist(),
            "keep": signal.keep[row].tolist(),
        }


def windows_learned(
    step: int, index: Int[Tensor, " B"], tokens: Int[Tensor, "B P"], loss_mask: Bool[Tensor, "B P"]
) -> Rows:
    """The windows of a batch by their place in the epoch; `learned` marks the tokens that count."""
    for place, row, mask in zip(index.tolist(), tokens, loss_mask, strict=True):
        length = int(mask.nonzero()[-1]) + 1 if bool(mask.any()) else len(row)
        yield {
            "step": step,
            "window": place,
            "tokens": row[:length].tolist(),
            "learned": mask[:length].tolist(),
        }
