"""The card of a catalogue: codes before and after collisions were resolved in, quality out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from recast.items.quantize import random_codes
from recast.items.titles import title_lines
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
    quantizer: str | None = None,
    categories: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Plain data for `card.json`; per-level numbers describe `codes_after`, `encoder` says how the
    text embeddings were pooled and cut.

    `collision_frac` is the share of items beyond the first of each SID, `colliding_items` all items
    that share theirs. Entropy is in bits. `prefix_purity` is that of all prefixes but the whole
    SID, where items have categories. `random` holds the same of random codes of these sizes, drawn
    by the seed, and the purity of the items' own codes dealt out at random; None where the codes
    are random themselves or there are none (`quantizer` None).
    """
    kept = codes_after[:, : codes_before.shape[1]]
    random = None
    if quantizer not in (None, "random"):
        shared = 1 if items_as == "item" else codes_before.shape[1]
        drawn = random_codes(len(codes_after), codebook_sizes[:shared], seed)
        random = {"before": _collisions(drawn), **_use(drawn)}
        # Small groups are purer, so chance is that of groups of these sizes.
        dealt = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        random["prefix_purity"] = prefix_purity(codes_after[dealt, :-1], categories)
    return {
        "num_items": len(codes_after),
        "codebook_sizes": list(codebook_sizes),
        "items_as": items_as,
        "quantizer": quantizer,
        "resolve": resolve,
        "balance": balance,
        "collaborative_weight": collaborative_weight,
        "splits": list(splits),
        "empty_texts": empty_texts,
        "encoder": encoder,
        "before": _collisions(codes_before),
        "after": _collisions(codes_after),
        "moved_items": int((kept != codes_before).any(dim=1).sum()),
        **_use(codes_after),
        "max_entropy_bits": [math.log2(size) for size in codebook_sizes],
        "categories": len({*categories} - {""}),
        "items_with_category": sum(map(bool, categories)),
        "prefix_purity": prefix_purity(codes_after[:, :-1], categories),
        "random": random,
    }


def _use(codes: Int[Tensor, "I L"]) -> dict[str, list[Any]]:
    levels = [torch.bincount(column) for column in codes.long().T]
    return {
        "codes_used": [int((counts > 0).sum()) for counts in levels],
        "largest_code": [int(counts.max()) for counts in levels],
        "entropy_bits": [entropy_bits(counts) for counts in levels],
    }


def given_card(catalog: Catalog, source: str, num_unknown: int) -> dict[str, Any]:
    """`sid_card` of semantic IDs that were given: collisions are those within a domain."""
    codes, is_written = catalog.codes.long(), catalog.is_written
    sids = torch.cat([catalog.domain_of[:, None].long(), codes], dim=1)[is_written]
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
        **_use(codes[is_written]),
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
    return [*lines, _shared(", kept", card["after"])]


def _shared(when: str, part: dict[str, Any]) -> str:
    return (
        f"collisions{when}: {part['collision_frac']:.1%} ({part['colliding_items']:,} items share "
        f"a SID, at most {part['largest_group']} the same)"
    )


def prefix_purity(codes: Int[Tensor, "I L"], categories: Sequence[str]) -> list[float]:
    """For the first code, the first two, ...: the share of items that are of the commonest category
    among those of their prefix. Items without a category ("") do not count; empty where none has
    one. Prefixes of a single item are pure, so it is read beside that of codes dealt out at random.

    >>> prefix_purity(torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0]]), ["a", "b", "b", ""])
    [0.6666666666666666, 1.0]
    """
    names = [str(level) for level in range(codes.shape[1])]
    table = pl.DataFrame(codes.cpu().numpy(), schema=names)
    table = table.with_columns(category=pl.Series(categories or [""] * len(codes)))
    table = table.filter(pl.col("category") != "")
    found = []
    for depth in range(1, len(names) + 1) if len(table) else ():
        counts = table.group_by(*names[:depth], "category").len()
        commonest = counts.group_by(names[:depth]).agg(pl.col("len").max())
        found.append(int(commonest["len"].sum()) / len(table))
    return found


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
    if "extends" in card:
        lines.append(
            f"{card['new_items']:,} of them are new to {card['extends']}, "
            f"{card['left_out_items']:,} items of which are not in the data"
        )
    is_given, is_title = (card.get("items_as") == kind for kind in ("given", "titles"))
    if is_title:
        lines = title_lines(card)
    if is_given:
        lines += _given_lines(card)
    is_made = not (is_item or is_given or is_title)
    for when in ("before", "after") if is_made else ():
        lines.append(_shared(f" {when}", card[when]))
    if is_made:
        lines.append(f"resolved by {card['resolve']}: {card['moved_items']:,} items moved")
    for level, size in enumerate(sizes[:1] if is_item else sizes):
        lines.append(
            f"level {level + 1}: {card['codes_used'][level]} of {size} codes used, "
            f"entropy {card['entropy_bits'][level]:.2f} of {card['max_entropy_bits'][level]:.2f} "
            f"bits, at most {card['largest_code'][level]} items on one code"
        )
    lines += _compared(card)
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


def _compared(card: dict[str, Any]) -> list[str]:
    """What random codes of the same shape have, and how pure prefixes are; older cards do not
    say."""
    lines, random = [], card.get("random")
    if random:
        used = " ".join(map(str, random["codes_used"]))
        bits = " ".join(f"{bits:.2f}" for bits in random["entropy_bits"])
        most = " ".join(map(str, random["largest_code"]))
        shared = (
            ""
            if card["items_as"] == "item"
            else f"collisions {random['before']['collision_frac']:.1%}, "
        )
        lines.append(
            f"random codes of this shape: {shared}{used} codes used, entropy {bits} bits, at most "
            f"{most} items on one code"
        )
    if card.get("prefix_purity"):
        line = f"{card['items_with_category']:,} items of {card['categories']:,} categories, purity"
        for depth, purity in enumerate(card["prefix_purity"]):
            name = "level 1" if not depth else f"levels 1-{depth + 1}"
            chance = (
                f" (dealt out at random {random['prefix_purity'][depth]:.1%})" if random else ""
            )
            line += f"{',' if depth else ''} of {name} {purity:.1%}{chance}"
        lines.append(line)
    return lines
