"""What a rank hangs on: the facts that ranks carry, and which of them must agree to be compared.

A fact that is None is not known (of a folder written before facts were) and agrees with any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from recast.config.check import names_code
from recast.config.settings_file import read_settings
from recast.data.folder import data_hash
from recast.policy.baseline_folder import FACTS, load_baseline
from recast.policy.baselines import FIT_SPLITS
from recast.run.doors import ranker_folder
from recast.run.reading import read_json
from recast.types import SPLITS, RecastError, in_short

EVALUATOR = 1
"""Version of what turns lists into numbers; one more whenever a number could change. Version 1 also
wrote the folders without facts: their numbers are the same to the last digit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Example, a policy judged by 32 beams: `Facts(split="test", split_name="global time 80/10/10",
    num_candidates=1682, exclude_seen=True, beam_width=32, ties="expectation")`."""

    split: str | None = None
    split_name: str | None = None
    """How the events were split, in words."""
    data: str | None = None
    """Sha256 of the events."""
    num_candidates: int | None = None
    """Items of the catalogue."""
    exclude_seen: bool | None = None
    """True: the items of a row's own history are no candidates."""
    beam_width: int | None = None
    """SIDs listed per row; None where the whole catalogue is ranked."""
    thoughts: int | None = None
    """Per row, with an equal share of the beams below each; None for lists behind no thought."""
    ties: Literal["expectation", "random"] | None = None
    """Of items that the method cannot tell apart: the mean over every order of those that share a
    SID, or one random order of all items."""
    seed: int | None = None
    """Of random orders: of equal scores, of equally popular items."""
    events_seen: tuple[str, ...] | None = None
    """Splits of this data that the method was fitted on, in order."""
    training_seed: int | None = None
    """Of the run that made the policy."""
    kept: str | None = None
    """Weights of that run: `best` by validation, or `last`."""
    valid_ndcg: float | None = None
    """Validation NDCG@10 of what is judged: of these weights in their run, or with a guide of the
    rows that `alpha` was chosen on."""
    guide: str | None = None
    """What the decoder mixes in: `d3` or `mixture`, the policy's weight, the guide by name; None
    for the policy alone."""
    alpha_chosen_on: str | None = None
    """Split of the rows that this weight was chosen on; None where it was given."""
    evaluator: int = EVALUATOR


_VALID = "valid/ndcg@10"
STEPS = "steps"
"""Folder of a run with policies of its steps."""

AGREE = {
    "split": "rank the same split",
    "split_name": "prepare the data once and rank all methods on it",
    "data": "rank all methods on one data folder",
    "num_candidates": "rank the same catalogue",
    "exclude_seen": "prepare the data once and rank all methods on it",
    "evaluator": "evaluate both with the same version of recast",
    "beam_width": "evaluate both with the same beam_width",
}
"""Facts that compared methods share, and what to do where they do not. A method that ranks the
whole catalogue has no `beam_width` and goes with any."""


def refuse_to_mix(methods: Mapping[str, Facts]) -> None:
    """Raise `RecastError` naming the fact and both values where two methods differ in one."""
    for fact, remedy in AGREE.items():
        stated = [(name, getattr(facts, fact)) for name, facts in methods.items()]
        stated = [(name, value) for name, value in stated if value is not None]
        for name, value in stated[1:]:
            first, expected = stated[0]
            if value != expected:
                raise RecastError(
                    f"{fact} is {value!r} for {name} and {expected!r} for {first}: {remedy} to "
                    "compare them"
                )


def read_facts(content: Mapping[str, Any]) -> Facts:
    """The facts in an `eval.json` or `results.json`; those that are not there stay unknown.

    Before `facts` was a key, `eval.json` had some of them among its settings. Raises `ValueError`
    for facts of another type.
    """
    stated = content.get("facts", content)
    if not isinstance(stated, Mapping):
        raise ValueError(f"facts is {in_short(stated)}")
    values = {f.name: stated[f.name] for f in fields(Facts) if f.name in stated}
    if "facts" not in content:
        old = ("split", "split_name", "beam_width")
        values = {name: value for name, value in values.items() if name in old}
    if values.get("events_seen") is not None:
        values["events_seen"] = tuple(values["events_seen"])
    for name, value in values.items():
        is_known = value is not None or name == "evaluator"
        if is_known and not (type(value) is _TYPES[name] and _may_be(name, value)):
            raise ValueError(f"fact {name} is {in_short(value)}")
    facts = Facts(**values)
    if facts.evaluator > EVALUATOR:
        raise ValueError(
            f"fact evaluator is {facts.evaluator}, of a newer recast, which this one, of "
            f"{EVALUATOR}, does not understand"
        )
    return facts


def _may_be(name: str, value: Any) -> bool:
    if name in _WORDS:
        return all(word in _WORDS[name] for word in ([value] if name != "events_seen" else value))
    if isinstance(value, float):
        return 0 <= value <= 1
    least = 0 if name.endswith("seed") else 1
    return not isinstance(value, int) or isinstance(value, bool) or least <= value < 2**63


_TYPES = {
    **dict.fromkeys(("split", "split_name", "data", "ties", "kept", "guide"), str),
    "alpha_chosen_on": str,
    "valid_ndcg": float,
    **dict.fromkeys(("num_candidates", "beam_width", "thoughts", "seed"), int),
    **dict.fromkeys(("training_seed", "evaluator"), int),
    "exclude_seen": bool,
    "events_seen": tuple,
}
_WORDS = {
    "split": SPLITS,
    "ties": ("expectation", "random"),
    "events_seen": SPLITS,
    "alpha_chosen_on": SPLITS,
}


def training_of(
    policy: str | Path, data: str | Path, after: tuple[Path, ...] = ()
) -> tuple[tuple[str, ...] | None, int | None]:
    """`events_seen` and `training_seed` of a policy, from the run folder it lies in.

    Supervised training reads its `splits`, RL the split that its prompts are drawn from, both after
    what their start has read. None where there is no run folder (a policy that was copied away),
    where the chain breaks or comes back to one of the runs `after`, or, for the events, where a run
    read other data.
    """
    run = Path(policy).absolute().parent
    run = run.parent if run.name == STEPS else run
    if run in after:
        return None, None
    try:
        settings = read_settings(str(run / "config.yaml"))
        same_data = read_json(run / "env.json", dict)["data_hash"] == data_hash(data)
        seed = settings["seed"]
        is_sft = "policy" not in settings
        start = (settings.get("model") or {}).get("path") if is_sft else settings["policy"]
        splits = settings.get("splits", ["train"])  # before it was a setting
        if not is_sft:
            splits = [settings.get("drawn_from", "rl")]
        known = bool(splits) and all(split in SPLITS for split in splits)
        splits = () if is_sft and settings.get("epochs") == 0 else splits
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, None
    seed = seed if type(seed) is int else None
    if not (same_data and known):
        return None, seed
    before: tuple[str, ...] | None = ()
    if not is_sft or (isinstance(start, str) and (Path(start) / "recast.json").exists()):
        before = training_of(start, data, (*after, run))[0] if isinstance(start, str) else None
    if before is None:
        return None, seed
    return tuple(split for split in SPLITS if split in (*before, *splits)), seed


def events_of_guide(guide: str, data: str | Path) -> tuple[str, ...] | None:
    """`events_seen` of what a policy is mixed with, as it is named; None for code of a user's
    own."""
    if names_code(guide):
        return None
    folder = ranker_folder(guide)
    if folder is None:  # fitted on the spot
        return FIT_SPLITS
    if (folder / FACTS).is_file():
        return load_baseline(folder)[0].splits
    return training_of(folder, data)[0]


def joined(*seen: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Events that any of several models has seen, in the order of the splits; None where one's are
    not known."""
    every = [splits for splits in seen if splits is not None]
    if len(every) < len(seen):
        return None
    return tuple(split for split in SPLITS if any(split in splits for splits in every))


def kept_of(policy: str | Path) -> str | None:
    """Whether a policy is the `best` or the `last` of the run folder it lies in; None where there
    is none. Before it was a setting `sft` kept the best and `rl` the last."""
    try:
        settings = read_settings(str(Path(policy).parent / "config.yaml"))
        before = "last" if "policy" in settings else "best" if "catalog" in settings else None
        kept = settings.get("keep", before)
    except (OSError, AttributeError, TypeError, RecastError):
        return None
    return kept if kept in ("best", "last") else None


def valid_of(policy: str | Path) -> float | None:
    """Validation NDCG@10 of the weights that a policy's run kept, from the run folder it lies in;
    None where that is not known."""
    kept, values = kept_of(policy), []
    try:
        with (Path(policy).parent / "metrics.jsonl").open() as lines:
            values = [json.loads(line)[_VALID] for line in lines if f'"{_VALID}"' in line]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if not values or not all(type(value) is float and 0 <= value <= 1 for value in values):
        return None
    return {"best": max(values), "last": values[-1]}.get(kept or "")
