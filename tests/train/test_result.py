"""Trained weights are never lost to a folder that cannot be written."""

from __future__ import annotations

import os
import pty
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import tiny
import torch

from recast.policy.load import Policy, load_policy
from recast.train.result import save_result
from recast.types import RecastError


@pytest.fixture
def policy() -> Policy:
    return tiny.tiny_policy("qwen3", tiny.tiny_catalog())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@contextmanager
def terminal() -> Iterator[int]:
    """Where its person types."""
    person, ours = pty.openpty()
    with (
        pytest.MonkeyPatch.context() as patch,
        open(ours, closefd=False) as stdin,
        open(ours, "w", closefd=False) as stdout,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        yield person
    os.close(ours)
    os.close(person)


def blocked(tmp_path: Path) -> Path:
    """A folder that there is no way to."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "policy"


def is_whole(folder: Path, policy: Policy) -> bool:
    again = load_policy(folder).model.state_dict()
    return all(weight.equal(again[name]) for name, weight in policy.model.state_dict().items())


def test_elsewhere_when_there_is_no_terminal(tmp_path: Path, home: Path, policy: Policy) -> None:
    save_result(policy, tmp_path / "policy")
    assert is_whole(tmp_path / "policy", policy)
    folder = blocked(tmp_path)
    with pytest.raises(RecastError) as told:
        save_result(policy, folder)
    (place,) = home.iterdir()
    assert re.fullmatch("recast-policy-[0-9a-f]{8}", place.name)
    assert str(told.value) == (
        f"{folder} cannot be written ({tmp_path / 'file'} is no folder): choose another output; "
        f"the policy is in {place}, whole: move it there"
    )
    assert is_whole(place, policy)


def test_the_temporary_folder_is_the_last_place(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = blocked(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(RecastError, match=f"; the policy is in {tmp_path}/temporary/recast-policy"):
        save_result(policy, folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(RecastError, match=r"is no folder\): choose another output$"):
        save_result(policy, folder)


def answer(terminal: int, *answers: Callable[[], str]) -> Thread:
    """A person who types an answer below every question."""

    def person() -> None:
        for typed in answers:
            said = ""
            while "writes it there: " not in said:
                said += os.read(terminal, 4096).decode()
            assert said.count("warning: ") == 1
            os.write(terminal, typed().encode())

    thread = Thread(target=person, daemon=True)
    thread.start()
    return thread


def test_a_person_is_asked(tmp_path: Path, home: Path, policy: Policy) -> None:
    """An answer that is no better, then another folder."""
    worse, better = tmp_path / "file" / "x", tmp_path / "other"
    with terminal() as person:
        thread = answer(person, lambda: f"{worse}\n", lambda: f"{better}\n")
        with pytest.raises(RecastError, match=f"; the policy is in {better}, whole: move it"):
            save_result(policy, blocked(tmp_path))
        thread.join()
    assert is_whole(better, policy)
    assert list(home.iterdir()) == []


def test_a_person_mends_it(tmp_path: Path, home: Path, policy: Policy) -> None:
    """Enter tries the same folder again; then nothing is left to be told."""

    def mend() -> str:
        (tmp_path / "file").unlink()
        return "\n"

    with terminal() as person:
        thread = answer(person, mend)
        save_result(policy, blocked(tmp_path))
        thread.join()
    assert is_whole(tmp_path / "file" / "policy", policy)
    assert list(home.iterdir()) == []


def test_a_terminal_that_goes_away(tmp_path: Path, home: Path, policy: Policy) -> None:
    with terminal() as person:
        thread = answer(person, lambda: "\x04")  # Ctrl-D
        with pytest.raises(RecastError, match=f"; the policy is in {home}/recast-policy-"):
            save_result(policy, blocked(tmp_path))
        thread.join()


def test_weights_that_are_no_numbers_are_not_saved_anywhere(
    tmp_path: Path, home: Path, policy: Policy
) -> None:
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[0] = torch.nan
    with pytest.raises(RecastError, match=r"holds NaN or infinity: the run diverged"):
        save_result(policy, tmp_path / "policy")
    assert list(home.iterdir()) == []
    assert not (tmp_path / "policy").exists()
