"""What every item writes: items in, tokens and the paths that the trie allows out, and back.

Semantic-ID codes are one way to make tokens: local, from 0 on every level, the token of code c at
level l is `first_token + codebook_sizes[0] + ... + codebook_sizes[l - 1] + c`. Texts that end in a
token of their own are another. Nothing outside this room knows which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.items.names import PLAIN, SidNames
from recast.items.trie import Trie
from recast.run.files import staged_folder
from recast.run.fingerprint import seal
from recast.types import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The items of one or several domains, what each one writes, and their text.

    Items of different domains may write the same: a row's domain says whose are meant, and the
    trie has a root for each. An item may write nothing: then it is no candidate.

    Example, two items on levels of 4 and 8 codes, tokens from 2 on: codes (0, 5) are the tokens
    (2 + 0, 2 + 4 + 5) = (2, 11). `tokens=[[2, 11], [5, 6]]  lengths=[2, 2]`.
    """

    tokens: Int[Tensor, "I L"]
    """Padded on the right with the pad token, which no item holds."""
    lengths: Int[Tensor, " I"]
    codebook_sizes: tuple[int, ...]
    """Codes of every level; empty for items that are no semantic IDs."""
    item_ids: list[str]
    texts: list[str]
    trie: Trie
    domain_of: Int[Tensor, " I"]
    """Index in `domains`, which is the root of the item's leaf."""
    domains: tuple[str, ...] = ("items",)
    names: SidNames = PLAIN
    """Of the semantic IDs in text."""
    first_token: int = 2
    """Of the semantic IDs."""
    pad_token: int = 0
    bos_token: int = 1
    form: str | None = None
    """Of titles: the text of an item, with {title} where that stands; its end follows."""
    end_token: int | None = None
    """Of texts: what they all end in, if it stands nowhere else."""

    @property
    def num_items(self) -> int:
        return len(self.tokens)

    @property
    def num_levels(self) -> int:
        """Decisions of an item, at most; of a semantic ID its codes."""
        return self.trie.num_levels

    @property
    def max_length(self) -> int:
        """Tokens of the longest item."""
        return self.tokens.shape[1]

    @property
    def vocab_size(self) -> int:
        """Smallest vocabulary that holds every token of the catalogue."""
        if self.codebook_sizes:
            num_around = len(self.begin_tokens) + len(self.end_tokens)
            return self.first_token + sum(self.codebook_sizes) + num_around
        return max(int(self.tokens.max()), self.pad_token, self.bos_token) + 1

    @property
    def codes(self) -> Int[Tensor, "I L"]:
        """Of semantic IDs; -1 of an item that has none."""
        assert self.codebook_sizes, "only semantic IDs have codes"
        starts = [self._level_start(level) for level in range(self.max_length)]
        codes = self.tokens - torch.tensor(starts, dtype=torch.int32).to(self.device)
        return codes.masked_fill(~self.is_written[:, None], -1)

    @property
    def num_written(self) -> int:
        """Items that write something."""
        return len(self.trie.items)

    @property
    def is_written(self) -> Bool[Tensor, " I"]:
        """Which items write something."""
        return self.lengths > 0

    @property
    def begin_tokens(self) -> tuple[int, ...]:
        """What stands in front of a semantic ID in text: one token, behind the codes, or none."""
        return (self.first_token + sum(self.codebook_sizes),) if self.names.begin else ()

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """What stands behind a semantic ID in text: one token, the last of all, or none."""
        last = self.first_token + sum(self.codebook_sizes) + len(self.begin_tokens)
        return (last,) if self.names.end else ()

    def spell(self, items: Int[Tensor, " N"]) -> list[str]:
        """Semantic IDs of items as text, with what stands around them; "" for -1 and for an item
        that has none.

        >>> from recast.items.catalog import build_catalog
        >>> catalog = build_catalog([[1, 0], [0, 2]], (4, 8), names=SidNames(end="!"))
        >>> catalog.spell(torch.tensor([1, -1]))
        ['<a_0><b_2>!', '']
        """
        codes = self.codes.cpu()[items.cpu().clamp(min=0)].tolist()
        is_some = (items.cpu() >= 0) & self.is_written.cpu()[items.cpu().clamp(min=0)]
        return [
            self.names.spell(sid) if some else ""
            for sid, some in zip(codes, is_some.tolist(), strict=True)
        ]

    def num_candidates(self, domains: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Items of each domain that write something."""
        written = self.domain_of[self.is_written].long()
        return written.bincount(minlength=len(self.domains))[domains]

    @property
    def device(self) -> torch.device:
        """Where the tokens and the trie are."""
        return self.tokens.device

    def to(self, device: torch.device) -> Catalog:
        """The same catalogue with its tensors on another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            lengths=self.lengths.to(device),
            domain_of=self.domain_of.to(device),
            trie=self.trie.to(device),
        )

    def level_tokens(self, level: int) -> tuple[int, int]:
        """First token of a level (0-based) of semantic IDs and the one after its last."""
        start = self.first_token + sum(self.codebook_sizes[:level])
        return start, start + self.codebook_sizes[level]

    def tokens_of(self, items: Int[Tensor, "*n"]) -> Int[Tensor, "*n L"]:
        """Tokens of items; -1 gives pad tokens."""
        tokens = self.tokens[items.clamp(min=0)].long()
        return tokens.masked_fill((items < 0)[..., None], self.pad_token)

    def mask_of(self, items: Int[Tensor, "*n"]) -> Bool[Tensor, "*n L"]:
        """Which of these are tokens of the item; none of -1."""
        place = torch.arange(self.max_length, device=items.device)
        length = self.lengths[items.clamp(min=0)].masked_fill(items < 0, 0)
        return place < length[..., None]

    def children(
        self, level: int, nodes: Int[Tensor, "B N"], excluded: Int[Tensor, "B S"]
    ) -> tuple[Int[Tensor, "B N C"], Int[Tensor, "B N C"], Bool[Tensor, "B N C"]]:
        """Deciding tokens and trie nodes of the children of `nodes`, and which are allowed.

        Behind the end of an item there is one child, with the pad token.
        """
        child, allowed = self.trie.allowed(level, nodes, excluded)
        return self._decided(level, child), child, allowed

    def edges(
        self, level: int, nodes: Int[Tensor, "*n"], begins: Int[Tensor, "*n"]
    ) -> tuple[Int[Tensor, "*n E"], Int[Tensor, "*n"]]:
        """Tokens on the way to nodes of `level` (from 1 on) from their parents, which `begins`
        tokens lead to, and how many these are; E at most."""
        if self.trie.ends is None:
            return self._decided(level - 1, nodes)[..., None], torch.ones_like(nodes)
        length = self.trie.end(level, nodes) - begins
        leaf = self.trie.first_leaf(level, nodes)
        item = self.trie.items[self.trie.children[-1][leaf].long()].long()
        width = max(int(length.max()), 1) if length.numel() else 1
        place = begins[..., None] + torch.arange(width, device=nodes.device)
        written = self.tokens[item[..., None], place.clamp(max=self.max_length - 1)].long()
        return written, length

    def path_of(
        self, tokens: Int[Tensor, "*n L"], domains: Int[Tensor, "*r"] | None = None
    ) -> Int[Tensor, "*n D_plus_1"]:
        """Node of the trie at every level that each token sequence leads to, the root first; -1
        from the level on where it leaves the catalogue. Pads stand behind its end.

        `domains` say whose items are meant, an entry for each of the first dimensions (of groups
        one a prompt); with one domain they may be left out, with several `RecastError` is raised.
        """
        node = self._roots(tokens, domains)
        known = torch.ones_like(node, dtype=torch.bool)
        path, end = [node], torch.zeros_like(node)
        for level in range(self.num_levels):
            codes, children = self.trie.codes[level], self.trie.children[level]
            code = self._at(tokens, end) - self._level_start(level)
            low, last = children[node].long(), children[node + 1].long()
            high = last
            for _ in range(self.trie.widths[level].bit_length()):  # binary search
                middle = (low + high) // 2
                right = (low < high) & (codes[middle.clamp(max=len(codes) - 1)] < code)
                low = torch.where(right, middle + 1, low)
                high = torch.where(right, high, middle)
            node = low.clamp(max=len(codes) - 1)
            known = known & (low < last) & (codes[node] == code)
            if self.trie.ends is not None:
                edge, length = self.edges(level + 1, node, end)
                for place in range(1, edge.shape[-1]):
                    same = self._at(tokens, end + place) == edge[..., place]
                    known = known & (same | (place >= length))
                end = end + length.clamp(min=0)
            else:
                end = end + 1
            path.append(node.masked_fill(~known, -1))
        if self.trie.ends is not None:  # nothing may follow the end
            known = known & (self._at(tokens, end) == self.pad_token)
            path[-1] = path[-1].masked_fill(~known, -1)
        return torch.stack(path, dim=-1)

    def ends_of(self, path: Int[Tensor, "*n D_plus_1"]) -> Int[Tensor, "*n D_plus_1"]:
        """Tokens that lead to every node of a path; what stands behind a -1 means nothing."""
        nodes = path.clamp(min=0)
        ends = [self.trie.end(level, nodes[..., level]) for level in range(path.shape[-1])]
        return torch.stack(ends, dim=-1)

    def _roots(
        self, tokens: Int[Tensor, "*n L"], domains: Int[Tensor, "*r"] | None
    ) -> Int[Tensor, "*n"]:
        if domains is None:
            remedy = "they may write the same: say the domain of every row, `prompts.domains`"
            require(len(self.domains) == 1, "domains of the catalogue", self.domains, remedy)
            return torch.zeros(tokens.shape[:-1], dtype=torch.long, device=tokens.device)
        missing = tokens.ndim - 1 - domains.ndim
        roots: Tensor = domains.view(*domains.shape, *[1] * missing).expand(tokens.shape[:-1])
        return roots

    def leaf_of(
        self, tokens: Int[Tensor, "*n L"], domains: Int[Tensor, "*r"] | None = None
    ) -> Int[Tensor, "*n"]:
        """Leaf of the trie that each token sequence spells, -1 where it spells none."""
        return self.path_of(tokens, domains)[..., -1]

    def items_of(
        self,
        tokens: Int[Tensor, "*n L"],
        seen: Int[Tensor, "B S"] | None = None,
        domains: Int[Tensor, "*r"] | None = None,
    ) -> Int[Tensor, "*n"]:
        """Item of each token sequence, -1 where there is none; of several items that write the same
        the one with the lowest index, one of its row's `seen` (-1 = none) only where all are.
        `domains` as in `path_of`."""
        leaf = self.leaf_of(tokens, domains)
        at, after = (self.trie.children[-1][leaf.clamp(min=0) + i].long() for i in (0, 1))
        items = self.trie.items[at].long()
        while seen is not None and self.trie.has_collisions:
            is_seen = (items.flatten(1)[..., None] == seen[:, None]).any(-1).view(items.shape)
            passed = is_seen & (at + 1 < after)
            if not bool(passed.any()):
                break
            at = at + passed.long()
            items = self.trie.items[at].long()
        return items.masked_fill(leaf < 0, -1)

    def sids_of(self, tokens: Int[Tensor, "*n L"]) -> Int[Tensor, "*n D"]:
        """What each token sequence names: of semantic IDs its tokens, of texts the token at every
        place where items differ; -1 behind its last decision and where it leaves the catalogue.

        A sequence in which a token is none of its level is no semantic ID and names nothing, as
        OpenOneRec's parser finds none in it; one that no item has names what it spells.
        """
        if self.codebook_sizes:
            bounds = [self.level_tokens(level) for level in range(self.max_length)]
            of_level = zip(tokens.unbind(-1), bounds, strict=True)
            fits = [(token >= first) & (token < end) for token, (first, end) in of_level]
            is_sid = torch.stack(fits).all(0)
            return tokens.masked_fill(~is_sid[..., None], -1)
        path = self.path_of(tokens)
        ends = self.ends_of(path)
        decided = [self._at(tokens, ends[..., level]) for level in range(self.num_levels)]
        went = (path[..., 1:] >= 0) & (ends.diff(dim=-1) > 0)
        named = torch.stack(decided, dim=-1).masked_fill(~went, -1)
        # What all items begin with decides nothing.
        is_common = self.num_levels > 1 and len(self.trie.codes[0]) == 1
        return named[..., 1:] if is_common else named

    def _at(self, tokens: Int[Tensor, "*n L"], place: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The token at a place; behind the last one a pad."""
        inside = place < tokens.shape[-1]
        token = tokens.gather(-1, place.clamp(max=tokens.shape[-1] - 1)[..., None])[..., 0]
        return token.masked_fill(~inside, self.pad_token)

    def _decided(self, level: int, nodes: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        return self.trie.codes[level][nodes].long() + self._level_start(level)

    def _level_start(self, level: int) -> int:
        return self.level_tokens(level)[0] if self.codebook_sizes else 0

    def save(self, folder: str | Path) -> None:
        """Write the catalogue into a new folder, whole or not at all."""
        with staged_folder(folder) as stage:
            self.write(stage)

    def write(self, folder: Path) -> None:
        """Write `catalog.parquet` and `sid.json`, which says what the other one was like, into a
        folder that exists, a staged one."""
        kind = "codes" if self.codebook_sizes else "tokens"
        rows = self.codes if self.codebook_sizes else self.tokens
        table = pl.DataFrame(
            {
                "item_id": pl.Series(self.item_ids, dtype=pl.String),
                kind: pl.Series(rows.cpu().numpy()),
                "text": pl.Series(self.texts, dtype=pl.String),
                "length": self.lengths.cpu().numpy(),
                "domain": pl.Series([self.domains[d] for d in self.domain_of.tolist()]),
            }
        )
        written = pl.col(kind).cast(pl.List(pl.Int32)).list.head(pl.col("length"))
        columns = ["item_id", written, "text"] + ["domain"] * (len(self.domains) > 1)
        table.select(columns).write_parquet(folder / "catalog.parquet")
        sid: dict[str, Any] = {
            "codebook_sizes": list(self.codebook_sizes),
            "first_token": self.first_token,
            "pad_token": self.pad_token,
            "bos_token": self.bos_token,
            "domains": list(self.domains),
            "names": self.names.facts(),
        }
        sid |= {} if self.form is None else {"form": self.form}
        sid = seal(sid, folder, "catalog.parquet")
        (folder / "sid.json").write_text(json.dumps(sid, indent=2) + "\n")
