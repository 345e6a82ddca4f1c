"""Policies of a run's steps: the policy in training in, folders and a table of them out.

`RUN/steps/20` is the policy behind step 20, as `RUN/policy` is that of the end.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from recast.evaluation.facts import STEPS
from recast.policy.load import Policy, save_policy
from recast.policy.sharded import whole_weights
from recast.run.files import remove_whole
from recast.run.reading import reason_of
from recast.run.world import once
from recast.types import RecastError

_COLUMNS = {
    "NDCG@10": "valid/ndcg@10",
    "free HR@10": "valid/free_hr@10",
    "invalid": "valid/invalid_frac",
    "malformed": "valid/malformed_frac",
}


def is_due(save_every: int | None, step: int, steps: int) -> bool:
    """Whether the policy behind a step is kept.

    >>> [step for step in range(1, 8) if is_due(3, step, steps=7)]
    [3, 6, 7]
    """
    return save_every is not None and (step % save_every == 0 or step == steps)


def count_due(save_every: int | None, steps: int) -> int:
    """Policies that a run keeps.

    >>> count_due(3, 7), count_due(7, 7), count_due(None, 7)
    (3, 1, 0)
    """
    return 0 if save_every is None else -(-steps // save_every)


def save_step(policy: Policy, run: Path, step: int, *, merge: bool) -> str:
    """Write the policy of a step, in place of one that an ended run left there; returns what went
    wrong, nothing where all is well: a run does not end for one of them. Of several ranks the first
    alone writes."""
    with whole_weights(policy.model):
        return once(partial(_save_step, policy, run / STEPS / str(step), merge=merge))


def _save_step(policy: Policy, folder: Path, *, merge: bool) -> str:
    remove_whole(folder)
    try:
        folder.parent.mkdir(exist_ok=True)
        save_policy(policy, folder, merge=merge)
    except (RecastError, OSError) as error:
        return f"warning: {folder} is missing ({reason_of(error)})"
    return ""


def steps_table(run: str | Path) -> str:
    """One line for every step of a run folder whose policy was kept, the start first."""
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [["step", *_COLUMNS]]
    for line in map(json.loads, lines):
        is_kept = (Path(run) / STEPS / str(line["step"])).is_dir()
        if is_kept or line["step"] == 0:
            cells = (line.get(name) for name in _COLUMNS.values())
            text = ["-" if value is None else f"{value:.4f}" for value in cells]
            rows.append([str(line["step"]), *text])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
