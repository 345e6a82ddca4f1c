"""Bad input through the command line: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from data_folder import forget_hashes
from safetensors.torch import load_file, save_file
from small_walk import failure, metric_lines, rl_args, sft_args
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from recast.methods.table import METHODS

Fail = Callable[..., str]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fail:
    """Run a verb that must end with exit code 2 and leave no new file; returns its line."""

    def run(*args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        line, code = failure(capsys, *map(str, args))
        assert code == 2
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            "--group_size=1",
            "group_size is 1: method 'recast' needs 2 rollouts or more per prompt",
        ),
        (
            "--method=recats",
            f"method is 'recats': did you mean 'recast'? choose one of {', '.join(METHODS)}",
        ),
        ("--threads=0", "threads is 0: give 1 or more"),
        ("--valid_rows=0", "valid_rows is 0: give 1 or more"),
        (
            "--device=meta",
            f"device is 'meta': torch {torch.__version__} finds no such device here "
            "(Tensor.item() cannot be called on meta tensors), give cpu",
        ),
    ],
)
def test_settings_of_rl(walk: Path, tmp_path: Path, fail: Fail, more: str, line: str) -> None:
    assert fail(*rl_args(walk, tmp_path / "run", more)) == line


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--threads=-1", "threads is -1: give 1 or more"),
        ("--batch_windows=0", "batch_windows is 0: give 1 or more"),
        ("--patience=0", "patience is 0: give 1 or more"),
        ("--backwards_frac=2", "backwards_frac is 2.0: give a share from 0 to 1"),
        ("--crop_frac=-.5", "crop_frac is -0.5: give a share from 0 to 1"),
    ],
)
def test_settings_of_sft(walk: Path, tmp_path: Path, fail: Fail, more: str, line: str) -> None:
    assert fail(*sft_args(walk, tmp_path / "run", more)) == line


def test_a_sampler_for_a_method_without_rollouts(walk: Path, tmp_path: Path, fail: Fail) -> None:
    args = rl_args(walk, tmp_path / "run", "--method=sft_continued", "--sampler=beam")
    assert fail(*args) == (
        "sampler is 'beam': method 'sft_continued' makes no rollouts, leave it out"
    )


@pytest.mark.parametrize("verb", ["rl", "evaluate"])
def test_a_folder_without_a_policy(walk: Path, tmp_path: Path, fail: Fail, verb: str) -> None:
    bare = copy_of(walk / "sft" / "policy", tmp_path / "bare")
    (bare / "recast.json").unlink()
    for folder in (bare, tmp_path / "none"):
        line = fail(
            *(verb, "--data", walk / "data", "--policy", folder, "--output", tmp_path / "run")
        )
        assert line == f"{folder} holds no policy (recast.json): make one with `recast sft`"


def test_a_folder_without_data_or_catalogue(walk: Path, tmp_path: Path, fail: Fail) -> None:
    line = fail(*sft_args(walk, tmp_path / "run", f"--data={tmp_path}"))
    assert line == (
        f"{tmp_path} is no data folder (no interactions.parquet): make one with `recast prepare`"
    )
    line = fail(*sft_args(walk, tmp_path / "run", f"--catalog={tmp_path}"))
    assert line == f"{tmp_path} holds no catalogue (sid.json): make one with `recast tokenize`"


def test_a_target_that_is_not_in_the_catalogue(walk: Path, tmp_path: Path, fail: Fail) -> None:
    data = copy_of(walk / "data", tmp_path / "data")
    items = pl.read_parquet(data / "items.parquet")
    one_more = pl.DataFrame({"item_id": ["48"], "text": [""]})
    pl.concat([items, one_more]).write_parquet(data / "items.parquet")
    forget_hashes(data, items=49)
    line = (
        "the data has 49 items, the catalogue 48: a target would be missing; "
        "make the catalogue from this data with `recast tokenize`"
    )
    policy = walk / "sft" / "policy"
    run = tmp_path / "run"
    assert fail(*sft_args(walk, run, f"--data={data}")) == line
    assert fail(*rl_args(walk, run, f"--data={data}")) == line
    assert fail("evaluate", "--data", data, "--policy", policy, "--output", run) == line


def test_as_many_items_but_others(walk: Path, tmp_path: Path, fail: Fail) -> None:
    data = copy_of(walk / "data", tmp_path / "data")
    items = pl.read_parquet(data / "items.parquet")
    items[7, "item_id"] = "seven"
    items.write_parquet(data / "items.parquet")
    forget_hashes(data)
    assert fail(*sft_args(walk, tmp_path / "run", f"--data={data}")) == (
        "item 7 is 'seven' in the data, '7' in the catalogue: "
        "make the catalogue from this data with `recast tokenize`"
    )


def edited(policy: Path, name: str, **changes: object) -> None:
    content = json.loads((policy / name).read_text()) | changes
    (policy / name).write_text(json.dumps(content))


def test_a_vocabulary_that_does_not_fit(walk: Path, tmp_path: Path, fail: Fail) -> None:
    """2 special tokens and 3 levels of 8 codes are 26."""
    policy = copy_of(walk / "sft" / "policy", tmp_path / "policy")
    forget_hashes(policy / "catalog", "sid.json", codebook_sizes=[8, 8, 9])
    args = rl_args(walk, tmp_path / "run", policy=policy)
    assert fail(*args) == (
        f"{policy} has 26 tokens, its catalogue needs 27: use the policy with the catalogue it "
        "was trained on"
    )
    edited(policy, "catalog/sid.json", codebook_sizes=[8, 8, 2])
    assert "outside the codebooks [8, 8, 2]: codes run from 0 to size - 1" in fail(*args)
    edited(policy, "catalog/sid.json", codebook_sizes=[8, 8])
    assert "sid.json names 2 levels" in fail(*args)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocab_size": 25}, ": 1 of its weights are missing or do not fit its config.json, "),
        ({"intermediate_size": 32}, ": 3 of its weights are missing or do not fit its config.json"),
        (
            {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
            ": 11 of its weights are missing or do not fit its config.json, model.layers.1.",
        ),
        ({"num_hidden_layers": 2}, " does not load (Class validation error"),
        ({"model_type": "none"}, " does not load ("),
    ],
)
def test_weights_that_do_not_fit_the_config(
    walk: Path, tmp_path: Path, fail: Fail, change: dict[str, int], reason: str
) -> None:
    policy = copy_of(walk / "sft" / "policy", tmp_path / "policy")
    edited(policy, "config.json", **change)
    line = fail(*rl_args(walk, tmp_path / "run", policy=policy))
    assert line.startswith(f"{policy}{reason}")


def test_weights_that_are_cut_short(walk: Path, tmp_path: Path, fail: Fail) -> None:
    policy = copy_of(walk / "sft" / "policy", tmp_path / "policy")
    file = policy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    line = fail(*rl_args(walk, tmp_path / "run", policy=policy))
    assert line.startswith(f"{policy} does not load (Error while deserializing header")
    file.unlink()
    line = fail(*rl_args(walk, tmp_path / "run", policy=policy))
    assert line.startswith(f"{policy} has no model.safetensors: save it again with")


def test_an_output_that_holds_a_run(walk: Path, tmp_path: Path, fail: Fail) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("kept")
    output, policy = ["--output", tmp_path / "run"], walk / "sft" / "policy"
    for args in (
        ["quickstart", *output],
        ["prepare", "--interactions", walk / "events.csv", *output],
        ["tokenize", "--data", walk / "data", "--collaborative_weight=1", *output],
        sft_args(walk, tmp_path / "run"),
        rl_args(walk, tmp_path / "run"),
        ["evaluate", "--data", walk / "data", "--policy", policy, "--threads=1", *output],
    ):
        assert fail(*args) == (
            f"{tmp_path / 'run'} already holds something: remove it or choose another output"
        )
    assert (tmp_path / "run" / "mine").read_text() == "kept"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A BERT whose one word has an embedding of NaN."""
    folder = tmp_path / "encoder"
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        BertModel(BertConfig(vocab_size=3, intermediate_size=8, **shape)).save_pretrained(folder)
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2}, unk_token="[UNK]"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    FastTokenizer(tokenizer_object=words, **names).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][2] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_embeddings_of_nan(walk: Path, tmp_path: Path, encoder: Path, fail: Fail) -> None:
    data = copy_of(walk / "data", tmp_path / "data")
    items = pl.read_parquet(data / "items.parquet").with_row_index("place")
    text = pl.when(pl.col("place") == 5).then(pl.lit("red")).otherwise(pl.lit("blue"))
    items.with_columns(text=text).drop("place").write_parquet(data / "items.parquet")
    forget_hashes(data)
    args = ["tokenize", "--data", data, "--output", tmp_path / "catalog", "--encoder", encoder]
    assert fail(*args) == (
        f"encoder {encoder}: row 5 is not finite (1 such rows): check the encoder's weights or "
        "the embeddings you gave"
    )


def test_a_context_that_is_too_short(walk: Path, tmp_path: Path, fail: Fail) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=40, intermediate_size=16, max_position_embeddings=24, bos_token_id=1, **shape
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    args = sft_args(walk, tmp_path / "run", f"--model.path={tmp_path / 'llama'}")
    assert fail(*args) == (
        f"{tmp_path / 'llama'} has a context of 24 tokens, a window of 8 items needs 25: "
        "choose a smaller window"
    )


def test_no_training_window(walk: Path, tmp_path: Path, fail: Fail) -> None:
    data = copy_of(walk / "data", tmp_path / "data")
    events = pl.read_parquet(data / "interactions.parquet")
    place = pl.int_range(pl.len()).over("user")
    split = pl.when((pl.col("split") == "train") & (place > 0)).then(pl.lit("rl"))
    split = split.otherwise(pl.col("split").cast(pl.String)).cast(events.schema["split"])
    events.with_columns(split=split).write_parquet(data / "interactions.parquet")
    forget_hashes(data, split_name="by hand")
    assert fail(*sft_args(walk, tmp_path / "run", f"--data={data}")) == (
        f"{data} has no user with 2 training events: give more data"
    )


def test_too_short_histories(tmp_path: Path, fail: Fail) -> None:
    """Nobody has two training events: the first 14 of 20 events are of 14 users."""
    rows = [(turn % 14, turn, turn) for turn in range(20)]
    events = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    events.write_csv(tmp_path / "events.csv")
    args = ["--interactions", tmp_path / "events.csv", "--output", tmp_path / "data"]
    assert fail("prepare", *args) == (
        "the split 'train' has 14 events but none with an earlier event of the same user: give "
        "longer histories"
    )


def test_a_model_larger_than_the_memory(
    walk: Path, tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of 64 GB: on one of a terabyte it would be made."""
    monkeypatch.setattr("recast.policy.memory.free_bytes", lambda device: 64 * 10**9)
    shape = ["--model.hidden_size=65536", "--model.num_layers=1024"]
    line = fail(*sft_args(walk, tmp_path / "run", *shape))
    assert re.fullmatch(
        r"model has 30,\d+,\d+,\d+ parameters, which take \d+\.\d GB in training, and "
        r"64\.0 GB are free: choose a smaller model.hidden_size or model.num_layers",
        line,
    )


def test_sft_that_diverges(walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The decay makes every weight 99 times larger in each step; the run can go on from the last
    weights that are numbers, and ends there again."""
    run = tmp_path / "run"
    args = [*map(str, sft_args(walk, run, "--lr=1", "--weight_decay=100", "--epochs=9"))]
    line, code = failure(capsys, *args)
    assert code == 2
    assert re.fullmatch(
        r"the gradient of SFT is nan in optimizer step 6: the run has diverged, start it again "
        rf"with a lower lr; its prompts are in {run}/diverged.jsonl",
        line,
    )
    rows = [json.loads(row) for row in (run / "diverged.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {6}
    assert len({row["window"] for row in rows}) == len(rows) > 1
    assert all(len(row["tokens"]) == len(row["learned"]) > 1 for row in rows)
    assert not (run / "policy").exists()
    kept = newest_tensors(run)
    assert all(bool(x.isfinite().all()) for name, x in kept.items() if name.startswith("model."))
    (run / "diverged.jsonl").unlink()
    assert failure(capsys, *args, "--resume=true") == (line, 2)
    assert [json.loads(row) for row in (run / "diverged.jsonl").read_text().splitlines()] == rows


def newest_tensors(run: Path) -> dict[str, Tensor]:
    (*_, newest) = sorted((run / "checkpoints").iterdir())
    return load_file(newest / "tensors.safetensors")


@pytest.mark.parametrize("method", ["openonerec_rl", "recast", "sft_continued"])
def test_rl_that_diverges(
    walk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """What the run measured before is kept, a policy is not, and what did not fit is told."""
    run = tmp_path / "run"
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], lr=1e30))
    more = ["--warmup_steps=0", f"--method={method}"]
    line, code = failure(capsys, *map(str, rl_args(walk, run, *more)))
    assert code == 2
    assert line.endswith(
        " is nan at step 2: the run has diverged, start it again with a lower lr; its prompts are "
        f"in {run}/diverged.jsonl"
    )
    rows = [json.loads(row) for row in (run / "diverged.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {2}
    assert 1 <= len({row["row_id"] for row in rows}) == len(rows) <= 4
    for row in rows:
        shape = torch.tensor(row["rollouts"]).shape
        assert torch.tensor(row["advantages"]).shape == shape
        assert torch.tensor(row["rewards"]).shape == torch.tensor(row["keep"]).shape == shape[:1]
        assert row["nll_weight"] or any(row["keep"])
    assert [entry["step"] for entry in metric_lines(run)] == [0, 1]
    assert not (run / "policy").exists()
    assert not list(run.rglob("*.partial"))
    again = failure(capsys, *map(str, rl_args(walk, run, *more, "--resume")))
    assert again == (line, 2)
    assert [entry["step"] for entry in metric_lines(run)] == [0, 1]
