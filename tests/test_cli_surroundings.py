"""The command in surroundings that are not its own: shadowing files, closed streams, launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recast import cli

COMMAND = [sys.executable, "-c", "from recast.cli import main; main()"]


def run(
    *args: str, shell: str = "", cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m recast ARGS`; `shell` stands behind it, such as a redirection."""
    command = " ".join([f'"{sys.executable}" -m recast', *args, shell])
    env = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which torch has set in this very process
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, cwd=cwd, env=env
    )


def test_the_package_runs_as_a_command() -> None:
    done = run("prepare")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("recast: error: recast prepare needs --output")


def test_files_of_the_working_directory_are_no_modules_of_ours(tmp_path: Path) -> None:
    for name in ("torch", "numpy", "signal", "random", "yaml", "polars", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "tmp").mkdir()
    done = run("methods", cwd=tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "tmp").iterdir()) == []  # where torch makes a folder


def test_several_processes_say_one_line(tmp_path: Path) -> None:
    args = ["sft", "--data=d", "--catalog=c", f"--output={tmp_path / 'run'}"]
    said = [run(*args, WORLD_SIZE="2", RANK=rank) for rank in ("0", "1")]
    assert [done.returncode for done in said] == [2, 2]
    assert said[0].stderr.startswith("recast: error: WORLD_SIZE is 2: ")
    assert said[1].stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize(
    ("shell", "code", "line"),
    [
        ("> /dev/full", 2, "recast: error: the disk is full: choose another output or free some"),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
    ],
)
def test_streams(shell: str, code: int, line: str) -> None:
    done = run("--help", shell=shell)
    assert done.returncode == code
    assert done.stderr.count("\n") == bool(line)
    assert done.stderr.startswith(line)


def test_a_reader_that_leaves() -> None:
    done = run("--help", shell="| true; true")
    assert (done.returncode, done.stderr) == (0, "")


def test_variables_of_others() -> None:
    done = run(
        *("sft", "--help"),
        PYTHONOPTIMIZE="2",
        PYTHONWARNINGS="error",
        COLUMNS="1",
        JSONARGPARSE_DEBUG="1",
        JSONARGPARSE_DEFAULT_ENV="maybe",
        LC_ALL="POSIX",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("POLARS_MAX_THREADS", "0", "is '0': give 1 to 1024, or unset it"),
        ("POLARS_MAX_THREADS", "1000000", "is '1000000': give 1 to 1024, or unset it"),
        ("POLARS_MAX_THREADS", "many", "is 'many': give 1 to 1024, or unset it"),
        ("PYTHONPATH", "{}", "has {}/yaml.py, which hides the package yaml: rename it"),
        ("TORCH_LOGS", "junk", "is 'junk': torch knows no such log, unset it"),
        ("PYTHONOPTIMIZE", "2", "is 2: transformers reads the docstrings that it drops, unset it"),
    ],
)
def test_variables_that_libraries_break_on(
    tmp_path: Path, name: str, value: str, line: str
) -> None:
    (tmp_path / "yaml.py").touch()
    done = run("methods", **{name: value.format(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == f"recast: error: {name} {line.format(tmp_path)}\n"


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    command = f'rmdir "{folder}"; exec "$0" "$@"'
    done = subprocess.run(
        ["sh", "-c", command, *COMMAND, "sft", "--data=d"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "recast: error: the working directory is gone: change to one that exists\n"
    )


def test_an_error_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.fail("a\x1b[31m \udcff\r\nb" + "c" * 5000)
    line = capsys.readouterr().err
    assert line.startswith("recast: error: a\\x1b[31m \\udcff bccc")
    assert len(line) < 4100


def test_memory_that_is_not_enough() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")):
        line, code = cli.explain(error)
        assert line.startswith("the memory is not enough (")
        assert code == 2
