"""The made-up groups are what their kinds say, and like those of a sampler."""

from __future__ import annotations

import pytest
import torch

from recast.losses import ppo_clip
from recast.methods.probe import KINDS, loss_inputs, probe_groups, probe_loss, probe_resources
from recast.rewards.hit import first_hit
from recast.rewards.scores import shared_frac, structural_score
from recast.testing.examples import orders, without_ties
from recast.types import RecastError


def test_hits_of_every_kind() -> None:
    groups = probe_groups(8)
    hits = dict(zip(KINDS, first_hit(groups).sum(1).tolist(), strict=True))
    assert hits["one hit"] == 1
    assert hits["all zero"] == hits["all outside the catalogue"] == hits["no rollout"] == 0
    assert hits["all hit"] == 8
    assert hits["several targets"] == 2
    assert hits["repeats"] == 2
    counts = dict(zip(KINDS, groups.exists.sum(1).tolist(), strict=True))
    assert (counts.pop("short"), counts.pop("no rollout")) == (4, 0)
    assert set(counts.values()) == {8}
    assert (groups.items >= 0).sum(1).tolist() == [8, 8, 8, 8, 8, 4, 0, 4, 0]
    assert (groups.prompts.target_items >= 0).sum(1).tolist() == [1, 1, 1, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
def test_near_misses_of_every_level(num_levels: int) -> None:
    groups = probe_groups(num_levels + 1, num_levels, kinds=("one hit", "all zero"))
    share = shared_frac(groups.predictions, groups.prompts.target_sids)[..., 0]
    shared = (share * num_levels).round().long()
    levels = list(range(num_levels + 1))
    assert shared[0].sort().values.tolist() == levels
    assert set(shared[1].tolist()) == set(levels[:-1])


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_the_most_probable_come_first_and_a_sid_has_one_probability(size: int) -> None:
    groups = probe_groups(size)
    total = groups.rollout_logprobs.sum(-1).masked_fill(~groups.exists, -torch.inf)
    assert bool((total.diff(dim=1).nan_to_num(0) <= 0).all())
    same = (groups.tokens[:, :, None] == groups.tokens[:, None]).all(-1)
    same &= groups.exists[:, :, None] & groups.exists[:, None]
    assert bool((same <= (total[:, :, None] == total[:, None])).all())
    is_target = groups.items[:, :, None] == groups.prompts.target_items[:, None]
    is_target &= groups.items[:, :, None] >= 0
    wanted = groups.target_logprobs.sum(-1)[:, None].expand(is_target.shape)
    assert torch.equal(total[..., None].expand(is_target.shape)[is_target], wanted[is_target])


def test_the_policy_is_a_distribution_over_the_tree() -> None:
    """Of 10 leaves the group has 8 and the target one more; no item has the last."""
    groups = probe_groups(8, 1, kinds=("all zero",), seed=3)
    assert sorted([*groups.items[0].tolist(), int(groups.prompts.target_items[0, 0])]) == [
        *range(9)
    ]
    found = groups.rollout_logprobs.exp().sum() + groups.target_logprobs[0, 0, 0].exp()
    assert 0.5 < float(found) < 1


def test_lists_hold_distinct_items_in_their_own_order() -> None:
    groups = probe_groups(12, list_length=3)
    for kind in ("one hit", "all zero", "all hit", "several targets", "repeats"):
        for row in groups.items[KINDS.index(kind)].view(4, 3).tolist():
            assert len(set(row)) == 3
    exists = groups.exists[KINDS.index("short")].view(4, 3)
    assert exists.tolist() == [[True, True, False]] * 4
    with pytest.raises(RecastError, match=r"group_size is 4: .* multiple of list_length"):
        probe_groups(4, list_length=3)


def test_weights_stand_beside_existing_rollouts_alone() -> None:
    assert probe_groups(4).weights is None
    groups = probe_groups(4, weighted=True)
    assert groups.weights is not None
    assert torch.equal(groups.weights > 0, groups.exists)


def test_resources_are_what_the_loop_binds() -> None:
    groups = probe_groups(4)
    found = probe_resources(groups, list_length=2)
    items = groups.items.clamp(min=0)
    scores = found["ranker"](groups.prompts, items)
    assert scores.shape == items.shape
    with pytest.raises(RecastError, match="asked for item -1"):
        found["ranker"](groups.prompts, groups.items)
    lengths = found["embeddings"].norm(dim=1)
    assert set(lengths.round(decimals=5).tolist()) == {0.0, 1.0}
    assert len(lengths) > int(items.max())
    fan_out = found["fan_out"](groups)
    assert torch.equal(fan_out > 0, groups.exists[..., None].expand(fan_out.shape))
    assert set(fan_out.unique().tolist()) == {0, 1, 2, 3}
    assert found["natural_frac"] == 0.1
    assert found["list_length"] == 2


def test_groups_without_ties_have_none() -> None:
    for list_length in (1, 2, 3):
        for example in without_ties(("one hit", "all zero"), list_length):
            groups = example.groups
            targets = groups.prompts.target_sids
            numbers = [
                example.rewards,
                structural_score(groups.predictions, targets),
                groups.rollout_logprobs.sum(-1),
            ]
            for values in numbers:
                for row in values.tolist():
                    assert len(set(row)) == len(row)


def test_orders_keep_lists_whole() -> None:
    assert [x.tolist() for x in orders(3)] == [[2, 1, 0], [2, 0, 1]]
    assert next(orders(6, 2)).tolist() == [4, 5, 2, 3, 0, 1]


def test_a_loss_runs_on_made_up_groups() -> None:
    inputs = loss_inputs()
    assert probe_loss(ppo_clip).shape == inputs["logprobs"].shape
    assert inputs["loss_mask"].any(-1).sum(1).tolist() == [3, 1, 0, 3, 3]
