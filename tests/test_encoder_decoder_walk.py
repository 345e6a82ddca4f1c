"""A T5 from data to the table, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_walk import failure, metric_lines, rl_args, same, sft_args, weights
from transformers import AutoModelForSeq2SeqLM

from recast import cli
from recast.policy.load import load_policy

T5 = ("--model.kind=t5",)


def main(*args: object) -> None:
    cli.main([str(arg) for arg in args])


def test_from_supervised_training_to_the_table(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The items that may follow are two of 48."""
    sft = tmp_path / "sft"
    main(*sft_args(walk, sft, *T5, "--epochs=2", "--lr=1e-2", "--dropout=0.1", "--valid_rows=40"))
    assert "rows, up to 25 tokens with their answers" in capsys.readouterr().out
    assert metric_lines(sft)[-1]["valid/ndcg@10"] > 0.2  # chance has .09
    policy = sft / "policy"
    assert AutoModelForSeq2SeqLM.from_pretrained(policy).config.decoder_start_token_id == 0
    main(
        *rl_args(
            walk,
            tmp_path / "rl",
            "--method=recast",
            "--kl_coef=0.1",
            "--valid_rows=9",
            policy=policy,
        )
    )
    trained = tmp_path / "rl" / "policy"
    assert not same(weights(sft), weights(tmp_path / "rl"))
    assert load_policy(trained).model.config.model_type == "t5"
    capsys.readouterr()
    args = ("--data", walk / "data", "--policy", trained, "--output", tmp_path / "evaluation")
    main("evaluate", *args, "--at=10", "--beam_width=10")
    assert "0 within the first 10" in capsys.readouterr().out  # the beam against all items


@pytest.mark.parametrize("setting", ["crop_frac=0.5", "backwards_frac=0.5", "loss_on=all"])
def test_what_a_decoder_alone_learns_from_is_refused(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    args = [str(arg) for arg in sft_args(walk, tmp_path / "sft", *T5, f"--{setting}")]
    line, code = failure(capsys, *args)
    assert line.startswith(setting.split("=", maxsplit=1)[0])
    assert line.endswith("reads the prompts of rows and learns their answers, leave it out")
    assert code == 2
    assert not (tmp_path / "sft").exists()
