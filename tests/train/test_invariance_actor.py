"""One update: its gradient against the naive objective, and all that it must not depend on."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import naive
import pytest
import tiny
import torch
from small_actor import GROUP, make_actor, other_policy, some_signal
from torch import Tensor

from recast.groups import reorder, select
from recast.losses import (
    LOSSES,
    dpo,
    gbpo,
    gspo,
    kl_k3,
    ppo_clip,
    s_dpo,
    trajectory_balance,
)
from recast.methods.parts import LOSS_INPUTS, needs, traits_of
from recast.policy.load import Policy, disable_dropout
from recast.policy.logprobs import branch_logprobs
from recast.rollout.sample import sample
from recast.signals.likelihood import likelihood
from recast.train.actor import micro_batches, rollouts_to_send, update
from recast.types import Draw, Signal, Traits


@pytest.fixture
def policy() -> Policy:
    return tiny.tiny_policy("qwen3", tiny.random_catalog(60, (4, 4, 5)))


def _gradient(policy: Policy, signal: Signal, **settings: Any) -> Tensor:
    """Gradient of one update, made on a copy of the policy."""
    own = replace(policy, model=copy.deepcopy(policy.model))
    update(make_actor(own, **settings), signal)
    return naive.flat_gradients(own.model)


def _naive_objective(
    model: torch.nn.Module, reference: torch.nn.Module, signal: Signal, kl_coef: float
) -> Tensor:
    """The policy loss at ratio 1, the KL and the likelihood, term by term."""
    prompts = signal.groups.prompts
    policy_sum, kl_sum, nll_sum, tokens, nll_tokens = 0.0, 0.0, 0.0, 0, 0.0
    for row in range(len(prompts)):
        for rollout in range(GROUP):
            if not signal.keep[row, rollout]:
                continue
            mask = signal.groups.loss_mask[row, rollout]
            branch = signal.groups.tokens[row, rollout][mask].tolist()
            logprobs = naive.branch_logprobs(model, prompts, row, branch)
            with torch.no_grad():
                frozen = naive.branch_logprobs(reference, prompts, row, branch)
            policy_sum = policy_sum - (signal.advantages[row, rollout] * logprobs).sum()
            difference = frozen - logprobs
            kl_sum = kl_sum + (difference.exp() - difference - 1).sum()
            tokens += len(branch)
        if signal.nll_weight[row]:
            pairs = zip(prompts.targets[row], prompts.target_mask[row], strict=True)
            targets = [tokens[mask].tolist() for tokens, mask in pairs if mask.any()]
            for target in targets:
                logprobs = naive.branch_logprobs(model, prompts, row, target)
                nll_sum = nll_sum - signal.nll_weight[row] * logprobs.sum() / len(targets)
                nll_tokens += len(target) / len(targets)
    nll = nll_sum / nll_tokens if nll_tokens else 0.0
    return (policy_sum + kl_coef * kl_sum) / tokens + nll


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("writes", ["semantic IDs", "texts"])
@pytest.mark.parametrize("name", ["qwen3", "t5"])
def test_the_gradient_is_that_of_the_naive_objective(
    name: str, writes: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_text = writes == "texts"
    catalog = tiny.random_texts(60) if is_text else tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy(name, catalog, dtype)
    if dtype == torch.float64:
        naive.lift_norms(policy.model, monkeypatch)
    signal, other = some_signal(policy), other_policy(policy)
    model = tiny.twin(policy.model)
    loss = _naive_objective(model, tiny.twin(other.model), signal, kl_coef=0.3)
    wanted = naive.gradients(model, loss)
    found = _gradient(policy, signal, reference=other, kl_coef=0.3, micro_batch_tokens=40)
    assert naive.relative_error(found, wanted) <= (1e-5 if dtype == torch.float32 else 1e-10)


def test_the_first_ratio_is_exactly_one_and_clipping_does_not_act(policy: Policy) -> None:
    signal = some_signal(policy)
    weights = copy.deepcopy(policy.model.state_dict())
    assert update(make_actor(policy), signal)["actor/ratio_deviation"] == 0.0
    policy.model.load_state_dict(weights)
    unclipped = _gradient(
        policy,
        signal,
        loss=lambda logprobs, old_logprobs, advantages: (
            -advantages * (logprobs - old_logprobs).exp()
        ),
    )
    # Not bit for bit: a user's loss gets the rollouts of advantage 0 as well.
    assert naive.relative_error(_gradient(policy, signal), unclipped) <= 1e-6


@pytest.mark.parametrize("tokens", [1, 30, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batches_do_not_change_the_gradient(
    dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.random_catalog(60, (4, 4, 5)), dtype)
    if dtype == torch.float64:
        naive.lift_norms(policy.model, monkeypatch)
    signal, other = some_signal(policy), other_policy(policy)
    settings = {"reference": other, "kl_coef": 0.1}
    parts = [list(micro_batches(signal, signal.keep, limit)) for limit in (tokens, 10**6)]
    assert len(parts[0]) > len(parts[1]) == 1
    wanted = _gradient(policy, signal, **settings)
    found = _gradient(policy, signal, micro_batch_tokens=tokens, **settings)
    limit = 1e-6 if dtype == torch.float32 else 1e-12
    assert naive.relative_error(found, wanted) <= limit


def test_micro_batches_hold_at_most_the_tokens_asked_for(policy: Policy) -> None:
    signal = some_signal(policy)
    for limit in (1, 25, 40, 60, 200):
        batches = list(micro_batches(signal, signal.keep, limit))
        rows = torch.cat([batch.prompts.row_ids for batch in batches]).tolist()
        assert sorted(rows) == [0, 1, 2, 4]
        for batch in batches:
            size = len(batch.prompts)
            width = int(batch.branch_mask.any(-1).sum(1).max())
            sent = size * (int(batch.prompts.lengths.max()) + 2 * width)
            assert size == 1 or sent <= limit


def test_tokens_before_the_last_that_counts_are_sent_too(policy: Policy) -> None:
    """Row 0: 19 tokens and five rollouts, whose two tokens before the one that counts are sent."""
    signal = some_signal(policy)
    mask = signal.groups.loss_mask.clone()
    mask[:, :, :-1] = False
    signal = replace(signal, groups=replace(signal.groups, loss_mask=mask))
    for limit, most in ((2 * (19 + 5 * 2), 2), (2 * (19 + 5 * 2) - 1, 1)):
        batches = [b.prompts.row_ids.tolist() for b in micro_batches(signal, signal.keep, limit)]
        assert max(len(rows) for rows in batches if 0 in rows) <= most


def test_parting_by_cost_does_not_change_the_gradient(policy: Policy) -> None:
    signal, other = some_signal(policy), other_policy(policy)
    parts = [list(micro_batches(signal, signal.keep, 10**6, cost)) for cost in (65536, 1)]
    assert [len(batches) for batches in parts] == [1, 4]
    settings = {"reference": other, "kl_coef": 0.1}
    wanted = _gradient(policy, signal, **settings)
    found = _gradient(policy, signal, pass_tokens=1, **settings)
    assert naive.relative_error(found, wanted) <= 1e-6
    padding = [
        update(make_actor(policy, pass_tokens=cost), signal)["actor/padding"] for cost in (65536, 1)
    ]
    assert padding[0] > 1.3
    assert padding[1] == 1.0


def test_the_order_of_prompts_and_padding_do_not_matter(policy: Policy) -> None:
    signal = some_signal(policy)
    wanted = _gradient(policy, signal)
    order = torch.tensor([4, 1, 3, 0, 2])
    shuffled = Signal(
        groups=select(signal.groups, order),
        advantages=signal.advantages[order],
        keep=signal.keep[order],
        nll_weight=signal.nll_weight[order],
        metrics={},
    )
    assert naive.relative_error(_gradient(policy, shuffled), wanted) <= 1e-6
    prompts = signal.groups.prompts
    wide = torch.cat([prompts.tokens, torch.full((5, 9), 3)], dim=1)
    beyond = torch.arange(wide.shape[1]) >= prompts.lengths[:, None]
    prompts = replace(prompts, tokens=wide.masked_fill(beyond, 5))
    padded = replace(signal, groups=replace(signal.groups, prompts=prompts))
    assert naive.relative_error(_gradient(policy, padded), wanted) <= 1e-6


def _nodes(branches: list[list[int]]) -> list[int]:
    """One token for every distinct beginning: the shorter ones first, then in order of the nodes
    they continue and of their own token."""
    beginnings = {tuple(branch[:depth]) for branch in branches for depth in (1, 2)}
    return [beginning[-1] for beginning in sorted(beginnings, key=lambda x: (len(x), x))]


def test_only_what_carries_weight_goes_through_the_models_and_each_prompt_once(
    policy: Policy,
) -> None:
    signal, other = some_signal(policy), other_policy(policy)
    prompts = signal.groups.prompts
    seen: dict[str, list[list[int]]] = {"policy": [], "reference": []}
    for name, model in (("policy", policy.model), ("reference", other.model)):
        model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].extend(kwargs["input_ids"].tolist()),
            with_kwargs=True,
        )
    # One prompt per micro-batch, so that nothing is padded: rows in order of their length.
    update(make_actor(policy, reference=other, kl_coef=0.1, micro_batch_tokens=1), signal)
    expected: dict[str, list[list[int]]] = {"policy": [], "reference": []}
    for row in (2, 1, 4, 0):
        prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
        branches = signal.groups.tokens[row][signal.keep[row]].tolist()
        if branches:  # the reference judges rollouts, never targets
            expected["reference"].append(prompt + _nodes(branches))
        if signal.nll_weight[row]:
            branches += prompts.targets[row][prompts.target_items[row] >= 0].tolist()
        expected["policy"].append(prompt + _nodes(branches))
    assert seen == expected


def test_an_empty_signal_leaves_the_policy_as_it_is(policy: Policy) -> None:
    signal = some_signal(policy)
    empty = replace(
        signal, keep=torch.zeros_like(signal.keep), nll_weight=torch.zeros_like(signal.nll_weight)
    )
    before = copy.deepcopy(policy.model.state_dict())
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1, weight_decay=0.5)
    update(make_actor(policy, optimizer=optimizer), signal)  # momentum that another step would use
    moved = copy.deepcopy(policy.model.state_dict())
    assert any(not torch.equal(before[k], moved[k]) for k in before)
    for updates in (1, 2):
        actor = make_actor(policy, optimizer=optimizer, updates_per_rollout=updates)
        assert update(actor, empty) == {"actor/kept_rows": 0.0, "actor/sent_rows": 0.0}
    assert all(torch.equal(moved[k], v) for k, v in policy.model.state_dict().items())


@pytest.mark.parametrize("group_size", [0, GROUP])
def test_likelihood_alone_needs_no_rollouts(policy: Policy, group_size: int) -> None:
    groups = reorder(some_signal(policy).groups, torch.arange(group_size).expand(5, -1))
    signal = likelihood(groups, torch.zeros(5, group_size))
    model = tiny.twin(policy.model)
    rows = []
    for row, targets in enumerate(([20], [21, 26, 27], [22], [23], [24, 25])):
        tokens = policy.catalog.tokens_of(torch.tensor(targets)).tolist()
        found = [naive.branch_logprobs(model, groups.prompts, row, t).mean() for t in tokens]
        rows.append(torch.stack(found).mean())
    loss = -torch.stack(rows).mean()
    wanted = naive.gradients(model, loss)
    own = replace(policy, model=copy.deepcopy(policy.model))
    metrics = update(make_actor(own), signal)
    assert naive.relative_error(naive.flat_gradients(own.model), wanted) <= 1e-5
    assert metrics["actor/nll"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert metrics["actor/kept_rows"] == metrics["actor/policy_loss"] == 0


def _mostly_zero(signal: Signal) -> Signal:
    """Every rollout kept, an advantage on three: as in GRPO, where most groups hold no hit."""
    advantages = torch.zeros_like(signal.advantages)
    advantages[0, 1], advantages[0, 3], advantages[2, 0] = 1.0, -0.5, 2.0
    keep = torch.ones_like(signal.keep)
    return replace(signal, advantages=advantages, keep=keep, nll_weight=signal.nll_weight * 0)


@pytest.mark.parametrize(
    ("loss", "updates"), [(ppo_clip, 1), (ppo_clip, 3), (gspo, 1), (gbpo, 1), (gbpo, 3)]
)
def test_rollouts_without_advantage_are_not_sent_and_nothing_changes(
    policy: Policy, loss: Any, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = _mostly_zero(some_signal(policy))
    settings = {"loss": loss, "updates_per_rollout": updates}
    found = _gradient(policy, signal, **settings)
    assert rollouts_to_send(make_actor(policy, **settings), signal).sum() == 3
    monkeypatch.setattr("recast.train.actor.traits_of", lambda part: Traits())
    assert rollouts_to_send(make_actor(policy, **settings), signal).sum() == 25
    limit = 1e-6 if updates == 1 else 1e-4  # steps of 0.1 blow rounding up
    assert naive.relative_error(found, _gradient(policy, signal, **settings)) <= limit


def test_losses_that_need_every_rollout_get_every_rollout(policy: Policy) -> None:
    signal = _mostly_zero(some_signal(policy))
    for loss in (dpo, s_dpo, trajectory_balance):
        assert rollouts_to_send(make_actor(policy, loss=loss), signal).all()

    def users_own(logprobs: Tensor, advantages: Tensor) -> Tensor:
        return -logprobs * advantages

    assert rollouts_to_send(make_actor(policy, loss=users_own), signal).all()
    mine = partial(ppo_clip, clip_high=0.5)
    assert rollouts_to_send(make_actor(policy, loss=mine), signal).sum() == 3


@pytest.mark.parametrize("name", LOSSES)
def test_the_list_of_losses_silent_at_zero_is_right(name: str) -> None:
    """Rollouts of advantage 0 give 0, and the others give what they give without them."""
    loss = LOSSES[name]
    silent = True
    for scale in (0.05, 2.0, 30.0):
        draw = torch.Generator().manual_seed(0)
        inputs = {n: -scale * torch.rand(3, 4, 3, generator=draw) for n in LOSS_INPUTS}
        inputs["advantages"] = torch.randn(3, 4, 3, generator=draw)
        inputs["advantages"][:, ::2] = 0
        inputs["loss_mask"] = torch.ones(3, 4, 3, dtype=torch.bool)
        asked = {n: value for n, value in inputs.items() if needs(loss, n)}
        every, others = loss(**asked), loss(**{n: value[:, 1::2] for n, value in asked.items()})
        alone = every.ndim > 1 and not every[:, ::2].any()
        silent &= alone and torch.equal(every[:, 1::2], others)
    assert silent == traits_of(loss).is_silent_at_zero


def test_a_batch_without_any_advantage_makes_the_same_step_as_if_it_were_sent(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's momentum moves the weights at a gradient of 0."""
    signal = _mostly_zero(some_signal(policy))
    nothing = replace(signal, advantages=signal.advantages * 0)
    states = []
    for dropped in (True, False):
        own = replace(policy, model=copy.deepcopy(policy.model))
        actor = make_actor(own, optimizer=torch.optim.AdamW(own.model.parameters(), lr=0.01))
        update(actor, signal)
        before = copy.deepcopy(own.model.state_dict())
        if not dropped:
            monkeypatch.setattr("recast.train.actor.traits_of", lambda part: Traits())
        metrics = update(actor, nothing)
        assert (metrics["actor/kept_rows"], metrics["actor/sent_rows"]) == (25, 25 * (not dropped))
        assert metrics["actor/grad_norm"] == 0
        assert any(not torch.equal(before[k], v) for k, v in own.model.state_dict().items())
        states.append(own.model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


def test_the_kl_of_rollouts_without_advantage_is_a_setting(policy: Policy) -> None:
    signal, other = _mostly_zero(some_signal(policy)), other_policy(policy)
    model, weighted = tiny.twin(policy.model), (signal.advantages != 0).any(-1)
    plain = tiny.twin(other.model)
    for kl_rollouts, over in (("kept", signal.keep), ("weighted", weighted)):
        settings = {"reference": other, "kl_coef": 0.3, "kl_rollouts": kl_rollouts}
        assert torch.equal(rollouts_to_send(make_actor(policy, **settings), signal), over)
        loss = _naive_objective(model, plain, signal, kl_coef=0.0)
        alone = replace(signal, keep=over, advantages=signal.advantages * 0)
        # Whatever the KL is a sum over, it is divided by the tokens of all 25 kept rollouts.
        share = float(over.sum()) / 25
        loss = loss + share * _naive_objective(model, plain, alone, kl_coef=0.3)
        wanted = naive.gradients(model, loss)
        assert naive.relative_error(_gradient(policy, signal, **settings), wanted) <= 1e-5


def test_a_loss_given_every_rollout_still_takes_the_kl_over_the_weighted(
    policy: Policy,
) -> None:
    signal, other = _mostly_zero(some_signal(policy)), other_policy(policy)
    settings = {"reference": other, "kl_coef": 0.3, "kl_rollouts": "weighted"}

    def nothing(logprobs: Tensor) -> Tensor:
        return 0 * logprobs

    everything = _gradient(policy, signal, loss=nothing, **settings)
    silent = replace(signal, advantages=signal.advantages * 1e-12)
    assert naive.relative_error(_gradient(policy, silent, **settings), everything) <= 1e-5


def test_several_updates_take_the_old_log_probabilities_from_the_first_pass(
    policy: Policy,
) -> None:
    """Not from the rollout, whose record may be off, and without another pass."""
    signal, calls = some_signal(policy), []
    broken = torch.full_like(signal.groups.rollout_logprobs, torch.nan)
    signal = replace(signal, groups=replace(signal.groups, rollout_logprobs=broken))
    policy.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    assert update(make_actor(policy, updates_per_rollout=3), signal)["actor/ratio_deviation"] > 0
    assert len(calls) == 3


def test_metrics_are_means_over_the_kept_tokens(policy: Policy) -> None:
    signal, other = some_signal(policy), other_policy(policy)
    tokens = signal.groups.tokens
    with torch.no_grad():
        logprobs = branch_logprobs(policy, signal.groups.prompts, tokens, "full")
        frozen = branch_logprobs(other, signal.groups.prompts, tokens, "full")
    metrics = update(
        make_actor(policy, reference=other, kl_coef=0.1, micro_batch_tokens=30), signal
    )
    assert metrics["actor/kept_rows"] == 8
    wanted = float(-signal.advantages.expand_as(logprobs)[signal.keep].mean())
    assert metrics["actor/policy_loss"] == pytest.approx(wanted, rel=1e-5)
    wanted = float(kl_k3(logprobs, frozen)[signal.keep].mean())
    assert metrics["actor/kl"] == pytest.approx(wanted, rel=1e-4)
    assert metrics["actor/kl"] > 0


def test_a_reference_equal_to_the_policy_has_no_kl_and_no_gradient(policy: Policy) -> None:
    signal = some_signal(policy)
    same = replace(policy, model=copy.deepcopy(policy.model))
    metrics = update(make_actor(replace(policy, model=copy.deepcopy(policy.model))), signal)
    with_kl = update(make_actor(policy, reference=same, kl_coef=5.0), signal)
    assert with_kl["actor/kl"] == pytest.approx(0, abs=1e-12)
    assert with_kl["actor/grad_norm"] == pytest.approx(metrics["actor/grad_norm"], rel=1e-6)
    assert all(p.grad is None for p in same.model.parameters())


def test_the_second_update_on_a_rollout_sees_the_ratio_of_the_first(policy: Policy) -> None:
    signal = some_signal(policy)
    prompts, tokens = signal.groups.prompts, signal.groups.tokens
    with torch.no_grad():
        before = branch_logprobs(policy, prompts, tokens, "full")
    once = replace(policy, model=copy.deepcopy(policy.model))
    update(make_actor(once), signal)
    with torch.no_grad():
        after = branch_logprobs(once, prompts, tokens, "full")
    metrics = update(make_actor(policy, updates_per_rollout=2), signal)
    sent = signal.keep & (signal.advantages[..., 0] != 0)
    wanted = float(((after - before).exp() - 1).abs()[sent].mean())
    assert wanted > 1e-3
    assert metrics["actor/ratio_deviation"] == pytest.approx(wanted, rel=1e-3)
    loss = ppo_clip(after, before, signal.advantages.expand_as(after))[signal.keep].mean()
    assert metrics["actor/policy_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_the_gradient_is_clipped_to_the_norm_asked_for(policy: Policy) -> None:
    signal = some_signal(policy)
    before = torch.cat([p.detach().flatten().clone() for p in policy.model.parameters()])
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    metrics = update(make_actor(policy, optimizer=optimizer, max_grad_norm=0.01), signal)
    after = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    assert metrics["actor/grad_norm"] > 0.02
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_gradients_left_over_from_elsewhere_do_not_leak_in(policy: Policy) -> None:
    signal = some_signal(policy)
    wanted = _gradient(policy, signal)
    for parameter in policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert torch.equal(_gradient(policy, signal), wanted)


def test_train_mode_without_dropout_gives_the_same_gradient(policy: Policy) -> None:
    signal = some_signal(policy)
    wanted = _gradient(policy, signal)
    policy.model.train()
    disable_dropout(policy.model)
    assert torch.equal(_gradient(policy, signal), wanted)


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_groups_with_missing_rollouts_train_in_every_space(space: str) -> None:
    """Row 0 has two candidates for four places; its neighbour keeps all four rollouts."""
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    seen = [[0, 1, 2, 3, 4, 5], []]
    prompts = tiny.make_prompts(policy.catalog, [[1], [2]], [[6], [7]], seen)
    groups = sample(policy, prompts, 4, Draw(logprob_space=space))
    mask = groups.loss_mask.clone()
    mask[0, 2:] = False
    tokens = groups.tokens.masked_fill(~mask, policy.catalog.pad_token)
    groups = replace(groups, tokens=tokens, loss_mask=mask)
    signal = Signal(
        groups=groups,
        advantages=torch.tensor([[1.0, -1.0, 9.0, 9.0], [1.0, 1.0, -1.0, -1.0]])[..., None],
        keep=groups.exists,
        nll_weight=torch.zeros(2),
        metrics={},
    )
    together = _gradient(policy, signal, space=space)
    apart = _gradient(policy, signal, space=space, micro_batch_tokens=1)
    assert naive.relative_error(together, apart) <= 1e-6
    logprobs = branch_logprobs(policy, prompts, groups.tokens, space)
    loss = -(signal.advantages * logprobs)[groups.loss_mask].mean()
    assert naive.relative_error(together, naive.gradients(policy.model, loss)) <= 1e-6
