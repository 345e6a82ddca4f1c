"""What each verb of the command line can be told: plain frozen dataclasses, one per verb.

Every field is read by the code; a value out of range is refused here, by name, before any work.
"""

from __future__ import annotations

from recast.config.baselines import BaselinesConfig as BaselinesConfig
from recast.config.compare import CompareConfig as CompareConfig
from recast.config.data import PrepareConfig as PrepareConfig
from recast.config.data import TokenizeConfig as TokenizeConfig
from recast.config.evaluation import METRICS as METRICS
from recast.config.evaluation import VALID_METRICS as VALID_METRICS
from recast.config.evaluation import EvaluateConfig as EvaluateConfig
from recast.config.evaluation import FeasibleConfig as FeasibleConfig
from recast.config.evaluation import GroundConfig as GroundConfig
from recast.config.evaluation import Level as Level
from recast.config.evaluation import StratifyConfig as StratifyConfig
from recast.config.evaluation import split_metric as split_metric
from recast.config.export import ExportConfig as ExportConfig
from recast.config.export import ExportFormat as ExportFormat
from recast.config.inspect import InspectConfig as InspectConfig
from recast.config.model import LoRAConfig as LoRAConfig
from recast.config.model import ModelConfig as ModelConfig
from recast.config.model import NewRows as NewRows
from recast.config.prompt import PromptConfig as PromptConfig
from recast.config.quickstart import QuickstartConfig as QuickstartConfig
from recast.config.step import KLEstimator as KLEstimator
from recast.config.step import KLRollouts as KLRollouts
from recast.config.step import LossAgg as LossAgg
from recast.config.step import Precision as Precision
from recast.config.step import StepConfig as StepConfig
from recast.config.think import ThinkConfig as ThinkConfig
from recast.config.train import Keep as Keep
from recast.config.train import RLConfig as RLConfig
from recast.config.train import Schedule as Schedule
from recast.config.train import SFTConfig as SFTConfig
