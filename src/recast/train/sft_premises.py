"""What `recast sft` asks of its settings, its catalogue and its rows before it begins; each raises
`RecastError` for what does not fit."""

from __future__ import annotations

from pathlib import Path

from recast.config import SFTConfig
from recast.items.card import splits_shown
from recast.items.catalog import Catalog
from recast.policy.extend import num_rows
from recast.policy.load import Policy
from recast.policy.logprobs import require_levels
from recast.policy.memory import require_memory
from recast.policy.needs import tell_needs
from recast.policy.tasks import HistoryTask, Task
from recast.policy.tokenizer import load_tokenizer
from recast.train.epochs import further_tasks
from recast.types import LogprobSpace, require


def _check_space(asked: LogprobSpace | None, catalog: Catalog) -> None:
    """Raise `RecastError` for a space that the items do not have."""
    if asked not in (None, "full"):
        require_levels(catalog, asked)
    has_root = len(catalog.domains) == 1 or asked != "trie"
    remedy = f"the catalogue has the domains {list(catalog.domains)}, give full or level"
    require(has_root, "logprob_space", asked, remedy)


def check_catalog_of(config: SFTConfig, catalog: Catalog) -> None:
    """Raise `RecastError` for a catalogue that these settings cannot use."""
    ahead = splits_shown(config.catalog) - set(config.splits)
    remedy = f"{config.catalog} was made from the events of train,rl: give these, or make it of "
    require(not ahead, "splits", config.splits, f"{remedy}train alone")
    if config.model.path is None:
        require_memory(config.model, catalog)
    else:
        tokenizer = load_tokenizer(Path(config.model.path))
        rows = num_rows(tokenizer, catalog)
        size = config.fsdp_size
        tell_needs(config.model.path, config.device, num_rows=rows, fsdp_size=size)
    _check_space(config.logprob_space, catalog)
    remedy = "the catalogue has titles and no rows of its own, leave it out"
    require(config.sid_lr is None or catalog.form is None, "sid_lr", config.sid_lr, remedy)


def check_pairs(config: SFTConfig) -> None:
    """Raise `RecastError` for what a decoder alone can learn from."""
    need = "an encoder-decoder reads the prompts of rows and learns their answers, leave it out"
    for name in ("backwards_frac", "crop_frac"):
        require(not getattr(config, name), name, getattr(config, name), need)
    require(config.loss_on == "answer", "loss_on", config.loss_on, need)


def reads_text(config: SFTConfig, task: Task) -> bool:
    """Whether rows are rendered, or further ones beside windows. Raises `RecastError` for settings
    of windows where rows are read as they are, and for one of rendered rows without any."""
    is_windows = isinstance(task, HistoryTask)
    if is_windows and not any(
        config.task_weights[x] for x in further_tasks(task, config.task_weights)
    ):
        need = "windows of events are learned from the first item on, leave it out"
        require(config.loss_on == "answer", "loss_on", config.loss_on, need)
        return False
    need = "prompts are read with their answers over the whole vocabulary, leave it out"
    fits = config.logprob_space in (None, "full")
    require(fits, "logprob_space", config.logprob_space, need)
    require(config.negatives is None, "negatives", config.negatives, need)
    need = "it belongs to windows of events, and these are rendered prompts or rows, leave it out"
    for name in ("backwards_frac", "crop_frac"):
        fits = is_windows or not getattr(config, name)
        require(fits, name, getattr(config, name), need)
    return True


def check_negatives(count: int | None, policy: Policy) -> None:
    """Raise `RecastError` where so many items cannot stand for all others."""
    if count is None:
        return
    catalog, space = policy.catalog, policy.logprob_space
    levels = catalog.num_levels if catalog.codebook_sizes else 0
    need = "it belongs to one-level semantic IDs (`recast tokenize --num_levels 1`), leave it out"
    require(levels == 1, "negatives", count, need)
    need = f"the policy to start from was trained over {space}, where all items stand, leave it out"
    require(space == "full", "negatives", count, need)
    most = catalog.num_written
    need = f"the catalogue has {most} items, give fewer, or leave it out for them all"
    require(count < most, "negatives", count, need)
