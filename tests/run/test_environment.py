from __future__ import annotations

import os
from pathlib import Path

import pytest

from recast.run.environment import environment


@pytest.mark.parametrize("script", ["exec sleep 60", "exit 3", "printf '\\377'; exit 1"])
def test_a_git_that_hangs_or_fails_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("recast.run.environment.GIT_S", 0.3)
    assert environment()["git_commit"] is None


def test_the_commit_of_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho abc-dirty\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert environment()["git_commit"] == "abc-dirty"
