"""Catalogues of items of unequal lengths: what their trie decides, against scans of all items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.items.catalog import Catalog, build_token_catalog, load_catalog
from recast.items.fan_out import fan_out
from recast.policy.prompts import write_items
from recast.rewards.scores import structural_score
from recast.types import Prompts, RecastError, RolloutGroups

ENDED = st.lists(
    st.lists(st.integers(3, 6), min_size=0, max_size=5).map(lambda body: [*body, 2]),
    min_size=1,
    max_size=12,
)
"""Texts over four tokens that all end in 2; some are equal."""


def test_the_trie_of_the_small_texts_by_hand() -> None:
    """Sorted 3452, 34652, 3462, 52, 63332, 6342, 72: wait for no token that has to come."""
    catalog = tiny.text_catalog()
    trie = catalog.trie
    assert trie.items.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [codes.tolist() for codes in trie.codes] == [
        [3, 5, 6, 7],
        [5, 6, 0, 3, 4, 0],
        [0, 2, 5, 0, 0, 0, 0],
    ]
    assert trie.ends is not None
    assert [ends.tolist() for ends in trie.ends] == [
        [2, 2, 2, 2],
        [4, 3, 2, 5, 4, 2],
        [4, 4, 5, 2, 5, 4, 2],
    ]
    assert [len(offsets) - 1 for offsets in trie.children] == [1, 4, 6, 7]
    assert (trie.widths, catalog.num_levels, catalog.max_length) == ((4, 2, 2), 3, 5)
    assert catalog.sids_of(catalog.tokens.long()).tolist() == [
        [3, 5, -1],
        [3, 6, 2],
        [3, 6, 5],
        [5, -1, -1],
        [6, 3, -1],
        [6, 4, -1],
        [7, -1, -1],
    ]
    assert catalog.path_of(torch.tensor([[3, 4, 6, 5, 2]])).tolist() == [[0, 0, 1, 2]]
    edges, length = catalog.edges(1, torch.tensor([0, 2, 3]), torch.zeros(3, dtype=torch.long))
    assert (edges.tolist(), length.tolist()) == ([[3, 4], [6, 3], [7, 2]], [2, 2, 2])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(texts=ENDED, strange=st.lists(st.integers(0, 7), min_size=6, max_size=6))
def test_paths_items_and_names_against_scans(texts: list[list[int]], strange: list[int]) -> None:
    catalog = tiny.text_catalog(texts)
    tokens = catalog.tokens.long()
    first = [texts.index(text) for text in texts]
    assert catalog.items_of(tokens).tolist() == first
    assert catalog.trie.num_leaves == len({tuple(text) for text in texts})
    assert catalog.trie.leaves.tolist() == [
        sorted({tuple(text) for text in texts}).index(tuple(text)) for text in texts
    ]
    names = catalog.sids_of(tokens).tolist()
    for item, name in enumerate(names):
        assert [token for token in name if token >= 0] == naive.decisions(catalog, item)
    # What no item writes leaves the catalogue; what is written after an end does too.
    other = torch.tensor([strange[: catalog.max_length]])
    padded = [text + [0] * (catalog.max_length - len(text)) for text in texts]
    item = padded.index(other[0].tolist()) if other[0].tolist() in padded else -1
    assert catalog.items_of(other).tolist() == [item]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=ENDED, seen=st.sets(st.integers(0, 11)))
def test_children_and_fan_out_against_scans(texts: list[list[int]], seen: set[int]) -> None:
    catalog = tiny.text_catalog(texts)
    unseen = [i for i in range(len(texts)) if i not in seen]
    # A text is out only when all the items that write it are.
    hidden = [i for i in seen if i < len(texts) and texts[i] not in [texts[j] for j in unseen]]
    everything = list(range(len(texts)))
    prompts = tiny.make_prompts(catalog, [[0]], [everything], [sorted(seen & set(everything))])
    counts = fan_out(catalog, _groups(catalog, prompts))
    for item in everything:
        row, own = counts[0, item].tolist(), naive.written(catalog, item)
        for place in range(catalog.max_length):
            expected = 0
            if place < len(own) and item not in hidden:
                expected = len(naive.allowed_children(catalog, hidden, own[:place]))
            if item not in hidden:
                assert row[place] == expected, (texts, seen, item, place)


def _groups(catalog: Catalog, prompts: Prompts) -> RolloutGroups:
    items = prompts.target_items
    made = tiny.make_groups(
        prompts.targets.tolist(), prompts.targets[:, :1].tolist(), items=items.tolist()
    )
    return replace(
        made,
        prompts=prompts,
        predictions=prompts.target_sids[:, :, None],
        loss_mask=prompts.target_mask,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=ENDED)
def test_near_misses_are_counted_in_decisions(texts: list[list[int]]) -> None:
    catalog = tiny.text_catalog(texts)
    names = catalog.sids_of(catalog.tokens.long())
    scores = structural_score(names[None, :, None], names[None, :1])
    wanted = naive.decisions(catalog, 0)
    for item in range(len(texts)):
        own = naive.decisions(catalog, item)
        shared = 0
        while shared < len(wanted) and own[shared : shared + 1] == wanted[shared : shared + 1]:
            shared += 1
        expected = 10.0 ** (shared - len(wanted)) if shared else 0.0
        assert float(scores[0, item]) == pytest.approx(expected)


def test_prompts_hold_no_padding_between_items() -> None:
    catalog = tiny.text_catalog()
    tokens, lengths = write_items(catalog, torch.tensor([[3, 0, 6], [2, -1, -1]]))
    assert lengths.tolist() == [9, 6]
    assert tokens[0].tolist() == [1, 5, 2, 3, 4, 5, 2, 7, 2]
    assert tokens[1, :6].tolist() == [1, 3, 4, 6, 5, 2]


def test_a_saved_catalogue_is_the_same_again(tmp_path: Path) -> None:
    catalog = tiny.text_catalog()
    catalog.save(tmp_path / "texts")
    again = load_catalog(tmp_path / "texts")
    assert again.tokens.equal(catalog.tokens)
    assert again.lengths.equal(catalog.lengths)
    assert (again.codebook_sizes, again.pad_token, again.vocab_size) == ((), 0, 8)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[3, 4], [3, 4, 5]], r"item 0 writes \[3, 4\], which another item begins with: end every"),
        ([[3, 0, 2], [4, 2]], r"item '0' writes \[3, 0, 2\] and the pad token is 0: pad with a"),
        ([[3, -4, 2], [4, 2]], "the others are 0 or more"),
        ([[3, 2**32 + 5, 2], [4, 2]], "fit into 32 bits"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(texts: list[list[int]], message: str) -> None:
    with pytest.raises(RecastError, match=message):
        tiny.text_catalog(texts)


def test_an_item_without_tokens_is_refused() -> None:
    with pytest.raises(RecastError, match="item 1 writes nothing: give it a token"):
        build_token_catalog(torch.tensor([[3, 2], [0, 0]]), torch.tensor([2, 0]))
    with pytest.raises(RecastError, match="the catalogue holds 0 items"):
        build_token_catalog(torch.empty(0, 0, dtype=torch.long), torch.empty(0, dtype=torch.long))


def test_prefix_free_codes_need_no_token_that_ends_them() -> None:
    catalog = tiny.text_catalog([[3], [4, 5], [4, 6, 7], [4, 6, 8]])
    assert catalog.items_of(catalog.tokens.long()).tolist() == [0, 1, 2, 3]
    assert catalog.sids_of(catalog.tokens.long()).tolist() == [
        [3, -1, -1],
        [4, 5, -1],
        [4, 6, 7],
        [4, 6, 8],
    ]
