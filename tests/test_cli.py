"""The command line as a person meets it: help, settings from three places, one line per error."""

from __future__ import annotations

import ast
import errno
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from recast import cli
from recast import config as config_module
from recast.config import EvaluateConfig, PrepareConfig, RLConfig, SFTConfig
from recast.methods.table import METHODS
from recast.types import RecastError

OUTPUT = "--output OUTPUT       Folder to create."
SFT = ["--data", "d", "--catalog", "c", "--output", "o"]


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, int]:
    """The one line on stderr, without its prefix, and the exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(args))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recast: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("recast: error: ").rstrip(), int(left.value.code or 0)


def write(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text)
    return str(folder / "run.yaml")


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--help"]):
        cli.main(args)
        out = capsys.readouterr().out
        for name, verb in cli.VERBS.items():
            assert f"  {name} " in out
            assert verb.summary in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == "recast 0.1.0\n"


@pytest.mark.parametrize("verb", [name for name, verb in cli.VERBS.items() if verb.config])
def test_help_of_a_verb_explains_its_settings(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    others = {"inspect": "--row ROW             Row that is shown", "feasible": "--tables TABLES "}
    assert others.get(verb, OUTPUT) in capsys.readouterr().out


def test_every_setting_has_a_docstring_for_the_help() -> None:
    files = Path(str(config_module.__file__)).parent.glob("*.py")
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    assert len([node for node in nodes if isinstance(node, ast.ClassDef)]) > len(cli.VERBS) - 2
    for node in nodes:
        fields = node.body if isinstance(node, ast.ClassDef) else []
        for field, behind in pairwise([*fields, None]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(behind, ast.Expr), ast.unparse(field)


def test_help_of_rl_lists_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["rl", "--help"])
    lines = capsys.readouterr().out.partition("\nmethods:\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, method.summary] for name, method in METHODS.items()
    ]


def test_methods_prints_every_method_with_its_paper_and_its_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main(["methods"])
    text = capsys.readouterr().out
    assert re.findall(r"^(\w+)  \(", text, re.MULTILINE) == list(METHODS)
    assert (
        "rere  (arXiv 2510.12211)\n"
        "  constrained beams, punish the more probable wrong items more\n"
        "  samplers beam, sample, dynamic, think, openonerec | reward ranking | "
        "signal grpo(eps=0.0001) | loss reinforce\n"
    ) in text
    cli.main(["methods", "--help"])
    assert capsys.readouterr().out == text
    with pytest.raises(SystemExit) as left:
        cli.main(["methods", "recast"])
    assert left.value.code == 2
    assert "recast methods takes no settings: leave out recast" in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "data: d\ncatalog: c\noutput: o\nlr: 1e-3\nseed: 3\nwindow: 9\nmodel:\n  num_layers: 5\n",
    )
    config = cli.configure("sft", ["--config", file, "--seed", "4", "--model.hidden_size", "48"])
    assert isinstance(config, SFTConfig)
    assert (config.data, config.lr, config.seed, config.window) == ("d", 1e-3, 4, 9)
    assert (config.model.num_layers, config.model.hidden_size) == (5, 48)


def test_printed_config_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["sft", *SFT, "--window", "7", "--print_config"])
    assert left.value.code == 0
    file = write(tmp_path, capsys.readouterr().out)
    assert cli.configure("sft", ["--config", file]) == cli.configure("sft", [*SFT, "--window=7"])


def test_lists_null_and_choices() -> None:
    prepared = cli.configure(
        "prepare", ["--text", "title", "genres", "--output", "o", "--exclude_seen", "true"]
    )
    assert isinstance(prepared, PrepareConfig)
    assert (prepared.text, prepared.exclude_seen) == (["title", "genres"], True)
    assert cli.configure("prepare", ["--output", "o", "--text", '["a", "b"]']).text == ["a", "b"]
    trained = cli.configure(
        "rl", ["--data=d", "--policy=p", "--output=o", "--sampler", "beam", "--lr", "null"]
    )
    assert isinstance(trained, RLConfig)
    assert (trained.sampler, trained.lr) == ("beam", None)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["quikstart"], "'quikstart' is no verb: did you mean quickstart?"),
        (
            ["sft", *SFT, "--epoch", "3"],
            "--epoch is no flag of recast sft: did you mean --epochs?",
        ),
        (
            ["sft", *SFT, "--model.hidden_sized=3"],
            "--model.hidden_sized is no flag of recast sft: did you mean --model.hidden_size?",
        ),
        (
            ["sft", *SFT, "--zzz", "3"],
            "--zzz is no flag of recast sft: see `recast sft --help`",
        ),
        (["sft", *SFT, "--weight_decay", "fast"], "--weight_decay is 'fast': give a number"),
        (["sft", *SFT, "--threads", "1.5"], "--threads is '1.5': give a whole number or null"),
        (
            ["sft", *SFT, "--model.tie_embeddings", "maybe"],
            "--model.tie_embeddings is 'maybe': give true or false",
        ),
        (
            ["rl", "--data=d", "--policy=p", "--output=o", "--logprob_space", "fuul"],
            "--logprob_space is 'fuul': give full or level or trie or null",
        ),
        (["sft", *SFT, "--epochs", "-1"], "epochs is -1: give 0 or more"),
        (
            ["rl", "--data=d", "--policy=p", "--output=o", "--group_size", "0"],
            "group_size is 0: give 1 or more",
        ),
        (
            ["sft", "--data", "d"],
            "recast sft needs --catalog and --output: give it as a flag or in --config FILE.yaml",
        ),
        (
            ["sft", *SFT, "--epochs"],
            "argument --epochs: expected one argument: see `recast sft --help`",
        ),
        (
            ["sft", *SFT, "extra"],
            "'extra' belongs to no flag of recast sft: see `recast sft --help`",
        ),
        (
            ["sft", "--config", "nowhere.yaml"],
            "nowhere.yaml: No such file or directory: check the path",
        ),
    ],
)
def test_bad_flags(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, *args) == (line, 2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epoch: 3\n", "{} has the unknown key 'epoch': did you mean epochs?"),
        (
            "model:\n  hidden_sized: 4\n",
            "{} has the unknown key 'model.hidden_sized': did you mean model.hidden_size?",
        ),
        (
            "hidden_size: 4\n",
            "{} has the unknown key 'hidden_size': did you mean model.hidden_size?",
        ),
        ("model:\n  hidden_size: abc\n", "{}: model.hidden_size is 'abc': give a whole number"),
        ("data: 5\n", "{}: data is 5: give a text (in YAML: in quotes)"),
        ("seed: 1\ndata: [d\n", "{}, line 3: "),
        ("hello\n", "{} holds no settings: write lines of the form `seed: 1`"),
        ("", "{} holds no settings: write lines of the form `seed: 1`"),
    ],
)
def test_bad_files(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, text)
    said, code = failure(capsys, "sft", "--config", file)
    assert said.startswith(line.format(file))
    assert code == 2


def test_a_file_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\x81")
    said, code = failure(capsys, "sft", "--config", str(tmp_path / "run.yaml"))
    assert said.endswith("run.yaml is not a text file: give a YAML file")
    assert code == 2


def full_disk(config: EvaluateConfig) -> None:
    """Write to the device that is always full, as a stage would."""
    pl.DataFrame({"x": [1]}).write_parquet("/dev/full")


def no_permission(config: EvaluateConfig) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", config.output)


def bad_data(config: EvaluateConfig) -> None:
    raise RecastError("data.csv, row 3:\n  the time is 'x': give a number")


def interrupted(config: EvaluateConfig) -> None:
    raise KeyboardInterrupt


def bug(config: EvaluateConfig) -> None:
    raise IndexError("list index out of range")


def table(config: EvaluateConfig) -> dict[str, float]:
    return {"test/ndcg@10": 0.05}


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`recast evaluate` runs the function above that `--split`'s neighbour `--policy` names."""
    module = ModuleType("stages_of_the_test")
    module.run = lambda config: globals()[config.policy](config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("recast.run.doors.enter", lambda *args, **kwargs: None)
    verb = cli.VERBS["evaluate"]._replace(stage="stages_of_the_test:run", describe=None)
    monkeypatch.setitem(cli.VERBS, "evaluate", verb)


def stage(name: str) -> list[str]:
    return ["evaluate", "--data", "d", "--output", "out", "--policy", name]


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    ("name", "line", "code"),
    [
        ("bad_data", "data.csv, row 3: the time is 'x': give a number", 2),
        ("no_permission", "out: Permission denied: choose a path you may use", 2),
        (
            "full_disk",
            "the disk is full: choose another output or free some space",
            2,
        ),
        ("interrupted", "interrupted", 130),
        (
            "bug",
            "IndexError: list index out of range: this is a bug of recast; "
            "run the same command with --debug and report the trace",
            1,
        ),
    ],
)
def test_a_stage_that_fails(
    name: str, line: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure(capsys, *stage(name)) == (line, code)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(("name", "code"), [("bad_data", 2), ("bug", 1)])
def test_debug_shows_the_trace(name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--debug", *stage(name)])
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert f"in {name}" in err
    assert err.splitlines()[-1].startswith("recast: error: ")
    assert left.value.code == code


@pytest.mark.usefixtures("stages")
def test_the_summary_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(stage("table"))
    assert capsys.readouterr().out == (
        "test/ndcg@10  0.05\nrecast evaluate: done in 0 s, written to out\n"
    )


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recast.cli", "prepare"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "recast: error: recast prepare needs --output: give it as a flag or in --config FILE.yaml\n"
    )


def test_items_and_text_reach_the_config() -> None:
    args = ["--interactions", "e.csv", "--items", "i.csv", "--output", "o"]
    for text in (["--text", "title", "genre"], ['--text=["title", "genre"]']):
        config = cli.configure("prepare", [*args, *text])
        assert (config.items, config.text) == ("i.csv", ["title", "genre"])
    assert cli.configure("prepare", [*args, "--text=title"]).text == ["title"]


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("window: null", "window is null: give a whole number"),
        ("model: 5", "model is 5: give its own settings, one by one"),
        ("text: title", "unknown key 'text'"),
        ("lr: .inf", "lr is inf: give a positive rate"),
        ("seed: 2147483648", "seed is 2147483648: give a whole number from 0 to 2147483647"),
        ("window: 2020-13-45", "window is '2020-13-45': give a whole number"),
        ("seed: 010", "seed is '010': give a whole number"),
        ("window: 1:30", "window is '1:30': give a whole number"),
    ],
)
def test_settings_that_a_file_cannot_have(
    setting: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, setting)
    line, code = failure(capsys, "sft", "--config", file, *SFT)
    assert wanted in line
    assert code == cli.BAD_INPUT
