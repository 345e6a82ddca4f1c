"""What the README tells a newcomer to type exists and is accepted."""

from __future__ import annotations

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

import recast
from recast import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [
    line.strip()
    for line in README.replace("\\\n", " ").splitlines()
    if re.match(r"    (recast|make) ", line)
]


def test_the_commands_are_chores_of_the_makefile() -> None:
    chores = [line.split()[1] for line in SHELL if line.startswith("make ")]
    assert chores == ["quickstart", "test", "bench"]
    makefile = (ROOT / "Makefile").read_text()
    for chore in chores:
        assert re.search(rf"^{chore}: ", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("recast ")])
def test_a_command_is_accepted(line: str) -> None:
    _, verb, *args = shlex.split(line)
    config = cli.configure(verb, args)
    for flag, value in pairwise(args):
        if flag.startswith("--"):
            name, _, entry = flag[2:].partition(".")
            given = getattr(config, name)[entry] if entry else getattr(config, name)
            assert value == str(given) or value in given


def test_the_five_lines_of_python_are_accepted() -> None:
    code = re.search(r"```python\n(from recast import Prep.*?)```", README, re.DOTALL)
    assert code is not None
    names = {name: getattr(recast, name) for name in recast.__all__}
    calls = [node.value for node in ast.parse(code[1]).body if isinstance(node, ast.Expr)]
    assert len(calls) == 5
    for call in calls:
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        assert callable(getattr(recast, call.func.id))
        config = eval(ast.unparse(call.args[0]), names)
        assert config.output.startswith("runs/")


def test_the_first_screen_is_short() -> None:
    output = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert output is not None
    assert 10 < len(output[1].splitlines()) <= 30
    whole = (ROOT / "docs" / "quickstart.md").read_text()
    assert all(line in whole for line in output[1].splitlines())


def test_the_six_lines_of_python_run(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.search(r"```python\n(from dataclasses.*?)```", README, re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 7
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for stage in ("data", "sft"):
        (tmp_path / "runs" / "quickstart" / stage).symlink_to(walk / stage)
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README", "exec"), {})
    assert (tmp_path / "runs" / "mine" / "policy" / "model.safetensors").is_file()


def test_every_link_of_the_docs_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_files_that_the_docs_name_exist() -> None:
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name != "log.md"]
    names = {
        (page, name)
        for page in pages
        for name in re.findall(r"`(recast/[\w/]+\.py)`", page.read_text())
    }
    assert len(names) > 5
    for page, name in names:
        assert (ROOT / "src" / name).exists(), f"{page}: {name}"


def test_the_tree_names_files_that_exist() -> None:
    tree = README.split("src/recast/\n", 1)[1].split("tests/", 1)[0]
    for name in re.findall(r"\b(\w+\.py|\w+/)", tree):
        assert (ROOT / "src" / "recast" / name).exists(), name
