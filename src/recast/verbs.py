"""The verbs of the command line: what each is called, takes and runs. Imports no stage."""

from __future__ import annotations

from typing import NamedTuple

import recast


class Verb(NamedTuple):
    """A verb: its config class in `recast.config` and, as `module:function`, what it runs.

    Without a config it takes no settings and returns a text.
    """

    config: str | None
    stage: str
    summary: str
    describe: str | None = None
    """Says what is in the output folder, where the stage itself returns no text or numbers."""
    check: str | None = None
    """Refuses a config before the stage is imported."""
    goes_on: bool = False
    """Its output may exist: it goes on there."""
    takes_file: bool = False
    """Its first argument may be the file of its settings."""
    has_ranks: bool = False
    """Several processes may run it together."""


VERBS = {
    "quickstart": Verb(
        "QuickstartConfig",
        "recast.quickstart:quickstart",
        "the whole walk on MovieLens-100K, in one command",
        goes_on=True,
        takes_file=True,
        has_ranks=True,
    ),
    "prepare": Verb(
        "PrepareConfig",
        "recast.data.prepare:prepare",
        "interactions in, a data folder out",
        "recast.data.folder:describe",
    ),
    "tokenize": Verb(
        "TokenizeConfig",
        "recast.items.tokenize:tokenize",
        "a data folder in, a catalogue of semantic IDs out",
        "recast.items.card:describe",
        has_ranks=True,
    ),
    "baselines": Verb(
        "BaselinesConfig",
        "recast.baselines:fit_baselines",
        "popularity, item-kNN and SASRec: what a policy has to beat",
        "recast.baselines:describe",
        goes_on=True,
    ),
    "sft": Verb("SFTConfig", "recast.sft:train_sft", "train a next-item policy", has_ranks=True),
    "methods": Verb(
        None, "recast.report.methods:describe_methods", "every method with its paper and its parts"
    ),
    "rl": Verb(
        "RLConfig",
        "recast.rl:train_rl",
        "post-train a policy with one method",
        check="recast.methods.check:check_method",
        has_ranks=True,
    ),
    "inspect": Verb(
        "InspectConfig",
        "recast.report.inspection:inspect_policy",
        "look at a prompt, its target, its reward, its rollouts and a step before `rl`",
        check="recast.methods.check:check_method",
    ),
    "compare": Verb(
        "CompareConfig",
        "recast.compare:compare_methods",
        "methods against each other and their controls, over seeds",
        check="recast.methods.check:check_methods",
        goes_on=True,
        takes_file=True,
        has_ranks=True,
    ),
    "evaluate": Verb(
        "EvaluateConfig",
        "recast.evaluation.evaluate:evaluate_policy",
        "rank the whole catalogue for every row of a split",
        "recast.report.evaluation:describe",
        has_ranks=True,
    ),
    "feasible": Verb(
        "FeasibleConfig",
        "recast.evaluation.feasible:check_tables",
        "can printed tables of HR and NDCG be? what cannot is named",
    ),
    "ground": Verb(
        "GroundConfig",
        "recast.evaluation.grounding:ground_texts",
        "rank real items by the free text that an LLM wrote for each row",
    ),
    "export": Verb(
        "ExportConfig",
        "recast.export:export_data",
        "a data folder in, the files of another tool out",
    ),
    "stratify": Verb(
        "StratifyConfig",
        "recast.evaluation.stratify:stratify_policy",
        "where a ranker would help a policy",
        has_ranks=True,
    ),
}


def overview() -> str:
    """The text of `recast --help`; it imports nothing."""
    verbs = "\n".join(f"  {name:<12}{verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: recast VERB [--config FILE.yaml] [--SETTING VALUE ...]\n\n"
        f"{recast.__doc__.splitlines()[0] if recast.__doc__ else ''}\n\nverbs:\n{verbs}\n\n"
        "options:\n  --help      this text; after a verb, its settings\n"
        "  --version   the version of recast\n  --debug     show the whole trace of an error"
    )
