"""Items of a domain are found as in the catalogue of this domain alone, whatever else there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import tiny
import torch
from torch import Tensor

from recast.evaluation.exact import exact_scores
from recast.evaluation.free import free_metrics
from recast.evaluation.rank import rank_policy
from recast.groups import select
from recast.items.catalog import Catalog, build_catalog
from recast.items.fan_out import fan_out
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.prompts import make_prompts
from recast.rollout.beam import beam, beam_search
from recast.rollout.decoder import Decoder
from recast.rollout.dynamic import dynamic
from recast.rollout.gumbel import gumbel
from recast.rollout.lists import sample_lists
from recast.rollout.sample import sample
from recast.types import Draw, Prompts, RolloutGroups, Sequences

SIZES = (3, 3, 4)
# The first domain is a part of the second, with narrower nodes; its item 3 writes nothing.
VIDEOS = [[0, 0, 1], [0, 1, 0], [1, 2, 2], [-1, -1, -1], [0, 0, 2]]
PRODUCTS = [*tiny.CODES.tolist(), [0, 0, 1], [0, 0, 3], [1, 0, 0], [0, 0, 0]]
ALONE = (build_catalog(VIDEOS, SIZES), build_catalog(PRODUCTS, SIZES))
BOTH = build_catalog(
    VIDEOS + PRODUCTS, SIZES, domain_of=[0] * 5 + [1] * 12, domains=("video", "product")
)
DOMAINS = [1, 0, 0, 1]
HISTORIES = [[4, 0], [2, 3], [0, 0], [9, 2]]
TARGETS = [[1, 8], [4, -1], [1, 2], [5, -1]]
SEEN = [[0, 9], [2, 3], [0, -1], [9, 2]]


def prompts_of(catalog: Catalog, domain: int | None, rows: list[int]) -> Prompts:
    """Rows of one domain in its own catalogue, or of any in that of both."""

    def items(table: list[list[int]]) -> Tensor:
        chosen = torch.tensor([table[row] for row in rows])
        shift = torch.tensor([5 * DOMAINS[row] if domain is None else 0 for row in rows])
        return torch.where(chosen >= 0, chosen + shift[:, None], -1)

    domains = torch.tensor([DOMAINS[row] for row in rows]) if domain is None else None
    return make_prompts(
        catalog,
        history=items(HISTORIES),
        targets=items(TARGETS),
        seen=items(SEEN),
        row_ids=torch.tensor(rows),
        domains=domains,
    )


@dataclass(frozen=True)
class Rows:
    """These rows as a task."""

    catalog: Catalog
    domain: int | None
    name: str = "rows"
    split_name: str = "by hand"
    exclude_seen: bool = True
    tasks: tuple[str, ...] = ("rows",)

    def task_of(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(rows)

    def targets(self, rows: Tensor) -> Tensor:
        return self.prompts(rows).target_items

    def item_counts(self, splits: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def history_lengths(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def notes(self, rows: Tensor) -> list[str]:
        return []

    def rows(self, split: str) -> Tensor:
        return torch.arange(len(DOMAINS))

    def sequences(self, rows: Tensor, epoch: int) -> Sequences:
        raise NotImplementedError

    def users(self, rows: Tensor) -> Tensor:
        return rows

    def lengths(self, rows: Tensor) -> Tensor:
        return self.prompts(rows).lengths

    def prompts(self, rows: Tensor) -> Prompts:
        return prompts_of(self.catalog, self.domain, rows.tolist())


def score_by_codes(prompts: Prompts, items: Tensor, catalog: Catalog) -> Tensor:
    """A guide that knows an item by what it writes, and its place within its domain."""
    place = items - 5 * (catalog.domain_of[items] if len(catalog.domains) > 1 else 0)
    return 3 * torch.sin(catalog.tokens[items].sum(-1) + place + prompts.row_ids[:, None])


def rows_of(domain: int) -> list[int]:
    return [row for row, own in enumerate(DOMAINS) if own == domain]


def found(policy: Policy, sampler: Callable[..., RolloutGroups], domain: int | None) -> dict:
    """What the sampler finds, and what others make of it."""
    rows = range(len(DOMAINS)) if domain is None else rows_of(domain)
    prompts = prompts_of(policy.catalog, domain, list(rows))
    groups = sampler(policy, prompts)
    counts = fan_out(policy.catalog, groups)
    scores = branch_logprobs(policy, prompts, groups.tokens, "full", groups.loss_mask)
    if domain is None:
        return {d: _row(groups, counts, scores, torch.tensor(rows_of(d)), 5 * d) for d in (0, 1)}
    return _row(groups, counts, scores, torch.arange(len(prompts)), 0)


def _row(
    groups: RolloutGroups, counts: Tensor, scores: Tensor, rows: Tensor, shift: int
) -> dict[str, Tensor | None]:
    own = select(groups, rows)
    return {
        "tokens": own.tokens,
        "items": torch.where(own.items >= 0, own.items - shift, -1),
        "predictions": own.predictions,
        "loss_mask": own.loss_mask,
        "rollout_logprobs": own.rollout_logprobs,
        "target_logprobs": own.target_logprobs,
        "weights": own.weights,
        "fan_out": counts[rows],
        "scores": scores[rows],
    }


def guided(policy: Policy, prompts: Prompts) -> RolloutGroups:
    guide = partial(score_by_codes, catalog=policy.catalog)
    return beam_search(policy, prompts, 5, Draw(), Decoder(guide=guide, alpha=0.5))


SAMPLERS: dict[str, Callable[..., RolloutGroups]] = {
    "beam": partial(beam, group_size=5),
    "beam over children": partial(beam, group_size=12, draw=Draw(logprob_space="trie")),
    "unconstrained beam": partial(
        beam, group_size=36, draw=Draw(logprob_space="level"), constrained=False
    ),
    "guided beam": guided,
    "sample": partial(sample, group_size=6, draw=Draw(seed=3)),
    "dynamic": partial(dynamic, group_size=4, draw=Draw(seed=3, logprob_space="trie")),
    "gumbel": partial(gumbel, group_size=4),
    "lists": partial(sample_lists, group_size=3, list_length=3, draw=Draw(step=5)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_finds_what_it_finds_in_the_domain_alone(name: str) -> None:
    policy, sampler = tiny.tiny_policy("qwen3", BOTH), SAMPLERS[name]
    both = found(policy, sampler, None)
    for domain in (0, 1):
        alone = found(replace(policy, catalog=ALONE[domain]), sampler, domain)
        for field, value in alone.items():
            if value is None or not value.is_floating_point():
                assert field == "weights" or torch.equal(both[domain][field], value), field
            else:
                torch.testing.assert_close(both[domain][field], value, atol=1e-6, rtol=1e-5)
    assert (both[0]["items"] >= 0).any()
    assert (both[1]["items"] >= 0).any()


def test_the_same_places_and_facts_as_in_the_domain_alone() -> None:
    policy = tiny.tiny_policy("qwen3", BOTH)
    popularity = torch.arange(17.0) % 7
    for domain in (0, 1):
        rows = torch.tensor(rows_of(domain))
        own = replace(policy, catalog=ALONE[domain])
        shift = slice(5 * domain, 5 + 12 * domain)
        for width in (3, 4, 9, 32):
            ranks = [
                rank_policy(one, Rows(one.catalog, which), rows, width, popularity=popular)
                for one, which, popular in (
                    (policy, None, popularity),
                    (own, domain, popularity[shift]),
                )
            ]
            assert ranks[0].facts == ranks[1].facts
            for field in ("sid_rank", "items_before", "num_sharing", "item_mask", "num_shown"):
                first, second = (getattr(one, field) for one in ranks)
                assert bool(torch.as_tensor(first == second).all()), field
        invalid = [
            free_metrics(one, Rows(one.catalog, which), rows, 9)
            for one, which in ((policy, None), (own, domain))
        ]
        assert invalid[0] == invalid[1]
    mixed = rank_policy(policy, Rows(BOTH, None), torch.arange(4), 32).facts
    assert (mixed.num_candidates, mixed.beam_width) == (16, None)


@pytest.mark.parametrize("space", ["full", "trie"])
def test_the_same_exact_scores_as_in_the_domain_alone(space: str) -> None:
    policy = tiny.tiny_policy("qwen3", BOTH)
    every = exact_scores(policy, prompts_of(BOTH, None, [0, 1, 2, 3]), Decoder(), space)
    for domain, leaves in ((0, slice(0, 4)), (1, slice(4, 15))):
        own = replace(policy, catalog=ALONE[domain])
        prompts = prompts_of(own.catalog, domain, rows_of(domain))
        alone = exact_scores(own, prompts, Decoder(), space)
        torch.testing.assert_close(every[rows_of(domain), leaves], alone, atol=1e-6, rtol=1e-5)
        elsewhere = every[rows_of(domain)].clone()
        elsewhere[:, leaves] = -torch.inf
        assert bool((elsewhere == -torch.inf).all())
