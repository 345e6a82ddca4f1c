"""How far a policy went from where it began: its run folder in, the KL on validation rows out.

`actor/kl` of a run is over what its method kept, so two methods do not compare. Here it is over the
same rows for all, between the distributions over the candidates that a row could be shown:

    KL = sum over items of p(item) (log p(item) - log q(item))

with p the policy and q its start, each normalised over the candidates. Exact: no item is sampled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recast.config.check import check_settings
from recast.config.settings_file import read_settings
from recast.evaluation.exact import exact_scores
from recast.evaluation.rank import sample_rows
from recast.policy.load import load_policy
from recast.policy.logprobs import tokens_sent
from recast.policy.tasks import load_task
from recast.rollout.decoder import Decoder
from recast.run.files import staged_folder
from recast.types import Metrics

_MOST_ROWS, _TOKENS = 100, 3_000_000  # rows, and tokens of all of them together
_ROWS = 8  # at a time
_TAIL = 10  # rows that move most: one in ten


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """A policy of `recast rl`, which is held against the one that its run began from."""

    data: str
    policy: str
    output: str

    def __post_init__(self) -> None:
        check_settings(self)


def measure_drift(config: DriftConfig, log: object = None) -> Metrics:
    """Mean KL over up to 100 validation rows (`kl`) and the share of it that is in the tenth of
    them that moved most (`kl_tail_frac`); nothing where a single row's catalogue costs too much.

    The sample depends on the data alone.
    """
    start = read_settings(str(Path(config.policy).parent / "config.yaml"))["policy"]
    policy, before = (load_policy(folder) for folder in (config.policy, start))
    task = load_task(config.data, policy)
    count = min(_MOST_ROWS, _TOKENS // tokens_sent(policy.catalog))
    metrics: Metrics = {}
    if count:
        rows = sample_rows(task.rows("valid"), count)
        found = []
        for some in rows.split(_ROWS):
            prompts = task.prompts(some)
            scores = [
                exact_scores(one, prompts, Decoder(), policy.logprob_space)
                for one in (policy, before)
            ]
            found.append(item_kl(*scores))
        kl = torch.cat(found)
        tail = kl.sort(descending=True).values[: max(1, len(kl) // _TAIL)]
        total = float(kl.sum())
        metrics = {
            "kl": total / len(kl),
            "kl_tail_frac": float(tail.sum()) / total if total > 0 else 0.0,
            "rows": float(len(kl)),
        }
    with staged_folder(config.output) as stage:
        (stage / "drift.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def item_kl(
    scores: Float[Tensor, "B _leaves"], reference: Float[Tensor, "B _leaves"]
) -> Float[Tensor, " B"]:
    """KL(policy, reference) of every row in nats, of scores that need not sum to 1; -inf is no
    candidate.

    (1/2, 1/2) against (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3 = .1438.

    >>> a, b = torch.tensor([[.1, .1, 0.]]).log(), torch.tensor([[.25, .75, 0.]]).log()
    >>> round(item_kl(a, b).item(), 4)
    0.1438
    """
    log_p, log_q = (x.double().log_softmax(-1) for x in (scores, reference))
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -torch.inf, 0.0).sum(-1).clamp(min=0).float()
