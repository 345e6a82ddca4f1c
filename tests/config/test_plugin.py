"""A user's part by its name: found, or told whose module it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

from recast.config.plugin import load_function
from recast.types import RecastError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize("named", ["./parts_a.py", "parts_a.py", "parts_a", "{here}/parts_a.py"])
def test_by_its_file_or_its_module(here: Path, named: str) -> None:
    (here / "parts_a.py").write_text("def mine():\n    return 7\n")
    assert load_function("signal", f"{named.format(here=here)}:mine")() == 7


def test_a_file_named_like_a_library_shadows_nothing(here: Path) -> None:
    for name in ("signal", "torch"):
        (here / f"{name}.py").write_text(f"def mine():\n    return {name!r}\n")
        assert load_function("signal", f"{name}:mine")() == name
    assert sys.modules["torch"] is torch
    (here / "colorsys.py").write_text("")
    spec = PathFinder.find_spec("colorsys")  # of Python, and beside the part
    assert spec is not None
    assert spec.origin != str(here / "colorsys.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json:mine", r"json, Python's own module \(.*\), has no function 'mine': give your own"),
        ("./none.py:mine", r"there is no file none.py: check the path"),
        ("none_such:mine", r"there is no module 'none_such' in .*: run from its folder, give its"),
        ("parts_b:mime", r"has no function 'mime': did you mean 'mine'\?"),
        ("parts_b:number", r"'number' in .*parts_b.py is no function but of type int"),
        ("parts_b", r"give module:function"),
        (".parts_b:mine", r"leave out the dots"),
        ("broken:mine", r"does not import \(ZeroDivisionError: division by zero in .*, line 2\)"),
        ("leaves:mine", r"does not import \(SystemExit: 3"),
        ("lacks:mine", r"needs 'no_such_package', which is not installed"),
    ],
)
def test_what_cannot_be_taken(here: Path, name: str, message: str) -> None:
    (here / "parts_b.py").write_text("number = 3\ndef mine(): ...\n")
    (here / "broken.py").write_text("x = 1\nx / 0\n")
    (here / "leaves.py").write_text("raise SystemExit(3)\n")
    (here / "lacks.py").write_text("import no_such_package\n")
    with pytest.raises(RecastError, match=message):
        load_function("signal", name)


def test_what_it_sets_for_the_process_is_set_back(here: Path) -> None:
    (here / "sets.py").write_text(
        "import os, sys, torch\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ntorch.set_num_threads(torch.get_num_threads() + 1)\n"
        "os.chdir('/')\nsys.stdout = sys.stderr = None\ndef mine(): ...\n"
    )
    threads, streams = torch.get_num_threads(), (sys.stdout, sys.stderr)
    load_function("reward", "sets:mine")
    assert torch.get_num_threads() == threads
    assert (sys.stdout, sys.stderr) == streams
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert Path.cwd() == here
