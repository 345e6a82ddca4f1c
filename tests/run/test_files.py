"""Nothing is ever half-written: a temporary name first, then a rename."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.exceptions import ComputeError
from safetensors.torch import save_file

from recast.run.files import alone_in, refuse_existing, remove_partials, staged_file, staged_folder
from recast.run.reading import kind_of, read_json, reading, require_plain_files, stays_inside
from recast.types import RecastError

Staged = Callable[[Path], AbstractContextManager[Path]]


def test_a_new_or_empty_place_is_free(tmp_path: Path) -> None:
    assert refuse_existing(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert refuse_existing(str(tmp_path / "empty")) == tmp_path / "empty"


def test_a_file_or_a_full_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    for path in (tmp_path / "full", tmp_path / "full" / "mine"):
        line = f"{path} already holds something: remove it or choose another output"
        for attempt in (refuse_existing, lambda p: staged_folder(p).__enter__()):
            with pytest.raises(RecastError) as caught:
                attempt(path)
            assert str(caught.value) == line
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine"]


def test_a_place_that_takes_no_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name, reason in (
        ("loop", "is a link that leads nowhere: remove it or choose another output"),
        ("file/x/y", r"cannot be written \(.*file is no folder\): choose another output"),
    ):
        with pytest.raises(RecastError, match=reason):
            refuse_existing(tmp_path / name)


@pytest.mark.parametrize("path", ["/proc/self/x", "/sys/x", "/dev/x", "/dev/../proc/x"])
def test_what_is_no_disk(path: str) -> None:
    with pytest.raises(RecastError, match="x lies on no disk: choose another output"):
        refuse_existing(path)
    refuse_existing("/dev/shm/x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', None),
        (b"[1]", "it holds a list, no dict"),
        (b'{"a": ' * 10**5, "maximum recursion depth exceeded"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        (b" " * 101, "more than 100 bytes of JSON"),
    ],
)
def test_json_of_any_kind(tmp_path: Path, content: bytes, message: str | None) -> None:
    most = 100 if message and "100 bytes" in message else 2**20
    (tmp_path / "x").write_bytes(content)
    if message is None:
        assert read_json(tmp_path / "x", dict) == {"a": 1}
        return
    with pytest.raises(RecastError) as caught, reading("x", "make it again"):
        read_json(tmp_path / "x", dict, most)
    assert str(caught.value).startswith(f"x is damaged ({message}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_large_json_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no plain file"):
        read_json(tmp_path / "pipe", dict)
    with pytest.raises(RecastError, match=r"pipe is neither a file nor a folder: remove it"):
        require_plain_files(tmp_path)
    (tmp_path / "pipe").unlink()
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RecastError, match=r"sparse.json has 1,099,511,627,776 bytes: give a JSON"):
        require_plain_files(tmp_path)


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        *[(path, True) for path in ("", "a", "a/b.txt", "1_Pooling", "a..b", "./a")],
        *[(path, False) for path in ("/a", "..", "a/../b", "a\\b", "C:a", "C:/a", "//a")],
    ],
)
def test_paths_that_leave_their_folder(path: str, stays: bool) -> None:
    assert stays_inside(path) == stays


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    for target in (tmp_path / "a" / "b" / "new", tmp_path / "empty"):
        if target.name == "empty":
            target.mkdir()
        with staged_folder(target) as stage:
            (stage / "sub").mkdir()
            (stage / "sub" / "file").write_text("x")
            assert stage.parent == target.parent
            assert not target.exists() or not any(target.iterdir())
        assert (target / "sub" / "file").read_text() == "x"
        assert [p.name for p in target.parent.iterdir() if p.name.endswith(".partial")] == []


def test_a_file_appears_whole_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "file"
    for text in ("first", "second"):
        before = target.read_text() if target.exists() else None
        with staged_file(target) as stage:
            stage.write_text(text)
            assert (target.read_text() if target.exists() else None) == before
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RecastError])
@pytest.mark.parametrize("staged", [staged_folder, staged_file])
def test_a_block_that_fails_leaves_nothing(
    tmp_path: Path, staged: Staged, error: type[BaseException]
) -> None:
    def write() -> None:
        with staged(tmp_path / "out") as stage:
            (stage / "x" if stage.is_dir() else stage).write_text("half")
            raise error("stop")

    with pytest.raises(error, match=r"^stop$"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")

    def write() -> None:
        with staged_file(tmp_path / "out") as stage:
            stage.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "out").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def fill_with_bytes(full: Path) -> None:
    with full.open("w") as file:
        file.write("x" * 10)
        file.flush()


def fill_with_a_table(full: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(full)


def fill_with_weights(full: Path) -> None:
    save_file({"x": torch.zeros(4)}, full / "weights.safetensors")  # a device is no folder


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("fill", [fill_with_bytes, fill_with_a_table, fill_with_weights])
@pytest.mark.parametrize("staged", [staged_folder, staged_file])
def test_a_full_disk_is_one_line(
    tmp_path: Path, staged: Staged, fill: Callable[[Path], None]
) -> None:
    """Each library wraps the error in its own type."""
    with pytest.raises(RecastError) as caught, staged(tmp_path / "out"):
        fill(Path("/dev/full"))
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'out'} cannot be written (")
    assert line.endswith(
        "): choose another output"
        if fill is fill_with_weights  # no folder is no full disk
        else "): free some space or choose another output"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("staged", [staged_folder, staged_file])
def test_a_parent_that_is_a_file(tmp_path: Path, staged: Staged) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        RecastError, match=r"cannot be written \((Not a directory|File exists|.* is no folder)\)"
    ):
        staged(tmp_path / "file" / "out").__enter__()
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("full", "already holds something: remove it or choose another output"),
        ("file", "already holds something: remove it or choose another output"),
        ("dangling", "is a link that leads nowhere: remove it or choose another output"),
        ("loop", "is a link that leads nowhere: remove it or choose another output"),
        ("loop/out", "cannot be written (Symlink loop from '{}'): choose another output"),
        ("file/a/b", "cannot be written ({0}/file is no folder): choose another output"),
        ("n" * 245, "cannot be written (File name too long): choose another output"),
        ("new/" + "n" * 256, "cannot be written (File name too long): choose another output"),
        (".", "already holds something: remove it or choose another output"),
        ("/proc", "already holds something: remove it or choose another output"),
    ],
)
def test_an_output_that_cannot_be(tmp_path: Path, name: str, reason: str) -> None:
    """Said before the work; a name also needs room for that of its stage."""
    (tmp_path / "full" / "mine").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    with pytest.raises(RecastError) as refused:
        refuse_existing(path)
    known = path if "loop" in name else tmp_path
    assert str(refused.value) == f"{path} {reason.format(known)}"


def test_the_working_directory_is_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed to its place it would leave the shell in a folder that is gone."""
    monkeypatch.chdir(tmp_path)
    for name in (".", tmp_path):
        with pytest.raises(RecastError, match="cannot be replaced: name a folder inside it"):
            refuse_existing(name)


def test_an_empty_folder_behind_a_link_is_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with staged_folder(tmp_path / "link") as stage:
        (stage / "x").touch()
    assert (tmp_path / "link").is_symlink()
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["x"]


def test_the_wrong_folder_is_told(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == kind_of(tmp_path / "none") == ""
    (tmp_path / "data.json").touch()
    assert kind_of(tmp_path) == " (it is a data folder of `recast prepare`)"
    assert kind_of(tmp_path / "data.json") == " (it is a file)"
    (tmp_path / "run" / "policy").mkdir(parents=True)
    (tmp_path / "run" / "policy" / "recast.json").touch()
    whose = tmp_path / "run" / "policy"
    assert kind_of(tmp_path / "run") == f" (it is a run, whose policy is {whose})"


@pytest.mark.parametrize("staged", [staged_folder, staged_file])
def test_no_permission(tmp_path: Path, staged: Staged) -> None:
    def write() -> None:
        with staged(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(
        RecastError,
        match=r"out cannot be written \(Permission denied\): choose an output that you may",
    ):
        write()


def test_two_writers_end_with_one_whole_folder(tmp_path: Path) -> None:
    """The one that comes second is told; what the first wrote stays."""

    def second() -> None:
        with staged_folder(tmp_path / "out") as stage:
            (stage / "who").write_text("second")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "who").write_text("first")

    with pytest.raises(RecastError, match=r"out cannot be written \(Directory not empty\)"):
        second()
    assert (tmp_path / "out" / "who").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("users"), "no 'users'"),
        (ValueError("two\nlines\x00" + "x" * 200), "two lines " + "x" * 137 + "..."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file or directory"),
        (ComputeError("first\n\nadvice"), "first"),
        (IndexError(), "IndexError"),
        (ValueError("set trust_remote_code=True"), "it needs code of its own, which is never run"),
    ],
)
def test_what_is_damaged_is_named_on_one_line(error: Exception, reason: str) -> None:
    with pytest.raises(RecastError) as caught, reading("a/b", "make it again"):
        raise error
    assert str(caught.value) == f"a/b is damaged ({reason}): make it again"


def test_errors_that_have_a_remedy_pass_through_reading() -> None:
    with pytest.raises(RecastError, match=r"^own: remedy$"), reading("a", "make it again"):
        raise RecastError("own: remedy")


def test_one_process_at_a_time_is_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone_in(folder):
        (folder / "mine").write_text("kept")
        with pytest.raises(RecastError) as refused, alone_in(folder):
            pass
        assert str(refused.value).startswith(f"{folder} is in use by another process: ")
    with alone_in(folder):
        pass
    assert [file.name for file in folder.iterdir()] == ["mine"]


def test_a_folder_that_stayed_empty_goes_again(tmp_path: Path) -> None:
    with alone_in(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with alone_in(tmp_path):
        pass
    assert tmp_path.exists()
    (tmp_path / "file").touch()
    with pytest.raises(RecastError, match="already holds something"), alone_in(tmp_path / "file"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with alone_in(tmp_path):
        (tmp_path / "mine").touch()


@pytest.mark.parametrize("staged", [staged_folder, staged_file])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, staged: Staged) -> None:
    """Whatever its number was; what another one is writing stays."""
    left = tmp_path / ".out.1234.partial"
    left.mkdir()
    (left / "half").write_text("x")
    (tmp_path / ".out.abcd.partial").write_text("x")
    (tmp_path / ".outer.abcd.partial").write_text("of another output")
    with staged(tmp_path / "out") as first, suppress(OSError):
        assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, ".outer.abcd.partial"]
        remove_partials(tmp_path / "out")
        assert first.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".outer.abcd.partial", "out"]


_IN_IT = """
import sys
from recast.run.files import alone_in, staged_folder
with alone_in(sys.argv[1]), staged_folder(sys.argv[1] + "/policy"):
    print("in it", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_keeps_nobody_out(tmp_path: Path) -> None:
    """As long as it lives the folder and what it writes there are its own, then they are free."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", _IN_IT, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"in it\n"
        with pytest.raises(RecastError, match="run is in use by another process"), alone_in(run):
            pass
        remove_partials(run / "policy")
        (left,) = run.iterdir()
        other.kill()
    with alone_in(run):
        assert list(run.iterdir()) == [left]
        remove_partials(run / "policy")
        assert list(run.iterdir()) == []
