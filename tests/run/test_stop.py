"""Signals: what the caller does not ignore ends a run, between two changes of its state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_walk import rl_args

from recast.run.files import CHECKPOINTS
from recast.run.stop import Stopped, listening, whole

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_python_starts() -> Iterator[None]:
    """Also where the caller ignores Ctrl-C, as `nohup make test &` does."""
    handlers = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    before = [signal.signal(*pair) for pair in zip(NUMBERS, handlers, strict=True)]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_at_once(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as stopped, listening():
        signal.raise_signal(number)
    assert stopped.value.number == number
    with listening(), pytest.raises(Stopped):
        signal.raise_signal(number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_must_be_whole() -> None:
    """The first one waits for the end of the outer block, the second does not."""
    done: list[str] = []

    def once() -> None:
        with listening(), whole():
            with whole():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")

    def twice() -> None:
        with listening(), whole():
            signal.raise_signal(signal.SIGTERM)
            done.append("again")
            signal.raise_signal(signal.SIGINT)
            done.append("never")

    with pytest.raises(Stopped, match="ended by SIGTERM"):
        once()
    with pytest.raises(Stopped, match="interrupted"):
        twice()
    assert done == ["inner", "outer", "again"]


def test_what_the_caller_ignores() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listening():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_run_under_nohup(walk: Path, tmp_path: Path) -> None:
    """A closed terminal does not end it; `kill` does, in one line, and it goes on."""
    run = tmp_path / "run"
    args = [sys.executable, "-m", "recast", *map(str, rl_args(walk, run, "--steps=100000"))]
    process = subprocess.Popen(
        args,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # noqa: PLW1509
    )
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (143, "recast: error: ended by SIGTERM\n")
    assert [folder.name[:5] for folder in (run / CHECKPOINTS).iterdir()] == ["step-"]
