"""The settings of papers in `examples/recipes/NAME/VERB.yaml` are settings of their verbs."""

from __future__ import annotations

from pathlib import Path

import pytest

from recast import cli

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "recipes").glob("*/*.yaml"))
NEEDED = {
    "tokenize": "--data d --tokenizer m --output o",
    "sft": "--data d --catalog c --model.path m --output o",
    "rl": "--data d --policy p --output o",
    "compare": "--data d --policy p --output o",
    "evaluate": "--data d --policy p --output o",
}


@pytest.mark.parametrize("file", FILES, ids=lambda x: f"{x.parent.name}-{x.stem}")
def test_a_verb_takes_the_settings_of_a_recipe(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = cli.configure(file.stem, [*NEEDED[file.stem].split(), "--config", str(file)])
    if file.stem == "rl":
        stated = (config.lr, config.kl_coef, config.max_grad_norm, config.schedule)
        assert stated == (1e-5, 1e-3, 0.3, "cosine")
        assert (config.group_size, config.prompts_per_step, config.sampler) == (16, 32, "beam")
        assert (config.ref_every, config.ref_mix) == (512, 0.6)
    if file.stem == "evaluate":
        assert {3, 5, 10, 20, 50} <= {*config.at}
