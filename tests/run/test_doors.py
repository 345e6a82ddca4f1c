"""The doors of a verb: what is wrong with a folder is said before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recast.config import EvaluateConfig, ModelConfig, SFTConfig, TokenizeConfig
from recast.run.doors import enter
from recast.types import RecastError


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A data folder, a catalogue, a policy and a model, as far as the doors look."""
    for name, files in {
        "data": ["interactions.parquet", "users.parquet", "items.parquet", "data.json"],
        "catalog": ["sid.json"],
        "policy": ["recast.json"],
        "model": ["config.json"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    return tmp_path


def sft(folders: Path, output: str, **changes: str) -> SFTConfig:
    names = {"data": "data", "catalog": "catalog", "path": "model"} | changes
    paths = {name: str(folders / value) for name, value in names.items()}
    model = ModelConfig(path=paths.pop("path"))
    return SFTConfig(output=str(folders / output), model=model, **paths)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, None),
        ({"path": "policy"}, None),
        ({"data": "catalog"}, r"catalog \(it is a catalogue .*\) is no data folder \(no interact"),
        ({"catalog": "data"}, r"data \(it is a data folder .*\) holds no catalogue \(sid.json\)"),
        ({"catalog": "nowhere"}, r"nowhere holds no catalogue \(sid.json\): make one with"),
        ({"path": "data/data.json"}, r"data.json \(it is a file\) holds no model \(config.json\)"),
        ({"output": "policy/a/b", "path": "policy"}, r"inside model.path '.*/policy', which stays"),
        ({"output": "data/../data/x"}, r"inside data '.*/data', which stays as it is: choose ano"),
        ({"output": "link/x"}, r"inside catalog '.*/catalog', which stays as it is: choose anoth"),
    ],
)
def test_each_input_is_of_its_kind(
    folders: Path, changes: dict[str, str], line: str | None
) -> None:
    (folders / "link").symlink_to("catalog")
    config = sft(folders, changes.pop("output", "new"), **changes)
    if line is None:
        enter(config, SFTConfig)
        return
    with pytest.raises(RecastError, match=line):
        enter(config, SFTConfig)


def test_other_inputs(folders: Path) -> None:
    data, output = str(folders / "data"), str(folders / "new")
    enter(TokenizeConfig(data=data, output=output), TokenizeConfig)
    with pytest.raises(RecastError, match="none holds no config"):
        enter(TokenizeConfig(data=data, output=output, encoder="none"), TokenizeConfig)
    config = EvaluateConfig(data=data, policy=str(folders / "policy"), output=output)
    enter(config, EvaluateConfig)
    (folders / "new").mkdir()
    (folders / "new" / "mine").touch()
    with pytest.raises(RecastError, match="new already holds something: remove it or choose"):
        enter(config, EvaluateConfig)
    enter(config, EvaluateConfig, goes_on=True)


def test_nothing_heavy_is_imported_for_it() -> None:
    code = "import sys, recast.run.doors; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
