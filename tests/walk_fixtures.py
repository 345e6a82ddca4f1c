"""One small walk, data to SFT, that tests start from and never write into."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from small_experiment import cells_of
from small_walk import sft_config, write_events

from recast.config import PrepareConfig, TokenizeConfig
from recast.data.prepare import prepare
from recast.experiment import run_cells
from recast.items.tokenize import tokenize
from recast.sft import train_sft

# The command line does so by environment variables, which come too late once it is imported.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `events.csv`, `data`, `catalog` and `sft`, a half-trained policy."""
    folder = tmp_path_factory.mktemp("walk")
    write_events(folder / "events.csv")
    prepare(PrepareConfig(interactions=str(folder / "events.csv"), output=str(folder / "data")))
    tokenize(
        TokenizeConfig(
            data=str(folder / "data"),
            output=str(folder / "catalog"),
            items_as="codes",
            collaborative_weight=1.0,
        )
    )
    train_sft(sft_config(folder, folder / "sft"))
    return folder


@pytest.fixture(scope="session")
def one_level(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of the same items on one level: the ranker of AdaGRPO."""
    folder = tmp_path_factory.mktemp("one_level")
    catalog = str(folder / "catalog")
    tokenize(TokenizeConfig(data=str(walk / "data"), output=catalog, num_levels=1))
    train_sft(sft_config(walk, folder / "sft", catalog=catalog, epochs=20))
    return folder / "sft" / "policy"


@pytest.fixture(scope="session")
def finished(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a list that ran without a break, and what it returned."""
    root = tmp_path_factory.mktemp("experiment") / "run"
    return root, run_cells(root, cells_of(root, walk / "events.csv"))


@pytest.fixture
def moved(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of that folder elsewhere, for the test to break."""
    return Path(shutil.copytree(finished[0], tmp_path / "elsewhere" / "run"))


@pytest.fixture
def events(walk: Path) -> Path:
    return walk / "events.csv"
