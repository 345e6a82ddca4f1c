"""Where a run happened: git may be absent, broken or asleep."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from recast.run import environment as module


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 60",
        "sleep 60 & sleep 60",
        r"printf '\377\376 not a commit'",
        "echo deadbeef",
        "exit 1",
    ],
)
def test_a_git_that_does_not_tell(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(module, "GIT_S", 0.2)
    began = time.monotonic()
    assert module._git_commit.__wrapped__() is None
    assert time.monotonic() - began < 5


def test_no_git_and_one_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._git_commit.__wrapped__() is None
    (tmp_path / "git").write_text("not a program")
    (tmp_path / "git").chmod(0o755)
    assert module._git_commit.__wrapped__() is None


def test_sources_on_the_path_are_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    monkeypatch.setattr(module, "requires", missing)
    assert module.environment()["versions"] == {"recast-rl": "not installed as a package"}
