"""What tells a cell from the one that finished: settings as resolved and contents, no more."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from small_experiment import LOUDER, cells_of, louder, refusal, times
from small_walk import same, weights
from torch import Tensor

from recast.cell import Cell
from recast.config import EvaluateConfig, StratifyConfig
from recast.experiment import run_cells
from recast.methods.table import METHODS
from recast.run.log import RunLog
from recast.types import RecastError, RolloutGroups, Signal


def other_sft(cells: list[Cell]) -> list[Cell]:
    model = replace(cells[2].config.model, hidden_size=48)
    return [*cells[:2], replace(cells[2], config=replace(cells[2].config, model=model)), *cells[3:]]


def test_other_settings(moved: Path, events: Path) -> None:
    cells = cells_of(moved, events)
    remedy = "choose another output, or remove that folder to run its cell again"
    for changed, line in (
        (
            cells_of(moved, events, steps=4, group_size=8),
            f"{moved}/louder is finished with group_size 6, steps 3; this list has group_size 8, "
            f"steps 4: {remedy}",
        ),
        (
            other_sft(cells),
            f"{moved}/sft is finished with model.hidden_size 32; this list has "
            f"model.hidden_size 48: {remedy}",
        ),
        (
            cells_of(moved, events, replace(LOUDER, signal=partial(louder, w=3.0))),
            f"{moved}/louder is finished with signal_args.w unset; this list has "
            f"signal_args.w 3.0: {remedy}",
        ),
        (
            cells_of(moved, events, replace(LOUDER, nll_coef=0.1)),
            f"{moved}/louder is finished with nll_coef 0.0; this list has nll_coef 0.1: {remedy}",
        ),
        (
            [replace(cells[4], name="x", config=replace(cells[4].config, output=f"{moved}/sft"))],
            f"{moved}/sft is finished with ",
        ),
    ):
        assert refusal(moved, changed).startswith(line)


def test_a_changed_function(moved: Path, events: Path) -> None:
    def signal(groups: RolloutGroups, rewards: Tensor) -> Signal:
        return louder(groups, rewards, w=1.0)

    signal.__module__, signal.__qualname__ = louder.__module__, louder.__qualname__
    line = refusal(moved, cells_of(moved, events, replace(LOUDER, signal=signal)))
    assert line.startswith(f"{moved}/louder is finished with signal_args.code ")


def test_what_does_not_decide(
    finished: tuple[Path, dict[str, Any]], moved: Path, events: Path
) -> None:
    """Names, threads, memory, words about a method; a default that is spelled out."""
    cells = cells_of(moved, events, threads=2, micro_batch_tokens=500, lr=LOUDER.lr)
    method = replace(LOUDER, label="Loud", summary="loud", signal=partial(louder, w=2.0))
    cells[3] = replace(cells[3], name="loud", method=method, stage="rl", estimate_s=5.0)
    returned = run_cells(moved, cells)
    assert list(returned.values()) == list(finished[1].values())


def test_a_method_by_name_is_its_value(moved: Path, events: Path) -> None:
    shutil.rmtree(moved / "louder")
    shutil.rmtree(moved / "judged")
    by_name = cells_of(moved, events, METHODS["recast"])[:4]
    first = run_cells(moved, by_name)
    by_name[3] = replace(by_name[3], method=None)
    assert run_cells(moved, by_name) == first


def test_a_setting_that_came_later_is_at_its_default(moved: Path, events: Path) -> None:
    file = moved / "louder" / "cell.json"
    record = json.loads(file.read_text())
    assert record["settings"].pop("warmup_steps") == 10
    file.write_text(json.dumps(record))
    run_cells(moved, cells_of(moved, events))
    line = refusal(moved, cells_of(moved, events, warmup_steps=1))
    assert "finished with warmup_steps 10; this list has warmup_steps 1:" in line


def test_other_events(moved: Path, events: Path, tmp_path: Path) -> None:
    """The content decides, not the path."""
    copy = tmp_path / "copy.csv"
    shutil.copy(events, copy)
    run_cells(moved, cells_of(moved, copy))
    pl.read_csv(copy)[1:].write_csv(copy)
    assert refusal(moved, cells_of(moved, copy)) == (
        f"{moved}/data is finished with another content of interactions ({copy}): choose another "
        "output, or remove that folder to run its cell again"
    )
    copy.unlink()
    line = refusal(moved, cells_of(moved, copy))
    assert line.startswith(f"interactions of cell 'data' is {copy}, which is not there: ")


def test_data_made_anew_from_another_path(moved: Path, events: Path, tmp_path: Path) -> None:
    """`data.json` names the path, and its digest covers it; neither is read by a verb."""
    copy = shutil.copy(events, tmp_path / "copy.csv")
    shutil.rmtree(moved / "data")
    before = times(moved)
    run_cells(moved, cells_of(moved, copy))
    after = times(moved)
    assert {file: after[file] for file in before} == before


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "data.json"])
def test_a_changed_data_folder(moved: Path, events: Path, name: str) -> None:
    file = moved / "data" / name
    if name == "data.json":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"exclude_seen": None}))
    else:
        pl.read_parquet(file)[::-1].write_parquet(file)
    line = refusal(moved, cells_of(moved, events))
    assert line.startswith(f"{moved}/items is finished with another content of data (data): ")


@dataclass(frozen=True)
class Own:
    output: str
    encoder: str


def made(config: Own, log: RunLog) -> dict[str, float]:
    Path(config.output).mkdir()
    return {}


def test_a_changed_pooling(tmp_path: Path) -> None:
    """An encoder's folder has lists in its JSON, and files that decide below it."""
    encoder = tmp_path / "encoder"
    (encoder / "1_Pooling").mkdir(parents=True)
    (encoder / "modules.json").write_text('[{"type": "Pooling", "path": "1_Pooling"}]')
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    root = tmp_path / "run"
    cells = [Cell(name="x", config=Own(f"{root}/x", str(encoder)), run=made)]
    assert run_cells(root, cells) == run_cells(root, cells) == {"x": {}}
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert refusal(root, cells).startswith(f"{root}/x is finished with another content of encoder ")
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    (encoder / "modules.json").write_text("[]")
    assert refusal(root, cells).startswith(f"{root}/x is finished with another content of encoder ")


def test_a_changed_policy_is_found_before_anything_runs(moved: Path, events: Path) -> None:
    cells = cells_of(moved, events)
    new = replace(cells[2], name="new", config=replace(cells[2].config, output=f"{moved}/new"))
    shutil.copy(*(moved / name / "policy" / "model.safetensors" for name in ("sft", "louder")))
    line = refusal(moved, [*cells[:2], new, *cells[2:]])
    assert line.startswith(f"{moved}/judged is finished with another content of policy (louder/pol")
    assert not (moved / "new").exists()


def test_a_cell_made_anew_by_other_settings(moved: Path, events: Path) -> None:
    """What was trained from the policy that is gone is refused when its turn comes."""
    shutil.rmtree(moved / "sft")
    cells = other_sft(cells_of(moved, events))
    with pytest.raises(RecastError, match="louder is finished with another content of policy"):
        run_cells(moved, cells)
    assert (moved / "sft" / "cell.json").exists()


def test_a_cell_made_anew_by_the_same_settings(
    finished: tuple[Path, dict[str, Any]], moved: Path, events: Path
) -> None:
    shutil.rmtree(moved / "sft")
    before = times(moved)
    assert run_cells(moved, cells_of(moved, events))["louder"] == finished[1]["louder"]
    assert same(weights(moved / "sft"), weights(finished[0] / "sft"))
    after = times(moved)
    assert {file: after[file] for file in before} == before


def test_lists_that_cannot_be_run(walk: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    cells = cells_of(root, walk / "events.csv")

    def at(output: str, **changes: Any) -> Cell:
        return replace(cells[2], config=replace(cells[2].config, output=output), **changes)

    stratify = StratifyConfig(data="data", policy="policy", ranker="mine:rank", output=f"{root}/x")
    lost = EvaluateConfig(data=f"{walk}/data", policy=f"{root}/lost/policy", output=f"{root}/x")
    unknown = replace(cells[3].config, method="none")
    broken = partial(louder, w=torch.nn.Linear(1, 1))
    refused: list[tuple[list[Cell], str]] = [
        ([*cells, at(f"{root}/x")], "name is 'sft': two cells have it, give each its own"),
        (
            [*cells, at(f"{root}/sft", name="x")],
            f"output of cell 'x' is '{root}/sft': another cell writes there, give each its own",
        ),
        (
            [*cells, at(f"{root}/sft/x", name="x")],
            f"output of cell 'x' is '{root}/sft/x': another cell writes there, give each its own",
        ),
        ([at(f"{root}")], f"output of cell 'sft' is '{root}': give a folder inside {root}"),
        ([at(f"{walk}/x")], f"output of cell 'sft' is '{walk}/x': give a folder inside {root}"),
        ([at(f"{root}/x", method=LOUDER)], "method of cell 'sft' is 'given': only rl has one"),
        ([Cell(name="x", config=stratify)], "config of cell 'x' is StratifyConfig("),
        ([Cell(name="x", config={"output": "x"})], "config of cell 'x' is {'output': 'x'}: give a"),
        ([*cells[:3], Cell(name="x", config=lost)], f"policy of cell 'x' is {root}/lost/policy, "),
        (
            cells_of(root, walk / "events.csv", replace(LOUDER, signal=broken)),
            "signal holds a ",
        ),
        ([replace(cells[3], method=None, config=unknown)], "method is 'none': "),
    ]
    for some, line in refused:
        with pytest.raises(RecastError) as error:
            run_cells(root, some)
        assert str(error.value).startswith(line)
        assert not root.exists()
