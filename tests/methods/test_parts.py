"""Parts by name: what is found, what is refused, what is bound."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recast.config import RLConfig
from recast.config.plugin import load_function
from recast.methods.check import check_method
from recast.methods.parts import (
    KINDS,
    find_part,
    name_of,
    parameters,
    require_resources,
    resources,
    spell,
    supply,
    with_parameters,
)
from recast.types import RecastError


def part(groups: Any, rewards: Any, *, w: float = 1.0, kind: str = "a", ranker: Any) -> Any:
    return w, kind, ranker


def plain(groups: Any) -> int:
    return 3


def test_parameters_have_defaults_and_resources_have_none() -> None:
    assert parameters(part) == {"w": 1.0, "kind": "a"}
    assert resources(part) == {"ranker"}
    assert (parameters(plain), resources(plain)) == ({}, set())


def test_the_loop_s_own_arguments_of_a_sampler_are_no_parameters() -> None:
    sample = KINDS["sampler"]["sample"]
    own = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "constrained": True}
    assert parameters(sample) == own
    assert resources(sample) == set()


def test_a_part_may_call_its_parameters_as_it_likes() -> None:
    def mine(groups, rewards, *, alpha=1.0, seed=0, step=1, space="a", guide="b"):
        return alpha, seed, step, space, guide

    given = {"alpha": 2.0, "seed": 3, "step": 4, "space": "c", "guide": "d"}
    part = with_parameters("signal", mine, given)
    assert parameters(part) == given
    assert spell(part)[1] == given
    assert part(0, 0) == (2.0, 3, 4, "c", "d")


def test_what_is_set_stays_settable_and_what_is_supplied_is_no_longer_asked_for() -> None:
    half = with_parameters("signal", part, {"w": 0.5})
    assert parameters(half) == {"w": 0.5, "kind": "a"}
    again = with_parameters("signal", half, {"w": 2, "kind": "b"})
    whole = supply(again, {"ranker": "R", "embeddings": "unused"})
    assert resources(whole) == set()
    assert whole(0, 0) == (2, "b", "R")
    assert supply(plain, {"ranker": "R"}) is plain
    assert with_parameters("signal", part, {}) is part


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"v": 1}, "signal_args has 'v', which is no parameter of part: "),
        ({"knd": 1}, "did you mean 'kind'"),
        ({"ranker": 1}, "no parameter of part"),
        ({"w": "x"}, "signal_args.w is 'x': give a float, such as 1.0"),
        ({"w": True}, "signal_args.w is True"),
        ({"w": None}, "signal_args.w is None"),
        ({"kind": 2}, "signal_args.kind is 2: give a str, such as 'a'"),
    ],
)
def test_a_wrong_parameter_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecastError) as refused:
        with_parameters("signal", part, values)
    assert message in str(refused.value)


def test_a_part_without_parameters_says_so() -> None:
    with pytest.raises(RecastError, match="no parameter of plain: it has none"):
        with_parameters("reward", plain, {"w": 1})


def test_a_missing_resource_is_named_with_its_remedy() -> None:
    require_resources("method 'x'", [part, plain], ["ranker"])
    with pytest.raises(RecastError, match=r"method 'x' needs ranker \(part\): give --ranker"):
        require_resources("method 'x'", [plain, part], [])

    def other(groups: Any, *, weather: Any) -> Any: ...

    with pytest.raises(RecastError, match=r"needs weather \(other\): give it a default, or bind"):
        require_resources("method 'x'", [other], [])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_gives_the_nearest(kind: str) -> None:
    for name in KINDS[kind]:
        assert find_part(kind, name) is KINDS[kind][name]
        check_method(RLConfig(**{"data": "d", "policy": "p", "output": "o", kind: name}))
        with pytest.raises(RecastError, match=f"{kind} is '{name}x': did you mean '{name}'"):
            find_part(kind, f"{name}x")
    with pytest.raises(RecastError, match="or module:function"):
        find_part(kind, "zzz")


def test_names_show_what_is_set_apart_from_resources() -> None:
    assert name_of(part) == "part"
    assert name_of(KINDS["reward"]["partial"]) == "partial"  # the name on the command line
    assert name_of(partial(partial(part, w=2.0), ranker="R", kind="b")) == "part(w=2.0, kind=b)"


def test_a_part_is_spelt_so_that_it_is_found_again() -> None:
    signal = KINDS["signal"]["recast"]
    assert spell(with_parameters("signal", signal, {"w": 0.5})) == ("recast", {"w": 0.5})
    name, values = spell(partial(part, w=2.0))
    assert name == f"{__name__}:part"
    assert values == {"w": 2.0, "kind": "a"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules; nothing of it stays behind."""
    before = set(sys.modules)
    (tmp_path / "my_signals_a.py").write_text("number = 3\ndef mine(groups, rewards): ...\n")
    (tmp_path / "my_signals_b.py").write_text("import no_such_thing\n")
    (tmp_path / "my_signals_c.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_signals"):
            del sys.modules[name]


def test_a_function_of_the_working_directory(folder: Path) -> None:
    assert find_part("signal", "my_signals_a:mine").__name__ == "mine"
    assert load_function("ranker", "math:sqrt")(4) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_signals_z:f", "signal is 'my_signals_z:f': there is no module 'my_signals_z' in "),
        ("my_signals_z.y:f", "there is no module 'my_signals_z.y'"),
        ("my_signals_a:none", "my_signals_a.py, has no function 'none': it has mine"),
        ("my_signals_a:minee", "my_signals_a.py, has no function 'minee': did you mean 'mine'?"),
        ("my_signals_a:number", "my_signals_a.py is no function but of type int: it has mine"),
        ("my_signals_b:f", "its module needs 'no_such_thing'"),
        ("my_signals_c:f", "does not import (ZeroDivisionError: division by zero in "),
        (":f", "give module:function"),
        ("my_signals_a:", "give module:function"),
    ],
)
def test_a_function_that_is_not_there(folder: Path, name: str, message: str) -> None:
    with pytest.raises(RecastError) as refused:
        load_function("signal", name)
    assert message in str(refused.value)
