"""A settings file: YAML that is data alone, of bounded size, and names no code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recast import cli
from recast.config.settings_file import MOST_BYTES, load_text, read_settings
from recast.types import RecastError


def refusal(file: Path) -> str:
    with pytest.raises(RecastError) as refused:
        read_settings(str(file))
    return str(refused.value).removeprefix(str(file))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("-7", -7),
        (".inf", float("inf")),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("9" * 50, "9" * 50),
        ("yes", True),
        ("~", None),
        ("[&a 1, *a]", [1, 1]),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert load_text(text) == value
    assert type(load_text(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nlr: 2\nseed: 3", ", line 3: the key 'seed' is there twice"),
        ("model: {a: 1, a: 2}", ", line 1: the key 'a' is there twice"),
        ("x: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("x: " + "[" * 60 + "]" * 60, ": nested deeper than 50 levels"),
        ("x: " + "[" * 5000, ": nested deeper than 50 levels"),
        ("x: &x [*x]", ": nested deeper than 50 levels"),
        ("- 1", " holds no settings"),
        ("? [a]\n: 1", "unhashable key"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \0", "unacceptable character"),
        ("x" * (MOST_BYTES + 1), f" is larger than {MOST_BYTES} bytes"),
    ],
)
def test_what_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(text)
    assert says in refusal(tmp_path / "f.yaml")


def test_aliases_of_aliases(tmp_path: Path) -> None:
    """Nine levels of nine are 387 million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "f.yaml").write_text("\n".join(lines))
    assert "its aliases make more than 20000 values" in refusal(tmp_path / "f.yaml")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert refusal(file) == " is no file: give a YAML file"


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert read_settings(str(tmp_path / "f.yaml")) == {"seed": 3}


@given(st.text(alphabet="ab01:-[]{}&*!?,\n \"'|>#%.~<e", max_size=40))
def test_any_text_is_data_or_a_yaml_error(text: str) -> None:
    try:
        value = load_text(text)
    except yaml.YAMLError:
        return
    assert isinstance(value, str | int | float | bool | list | dict | None | set | bytes | tuple)


NEEDED = ["--data=d", "--policy=p", "--output=o"]


@pytest.mark.parametrize("key", ["sampler", "reward", "signal", "loss", "ranker"])
def test_a_file_names_no_code(key: str, tmp_path: Path) -> None:
    """A saved run of one's own part goes again with the flag."""
    file = tmp_path / "config.yaml"
    file.write_text(f"{key}: my_parts:mine\n")
    with pytest.raises(RecastError) as refused:
        cli.configure("rl", [*NEEDED, "--config", str(file)])
    assert str(refused.value) == (
        f"{file}: {key} is 'my_parts:mine': a file names no code to run, add "
        f"--{key} 'my_parts:mine' to the command if you trust it"
    )
    for args in (["--config", str(file), f"--{key}=a:b"], [f"--{key}", "a:b", f"--config={file}"]):
        assert getattr(cli.configure("rl", [*NEEDED, *args]), key) == "a:b"


def test_a_class_in_a_value_is_data(tmp_path: Path) -> None:
    made = tmp_path / "made"
    value = f"{{class_path: pathlib.Path.touch, init_args: {{self: {made}}}}}"
    for args in ([f"--signal_args={value}"], [f"--signal_args.w={value}"]):
        config = cli.configure("rl", [*NEEDED, *args])
        inner = config.signal_args.get("w", config.signal_args)
        assert inner["class_path"] == "pathlib.Path.touch"
    assert not made.exists()


@pytest.mark.parametrize(
    ("arg", "line"),
    [
        ("--model=m.yaml", "--model is 'm.yaml': give its own settings, such as model.path"),
        ("--config=", "--config is '': name a YAML file"),
        ("--seed=0x10", "--seed is '0x10': give a whole number"),
    ],
)
def test_flags(arg: str, line: str) -> None:
    with pytest.raises(RecastError) as refused:
        cli.configure("sft", ["--data=d", "--catalog=c", "--output=o", arg])
    assert str(refused.value).startswith(line)


def test_a_broken_entry_is_named() -> None:
    with pytest.raises(RecastError) as refused:
        cli.configure("rl", [*NEEDED, "--signal_args.w={a: 1, a: 2}"])
    assert str(refused.value) == (
        "--signal_args.w is '{a: 1, a: 2}': the key 'a' is there twice: write valid YAML"
    )
