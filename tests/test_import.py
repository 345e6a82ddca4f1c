"""`import recast` is quick and light, and its names are where it says they are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import recast


def in_a_fresh_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_is_fast_and_pulls_no_torch() -> None:
    code = (
        "import json, sys, time; began = time.perf_counter(); import recast, recast.cli\n"
        "print(json.dumps([time.perf_counter() - began, sorted(sys.modules)]))"
    )
    seconds, modules = zip(*(json.loads(in_a_fresh_process(code)) for _ in range(3)), strict=True)
    assert min(seconds) < 0.5
    assert not {"torch", "numpy", "polars", "transformers", "jsonargparse", "rich"} & set(
        modules[0]
    )


@pytest.mark.parametrize(
    ("run", "line", "waits_for_none_of"),
    [
        ("cli.main(['rl', '--steps=x'])", "--steps is 'x': give a whole number", {"torch"}),
        (
            "cli.main(['evaluate', '--data=.', '--policy=p', '--output=../o'])",
            "p holds no policy (recast.json): make one with `recast sft`",
            {"torch"},
        ),
        (
            "check.check_method(recast.RLConfig(data='d', policy='p', output='o', sampler='bean'))",
            "sampler is 'bean': did you mean 'beam'?",
            {"transformers", "polars"},
        ),
    ],
)
def test_a_refusal_waits_for_no_import_of_seconds(
    tmp_path: Path, run: str, line: str, waits_for_none_of: set[str]
) -> None:
    names = ("interactions.parquet", "users.parquet", "items.parquet", "data.json")
    for name in names:
        (tmp_path / name).touch()
    is_check = "check_method" in run
    module = f"from recast{'.methods import check' if is_check else ' import cli'}"
    code = (
        f"import os, sys, recast; os.chdir({str(tmp_path)!r}); {module}\n"
        f"try: {run}\nexcept (SystemExit, ValueError) as error: print(error)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, modules = done.stdout.splitlines()
    assert line in said + done.stderr
    assert not waits_for_none_of & set(modules.split())


@pytest.mark.parametrize("name", recast.__all__)
def test_every_exported_name_is_found_in_its_home(name: str) -> None:
    value = getattr(recast, name)
    assert value is getattr(import_module(recast._HOMES[name]), name)
    # Named where it is defined, not passed on from elsewhere.
    assert getattr(value, "__module__", recast._HOMES[name]) == recast._HOMES[name]


def test_the_list_for_type_checkers_is_the_list_of_the_run_time() -> None:
    tree = ast.parse(Path(recast.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    listed = {
        node.names[0].asname: node.module for node in block.body if isinstance(node, ast.ImportFrom)
    }
    assert listed == recast._HOMES


def test_dir_lists_the_exports() -> None:
    listed = in_a_fresh_process("import recast; print(*dir(recast))").split()
    assert {*recast.__all__, "__version__"} <= set(listed)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'recast' has no attribute 'train_lr'"):
        _ = recast.train_lr


def test_no_file_imports_itself_by_any_way_deferred_imports_counted() -> None:
    root = Path(recast.__file__).parent
    names = {
        file: ".".join(("recast", *file.relative_to(root).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for file in root.rglob("*.py")
    }
    modules = set(names.values()) - {"recast"}  # the root names its exports for type checkers only
    imports = {name: _imported(file, modules) - {name} for file, name in names.items()}
    while ready := [name for name in imports if not imports[name] & imports.keys()]:
        for name in ready:
            del imports[name]
    assert not imports, f"a circle among {sorted(imports)}"


def _imported(file: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= inner or ({node.module} & modules)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
    return found
