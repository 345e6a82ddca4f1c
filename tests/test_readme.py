"""What the README and the pages it leads to tell a newcomer exists, runs and is accepted."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

import recast
from recast import cli
from recast.methods.table import METHODS

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


def test_the_first_screen_is_short_and_cut_from_a_whole_run() -> None:
    shown, whole = (
        re.search(r"```text\n(.*?)```", text, re.DOTALL)
        for text in (README, (ROOT / "docs" / "quickstart.md").read_text())
    )
    assert shown is not None
    assert whole is not None
    lines = shown[1].splitlines()
    assert 10 < len(lines) <= 30
    rest = iter(whole[1].splitlines())
    assert [line for line in lines if line and line not in rest] == []  # in the order of the run


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


def test_the_readme_leads_to_what_a_newcomer_asks_for() -> None:
    links = set(re.findall(r"\]\(([^)]+)\)", README))
    assert links >= {f"docs/methods/{name}.md" for name in METHODS}
    assert links >= {"docs/quickstart.md", "docs/architecture.md", "examples/plain_loop.py"}
    assert links >= {"docs/custom.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert f"prints all {len(METHODS)} with" in README


def test_the_tree_names_what_there_is() -> None:
    tree = README.split("src/recast/\n", 1)[1].split("tests/", 1)[0]
    named = set(re.findall(r"\b(\w+\.py|\w+/)", tree))
    package = ROOT / "src" / "recast"
    there = {path.parent.name + "/" for path in package.glob("*/__init__.py")}
    there |= {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == there


def test_the_layers_on_the_pages_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = " > ".join(settings["contracts"][0]["layers"]).replace("recast.", "")
    for page in ("CONTRIBUTING.md", "docs/architecture.md"):
        assert layers in " ".join((ROOT / page).read_text().split()), page


def test_the_step_in_numbers_gives_what_the_page_shows() -> None:
    found = doctest.testfile(str(ROOT / "docs" / "architecture.md"), module_relative=False)
    assert found.attempted > 20
    assert found.failed == 0


def test_the_architecture_page_names_functions_that_are_where_it_says() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    places = re.findall(r"^ *([\w.]+) +(\w+/\w+\.py|rl\.py)(?:  |$)", page, re.MULTILINE)
    places += [(name, file) for file, name in re.findall(r"`(\w+/\w+\.py)`: `([\w.]+)`", page)]
    places += [(name, file) for file, name in re.findall(r"`([\w/]+\.py): (\w+)`", page)]
    assert len(places) > 30
    for name, file in places:
        code = (ROOT / "src" / "recast" / file).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(?:def |class )?{part}\b", code, re.MULTILINE), (name, file)
