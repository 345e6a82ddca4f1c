"""Recast: reinforcement-learning post-training for generative recommenders.

Interactions become a `Catalog` of semantic IDs, a policy learns to spell the next item, groups of
rollouts get a reward, and a signal turns them into one update. Each verb of the command line is a
function here that takes its config:

    import recast
    recast.prepare(recast.PrepareConfig(output="data"))
    recast.tokenize(recast.TokenizeConfig(data="data", output="catalog"))
    recast.train_sft(recast.SFTConfig(data="data", catalog="catalog", output="sft"))

Nothing heavy is imported before the first name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recast.baselines import fit_baselines as fit_baselines
    from recast.cell import Cell as Cell
    from recast.config.baselines import BaselinesConfig as BaselinesConfig
    from recast.config.compare import CompareConfig as CompareConfig
    from recast.config.data import PrepareConfig as PrepareConfig
    from recast.config.data import TokenizeConfig as TokenizeConfig
    from recast.config.evaluation import EvaluateConfig as EvaluateConfig
    from recast.config.evaluation import GroundConfig as GroundConfig
    from recast.config.evaluation import StratifyConfig as StratifyConfig
    from recast.config.export import ExportConfig as ExportConfig
    from recast.config.inspect import InspectConfig as InspectConfig
    from recast.config.model import LoRAConfig as LoRAConfig
    from recast.config.model import ModelConfig as ModelConfig
    from recast.config.quickstart import QuickstartConfig as QuickstartConfig
    from recast.config.train import RLConfig as RLConfig
    from recast.config.train import SFTConfig as SFTConfig
    from recast.data.folder import load_data as load_data
    from recast.data.prepare import prepare as prepare
    from recast.errors import RecastError as RecastError
    from recast.evaluation.evaluate import evaluate_policy as evaluate_policy
    from recast.evaluation.grounding import ground_texts as ground_texts
    from recast.evaluation.stratify import stratify_policy as stratify_policy
    from recast.experiment import run_cells as run_cells
    from recast.export import export_data as export_data
    from recast.items.catalog import load_catalog as load_catalog
    from recast.items.tokenize import tokenize as tokenize
    from recast.methods.table import METHODS as METHODS
    from recast.methods.table import Method as Method
    from recast.policy.load import load_policy as load_policy
    from recast.report.inspection import inspect_policy as inspect_policy
    from recast.rl import train_rl as train_rl
    from recast.sft import train_sft as train_sft
    from recast.types import Prompts as Prompts
    from recast.types import RolloutGroups as RolloutGroups
    from recast.types import Signal as Signal

__version__ = "0.1.0"

_HOMES = {
    "BaselinesConfig": "recast.config.baselines",
    "Cell": "recast.cell",
    "CompareConfig": "recast.config.compare",
    "EvaluateConfig": "recast.config.evaluation",
    "ExportConfig": "recast.config.export",
    "InspectConfig": "recast.config.inspect",
    "LoRAConfig": "recast.config.model",
    "ModelConfig": "recast.config.model",
    "PrepareConfig": "recast.config.data",
    "QuickstartConfig": "recast.config.quickstart",
    "GroundConfig": "recast.config.evaluation",
    "StratifyConfig": "recast.config.evaluation",
    "RLConfig": "recast.config.train",
    "SFTConfig": "recast.config.train",
    "TokenizeConfig": "recast.config.data",
    "load_data": "recast.data.folder",
    "prepare": "recast.data.prepare",
    "export_data": "recast.export",
    "fit_baselines": "recast.baselines",
    "evaluate_policy": "recast.evaluation.evaluate",
    "inspect_policy": "recast.report.inspection",
    "run_cells": "recast.experiment",
    "ground_texts": "recast.evaluation.grounding",
    "stratify_policy": "recast.evaluation.stratify",
    "load_catalog": "recast.items.catalog",
    "tokenize": "recast.items.tokenize",
    "load_policy": "recast.policy.load",
    "METHODS": "recast.methods.table",
    "Method": "recast.methods.table",
    "train_rl": "recast.rl",
    "train_sft": "recast.sft",
    "Prompts": "recast.types",
    "RecastError": "recast.errors",
    "RolloutGroups": "recast.types",
    "Signal": "recast.types",
}
"""Module of every exported name; the imports above are the same list for type checkers."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import an exported name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'recast' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
