"""Mini-batches, per-row means and the metrics of several steps, against a slow obvious copy."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import naive
import pytest
import tiny
import torch
from small_actor import GROUP, make_actor, other_policy, some_signal
from torch import Tensor

from recast.config import Precision
from recast.losses import KLS, dr_grpo, ppo_clip, reinforce
from recast.policy.load import Policy
from recast.train.actor import update
from recast.train.batches import mini_batches
from recast.types import RecastError, Signal

LR = 0.3


@pytest.fixture
def policy() -> Policy:
    return tiny.tiny_policy("qwen3", tiny.random_catalog(60, (4, 4, 5)))


@pytest.fixture
def texts() -> Policy:
    """Items of 2 to 6 tokens: a mean over rollouts is none over tokens."""
    return tiny.tiny_policy("qwen3", tiny.random_texts(60))


def _kept(signal: Signal) -> list[list[tuple[int, int]]]:
    return [[(b, g) for g in range(GROUP) if row[g]] for b, row in enumerate(signal.keep.tolist())]


def _parts(signal: Signal, num_rows: int) -> list[tuple[list[tuple[int, int]], list[int]]]:
    """Rollouts in turns over the prompts, cut; prompts with a likelihood dealt out evenly."""
    left, order = _kept(signal), []
    while any(left):
        order += [row.pop(0) for row in left if row]
    cuts = [order[i : i + num_rows] for i in range(0, len(order), num_rows)] or [[]]
    learns = [b for b, weight in enumerate(signal.nll_weight.tolist()) if weight]
    some, more = divmod(len(learns), len(cuts))
    sizes = [some + (i < more) for i in range(len(cuts))]
    return [
        (part, [learns.pop(0) for _ in range(size)]) for part, size in zip(cuts, sizes, strict=True)
    ]


def _slow_update(
    policy: Policy, reference: Policy, signal: Signal, num_rows: int, repeats: int, agg: str
) -> tuple[Tensor, list[dict[str, float]]]:
    """Plain gradient descent over the parts, one forward per rollout; the weights it ends with."""
    model, frozen = tiny.twin(policy.model), tiny.twin(reference.model)
    prompts, groups = signal.groups.prompts, signal.groups
    parts = _parts(signal, num_rows)

    def scores(model: Any, b: int, g: int) -> Tensor:
        tokens = groups.tokens[b, g][groups.loss_mask[b, g]].tolist()
        return naive.branch_logprobs(model, prompts, b, tokens)

    every = [row for rows in _kept(signal) for row in rows]
    with torch.no_grad():
        old = {row: scores(model, *row) for row in every}
        ref = {row: scores(frozen, *row) for row in every}
    said = []
    for _ in range(repeats):
        said = []
        for rollouts, learns in parts:
            model.zero_grad()
            lists: dict[str, list[Tensor]] = {"loss": [], "kl": [], "fell": []}
            for row in rollouts:
                lp, a = scores(model, *row), signal.advantages[row]
                lists["loss"].append(ppo_clip(lp, old[row], a.expand_as(lp)))
                lists["kl"].append(KLS["k2"](lp, ref[row]))
                lists["fell"].append((old[row] - lp).detach())
            means = {}
            for name, values in lists.items():
                rows = [x.mean() for x in values] if agg != "token-mean" else values
                means[name] = torch.cat([x.view(-1) for x in rows]).mean()
            total, count = torch.zeros(()), 0.0
            for b in learns:
                masks = [m for m in prompts.target_mask[b] if m.any()]
                for t, mask in enumerate(masks):
                    tokens = prompts.targets[b, t][mask].tolist()
                    lp = naive.branch_logprobs(model, prompts, b, tokens)
                    total = total - signal.nll_weight[b] * lp.sum() / len(masks)
                    count += len(tokens) / len(masks)
            nll = total / max(count, 1)
            (means["loss"] + 0.2 * means["kl"] + nll).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(LR * parameter.grad)
            keys = {"actor/policy_loss": "loss", "actor/kl": "kl"}
            step = {key: float(means[name].detach()) for key, name in keys.items()}
            said.append(step | {"actor/ppo_kl": float(torch.cat(lists["fell"]).mean())})
    return torch.cat([p.detach().flatten() for p in model.parameters()]), said


@pytest.mark.parametrize(
    ("num_rows", "repeats", "agg"),
    [
        (1, 1, "token-mean"),
        (3, 1, "token-mean"),
        (3, 2, "seq-mean-token-mean"),
        (25, 2, "seq-mean-token-mean"),
    ],
)
def test_mini_batches_equal_plain_descent_over_the_parts(
    texts: Policy, num_rows: int, repeats: int, agg: str
) -> None:
    signal, reference = some_signal(texts), other_policy(texts)
    wanted, said = _slow_update(texts, reference, signal, num_rows, repeats, agg)
    start = torch.cat([p.detach().flatten() for p in texts.model.parameters()])
    optimizer = torch.optim.SGD(texts.model.parameters(), lr=LR)
    actor = make_actor(
        texts,
        optimizer=optimizer,
        reference=reference,
        kl_coef=0.2,
        kl_estimator="k2",
        loss_agg=agg,
        mini_batch_rows=num_rows,
        updates_per_rollout=repeats,
        micro_batch_tokens=60,
    )
    metrics = update(actor, signal)
    found = torch.cat([p.detach().flatten() for p in texts.model.parameters()])
    assert naive.relative_error(found - start, wanted - start) < 1e-3
    for name in said[0]:
        mean = sum(step[name] for step in said) / len(said)
        assert metrics[name] == pytest.approx(mean, rel=2e-3, abs=1e-5), name
    assert metrics["actor/optimizer_steps"] == repeats * -(-8 // num_rows)


def test_parts_are_disjoint_and_hold_all_that_counts(policy: Policy) -> None:
    signal = some_signal(policy)
    mask = signal.groups.loss_mask.clone()
    mask[0, 1] = False  # kept, without a token: it is in no denominator
    signal = replace(signal, groups=replace(signal.groups, loss_mask=mask))
    assert mini_batches(signal, None) == [signal]
    for num_rows in (1, 2, 3, 7, 100):
        parts = mini_batches(signal, num_rows)
        keeps = torch.stack([part.keep for part in parts])
        assert torch.equal(keeps.sum(0), (signal.keep & signal.groups.exists).long())
        assert [int(keep.sum()) for keep in keeps[:-1]] == [num_rows] * (len(parts) - 1)
        assert torch.equal(sum(part.nll_weight for part in parts), signal.nll_weight)
    # Rows 0, 2 and 4 keep 4, 2 and 1: the first of each, the second of two, then row 0 alone.
    rows = [part.keep.nonzero().tolist() for part in mini_batches(signal, 3)]
    assert rows == [[[0, 0], [2, 1], [4, 4]], [[0, 2], [0, 3], [2, 3]], [[0, 4]]]


def test_a_batch_without_rollouts_is_one_mini_batch(policy: Policy) -> None:
    signal = some_signal(policy)
    signal = replace(signal, keep=torch.zeros_like(signal.keep))
    metrics = update(make_actor(policy, mini_batch_rows=2), signal)
    assert metrics["actor/optimizer_steps"] == 1
    assert metrics["actor/nll"] > 0
    assert "actor/entropy" not in metrics
    nothing = replace(signal, nll_weight=torch.zeros_like(signal.nll_weight))
    kept_nothing = {"actor/kept_rows": 0.0, "actor/sent_rows": 0.0}
    assert update(make_actor(policy, mini_batch_rows=2), nothing) == kept_nothing


def test_a_part_without_an_advantage_still_makes_its_step(policy: Policy) -> None:
    """As verl's does: AdamW's momentum moves the weights at a gradient of 0, in the second step by
    .67 of the first (.474 / sqrt(.5)), in the third by .52, and so on."""
    signal = some_signal(policy)
    advantages = torch.zeros_like(signal.advantages)
    advantages[0, 0] = 1.0
    nll = torch.zeros_like(signal.nll_weight)
    signal = replace(signal, advantages=advantages, nll_weight=nll)
    moved = []
    for num_rows in (1, 8):
        own = replace(policy, model=copy.deepcopy(policy.model))
        optimizer = torch.optim.AdamW(own.model.parameters(), lr=0.01, weight_decay=0.0)
        metrics = update(make_actor(own, optimizer=optimizer, mini_batch_rows=num_rows), signal)
        pairs = zip(own.model.parameters(), policy.model.parameters(), strict=True)
        moved.append(sum(float((new - old).detach().abs().sum()) for new, old in pairs))
    assert metrics["actor/optimizer_steps"] == 1
    assert moved[0] > 2 * moved[1] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_before_the_first_step_every_ratio_is_exactly_one(
    policy: Policy, precision: Precision
) -> None:
    """In the first mini-batch by its own pass; in all of them while nothing moves."""
    signal = some_signal(policy)
    still = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    with policy.computing_in(precision):
        update(once := make_actor(policy, optimizer=still), signal)
        tokens = once.clock.read()["tokens/update"]
    for settings in ({"updates_per_rollout": 3}, {"mini_batch_rows": 2}, {"mini_batch_rows": 1}):
        with policy.computing_in(precision):
            metrics = update(actor := make_actor(policy, optimizer=still, **settings), signal)
        metrics |= actor.clock.read()
        assert metrics["actor/ratio_deviation"] == metrics["actor/ppo_kl"] == 0
        assert metrics["actor/clip_low_frac"] == metrics["actor/clip_high_frac"] == 0
        if "updates_per_rollout" in settings:
            assert metrics["tokens/update"] == 3 * tokens
        else:  # a prompt goes with each part that holds one of its rollouts
            assert metrics["tokens/update"] > tokens


def test_the_second_step_in_bfloat16_sees_what_the_first_has_written(policy: Policy) -> None:
    """An autocast keeps the weights that it has cast, until it is told."""
    signal, found = some_signal(policy), []
    for precision in ("float32", "bfloat16"):
        own = replace(policy, model=copy.deepcopy(policy.model))
        embedding = own.model.get_input_embeddings().weight.requires_grad_(False)
        assert embedding.dtype == torch.float32
        optimizer = torch.optim.SGD(own.model.parameters(), lr=0.1)
        with own.computing_in(precision):
            actor = make_actor(own, optimizer=optimizer, updates_per_rollout=2)
            found.append(update(actor, signal)["actor/ratio_deviation"])
    assert found[0] > 0.01
    assert found[1] == pytest.approx(found[0], rel=0.2)


def test_the_settings_of_a_trust_region_are_reported(policy: Policy) -> None:
    """By hand from the log-probabilities before and after the first of two large steps."""
    signal = some_signal(policy)
    signal = replace(signal, nll_weight=torch.zeros_like(signal.nll_weight))
    own = replace(policy, model=copy.deepcopy(policy.model))
    optimizer = torch.optim.SGD(own.model.parameters(), lr=3.0)
    metrics = update(make_actor(own, optimizer=optimizer, updates_per_rollout=2), signal)
    model, after = tiny.twin(policy.model), copy.deepcopy(policy)
    optimizer = torch.optim.SGD(after.model.parameters(), lr=3.0)
    update(make_actor(after, optimizer=optimizer), signal)
    moved_model, prompts = tiny.twin(after.model), signal.groups.prompts
    low = high = dual = count = 0
    for row, rollout in (pair for pairs in _kept(signal) for pair in pairs):
        a, tokens = float(signal.advantages[row, rollout]), signal.groups.tokens[row, rollout]
        with torch.no_grad():
            before = naive.branch_logprobs(model, prompts, row, tokens.tolist())
            ratio = (
                naive.branch_logprobs(moved_model, prompts, row, tokens.tolist()) - before
            ).exp()
        count += len(tokens)
        low += int(((ratio < 0.8) & (a < 0)).sum())
        high += int(((ratio > 1.28) & (a > 0)).sum())
        dual += int(((ratio > 3) & (a < 0)).sum())
    assert low + high > 3
    assert metrics["actor/clip_low_frac"] == pytest.approx(low / count)
    assert metrics["actor/clip_high_frac"] == pytest.approx(high / count)
    assert metrics["actor/dual_clip_frac"] == pytest.approx(dual / count)


def test_losses_per_rollout_are_as_they_were_and_only_their_kl_follows(texts: Policy) -> None:
    signal, reference = some_signal(texts), other_policy(texts)
    for loss in (reinforce, dr_grpo):
        found = []
        for agg in ("token-mean", "seq-mean-token-mean"):
            own = replace(texts, model=copy.deepcopy(texts.model))
            settings = {"loss": loss, "reference": reference, "kl_coef": 0.2, "loss_agg": agg}
            found.append(update(make_actor(own, **settings), signal))
        assert found[0]["actor/policy_loss"] == found[1]["actor/policy_loss"]
        assert found[0]["actor/kl"] != pytest.approx(found[1]["actor/kl"], rel=1e-3)


def _diverging(value: float, where: str) -> Any:
    def loss(logprobs: Tensor, loss_mask: Tensor) -> Tensor:
        if where == "loss":
            return logprobs * value
        finite = torch.where(logprobs < -1e9, logprobs, logprobs.detach())
        return finite + (logprobs - logprobs.detach()).abs().sqrt()  # slope inf at 0

    return loss


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("loss", float("nan"), r"loss .*:_diverging.* gave values that are not finite: \["),
        ("loss", float("inf"), r"loss .*:_diverging.* gave values that are not finite: \["),
        ("gradient", 0.0, "actor/grad_norm is nan at step 1: .*lower lr, or mend loss"),
    ],
)
def test_a_step_that_diverges_is_refused_before_it_is_made(
    policy: Policy, where: str, value: float, said: str
) -> None:
    signal = some_signal(policy)
    before = copy.deepcopy(policy.model.state_dict())
    with pytest.raises(RecastError, match=f"^{said}"):
        update(make_actor(policy, loss=_diverging(value, where)), signal)
    assert all(torch.equal(before[k], v) for k, v in policy.model.state_dict().items())
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(RecastError, match=r"is nan at step 1: the run has diverged, .*lower lr$"):
        update(make_actor(policy), signal)
