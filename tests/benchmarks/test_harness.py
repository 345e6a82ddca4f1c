"""The benchmarks' own instruments, and the page they write, on cases with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.__main__ as runner
from benchmarks.harness import Row, peak_bytes, peak_rss_bytes, random_catalog, random_prompts
from benchmarks.rollout import prefixes_of
from benchmarks.update import floor_tokens


def test_peak_bytes_is_the_most_held_at_once() -> None:
    held = torch.zeros(100)

    def work() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(300)
        del second, third
        held.add_(1.0)

    assert peak_bytes(work) == 4 * 1500


def test_peak_rss_bytes_sees_what_numpy_holds_for_a_while() -> None:
    size = 64 * 2**20
    found = peak_rss_bytes(lambda: np.ones(size, dtype=np.int8).sum())
    assert 0.95 * size < found < 1.25 * size  # the kernel counts pages a few hundred at a time


def test_a_bar_is_a_floor_or_a_ceiling() -> None:
    row = {"name": "a", "what": "b", "against": "c", "bar": 2.0}
    met = [
        Row(**row, value=value, at_least=at_least).met
        for at_least in (True, False)
        for value in (1.9, 2.0, 2.1)
    ]
    assert met == [False, True, True, True, True, False]


def test_made_up_catalogues_have_distinct_items_and_prompts_whole_ones() -> None:
    catalog = random_catalog(60, 4)
    assert catalog.trie.num_leaves == 60
    prompts = random_prompts(catalog, 2, 18)
    assert prompts.tokens.shape == (2, 16)
    assert torch.equal(catalog.tokens_of(prompts.history).flatten(1), prompts.tokens[:, 1:])
    prefixes = prefixes_of(catalog)
    paths = [(a, b, c) for a in prefixes[()] for b in prefixes[a,] for c in prefixes[a, b]]
    assert sorted(paths) == sorted(map(tuple, catalog.tokens_of(torch.arange(60)).tolist()))


def test_the_floor_counts_the_beginning_that_branches_share_once() -> None:
    catalog = random_catalog(60, 4)
    branches = torch.tensor([[[2, 6, 10], [2, 6, 11], [2, 7, 10], [3, 6, 10]]])
    # Behind a prompt of 5: 2 and 3, then 2-6, 2-7 and 3-6; and a last token to predict.
    tokens, count = floor_tokens(catalog, 5, branches)
    assert tokens.shape == (1, 5 + 2 + 3 + 1)
    assert count == 1 + 2 + 3


def test_a_refreshed_row_replaces_its_name_and_a_missed_bar_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FOLDER": "", "RESULTS": "results.json", "GPU": "gpu.json"}.items():
        monkeypatch.setattr(runner, name, tmp_path / value)

    def row(name: str, value: float) -> Row:
        return Row(name=name, what=f"w {name}", against="x", value=value, bar=2, at_least=True)

    runner._write({"trie": [row("trie", 1.0)], "gpu": [row("gpu", 3.0)]}, [], whole=True)
    runner._write({"rollout": [row("rollout", 5.0)], "trl": None}, ["trl"], whole=False)
    runner._write({"trie": [row("trie", 1.5)], "gpu": []}, [], whole=False)
    results = json.loads((tmp_path / "results.json").read_text())
    found = [(result["name"], result["value"], result["met"]) for result in results]
    assert found == [("trie", 1.5, False), ("rollout", 5.0, True)]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| w trie | x | 1.5x | >= 2x | **missed** |  |" in page
    assert "| w gpu | x | 3x | >= 2x | yes |  |" in page
    runner._write({"trl": None}, ["trl"], whole=True)
    assert "`trl` failed" in (tmp_path / "RESULTS.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    (tmp_path / "results.json").write_text("null")
    with pytest.raises(SystemExit, match=r"results\.json is damaged: remove it"):
        runner._check_results()
    (tmp_path / "results.json").unlink()
    runner._check_results()
    with pytest.raises(AssertionError, match="two rows have one name"):
        runner._write({"trie": [row("a", 1.0)], "trl": [row("a", 2.0)]}, [], whole=True)
