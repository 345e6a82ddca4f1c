"""Beam search over titles against transformers' own under the same constraint, and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recast.items.catalog import Catalog
from recast.items.flat import flatten
from recast.policy.load import Policy
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.types import Draw, LogprobSpace, Prompts, RolloutGroups


def texts(num_items: int, seed: int) -> Catalog:
    """Texts of 2 to 12 tokens out of 3 to 9, most beginning like others, that end in 2."""
    draw, made = torch.Generator().manual_seed(seed), {(3, 4, 5, 2)}
    while len(made) < num_items:
        rows = sorted(made)
        row = rows[int(torch.randint(len(rows), (), generator=draw))]
        kept = int(torch.randint(min(len(row), 10), (), generator=draw))
        size = int(torch.randint(1, 12 - kept, (), generator=draw))
        body = torch.randint(3, 10, (size,), generator=draw).tolist()
        made.add((*row[:kept], *body, 2))
    return tiny.text_catalog([list(row) for row in sorted(made)])


def case(num_items: int, seed: int, name: str = "qwen3") -> tuple[Policy, Prompts]:
    catalog = texts(num_items, seed)
    policy = tiny.tiny_policy(name, catalog)
    return policy, tiny.make_prompts(catalog, [[0, 1, 5], [2]], [[3], [1, 0]])


def theirs(policy: Policy, prompts: Prompts, row: int, width: int) -> list[tuple[list[int], float]]:
    """The search of transformers: tokens behind the prompt and their summed log-probability."""
    catalog, model = policy.catalog, tiny.twin(policy.model)
    tokens = prompts.tokens[row, : int(prompts.lengths[row])]
    begun, seen = len(tokens), [i for i in prompts.seen[row].tolist() if i >= 0]

    def allowed(_: int, written: torch.Tensor) -> list[int]:
        return naive.allowed_children(catalog, seen, written[begun:].tolist()) or [2]

    found = model.generate(
        tokens[None],
        attention_mask=torch.ones_like(tokens[None]),
        num_beams=width,
        num_return_sequences=width,
        length_penalty=0.0,
        max_new_tokens=catalog.max_length,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    listed = []
    for sequence, score in zip(found.sequences, found.sequences_scores, strict=True):
        path = sequence[begun:].tolist()
        listed.append((path[: path.index(2) + 1], float(score)))
    return listed


def ours(groups: RolloutGroups, row: int) -> list[tuple[list[int], float]]:
    listed = []
    for place in range(groups.tokens.shape[1]):
        path = groups.tokens[row, place][groups.loss_mask[row, place]].tolist()
        if path:
            listed.append((path, float(groups.rollout_logprobs[row, place].sum())))
    return listed


@pytest.mark.parametrize(("num_items", "seed", "width"), [(60, 0, 16), (60, 1, 5), (200, 2, 16)])
@torch.no_grad()
def test_the_same_items_in_the_same_order_as_transformers(
    num_items: int, seed: int, width: int
) -> None:
    policy, prompts = case(num_items, seed)
    expected = [theirs(policy, prompts, row, width) for row in range(2)]
    groups = beam_search(policy, prompts, width)
    for row in range(2):
        found = ours(groups, row)
        assert [path for path, _ in found] == [path for path, _ in expected[row]]
        scores = [score for _, score in expected[row]]
        assert [score for _, score in found] == pytest.approx(scores, abs=2e-4)


@pytest.mark.parametrize("space", ["full", "trie"])
@torch.no_grad()
def test_a_list_as_long_as_the_catalogue_ranks_it(space: LogprobSpace) -> None:
    """Wide enough to drop nothing: every unseen item, by its exact log-probability."""
    policy, prompts = case(30, 3)
    prompts = replace(prompts, seen=torch.tensor([[0, 4, 9], [2, -1, -1]]))
    groups = beam_search(policy, prompts, 40, Draw(logprob_space=space))
    for row in range(2):
        exact = naive.item_logprobs(tiny.twin(policy.model), policy.catalog, prompts, row, space)
        listed = [item for item in groups.items[row].tolist() if item >= 0]
        assert listed == sorted(exact, key=lambda item: -sum(exact[item]))
        for place, item in enumerate(listed):
            each = groups.rollout_logprobs[row, place, : len(exact[item])].tolist()
            assert each == pytest.approx(exact[item], abs=5e-5)
        assert not groups.exists[row, len(listed) :].any()


@pytest.mark.parametrize(
    ("space", "seen", "expected"),
    [
        ("full", [[0, 1], [2, 3]], [2, 3, 2]),
        ("full", [[0, 1]], [2, 2]),
        ("full", [[2, 3]], [4, 2]),
        ("trie", [[2, 3]], [4]),
    ],
)
@torch.no_grad()
def test_the_model_is_asked_after_decisions(
    space: LogprobSpace, seen: list[list[int]], expected: list[int]
) -> None:
    """3 4 4 4 5 2, 3 4 4 4 6 2, 7 8 5 2 and 7 8 6 2; tokens of each call behind the prompt's.

    One row goes on with 7 8, then 5 and 6, whose ends are scored; or with 3 4 4 4, then 5 and 6.
    Both rows: 7 8 and 3 4, for one decides there; 5 and 6 beside 4 4; then 5 and 6. In `trie`
    nothing behind the last choices.
    """
    titles = [[3, 4, 4, 4, 5, 2], [3, 4, 4, 4, 6, 2], [7, 8, 5, 2], [7, 8, 6, 2]]
    catalog, calls = tiny.text_catalog(titles), []
    policy = tiny.tiny_policy("qwen3", catalog)
    policy.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prompts = tiny.make_prompts(catalog, [[2]] * len(seen), [[]] * len(seen), seen)
    beam_search(policy, prompts, 3, Draw(logprob_space=space))
    assert calls == [int(prompts.lengths.max()), *expected]


class Answers(TorchDispatchMode):
    """Counts the numbers that a device has to hand over before Python goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        self.count += func.overloadpacket in waits
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_device_is_asked_for_few_numbers() -> None:
    """Two a token, the places of decisions among them, and four a call; twice as many before."""
    policy, prompts = case(30, 4)
    calls: list[int] = []
    policy.model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with Answers() as answers:
        beam_search(policy, prompts, 8)
    assert answers.count <= 3 * policy.catalog.max_length + 4 * len(calls) + 10


@torch.no_grad()
def test_a_guide_ranks_beams_of_texts() -> None:
    """Alpha 0 is the guide alone: its order, the policy's own log-probabilities."""
    policy, prompts = case(30, 4)
    scores = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)) * 3
    groups = beam_search(
        policy, prompts, 30, Draw(), Decoder(guide=lambda _, items: scores, alpha=0.0)
    )
    for row in range(2):
        assert groups.items[row].tolist() == scores[row].argsort(descending=True).tolist()
        exact = naive.item_logprobs(tiny.twin(policy.model), policy.catalog, prompts, row, "full")
        for place, item in enumerate(groups.items[row].tolist()):
            total = float(groups.rollout_logprobs[row, place].sum())
            assert total == pytest.approx(sum(exact[item]), abs=2e-4)


def test_the_nodes_of_all_levels_in_a_row_by_hand() -> None:
    """Root, the edges 0 2 and 1, then an empty edge, 0 and 5."""
    flat = flatten(tiny.text_catalog([[1, 5], [3, 2], [1, 4]]).trie)
    assert flat.codes.tolist() == [-1, 1, 3, 4, 5, 0]
    assert flat.ends.tolist() == [0, 1, 2, 2, 2, 2]
    assert flat.first.tolist() == [1, 3, 5, 3, 4, 5]
    assert flat.count.tolist() == [2, 2, 1, 0, 0, 0]
    assert flat.leaf.tolist() == [0, 0, 2, 0, 1, 2]
    assert flat.below.tolist() == [3, 2, 1, 1, 1, 1]
    nodes, excluded = torch.tensor([[[0, 1], [2, 4]]]), torch.tensor([[0, 1, 3]])
    assert flat.is_open(nodes, excluded).tolist() == [[[True, False], [True, False]]]
