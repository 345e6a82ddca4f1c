"""The catalogue: the only door between items, semantic IDs (codes) and vocabulary tokens.

Codes are local and start at 0 on every level. The token of code c at level l is
`first_token + codebook_sizes[0] + ... + codebook_sizes[l - 1] + c`; nothing outside this file
knows that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.items.trie import Trie, build_trie
from recast.run.files import reading, staged_folder
from recast.types import RecastError


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The items, their codes and their text.

    Example, two items on levels of 4 and 8 codes, tokens from 2 on: codes (0, 5) are the tokens
    (2 + 0, 2 + 4 + 5) = (2, 11).
    """

    codes: Int[Tensor, "I L"]
    codebook_sizes: tuple[int, ...]
    item_ids: list[str]
    texts: list[str]
    trie: Trie
    first_token: int = 2
    pad_token: int = 0
    bos_token: int = 1

    @property
    def num_items(self) -> int:
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def vocab_size(self) -> int:
        """Smallest vocabulary that holds every token of the catalogue."""
        return self.first_token + sum(self.codebook_sizes)

    @property
    def device(self) -> torch.device:
        """Where the codes and the trie are."""
        return self.codes.device

    def to(self, device: torch.device) -> Catalog:
        """The same catalogue with its tensors on another device."""
        return replace(self, codes=self.codes.to(device), trie=self.trie.to(device))

    def level_tokens(self, level: int) -> tuple[int, int]:
        """First token of a level (0-based) and the one after its last."""
        start = self.first_token + sum(self.codebook_sizes[:level])
        return start, start + self.codebook_sizes[level]

    def tokens(self, items: Int[Tensor, "*n"]) -> Int[Tensor, "*n L"]:
        """Tokens of items; -1 gives pad tokens."""
        offsets = torch.tensor([self.level_tokens(level)[0] for level in range(self.num_levels)])
        tokens = self.codes[items.clamp(min=0)].long() + offsets.to(items.device)
        return tokens.masked_fill((items < 0)[..., None], self.pad_token)

    def children(
        self, level: int, nodes: Int[Tensor, "B N"], excluded: Int[Tensor, "B S"]
    ) -> tuple[Int[Tensor, "B N C"], Int[Tensor, "B N C"], Bool[Tensor, "B N C"]]:
        """Tokens and trie nodes of the children of `nodes`, and which of them are allowed."""
        child, allowed = self.trie.allowed(level, nodes, excluded)
        start = self.level_tokens(level)[0]
        return self.trie.codes[level][child].long() + start, child, allowed

    def without_forced(
        self, tokens: Int[Tensor, "B N"], nodes: Int[Tensor, "B N"], level: int
    ) -> Int[Tensor, "B N"]:
        """The tokens that led to `nodes` of `level`, pad tokens where all that follows is forced.

        A forced token has probability 1 over the children, whatever a model says: none needs to
        look past a node with one leaf.
        """
        first, after = (self.trie.first_leaf(level, nodes.clamp(min=0) + i) for i in (0, 1))
        return tokens.masked_fill(after - first <= 1, self.pad_token)

    def path_of(self, tokens: Int[Tensor, "*n L"]) -> Int[Tensor, "*n L_plus_1"]:
        """Node of the trie at every level that each token sequence leads to, the root (0) first;
        -1 from the level on where it leaves the catalogue."""
        node = torch.zeros(tokens.shape[:-1], dtype=torch.long, device=tokens.device)
        known = torch.ones_like(node, dtype=torch.bool)
        path = [node]
        for level, size in enumerate(self.codebook_sizes):
            code = tokens[..., level] - self.level_tokens(level)[0]
            codes, children = self.trie.codes[level], self.trie.children[level]
            low, end = children[node].long(), children[node + 1].long()
            high = end
            for _ in range(size.bit_length()):  # binary search among the node's sorted children
                middle = (low + high) // 2
                right = (low < high) & (codes[middle.clamp(max=len(codes) - 1)] < code)
                low = torch.where(right, middle + 1, low)
                high = torch.where(right, high, middle)
            node = low.clamp(max=len(codes) - 1)
            known = known & (low < end) & (codes[node] == code)
            path.append(node.masked_fill(~known, -1))
        return torch.stack(path, dim=-1)

    def leaf_of(self, tokens: Int[Tensor, "*n L"]) -> Int[Tensor, "*n"]:
        """Leaf of the trie that each token sequence spells, -1 where it spells none."""
        return self.path_of(tokens)[..., -1]

    def items_of(self, tokens: Int[Tensor, "*n L"]) -> Int[Tensor, "*n"]:
        """Item of each token sequence, -1 where there is none; of several items with one SID the
        one with the lowest index."""
        leaf = self.leaf_of(tokens)
        first = self.trie.children[-1][leaf.clamp(min=0)].long()
        return self.trie.items[first].long().masked_fill(leaf < 0, -1)

    def save(self, folder: str | Path) -> None:
        """Write the catalogue into a new folder, whole or not at all."""
        with staged_folder(folder) as stage:
            self.write(stage)

    def write(self, folder: Path) -> None:
        """Write `catalog.parquet` and `sid.json` into a folder that exists, a staged one."""
        table = pl.DataFrame(
            {"item_id": self.item_ids, "codes": self.codes.tolist(), "text": self.texts},
            schema={"item_id": pl.String, "codes": pl.List(pl.Int32), "text": pl.String},
        )
        table.write_parquet(folder / "catalog.parquet")
        sid = {
            "codebook_sizes": list(self.codebook_sizes),
            "first_token": self.first_token,
            "pad_token": self.pad_token,
            "bos_token": self.bos_token,
        }
        (folder / "sid.json").write_text(json.dumps(sid, indent=2) + "\n")


def build_catalog(
    codes: Int[Tensor, "I L"],
    codebook_sizes: tuple[int, ...],
    *,
    item_ids: list[str] | None = None,
    texts: list[str] | None = None,
    first_token: int = 2,
    pad_token: int = 0,
    bos_token: int = 1,
) -> Catalog:
    """A catalogue from codes; ids default to the item's index, texts to empty.

    Raises `RecastError` for codes outside their codebook, duplicate item ids, unequal lengths.
    """
    num_items = len(codes)
    item_ids = [str(i) for i in range(num_items)] if item_ids is None else item_ids
    texts = [""] * num_items if texts is None else texts
    if not len(item_ids) == len(texts) == num_items:
        raise RecastError(
            f"{num_items} codes, {len(item_ids)} item ids and {len(texts)} texts: "
            "give as many of each"
        )
    if len(set(item_ids)) < num_items:
        seen: set[str] = set()
        twice = next(i for i in item_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise RecastError(f"item id {twice!r} appears more than once: keep one row per item")
    if codes.shape[1] != len(codebook_sizes):
        raise RecastError(
            f"codes have {codes.shape[1]} levels, codebook_sizes {len(codebook_sizes)}: "
            "make them equal"
        )
    too_large = codes >= torch.tensor(codebook_sizes)
    if bool(too_large.any()):
        row = int(too_large.any(1).nonzero()[0])
        raise RecastError(
            f"item {item_ids[row]!r} has the code {codes[row].tolist()}, outside the codebooks "
            f"{list(codebook_sizes)}: codes run from 0 to size - 1"
        )
    return Catalog(
        codes=codes.int(),
        codebook_sizes=tuple(codebook_sizes),
        item_ids=item_ids,
        texts=texts,
        trie=build_trie(codes),
        first_token=first_token,
        pad_token=pad_token,
        bos_token=bos_token,
    )


def load_catalog(folder: str | Path) -> Catalog:
    """Read a catalogue written by `Catalog.save`; the trie is rebuilt, never stored.

    Raises `RecastError` when the folder holds none or it is damaged.
    """
    folder = Path(folder)
    if not (folder / "sid.json").is_file():
        raise RecastError(
            f"{folder} holds no catalogue (sid.json): make one with `recast tokenize`"
        )
    with reading(folder, "use it as it was saved, or make it again with `recast tokenize`"):
        return _read_catalog(folder)


def _read_catalog(folder: Path) -> Catalog:
    sid = _read_sid(folder / "sid.json")
    table = pl.read_parquet(folder.absolute() / "catalog.parquet", glob=False)
    table = table.select("item_id", "codes", "text")
    kinds = table.schema
    whole = isinstance(kinds["codes"], pl.List) and kinds["codes"].inner.is_integer()
    if table.is_empty() or not whole or {kinds["item_id"], kinds["text"]} != {pl.String}:
        raise ValueError(f"catalog.parquet has {len(table)} rows of {dict(kinds)}")
    if table.null_count().sum_horizontal()[0] or table["codes"].explode().null_count():
        raise ValueError("catalog.parquet has empty cells")
    levels = len(sid["codebook_sizes"])
    uneven = (table["codes"].list.len() != levels).arg_true()
    if len(uneven):
        raise RecastError(
            f"{folder / 'catalog.parquet'} row {uneven[0]} has the codes "
            f"{table['codes'][uneven[0]].to_list()}: sid.json names {levels} levels"
        )
    codes = table["codes"].explode().cast(pl.Int64).to_numpy(writable=True)
    return build_catalog(
        torch.from_numpy(codes).view(-1, levels),
        tuple(sid.pop("codebook_sizes")),
        item_ids=table["item_id"].to_list(),
        texts=table["text"].to_list(),
        **sid,
    )


def _read_sid(file: Path) -> dict[str, Any]:
    sid = json.loads(file.read_text())
    sizes, first = sid["codebook_sizes"], sid["first_token"]
    if not (sizes and isinstance(sizes, list) and all(type(size) is int for size in sizes)):
        raise ValueError(f"sid.json has codebook_sizes {sizes!r}: no list of whole numbers")
    for name, below in (("first_token", math.inf), ("pad_token", first), ("bos_token", first)):
        if not (type(sid[name]) is int and 0 <= sid[name] < below):
            raise ValueError(f"sid.json has {name} {sid[name]!r} and first_token {first!r}")
    return dict(sid)
