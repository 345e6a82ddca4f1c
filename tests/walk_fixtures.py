"""One small walk, data to SFT, that tests start from and never write into: made by the first worker
that asks, for all of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
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


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name that `make` has filled; what it returns lies beside it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / name, base / f"{name}.json"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir()
            made.write_text(json.dumps(make(folder)))
    return folder


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `events.csv`, `data`, `catalog` and `sft`, a half-trained policy."""
    return _once(tmp_path_factory, "walk", _make_walk)


def _make_walk(folder: Path) -> None:
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


@pytest.fixture(scope="session")
def one_level(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of the same items on one level: the ranker of AdaGRPO."""

    def make(folder: Path) -> None:
        catalog = str(folder / "catalog")
        tokenize(TokenizeConfig(data=str(walk / "data"), output=catalog, num_levels=1))
        train_sft(sft_config(walk, folder / "sft", catalog=catalog, epochs=20))

    return _once(tmp_path_factory, "one_level", make) / "sft" / "policy"


@pytest.fixture(scope="session")
def finished(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a list that ran without a break, and what it returned."""

    def make(folder: Path) -> dict[str, Any]:
        root = folder / "run"
        return run_cells(root, cells_of(root, walk / "events.csv"))

    folder = _once(tmp_path_factory, "experiment", make)
    return folder / "run", json.loads(folder.with_suffix(".json").read_text())


@pytest.fixture
def moved(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of that folder elsewhere, for the test to break."""
    return Path(shutil.copytree(finished[0], tmp_path / "elsewhere" / "run"))


@pytest.fixture
def events(walk: Path) -> Path:
    return walk / "events.csv"
