"""Trie-constrained groups and our signals inside TRL's trainer."""

from __future__ import annotations

import re
import runpy
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import trl
from small_chat import chat_tokenizer
from small_trainer import CATALOG, GROUP, PROMPTS, make_trainer, rows
from torch import Tensor

from recast.groups import append_target
from recast.integrations.trl import GRPOTrainer, host
from recast.items.titles import title_catalog
from recast.losses import ppo_clip
from recast.policy.load import Policy
from recast.rollout.sample import sample
from recast.signals.grpo import grpo
from recast.signals.gumbel import gumbel_pg
from recast.signals.recast import recast
from recast.train.actor import Actor, update
from recast.train.reference import frozen_reference
from recast.types import RecastError, RolloutGroups, Signal

# TRL itself calls what transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing.* is deprecated:FutureWarning"
)

TITLES = title_catalog(chat_tokenizer(), ["Pen", "Ink", "Glue", "Tea"], [*"abcd"]).catalog


def hit(rollout_item: list[int], target: list[list[int]], **columns: Any) -> list[float]:
    return [float(item in wanted) for item, wanted in zip(rollout_item, target, strict=True)]


def batches(trainer: Any) -> list[dict[str, Any]]:
    """The rows of one generation batch, as TRL's sampler repeats them."""
    return [dict(row) for row in rows() for _ in range(GROUP)]


@pytest.mark.parametrize("sampler", ["beam", "sample"])
def test_training_learns_the_targets_from_valid_groups(tmp_path: Path, sampler: str) -> None:
    drawn: list[tuple[list[list[int]], list[int]]] = []

    def reward(completion_ids: Any, rollout_item: Any, target: Any, **columns: Any) -> list[float]:
        drawn.append((completion_ids, rollout_item))
        return hit(rollout_item, target)

    trainer = make_trainer(
        GRPOTrainer,
        tmp_path,
        {"max_steps": 8, "lr_scheduler_type": "constant"},
        catalog=CATALOG,
        sampler=sampler,
        signal="recast",
        reward_funcs=reward,
    )
    trainer.train()
    assert len(drawn) == 8
    valid = {
        tuple(path): item
        for item, path in enumerate(CATALOG.tokens_of(torch.arange(CATALOG.num_items)).tolist())
    }
    for completions, items in drawn:
        assert [valid[tuple(path)] for path in completions] == items
        groups = [set(items[start : start + GROUP]) for start in range(0, len(items), GROUP)]
        assert len(groups) == PROMPTS
        assert sampler != "beam" or all(len(group) == GROUP for group in groups)
    log = trainer.state.log_history[:8]
    rewarded = [line["reward"] for line in log]
    assert max(rewarded[-3:]) > rewarded[0]
    assert log[0]["group/repaired_frac"] == log[0]["group/all_zero_frac"] > 0
    assert all(line["grad_norm"] > 0 for line in log)


def test_a_signal_gives_the_gradient_of_our_own_actor(tmp_path: Path) -> None:
    trainer = make_trainer(
        GRPOTrainer,
        tmp_path,
        {"use_bias_correction_kl": False},
        catalog=CATALOG,
        sampler="beam",
        signal=recast,
        reward_funcs=hit,
    )
    with torch.no_grad():  # a reference of its own, so that the KL has a gradient
        for p in trainer.ref_model.parameters():
            p.add_(0.02 * torch.sin(torch.arange(p.numel())).view(p.shape))
    twin = deepcopy(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(batches(trainer))
    trainer.compute_loss(trainer.model, batch).backward()
    assert batch["completion_mask"].sum() == 2 * 3 * PROMPTS  # a pair of three tokens per prompt

    policy = Policy(model=twin, catalog=CATALOG, window=2)
    actor = Actor(
        policy=policy,
        reference=frozen_reference(replace(policy, model=trainer.ref_model), "full"),
        optimizer=torch.optim.SGD(twin.parameters(), lr=1.0),
        loss=ppo_clip,
        kl_coef=0.1,
        kl_rollouts="kept",
        max_grad_norm=float("inf"),
        space="full",
        micro_batch_tokens=10**6,
        updates_per_rollout=1,
    )
    before = [p.detach().clone() for p in twin.parameters()]
    update(actor, recast(trainer._groups, trainer._rewards))
    for start, after, p in zip(before, twin.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(start - after, p.grad, rtol=1e-4, atol=1e-6)


def test_without_a_signal_the_advantages_are_those_of_trl(tmp_path: Path) -> None:
    given = {"catalog": CATALOG, "sampler": "beam", "reward_funcs": hit}
    trainer = make_trainer(GRPOTrainer, tmp_path, {}, **given)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(batches(trainer))
    assert batch["advantages"].shape == (GROUP * PROMPTS,)
    assert bool(batch["completion_mask"].all())
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logprobs = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 3)[0]
    expected = trainer._groups.rollout_logprobs.flatten(0, 1)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_micro_batches_keep_groups_together(tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": GROUP, "gradient_accumulation_steps": PROMPTS}
    trainer = make_trainer(GRPOTrainer, tmp_path, settings, catalog=CATALOG, reward_funcs=hit)
    trainer.model.train()
    trainer._prepare_inputs(batches(trainer))
    parts = trainer._buffered_inputs
    assert [len(part["prompt_ids"].unique(dim=0)) for part in parts] == [1] * PROMPTS
    assert len(torch.cat([part["prompt_ids"] for part in parts]).unique(dim=0)) == PROMPTS
    trainer._step = 1
    assert trainer._prepare_inputs(batches(trainer)) is parts[1]  # nothing generated anew


def test_generate_is_what_it_was(tmp_path: Path) -> None:
    ours, stock = (
        make_trainer(kind, tmp_path / name, {})
        for kind, name in ((GRPOTrainer, "ours"), (trl.GRPOTrainer, "stock"))
    )
    tokens = torch.tensor([[0, 0, 1, 5, 9], [1, 4, 8, 12, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found, expected = (
        trainer.model.eval().generate(
            tokens, attention_mask=mask, max_new_tokens=6, do_sample=False
        )
        for trainer in (ours, stock)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({"temperature": 0.7}, {}, "temperature is 0.7"),
        ({"num_generations": 12, "max_completion_length": 2}, {}, "max_completion_length is 2"),
        ({}, {"signal": "adagrpo"}, "signal adagrpo needs ranker: bind it"),
        (
            {},
            {"signal": "nll_on_all_zero"},
            "signal nll_on_all_zero weighs the target's likelihood",
        ),
        ({}, {"signal": "riser"}, "signal riser turns groups of 4 rollouts into groups of 5"),
        ({}, {"signal": "vstar"}, "signal vstar is defined over the children .* `recast rl`"),
        (
            {},
            {"signal": partial(gumbel_pg, baseline=0.1)},
            r"signal gumbel_pg\(baseline=0.1\) is defined over the children",
        ),
        ({}, {"sampler": "gumbel"}, "sampler gumbel is defined over the children"),
        ({}, {"signal": "recst"}, "did you mean 'recast'"),
        ({}, {"sampler": "beems"}, "did you mean 'beam'"),
        (
            {"max_completion_length": 9},
            {"catalog": TITLES},
            "the tokenizer of processing_class reads 'Pen', the title of item 'a', as other tokens",
        ),
        ({}, {"catalog": None, "signal": "recast"}, "signal is 'recast': give a catalog with it"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, settings: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecastError, match=words):
        make_trainer(GRPOTrainer, tmp_path, settings, **{"catalog": CATALOG, **given})


def test_a_policy_of_another_space_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recast.json").write_text('{"window": 8, "logprob_space": "trie"}')
    message = r"model was trained over trie, TRL's .* are over the whole vocabulary: train with"
    with pytest.raises(RecastError, match=message):
        make_trainer(GRPOTrainer, tmp_path, {}, catalog=CATALOG)


def test_rows_that_are_no_groups_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(GRPOTrainer, tmp_path, {}, catalog=CATALOG, signal="grpo")
    trainer.model.train()
    with pytest.raises(RecastError, match="no whole groups of 4"):
        trainer._generate_and_score_completions(batches(trainer)[1:])


@pytest.mark.parametrize(
    "target", ["11", ["11"], None, [], 1.5, -1, [3, -2], CATALOG.num_items, [[1], [2, 3]]]
)
def test_a_target_that_is_no_item_is_named(tmp_path: Path, target: Any) -> None:
    trainer = make_trainer(GRPOTrainer, tmp_path, {}, catalog=CATALOG, signal="grpo")
    trainer.model.train()
    right = batches(trainer)
    wrong = right[:GROUP] + [row | {"target": target} for row in right[GROUP:]]
    message = f"the column target holds {target!r}: give the index of an item of the catalog, 0 to"
    with pytest.raises(RecastError, match=re.escape(message)):
        trainer._generate_and_score_completions(wrong)
    for row in right:
        del row["target"]
    with pytest.raises(RecastError, match="target is None: a signal needs this column"):
        trainer._generate_and_score_completions(right)


def test_every_batch_of_an_evaluation_has_draws_of_its_own(tmp_path: Path) -> None:
    trainer = make_trainer(GRPOTrainer, tmp_path, {}, catalog=CATALOG, sampler="sample")
    drawn = []
    for training in (False, False, True, True):
        trainer.model.train(training)
        trainer._generate_and_score_completions(batches(trainer))
        drawn.append(trainer._groups.tokens)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])  # in training the step decides, which stood still


def test_a_resumed_run_draws_what_the_whole_run_draws(tmp_path: Path) -> None:
    def drawn(folder: Path, steps: int, resume: str | None = None) -> list[int]:
        seen: list[int] = []

        def sampler(*args: Any, **given: Any) -> RolloutGroups:
            seen.append(args[3].step)
            return sample(*args, **given)

        settings = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer(GRPOTrainer, folder, settings, catalog=CATALOG, sampler=sampler)
        trainer.train(resume_from_checkpoint=resume)
        return seen

    assert drawn(tmp_path / "whole", 4) == [0, 1, 2, 3]
    assert drawn(tmp_path / "part", 2) == [0, 1]
    checkpoint = str(tmp_path / "part" / "run" / "checkpoint-2")
    assert drawn(tmp_path / "part", 4, checkpoint) == [2, 3]


def test_a_likelihood_weight_that_appears_later_is_refused(tmp_path: Path) -> None:
    calls: list[int] = []

    def late(groups: RolloutGroups, rewards: Tensor) -> Signal:
        calls.append(1)
        weight = torch.full((len(rewards),), float(len(calls) > 1))
        return replace(recast(groups, rewards), nll_weight=weight)

    trainer = make_trainer(GRPOTrainer, tmp_path, {}, catalog=CATALOG, signal=late)
    trainer.model.train()
    with pytest.raises(RecastError, match="late weighs the target's likelihood"):
        trainer._generate_and_score_completions(batches(trainer))


def test_rows_that_a_signal_adds_later_are_refused(tmp_path: Path) -> None:
    calls: list[int] = []

    def late(groups: RolloutGroups, rewards: Tensor) -> Signal:
        calls.append(1)
        if len(calls) > 1:
            groups, rewards, _ = append_target(groups, rewards)
        return grpo(groups, rewards)

    trainer = make_trainer(GRPOTrainer, tmp_path, {}, catalog=CATALOG, signal=late)
    trainer.model.train()
    with pytest.raises(RecastError, match="late turns groups of 4 rollouts into groups of 5"):
        trainer._generate_and_score_completions(batches(trainer))


def test_a_moved_method_of_trl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(trl.GRPOTrainer, "_calculate_rewards")
        with pytest.raises(
            RecastError, match=r"TRL 1\.16\.0 has no GRPOTrainer\._calculate_rewards"
        ):
            make_trainer(GRPOTrainer, tmp_path, {})

    def renamed(self: Any, model: Any, ids: Any, attention_mask: Any, logits_to_keep: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(trl.GRPOTrainer, "_get_per_token_logps_and_entropies", renamed)
    message = "_get_per_token_logps_and_entropies without the parameter 'input_ids'.*for TRL 1.16.0"
    with pytest.raises(RecastError, match=message):
        make_trainer(GRPOTrainer, tmp_path, {})


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r'pip install "recast-rl\[trl\]"'):
        runpy.run_path(host.__file__)


def test_completions_of_items_of_unequal_lengths(tmp_path: Path) -> None:
    """Padding is no token of a completion, with a signal and without."""
    texts = tiny.random_texts(40)
    for signal in (None, "grpo"):
        given = {"catalog": texts, "sampler": "beam", "reward_funcs": hit, "signal": signal}
        trainer = make_trainer(GRPOTrainer, tmp_path, {"max_completion_length": 6}, **given)
        trainer.model.train()
        batch = trainer._generate_and_score_completions(batches(trainer))
        groups = trainer._groups
        lengths = texts.lengths[groups.items.flatten()]
        assert len(lengths.unique()) > 1
        assert batch["completion_mask"].sum(1).tolist() == lengths.tolist()
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        with torch.no_grad():
            found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)[0]
        expected = groups.rollout_logprobs.flatten(0, 1)[:, :width]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
