"""Validation: a policy in training and rows in, metrics of its lists out."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from recast.config import VALID_METRICS, ThinkConfig, split_metric
from recast.config.think import NO_THOUGHT
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_policy, rows_of_tasks, sample_rows
from recast.evaluation.thoughts import thought_metrics
from recast.policy.load import Policy
from recast.policy.sharded import whole_weights
from recast.policy.tasks import Task
from recast.types import Metrics, RecastError


def require_valid(task: Task, data: str, count: int) -> Int[Tensor, " C"]:
    """A sample of the validation rows; `RecastError` when there is none."""
    rows = task.rows("valid")
    if not len(rows):
        raise RecastError(
            f"{data} has no validation row, by which a run is watched: prepare it with some "
            "(of rows: valid_frac)"
        )
    return sample_rows(rows, count)


def validate(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    names: Sequence[str] = VALID_METRICS,
    think: ThinkConfig = NO_THOUGHT,
) -> Metrics:
    """Metrics at item level, such as `ndcg@10`, of a policy in training, whose mode is left as it
    was; by 32 beams, or as many as the largest k, of every thought an equal share. Of several tasks
    also under `TASK/`."""
    asked = [split_metric(name) for name in names]
    training = policy.model.training
    policy.model.eval()
    count = think.thoughts or 1
    width = -(-max(32, *(k for _, k in asked)) // count) * count
    with whole_weights(policy.model):
        ranks = rank_policy(policy, task, rows, width, think=think)
    policy.model.train(training)
    values: dict[str, Float[Tensor, " N"]] = {}
    for metric, k in asked:
        values |= row_metrics(ranks, [k], ["item"], [metric])
    metrics = {f"valid/{name}": float(values[f"item/{name}"].mean()) for name in names}
    if ranks.thoughts is not None:
        thoughts = thought_metrics([ranks.thoughts])
        metrics |= {f"valid/{name.replace('/', '_')}": value for name, value in thoughts.items()}
    for task_name, inside in rows_of_tasks(task, rows).items():
        metrics |= {
            f"{task_name}/valid/{name}": float(values[f"item/{name}"][inside].mean())
            for name in names
        }
    return metrics
