"""The semantic-ID card: codes before and after collisions were resolved in, their quality out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from recast.items.writes import Catalog
from recast.run.reading import read_json, reading

_SHOWN = 5  # items without a semantic ID


def sid_card(
    codes_before: Int[Tensor, "I L"],
    codes_after: Int[Tensor, "I L_after"],
    codebook_sizes: tuple[int, ...],
    *,
    resolve: str,
    balance: bool,
    items_as: str = "codes",
    collaborative_weight: float,
    splits: Sequence[str] = ("train",),
    empty_texts: int,
    encoder: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain data for `card.json`; per-level numbers describe `codes_after`, `encoder` says how the
    text embeddings were pooled and cut.

    `collision_frac` is the share of items beyond the first of each SID, `colliding_items` all items
    that share theirs. Entropy is in bits.
    """
    levels = [torch.bincount(codes_after[:, level].long()) for level in range(codes_after.shape[1])]
    kept = codes_after[:, : codes_before.shape[1]]
    return {
        "num_items": len(codes_after),
        "codebook_sizes": list(codebook_sizes),
        "items_as": items_as,
        "resolve": resolve,
        "balance": balance,
        "collaborative_weight": collaborative_weight,
        "splits": list(splits),
        "empty_texts": empty_texts,
        "encoder": encoder,
        "before": _collisions(codes_before),
        "after": _collisions(codes_after),
        "moved_items": int((kept != codes_before).any(dim=1).sum()),
        "codes_used": [int((counts > 0).sum()) for counts in levels],
        "largest_code": [int(counts.max()) for counts in levels],
        "entropy_bits": [entropy_bits(counts) for counts in levels],
        "max_entropy_bits": [math.log2(size) for size in codebook_sizes],
    }


def given_card(catalog: Catalog, source: str, num_unknown: int) -> dict[str, Any]:
    """The same of semantic IDs that were given: collisions are those within a domain."""
    codes, is_written = catalog.codes.long(), catalog.is_written
    sids = torch.cat([catalog.domain_of[:, None].long(), codes], dim=1)[is_written]
    levels = [
        torch.bincount(level, minlength=size)
        for level, size in zip(codes[is_written].T, catalog.codebook_sizes, strict=True)
    ]
    without = (~is_written).nonzero()[:, 0].tolist()
    number = catalog.domain_of.bincount(minlength=len(catalog.domains)).tolist()
    return {
        "num_items": catalog.num_items,
        "codebook_sizes": list(catalog.codebook_sizes),
        "items_as": "given",
        "source": source,
        "names": catalog.names.spell([0] * len(catalog.codebook_sizes)),
        "domains": dict(zip(catalog.domains, number, strict=True)),
        "collaborative_weight": 0.0,
        "empty_texts": sum(not text.strip() for text in catalog.texts),
        "after": _collisions(sids),
        "without_sid": [catalog.item_ids[item] for item in without],
        "unknown_sids": num_unknown,
        "codes_used": [int((counts > 0).sum()) for counts in levels],
        "largest_code": [int(counts.max()) for counts in levels],
        "entropy_bits": [entropy_bits(counts) for counts in levels],
        "max_entropy_bits": [math.log2(size) for size in catalog.codebook_sizes],
    }


def _given_lines(card: dict[str, Any]) -> list[str]:
    lines = [f"taken as they are from {card['source']}, in text {card['names']}"]
    if len(card["domains"]) > 1:
        each = ", ".join(f"{number:,} of {name}" for name, number in card["domains"].items())
        lines.append(f"domains, whose items may write the same: {each}")
    if without := card["without_sid"]:
        few = ", ".join(without[:_SHOWN]) + ", ..." * (len(without) > _SHOWN)
        lines.append(f"warning: {len(without):,} items have no semantic ID, no candidates: {few}")
    if card["unknown_sids"]:
        lines.append(f"semantic IDs of items that the data does not hold: {card['unknown_sids']:,}")
    part = card["after"]
    lines.append(
        f"collisions, kept: {part['collision_frac']:.1%} ({part['colliding_items']:,} items share "
        f"a SID, at most {part['largest_group']} the same)"
    )
    return lines


def entropy_bits(counts: Int[Tensor, " n"]) -> float:
    """Entropy of a code drawn as often as counted.

    >>> entropy_bits(torch.tensor([2, 1, 1]))
    1.5
    """
    used = counts[counts > 0].double()
    share = used / used.sum()
    return float((share * (1 / share).log2()).sum())


def _collisions(codes: Tensor) -> dict[str, Any]:
    sizes = torch.unique(codes, dim=0, return_counts=True)[1]
    return {
        "distinct_sids": len(sizes),
        "collision_frac": 1 - len(sizes) / len(codes),
        "colliding_items": int(sizes[sizes > 1].sum()),
        "largest_group": int(sizes.max()),
    }


def describe(folder: str | Path) -> str:
    """The card in the folder of a catalogue, for the screen."""
    file = Path(folder) / "card.json"
    with reading(file, "make the catalogue again with `recast tokenize`"):
        return format_card(read_json(file, dict))


def splits_shown(folder: str | Path) -> set[str]:
    """Splits whose events the codes and vectors in the folder of a catalogue know; of one without a
    card none is known."""
    file = Path(folder) / "card.json"
    if not file.is_file():
        return set()
    with reading(file, "make the catalogue again with `recast tokenize`"):
        card = read_json(file, dict)
        if not card["collaborative_weight"] or len(card["codebook_sizes"]) == 1:
            return set()
        return set(card.get("splits", ["train"]))  # older cards do not say


def format_card(card: dict[str, Any]) -> str:
    """The card as the lines a person reads."""
    items, sizes = card["num_items"], card["codebook_sizes"]
    shape = " x ".join(str(size) for size in sizes)
    is_item = card.get("items_as") == "item"  # older cards do not say
    lines = [f"{items:,} items as semantic IDs of {len(sizes)} levels: {shape} codes"]
    if is_item:
        lines = [f"{items:,} items, each a token of its own behind one of {sizes[0]:,} clusters"]
    is_given = card.get("items_as") == "given"
    if is_given:
        lines += _given_lines(card)
    for when in () if is_item or is_given else ("before", "after"):
        part = card[when]
        lines.append(
            f"collisions {when}: {part['collision_frac']:.1%} "
            f"({part['colliding_items']:,} items share a SID, "
            f"at most {part['largest_group']} the same)"
        )
    if not (is_item or is_given):
        lines.append(f"resolved by {card['resolve']}: {card['moved_items']:,} items moved")
    for level, size in enumerate(sizes[:1] if is_item else sizes):
        lines.append(
            f"level {level + 1}: {card['codes_used'][level]} of {size} codes used, "
            f"entropy {card['entropy_bits'][level]:.2f} of {card['max_entropy_bits'][level]:.2f} "
            f"bits, at most {card['largest_code'][level]} items on one code"
        )
    if card["empty_texts"]:
        lines.append(f"warning: {card['empty_texts']:,} of {items:,} items have no text")
    encoder = card.get("encoder") or {}
    if encoder and not encoder["is_named"]:
        lines.append("the encoder's folder names no pooling: each text is the mean of its tokens")
    if encoder.get("unused_prompts"):
        names = ", ".join(encoder["unused_prompts"])
        lines.append(f"the encoder's folder has prompts ({names}) but no default one: none is used")
    if encoder.get("cut_texts"):
        lines.append(
            f"warning: {encoder['cut_texts']:,} of {items:,} texts were cut at "
            f"{encoder['longest']:,} tokens"
        )
    return "\n".join(lines)
