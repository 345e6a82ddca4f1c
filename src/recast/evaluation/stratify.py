"""`recast stratify`: a policy and a ranker in, where the ranker helps out (AdaGRPO, 2606.08480).

    effect = rank of the logged item by the policy - its rank by the ranker

Both ranks are among the same candidates, the K best beams and the logged item: a positive effect
means that the ranker places it higher. Rows are laid out by the two tests of the gate: is the
policy uncertain (f), does the ranker discriminate (g)?

f asks for a bad rank by the policy and g for a good one by the ranker, so where both hold the
effect is positive whatever the ranker. Random scores, put through the same tests of the logged
item, show how much of it that is.

Differs from the paper: the cells of its tables could not be recovered, nor how it defines a rank
among ties; here equals share the mean of their ranks, and of several logged items each side's best
ranked one counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import StratifyConfig
from recast.draws import uniforms
from recast.evaluation.evaluate import begin_parts
from recast.evaluation.rank import sample_rows
from recast.evaluation.resample import DRAWS, user_intervals
from recast.policy.load import load_policy
from recast.policy.ranker import load_ranker
from recast.policy.tasks import load_task
from recast.policy.threads import choose_threads
from recast.rollout.beam import beam_search
from recast.run.files import staged_folder
from recast.run.fingerprint import meet
from recast.run.parts import Parts, parts_of
from recast.run.world import once
from recast.signals.adagrpo import (
    Scores,
    candidates,
    diagnose,
    in_batch_negatives,
    policy_scores,
    score,
)
from recast.types import Draw, Ranker, RecastError, RolloutGroups

COLUMNS = ("policy_rank", "ranker_rank", "effect", "chance_effect")
_SAYS = {None: "all", True: "yes", False: "no"}


def stratify_policy(config: StratifyConfig) -> str:
    """Write `stratify.json` and `stratify.md`; returns the table.

    Raises `RecastError` when data, policy and ranker do not belong together or there are fewer than
    two rows.
    """
    meet(config, StratifyConfig)
    with parts_of(config.output) as parts:
        return _stratify(config, parts)


def _stratify(config: StratifyConfig, parts: Parts) -> str:
    policy = load_policy(config.policy)
    policy.model.float()
    task = load_task(config.data, policy)
    ranker = load_ranker(config.ranker, policy.catalog, config.output, data=config.data)
    rows = sample_rows(task.rows(config.split), config.rows)
    if len(rows) < 2:
        raise RecastError(
            f"{config.data} has {len(rows)} rows in {config.split}: negatives come from other "
            "rows, give more data"
        )
    # Neighbours in time or length would be easier or harder negatives than any other row.
    rows = rows[uniforms(config.seed, 0, rows, "stratify", 1)[:, 0].argsort()]
    batches = rows.tensor_split(max(1, len(rows) // config.prompts_per_step))

    draw = Draw(logprob_space=policy.logprob_space, seed=config.seed)

    def roll_out(batch: Int[Tensor, " B"]) -> RolloutGroups:
        return beam_search(policy, task.prompts(batch), config.group_size, draw)

    def measure_batch(batch: Int[Tensor, " B"]) -> dict[str, Tensor]:
        return measure(
            roll_out(batch),
            ranker,
            tau=config.tau,
            rho=config.rho,
            num_negatives=config.num_negatives,
        )

    begin_parts(parts, config)
    wanted = parts.threads or config.threads
    threads = choose_threads(lambda: roll_out(batches[0]), wanted)
    found = parts.collect("rows", batches, measure_batch)
    columns = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    facts = asdict(config) | {"threads": threads, "split_name": task.split_name}
    content = facts | summarise(columns, task.users(rows), config.seed)
    return once(partial(_write, config.output, content))


def _write(output: str, content: dict[str, Any]) -> str:
    text = markdown(content)
    with staged_folder(output) as stage:
        (stage / "stratify.json").write_text(json.dumps(content, indent=2) + "\n")
        (stage / "stratify.md").write_text(text)
    return text


def measure(
    groups: RolloutGroups, ranker: Ranker, *, tau: float, rho: float, num_negatives: int
) -> dict[str, Tensor]:
    """Per row: the ranks, the effect, f and g, and the same of random scores."""
    rivals = candidates(groups).rivals
    policy_rank = mean_rank(*policy_scores(groups), rivals)
    group_size, targets = groups.items.shape[1], groups.prompts.target_items
    noise = groups.uniforms("chance", group_size + targets.shape[1])
    rollouts, wanted = noise.tensor_split([group_size], dim=1)
    wanted = wanted.masked_fill(targets < 0, -torch.inf)
    nothing = noise.new_full((len(noise), 1), -torch.inf)
    measured: dict[str, Tensor] = {"policy_rank": policy_rank}
    for prefix, scores in (
        ("", score(groups, in_batch_negatives(groups, num_negatives), ranker)),
        ("chance_", Scores(rollouts, wanted, nothing)),
    ):
        uncertain, discriminates = diagnose(groups, scores, tau=tau, rho=rho)
        ranker_rank = mean_rank(scores.rollouts, scores.targets, rivals)
        measured |= {
            f"{prefix}ranker_rank": ranker_rank,
            f"{prefix}effect": policy_rank - ranker_rank,
            f"{prefix}discriminates": discriminates,
            "uncertain": uncertain,
        }
    return measured


def mean_rank(
    scores: Float[Tensor, "B G"], targets: Float[Tensor, "B T"], rivals: Bool[Tensor, "B T G"]
) -> Float[Tensor, " B"]:
    """Rank of the best ranked target, from 1; equals share the mean of the ranks that they take
    together.

    >>> mean_rank(torch.tensor([[3.0, 2.0, 2.0]]), torch.tensor([[2.0]]), torch.ones(1, 1, 3) > 0)
    tensor([3.], dtype=torch.float64)
    """
    scores, wanted = scores[:, None], targets[..., None]
    ahead = (scores > wanted).double() + (scores == wanted).double() / 2
    return 1 + (ahead * rivals).sum(2).amin(1)


def summarise(columns: dict[str, Tensor], users: Int[Tensor, " N"], seed: int) -> dict[str, Any]:
    """Rows, shares, means and their 95 % intervals of every stratum."""
    f, g, chance = (columns[k] for k in ("uncertain", "discriminates", "chance_discriminates"))
    everywhere = torch.ones_like(f)
    strata = []
    for uncertain in _SAYS:
        for discriminates in _SAYS:
            of_f = everywhere if uncertain is None else f == uncertain
            of_g, of_chance = (
                everywhere if discriminates is None else x == discriminates for x in (g, chance)
            )
            cell, alike = of_f & of_g, of_f & of_chance
            share = cell[:, None].double().numpy()
            strata.append(
                {
                    "uncertain": uncertain,
                    "discriminates": discriminates,
                    "rows": int(cell.sum()),
                    "chance_rows": int(alike.sum()),
                    "share": _intervals(share, users.numpy(), seed)[0],
                }
                | {
                    name: _mean(columns[name], alike if "chance" in name else cell, users, seed)
                    for name in COLUMNS
                }
            )
    counts = {"num_rows": len(users), "num_users": len(users.unique())}
    return counts | {"resampled": "users", "draws": DRAWS, "strata": strata}


def _mean(
    values: Float[Tensor, " N"], cell: Bool[Tensor, " N"], users: Int[Tensor, " N"], seed: int
) -> dict[str, float] | None:
    """None for a stratum without a row."""
    if not bool(cell.any()):
        return None
    return _intervals(values[cell][:, None].double().numpy(), users[cell].numpy(), seed)[0]


def _intervals(values: np.ndarray, users: np.ndarray, seed: int) -> list[dict[str, float]]:
    statistics = user_intervals(values, users, seed=seed)
    return [
        {"value": float(mean), "low": float(low), "high": float(high)}
        for mean, low, high in zip(*statistics, strict=True)
    ]


def markdown(content: dict[str, Any]) -> str:
    """The strata as a table, with what the numbers are underneath."""
    heads = ["Policy uncertain", "Ranker discriminates", "Rows", "Share %", "Policy rank"]
    heads += ["Ranker rank", "Effect", "Effect of random scores"]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for stratum in content["strata"]:
        share = {name: 100 * value for name, value in stratum["share"].items()}
        says = [_SAYS[stratum["uncertain"]], _SAYS[stratum["discriminates"]]]
        cells = [_cell(share), *(_cell(stratum[name]) for name in COLUMNS)]
        lines.append([*says, f"{stratum['rows']:,}", *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n" + "\n".join(_caption(content)) + "\n"


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _caption(content: dict[str, Any]) -> list[str]:
    return [
        f"{content['split']} split ({content['split_name']}): {content['num_rows']:,} rows of "
        f"{content['num_users']:,} users. Ranks of the logged item among {content['group_size']} "
        "beams and itself; effect = policy rank - ranker rank, above 0 where the ranker places it "
        "higher.",
        f"Uncertain: the policy ranks it below the best {content['tau']:g} of the beams. "
        f"Discriminates: the ranker has it there, and {content['num_negatives']} items of other "
        f"rows' beams below the best {content['rho']:g}. Both at once is what AdaGRPO admits; "
        "they select a positive effect by themselves, the last column says how large one.",
        f"In parentheses 95 % intervals that resample users ({content['draws']:,} draws, seed "
        f"{content['seed']}); they do not cover training seeds.",
    ]
