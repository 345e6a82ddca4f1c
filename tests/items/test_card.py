from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from recast.items.card import describe, entropy_bits, format_card, prefix_purity, sid_card
from recast.items.quantize import random_codes
from recast.types import RecastError


def test_entropy_by_hand() -> None:
    # 2 of 4, 1 of 4, 1 of 4: 0.5 * 1 + 0.25 * 2 + 0.25 * 2.
    assert entropy_bits(torch.tensor([2, 1, 1])) == 1.5
    assert entropy_bits(torch.tensor([4, 0])) == 0.0
    assert entropy_bits(torch.tensor([1] * 8)) == 3.0


def test_card_by_hand() -> None:
    before = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [3, 1]])
    after = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [3, 1]])
    card = sid_card(
        before,
        after,
        (4, 4),
        resolve="nearest_free",
        balance=False,
        collaborative_weight=0.5,
        empty_texts=2,
    )
    assert card["before"] == {
        "distinct_sids": 3,
        "collision_frac": 0.5,
        "colliding_items": 5,
        "largest_group": 3,
    }
    assert card["after"] == {
        "distinct_sids": 6,
        "collision_frac": 0.0,
        "colliding_items": 0,
        "largest_group": 1,
    }
    assert card["moved_items"] == 3
    assert card["codes_used"] == [3, 3]
    assert card["largest_code"] == [3, 3]
    # Level 1 counts 3, 2, 1; level 2 counts 2, 3, 1: the same entropy.
    entropy = 0.5 + math.log2(3) / 3 + math.log2(6) / 6
    assert card["entropy_bits"] == pytest.approx([entropy, entropy])
    assert card["max_entropy_bits"] == [2.0, 2.0]
    assert format_card(card).splitlines() == [
        "6 items as semantic IDs of 2 levels: 4 x 4 codes",
        "collisions before: 50.0% (5 items share a SID, at most 3 the same)",
        "collisions after: 0.0% (0 items share a SID, at most 1 the same)",
        "resolved by nearest_free: 3 items moved",
        "level 1: 3 of 4 codes used, entropy 1.46 of 2.00 bits, at most 3 items on one code",
        "level 2: 3 of 4 codes used, entropy 1.46 of 2.00 bits, at most 3 items on one code",
        "warning: 2 of 6 items have no text",
    ]


def test_card_of_an_extra_level_moves_nothing() -> None:
    before = torch.tensor([[0], [0]])
    after = torch.tensor([[0, 0], [0, 1]])
    card = sid_card(
        before,
        after,
        (1, 2),
        resolve="extra_level",
        balance=True,
        collaborative_weight=0.0,
        empty_texts=0,
    )
    assert card["moved_items"] == 0
    assert card["entropy_bits"] == [0.0, 1.0]
    assert "warning" not in format_card(card)


def test_what_was_done_to_the_texts_is_said() -> None:
    codes = torch.tensor([[0], [1]])
    settings = {"resolve": "nearest_free", "balance": False, "collaborative_weight": 0.5}
    encoder = {"is_named": False, "unused_prompts": ("a", "b"), "longest": 512, "cut_texts": 1}
    card = sid_card(codes, codes, (2,), **settings, empty_texts=0, encoder=encoder)
    assert format_card(card).splitlines()[-3:] == [
        "the encoder's folder names no pooling: each text is the mean of its tokens",
        "the encoder's folder has prompts (a, b) but no default one: none is used",
        "warning: 1 of 2 texts were cut at 512 tokens",
    ]
    encoder = {"is_named": True, "unused_prompts": (), "longest": 512, "cut_texts": 0}
    card = sid_card(codes, codes, (2,), **settings, empty_texts=0, encoder=encoder)
    assert format_card(card).splitlines()[-1].startswith("level 1: 2 of 2 codes")


def test_a_damaged_card(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"num_items": 3}')
    with pytest.raises(
        RecastError, match=r"card.json is damaged \(no 'codebook_sizes'\): make the"
    ):
        describe(tmp_path)


def test_purity_by_hand_beside_random_codes() -> None:
    """Prefix 0: a a b, prefix 1: b; the item without a category does not count. 3 of 4 are pure by
    the first code, by the first two all but the pair (0, 1): 4 of 4."""
    codes = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]])
    names = ["a", "a", "b", "b", ""]
    assert prefix_purity(codes[:, :2], names) == [0.75, 1.0]
    assert prefix_purity(codes, ()) == prefix_purity(codes, [""] * 5) == []
    settings = {"resolve": "nearest_free", "balance": False, "collaborative_weight": 0.5}
    card = sid_card(
        codes, codes, (2, 2, 2), **settings, empty_texts=0, quantizer="rq_vae", categories=names
    )
    assert card["prefix_purity"] == [0.75, 1.0]
    drawn = random_codes(5, (2, 2, 2), 0)
    dealt = codes[torch.randperm(5, generator=torch.Generator().manual_seed(0))]
    assert card["random"]["prefix_purity"] == prefix_purity(dealt[:, :2], names)
    assert card["random"]["largest_code"] == [int(column.bincount().max()) for column in drawn.T]
    share = 1 - len(drawn.unique(dim=0)) / 5
    lines = format_card(card).splitlines()
    assert lines[-2].startswith(f"random codes of this shape: collisions {share:.1%}, 2 ")
    assert lines[-1].startswith(
        "4 items of 2 categories, purity of level 1 75.0% (dealt out at random "
    )
    assert ", of levels 1-2 100.0% (dealt out at random " in lines[-1]
    own = sid_card(codes, codes, (2, 2, 2), **settings, empty_texts=0, quantizer="random")
    assert (own["random"], own["prefix_purity"]) == (None, [])
