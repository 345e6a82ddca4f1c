"""Every setting of every verb against values that no run could use: one line, or accepted."""

from __future__ import annotations

import os
from typing import Any, get_type_hints

import pytest
from checked import unchecked
from every_setting import TYPES, needed, try_all

from recast import cli
from recast import config as configs
from recast.config import EvaluateConfig, LoRAConfig, ModelConfig, RLConfig, SFTConfig
from recast.config.check import fits_type, refuse_ranks, take
from recast.types import RecastError


@pytest.mark.parametrize("config_type", TYPES)
def test_a_value_is_of_its_type_or_refused_in_a_line(config_type: type) -> None:
    """Without the type checks of the tests, which would refuse wrong types first."""
    with unchecked():
        try_all(config_type)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_number_on_the_command_line_is_taken_for_another(verb: str) -> None:
    settings = cli.VERBS[verb].config
    config_type = getattr(configs, settings) if settings else None
    texts = ("1e30", "nan", "0x10", "1_000", "1:30", "010", "9" * 5000, "[1]", "", "*x", "1e3x")
    for name, hint in get_type_hints(config_type).items() if config_type else ():
        if not (fits_type(2, hint) or fits_type(0.5, hint)) or hint is Any:
            continue
        args = [f"--{key}={value}" for key, value in needed(config_type).items()]
        for text in texts:
            with pytest.raises(RecastError, match=rf"^(--)?{name} is "):
                cli.configure(verb, [*args, f"--{name}={text}"])


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"group_size": 10**11}, "group_size is 100000000000: give 4096 or less"),
        ({"steps": 10**12}, "steps is 1000000000000: give 1000000 or less"),
        ({"lr": 1e300}, "lr is 1e+300: give 1 or less"),
        ({"max_grad_norm": 1e300}, "max_grad_norm is 1e+300: give 1000000 or less, .inf for none"),
        (
            {"group_size": 4096, "prompts_per_step": 512},
            "group_size is 4096: with prompts_per_step 512 give 2048 or less",
        ),
        (
            {"steps": 10**6, "prompts_per_step": 1000, "group_size": 16},
            "steps is 1000000: with prompts_per_step 1000 give 100000 or less",
        ),
        (
            {"threads": 10**6},
            f"threads is 1000000: give {8 * (os.cpu_count() or 1)} or less",
        ),
    ],
)
def test_absurd_sizes_are_refused_with_the_largest_sensible_one(
    more: dict[str, Any], line: str
) -> None:
    with pytest.raises(RecastError) as refused:
        RLConfig(data="d", policy="p", output="o", **more)
    assert str(refused.value) == line


def test_absurd_shapes_windows_and_cut_offs() -> None:
    with pytest.raises(RecastError, match=r"^window is 100000000000000000000: give 65536 or less"):
        SFTConfig(data="d", catalog="c", output="o", window=10**20)
    with pytest.raises(RecastError, match=r"^model.num_layers is 1000000: give 1024 or less"):
        ModelConfig(num_layers=10**6)
    with pytest.raises(RecastError, match=r"^model.hidden_size is 1000000000: give 65536 or less"):
        ModelConfig(hidden_size=10**9)
    with pytest.raises(RecastError, match=r"^lora.rank is 1000000000: give 65536 or less"):
        LoRAConfig(rank=10**9)
    with pytest.raises(RecastError, match="whole numbers of 1000000 or less"):
        EvaluateConfig(data="d", policy="p", output="o", at=[10**9], beam_width=10**6)


def test_a_home_is_filled_in_and_a_variable_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = SFTConfig(data="~/d", catalog="c~", output="~")
    assert (config.data, config.catalog, config.output) == ("/home/me/d", "c~", "/home/me")
    assert ModelConfig(path="~/m").path == "/home/me/m"
    for path in ("$HOME/run", "${RUN}", "~nobody-of-that-name/run"):
        with pytest.raises(RecastError, match=r"^output is .*: .*write the path out"):
            SFTConfig(data="d", catalog="c", output=path)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in ("1", "", "x", "0"):
        monkeypatch.setenv("WORLD_SIZE", count)
        refuse_ranks()
    for count, said in (("2", "2"), (" 010 ", "10"), ("9" * 5000, "9" * 20)):
        monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(RecastError, match=rf"WORLD_SIZE is {said}: .* start it without torchr"):
            refuse_ranks()


def test_a_verb_takes_its_own_config() -> None:
    for config in (None, {"output": "o"}, SFTConfig):
        with pytest.raises(RecastError, match=r"^config is .*: give a recast.SFTConfig"):
            take(config, SFTConfig)
