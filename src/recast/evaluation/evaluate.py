"""`recast evaluate`: a policy and a split in, `eval.json` and `rows.parquet` out."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import EvaluateConfig, StratifyConfig
from recast.config.check import names_code
from recast.data.folder import data_hash
from recast.evaluation.baseline import evaluate_baseline, is_baseline
from recast.evaluation.breakdown import grouped
from recast.evaluation.disk import write_evaluation
from recast.evaluation.exact import affordable_rows, is_elsewhere, places_of
from recast.evaluation.facts import (
    Facts,
    events_of_guide,
    joined,
    kept_of,
    training_of,
    valid_of,
)
from recast.evaluation.free import free_metrics
from recast.evaluation.metrics import row_metrics
from recast.evaluation.places import SHOWN
from recast.evaluation.rank import (
    batches_of,
    rank_policy,
    rows_of_tasks,
    rows_to_rank,
    sample_rows,
)
from recast.evaluation.ranks import Ranks
from recast.evaluation.rescore import evaluate_predictions
from recast.evaluation.thoughts import thought_metrics
from recast.policy.baselines import FIT_SPLITS
from recast.policy.device import find_device
from recast.policy.load import Policy, load_policy
from recast.policy.ranker import load_ranker
from recast.policy.tasks import Task, load_task
from recast.policy.threads import choose_threads
from recast.rollout.decoder import Decoder
from recast.run.fingerprint import inputs_of, meet
from recast.run.parts import NO_PARTS, Parts, parts_of
from recast.run.world import once
from recast.types import Metrics, require

_CHOOSING = 2000  # validation rows


def evaluate_policy(config: EvaluateConfig) -> Metrics:
    """`recast evaluate`: rank a whole split, write `eval.json` and `rows.parquet`.

    The policy may be a folder of `recast baselines`, or published lists may stand in its place.
    Returns the means; `eval.json` adds their 95 %
    intervals over users, what they cover and the settings. Raises `RecastError` when data and
    policy do not belong together or the split has no row.
    """
    meet(config, EvaluateConfig)
    find_device(config.device)
    if config.predictions is not None:
        return once(lambda: evaluate_predictions(config))
    assert config.policy is not None  # one of the two
    if is_baseline(config.policy):
        return once(lambda: evaluate_baseline(config))
    with parts_of(config.output) as parts:
        return _evaluate(config, config.policy, parts)


def _evaluate(config: EvaluateConfig, folder: str, parts: Parts) -> Metrics:
    policy = load_policy(folder, config.catalog).to(config.device)
    policy.model.float()  # as in training, where near ties are told apart
    task = load_task(config.data, policy)
    rows = rows_to_rank(task, config.data, config.split)
    decoder = Decoder()
    if config.guide and config.decoder != "beam":
        guide = load_ranker(
            config.guide, policy.catalog, config.output, kind="guide", data=config.data
        )
        decoder = Decoder(guide=guide, kind=config.decoder)
    popular = task.item_counts(FIT_SPLITS).float()

    def rank(chosen: Int[Tensor, " N"], parts: Parts = NO_PARTS) -> Ranks:
        return rank_policy(
            policy,
            task,
            chosen,
            config.beam_width,
            decoder,
            split=config.split,
            popularity=popular,
            seed=config.seed,
            think=config.think,
            parts=parts,
        )

    begin_parts(parts, config, ("at", "levels"))
    few = rows[next(batches_of(policy, task, rows, config.beam_width, think=config.think))[:32]]
    wanted = parts.threads or config.threads
    threads = choose_threads(lambda: rank(few), wanted, config.device)
    chosen_on, valid = None, valid_of(folder)
    if decoder.guide:
        alpha, valid = config.alpha, None
        if alpha is None:
            few = sample_rows(task.rows("valid"), _CHOOSING)
            remedy = f"{config.data} has no validation row to choose it on, give one from 0 to 1"
            require(len(few) > 0, "alpha", None, remedy)
            curve = alpha_curve(policy, task, few, config.beam_width, decoder, parts)
            valid, alpha = max((quality, alpha) for alpha, quality in curve.items())
            tried = {f"{alpha:g}": quality for alpha, quality in curve.items()}
            chosen_on = {"split": "valid", "rows": len(few), "ndcg@10": tried}
        decoder = replace(decoder, alpha=alpha)
    ranks = rank(rows, parts)
    facts = facts_of(ranks.facts, config, folder, decoder)
    chosen_on_split = "valid" if chosen_on else None
    ranks = replace(ranks, facts=replace(facts, valid_ndcg=valid, alpha_chosen_on=chosen_on_split))
    exact = _against_exact(policy, task, ranks, config, decoder, parts)
    unconstrained = sample_rows(rows, config.invalid_rows)
    free = free_metrics(
        policy,
        task,
        unconstrained,
        config.beam_width,
        think=config.think,
        seed=config.seed,
        parts=parts,
    )
    seen = ranks.facts.events_seen or FIT_SPLITS
    events = task.item_counts(seen)[task.targets(rows)[:, 0]]
    settings = asdict(config) | {
        "threads": threads,
        "invalid_frac": free.get("invalid_frac"),
        "malformed_frac": free.get("malformed_frac"),
        "split_name": task.split_name,
        "alpha": decoder.alpha if decoder.guide else None,
        "alpha_chosen_on": chosen_on,
        "exact": exact,
        "breakdown": grouped(ranks, seen, events, task.history_lengths(rows)),
    }
    thoughts = {} if ranks.thoughts is None else thought_metrics([ranks.thoughts])
    if thoughts:
        settings["thoughts"] = thoughts
    if notes := task.notes(rows):
        settings["notes"] = notes
    means = once(
        lambda: write_evaluation(
            ranks,
            config.output,
            settings,
            config.seed,
            config.at,
            config.levels,
            rows_of_tasks(task, rows),
        )
    )
    counts = {"rows": float(len(rows)), "users": float(len(ranks.users.unique()))}
    return means | free | thoughts | counts


def alpha_curve(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    beam_width: int,
    decoder: Decoder,
    parts: Parts,
) -> dict[float, float]:
    """NDCG@10 on these rows by the policy's weight, from 0 to 1; `parts` keep what is done."""
    k = min(10, beam_width)

    def quality(weight: Float[Tensor, " 1"]) -> dict[str, Tensor]:
        tried = replace(decoder, alpha=float(weight))
        ranks = rank_policy(policy, task, rows, beam_width, tried)
        (ndcg,) = row_metrics(ranks, [k], ["item"], ["ndcg"]).values()
        return {"quality": ndcg.mean()}

    weights = (torch.arange(11, dtype=torch.float64) / 10).split(1)
    found = parts.collect("weights of the policy", weights, quality)
    return {
        float(weight): float(part["quality"]) for weight, part in zip(weights, found, strict=True)
    }


def facts_of(facts: Facts, config: EvaluateConfig, folder: str, decoder: Decoder) -> Facts:
    """What the ranks hang on besides how they were made: the run of the policy, and the guide."""
    events_seen, training_seed = training_of(folder, config.data)
    guide = None
    if decoder.guide and config.guide:
        guide = f"{config.decoder}, alpha {decoder.alpha:g}, with {config.guide}"
        events_seen = joined(events_seen, events_of_guide(config.guide, config.data))
    return replace(
        facts,
        data=data_hash(config.data),
        events_seen=events_seen,
        training_seed=training_seed,
        kept=kept_of(folder),
        guide=guide,
    )


def _against_exact(
    policy: Policy,
    task: Task,
    ranks: Ranks,
    config: EvaluateConfig,
    decoder: Decoder,
    parts: Parts,
) -> dict[str, Any] | None:
    """How many targets of some rows have another place in the whole catalogue, within the first ten
    and within the list; None where no row is asked for."""
    rows, count = ranks.row_ids, config.exact_rows
    if config.think.thoughts is not None:
        return None
    if count is None:
        count = affordable_rows(policy.catalog, task.lengths(rows), config.beam_width)
    if not count:
        return None
    few = sample_rows(rows, count)
    exact = places_of(policy, task, few, decoder, policy.logprob_space, parts)
    order = rows.argsort()
    at = order[torch.searchsorted(rows[order], few)]
    beams = ranks.sid_rank[at, : exact.shape[2]]
    elsewhere = {k: is_elsewhere(beams, exact, k) for k in sorted({SHOWN, config.beam_width})}
    return {
        "rows": len(few),
        "targets": int((exact[0] > 0).sum()),
        "elsewhere": {str(k): int(which.sum()) for k, which in elsewhere.items()},
    }


def begin_parts(
    parts: Parts, config: EvaluateConfig | StratifyConfig, free: tuple[str, ...] = ()
) -> None:
    """Keep what is done, for the same settings, but for those `free` to change, and the same files
    alone. With code of a user's own nothing is kept, for nobody knows what it reads."""
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    del settings["output"]
    if any(names_code(settings.get(name)) for name in ("guide", "ranker")):
        return
    parts.begin(inputs_of(settings), **settings)
