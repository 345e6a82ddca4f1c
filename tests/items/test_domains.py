"""Catalogues of several domains, whose items may write the same, and items that write nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recast.items.catalog import Catalog, build_catalog, load_catalog
from recast.items.names import SidNames
from recast.types import RecastError

CODES = [[0, 1], [1, 0], [0, 1], [-1, -1], [0, 2], [1, 0], [0, 1]]
DOMAIN_OF = [0, 0, 1, 1, 1, 1, 1]
NAMES = SidNames(pattern="<s_{level}_{code}>", begin="<|sid_begin|>", end="<|sid_end|>")


@pytest.fixture
def catalog() -> Catalog:
    """Videos 0 and 1, products 2 to 6: item 3 writes nothing, 2 and 6 the same."""
    return build_catalog(
        CODES, (2, 4), domain_of=DOMAIN_OF, domains=("video", "product"), names=NAMES
    )


def test_the_trie_has_a_root_for_every_domain(catalog: Catalog) -> None:
    trie = catalog.trie
    # Sorted: 0 (0, 1) and 1 (1, 0) of videos; 2 and 6 (0, 1), 4 (0, 2), 5 (1, 0) of products.
    assert [codes.tolist() for codes in trie.codes] == [[0, 1, 0, 1], [1, 0, 1, 2, 0]]
    assert [offsets.tolist() for offsets in trie.children] == [
        [0, 2, 4],
        [0, 1, 2, 4, 5],
        [0, 1, 2, 4, 5, 6],
    ]
    assert trie.items.tolist() == [0, 1, 2, 6, 4, 5]
    assert trie.leaves.tolist() == [0, 1, 2, 5, 3, 4, 2]  # 5 is no leaf
    assert (trie.domain_widths, trie.widths) == (((2, 1), (2, 2)), (2, 2))
    assert trie.num_below(0, torch.tensor([0, 1])).tolist() == [2, 3]
    assert trie.excluded(torch.tensor([[3, 6, 2, 0]])).tolist() == [[0, 2, 5, 5]]
    assert catalog.num_candidates(torch.tensor([1, 0])).tolist() == [4, 2]


def test_what_tokens_mean_hangs_on_the_domain(catalog: Catalog) -> None:
    tokens = catalog.tokens_of(torch.tensor([0, 4, 5]))
    videos, products = (catalog.items_of(tokens, domains=torch.tensor([d] * 3)) for d in (0, 1))
    assert (videos.tolist(), products.tolist()) == ([0, -1, 1], [2, 4, 5])
    groups, domains = tokens.expand(2, 3, 2), torch.tensor([1, 0])
    assert catalog.items_of(groups, domains=domains).tolist() == [[2, 4, 5], [0, -1, 1]]
    seen = torch.tensor([[2], [2]])
    assert catalog.items_of(groups, seen, domains).tolist() == [[6, 4, 5], [0, -1, 1]]
    with pytest.raises(RecastError, match="say the domain of every row, `prompts"):
        catalog.items_of(tokens)


def test_an_item_that_writes_nothing(catalog: Catalog) -> None:
    assert catalog.tokens_of(torch.tensor([3])).tolist() == [[0, 0]]
    assert not catalog.mask_of(torch.tensor([3])).any()
    assert catalog.codes[3].tolist() == [-1, -1]
    assert catalog.is_written.tolist() == [True] * 3 + [False] + [True] * 3


def test_names_stand_around_a_semantic_id(catalog: Catalog) -> None:
    spelled = catalog.spell(torch.tensor([4, 3, -1]))
    assert spelled == ["<|sid_begin|><s_a_0><s_b_2><|sid_end|>", "", ""]
    assert (catalog.begin_tokens, catalog.end_tokens, catalog.vocab_size) == ((8,), (9,), 10)
    assert build_catalog([[0]], (1,), names=SidNames(end=".")).end_tokens == (3,)


def test_all_of_it_survives_the_folder(catalog: Catalog, tmp_path: Path) -> None:
    catalog.save(tmp_path / "out")
    loaded = load_catalog(tmp_path / "out")
    assert loaded.codes.tolist() == CODES
    assert loaded.domain_of.tolist() == DOMAIN_OF
    for name in ("domains", "names", "item_ids", "vocab_size"):
        assert getattr(loaded, name) == getattr(catalog, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain_of": [0] * 7}, "no item of domain 'product' has a semantic ID"),
        ({"domain_of": [2] * 7}, r"domain_of is \[2\]: give numbers from 0 to 1"),
        ({"domain_of": [0]}, "length of domain_of is 1: give 7 of them"),
        ({"domains": ("a", "a")}, "give one or more names, each once"),
        ({"codes": [[-1, 0]] * 7}, r"item 0 has the code \[-1, 0\]: codes start at 0"),
        ({"codes": [[-1, -1]] * 7}, "items with a semantic ID is 0: give one of 7 its codes"),
    ],
)
def test_bad_domains_are_refused(changes: dict[str, object], message: str) -> None:
    given = {"codes": CODES, "domain_of": DOMAIN_OF, "domains": ("video", "product")} | changes
    with pytest.raises(RecastError, match=message):
        build_catalog(codebook_sizes=(2, 4), **given)  # type: ignore[arg-type]
