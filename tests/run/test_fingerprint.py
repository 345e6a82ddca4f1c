"""Settings and files that are the same get the same fingerprint, others another one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from recast.run.fingerprint import digest, plain
from recast.signals import grpo
from recast.types import RecastError


def scaled(x: float, *, w: float = 2.0, eps: float = 0.1) -> float:
    return w * x + eps


def twice(x: float) -> float:
    return 2 * x


def countdown(x: float) -> float:
    return countdown(x - 1) if x > 0 else x


def scaling(w: float) -> Callable[[float], float]:
    def inner(x: float) -> float:
        return w * x if x else inner(1.0)

    return inner


@dataclass
class Scaling:
    w: float

    def __call__(self, x: float) -> float:
        return self.w * x


def test_plain_settings_stay_as_they_are() -> None:
    @dataclass
    class Nested:
        sizes: tuple[int, ...]
        home: Path

    value = {"a": [1, 2.5, None, True, "x"], "b": Nested((1, 2), Path("x/y"))}
    wanted = {"a": [1, 2.5, None, True, "x"], "b": {"sizes": [1, 2], "home": "x/y"}}
    assert plain(value, "setting") == wanted
    assert json.loads(json.dumps(plain(value, "setting"))) == wanted


def test_a_function_of_ours_is_its_name_and_what_is_bound() -> None:
    name = {"function": "recast.signals.grpo:grpo"}
    assert plain(grpo, "signal") == name
    assert plain(partial(grpo, eps=1e-4), "signal") == name | {"eps": 1e-4}
    assert plain(partial(partial(grpo, eps=1.0), eps=1e-4), "signal") == name | {"eps": 1e-4}


def test_a_default_that_is_set_to_itself_is_not_set() -> None:
    assert plain(partial(scaled, w=2.0), "f") == plain(scaled, "f")
    assert plain(partial(scaled, w=3.0), "f") == plain(scaled, "f") | {"w": 3.0}
    assert plain(partial(scaled, 1.0), "f") == plain(scaled, "f") | {"bound": [1.0]}


def test_a_users_function_is_its_code_too() -> None:
    def other(x: float) -> float:
        return 3 * x

    other.__module__, other.__qualname__ = twice.__module__, twice.__qualname__
    known, changed = plain(twice, "f"), plain(other, "f")
    assert known["function"] == changed["function"]
    assert known["code"] != changed["code"]
    exec("def typed(x): return x", names := {"__name__": "typed"})
    assert plain(names["typed"], "f") == {"function": "typed:typed", "code": None}


def test_what_a_function_holds_counts() -> None:
    assert plain(scaling(2.0), "f") == plain(scaling(2.0), "f")
    assert plain(scaling(2.0), "f") != plain(scaling(3.0), "f")
    assert plain(Scaling(2.0), "f") == plain(Scaling(2.0), "f")
    assert plain(Scaling(2.0), "f") != plain(Scaling(3.0), "f")
    assert plain(countdown, "f")["function"].endswith(":countdown")


def test_tensors_count_by_their_bytes() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert plain(partial(scaled, w=a), "f") == plain(partial(scaled, w=a.clone()), "f")
    assert plain(a, "x") != plain(b, "x")
    assert plain(a, "x") != plain(a[:, None], "x")
    assert plain(a, "x") != plain(a.view(torch.int32), "x")
    assert plain(torch.tensor(1.5).bfloat16(), "x") != plain(torch.tensor(1.25).bfloat16(), "x")


@pytest.mark.parametrize("value", [{1, 2}, object()])
def test_what_cannot_be_compared_is_refused(value: object) -> None:
    with pytest.raises(RecastError, match=r"signal holds a \w+, which cannot be compared"):
        plain(partial(scaled, w=value), "signal")


def test_it_is_the_same_in_every_process() -> None:
    own = plain([scaling(2.0), partial(scaled, w=3.0)], "f")
    code = "import json, test_fingerprint as t; from functools import partial\n"
    code += "print(json.dumps(t.plain([t.scaling(2.0), partial(t.scaled, w=3.0)], 'f')))"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here
    )
    other = json.loads(done.stdout)
    assert [found["code"] for found in own] == [found["code"] for found in other]
    assert own[0]["holds.w"] == other[0]["holds.w"] == 2.0
    assert own[1]["w"] == other[1]["w"] == 3.0


def test_a_digest_knows_names_and_contents_not_places(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / f"{file}.json").write_text(text)
        return tmp_path / name

    one = digest(folder("one", a='{"x": 1, "from": "here"}', b="{}"), ["*.json"], ["from"])
    assert one == digest(folder("two", b="{}", a='{"from": "y", "x": 1}'), ["*.json"], ["from"])
    (tmp_path / "two" / "notes.txt").write_text("mine")
    assert one == digest(tmp_path / "two", ["*.json", "a.*"], ["from"])
    assert one != digest(tmp_path / "two", ["*.json"])
    assert one != digest(folder("three", a='{"x": 2}', b="{}"), ["*.json"], ["from"])
    assert one != digest(folder("four", a='{"x": 1}', c="{}"), ["*.json"], ["from"])
    file = tmp_path / "one" / "b.json"
    assert digest(file, []) == digest(tmp_path / "two" / "b.json", [])
    assert digest(file, []) != digest(tmp_path / "one" / "a.json", [])
