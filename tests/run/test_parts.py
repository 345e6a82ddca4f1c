"""Long work that is ended goes on behind what it had done: toy work, in batches of two numbers."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recast.run import parts
from recast.run.parts import NO_PARTS, parts_of
from recast.types import RecastError

BATCHES = [[1, 2], [3, 4], [5, 6], [7]]
DOUBLED = [[2, 4], [6, 8], [10, 12], [14]]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part per batch."""
    monkeypatch.setattr(parts, "_EVERY_S", 0.0)
    monkeypatch.setattr(parts, "_MOST", 1e9)


def doubles(
    output: Path, *, end: Exception | KeyboardInterrupt | None = None, at: int = 5, by: int = 2
) -> tuple[list[list[int]], list[int]]:
    """What was made, and which numbers were worked on; `end` comes at the number `at`."""
    seen: list[int] = []

    def double(batch: list[int]) -> dict[str, Tensor]:
        if end and at in batch:
            raise end
        seen.extend(batch)
        return {"twice": by * torch.tensor(batch)}

    with parts_of(output) as kept:
        kept.begin({}, by=by)
        made = kept.collect("numbers", BATCHES, double)
        output.mkdir()
    return [part["twice"].tolist() for part in made], seen


def folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def test_goes_on_behind_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    folder = folder_of(output)
    with pytest.raises(RecastError, match="full"):
        doubles(output, end=RecastError("the disk is full"), at=5)
    assert capsys.readouterr().out == (
        f"what is done is kept in {folder}: the same command goes on there\n"
    )
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        doubles(output, end=KeyboardInterrupt(), at=7)
    assert doubles(output) == (DOUBLED, [7])
    assert "goes on behind 6 of 7 numbers\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]


def test_a_damaged_part_is_named_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        doubles(output, end=KeyboardInterrupt(), at=7)
    first, second, _ = sorted(folder_of(output).iterdir())
    held = bytearray((first / "tensors.safetensors").read_bytes())
    held[-1] ^= 1
    (first / "tensors.safetensors").write_bytes(held)
    (second / "manifest.json").unlink()
    assert doubles(output) == (DOUBLED, [1, 2, 3, 4, 7])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == [
        f"warning: {first} is damaged (tensors.safetensors is not what was written): it is skipped",
        f"warning: {second} is damaged (no such file): it is skipped",
        "goes on behind 2 of 7 numbers",
    ]


def test_parts_of_other_settings_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        doubles(output, end=KeyboardInterrupt())
    capsys.readouterr()
    made, seen = doubles(output, by=3)
    assert made[0] == [3, 6]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    line = f"{folder_of(output)}: parts made with another by are removed, begins anew\n"
    assert capsys.readouterr().out == line


def test_threads_are_those_of_the_parts(tmp_path: Path) -> None:
    """A sum depends on them, so that work that goes on takes them as they were."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyboardInterrupt):
            doubles(tmp_path / "out", end=KeyboardInterrupt())
        torch.set_num_threads(before)
        with parts_of(tmp_path / "out") as kept:
            kept.begin({}, by=2)
            assert kept.threads == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_two_at_once(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with parts_of(output), pytest.raises(RecastError, match=r"\.out\.parts is in use by another"):
        doubles(output)
    doubles(output)
    (output / "file").touch()  # the other one has ended since we looked
    with pytest.raises(RecastError, match="already holds something"):
        doubles(output)
    assert list(tmp_path.iterdir()) == [output]


def test_a_full_disk_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        assert doubles(tmp_path / "out") == (DOUBLED, [1, 2, 3, 4, 5, 6, 7])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: nothing is kept of the work, which goes on (")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_short_work_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a part nor the folders above."""
    monkeypatch.setattr(parts, "_EVERY_S", 60.0)
    with pytest.raises(RecastError, match="wrong"):
        doubles(tmp_path / "a" / "b", end=RecastError("wrong"), at=7)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_say_what_decides_it_keeps_nothing(tmp_path: Path) -> None:
    with parts_of(tmp_path / "out") as kept:
        for some in (kept, NO_PARTS):
            assert some.collect("numbers", [[1]], lambda batch: {}) == [{}]
        assert list((tmp_path / ".out.parts").iterdir()) == []
