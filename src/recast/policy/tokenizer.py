"""The tokenizer of a backbone: read with it, taught the names of semantic IDs, saved with it.

How they are called is the catalogue's (`recast.items.names`): of all codes, level by level, then
what begins and what ends an item.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from recast.items.numbering import numbered_as
from recast.items.tokenizer import REMEDY
from recast.items.tokenizer import load_tokenizer as load_written
from recast.items.writes import Catalog
from recast.policy.folder import place_of
from recast.run.doors import is_gguf
from recast.types import RecastError

_START = "start from the model without semantic IDs, or from a policy that `recast sft` made"


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a Hugging Face folder or of a GGUF file, None where there is none.

    Raises `RecastError` when it does not load, or has no vocabulary.
    """
    return load_written(folder, place_of(folder) if is_gguf(folder) else None)


def find_sids(tokenizer: Any, catalog: Catalog, name: str) -> tuple[int, Catalog] | None:
    """Where the tokenizer knows the names of the semantic IDs already: the token of the first one,
    and the catalogue with its codes as they stand there; None where it knows none of them.

    The names of a level stand one after the other, in any order, the levels in turn, and behind
    them what begins and what ends an item. A level may have more names than the catalogue has
    codes, and none for those that no item has, as in published checkpoints.

    Raises `RecastError` for other places, and for an item with a code that has no name.
    """
    names, vocab, sizes = catalog.names, tokenizer.get_vocab(), catalog.codebook_sizes
    words, levels = names.of(sizes), range(len(sizes))
    in_turn = sorted((token, word) for word, token in vocab.items())
    called = [[names.number(level, word) for _, word in in_turn] for level in levels]
    numbers = tuple(tuple(x for x in level if x is not None) for level in called)
    taken = [replace(names, numbers=numbers).name(i, 0) for i in levels if numbers[i]]
    taken += [word for word in (names.begin, names.end) if word in vocab]
    if not taken:
        return None
    first = vocab[taken[0]]
    at = f"{name}: its tokenizer knows {taken[0]} already, as token {first}"
    if not all(numbers):
        lacking = names.name(numbers.index(()), 0)
        raise RecastError(f"{at}, and no name such as {lacking}: {_START}")
    if numbers != (names.numbers or tuple(tuple(range(size)) for size in sizes)):
        catalog = numbered_as(catalog, numbers, name)
        words = catalog.names.of(catalog.codebook_sizes)
    for token, word in enumerate(words, first):
        if vocab.get(word) != token:
            raise RecastError(
                f"{at}, and {word} as {vocab.get(word, 'none')}, where names stand one after the "
                f"other, level by level, and this one is {token}: {_START}"
            )
    if not _reads(tokenizer, words, first):
        raise RecastError(f"{at}, and does not read it as that one: {REMEDY}")
    return int(first), catalog


def add_names(tokenizer: Any, names: list[str], rows: int, name: str) -> int:
    """Teach the tokenizer new names of semantic IDs, in order; returns the first one's token.

    A name stays one token whatever stands around it. `rows` is how many tokens the model has.
    Raises `RecastError` when the tokenizer is not the model's or cannot number them one after the
    other.
    """
    known = tokenizer.get_vocab()
    last = max(known.values())
    if last >= rows:
        raise RecastError(
            f"{name}: its tokenizer knows token {last}, its model {rows} tokens: {REMEDY}"
        )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in names])
    first = tokenizer.convert_tokens_to_ids(names[0])
    if first <= last or not _reads(tokenizer, names, first):
        raise RecastError(
            f"{name}: its tokenizer does not read semantic IDs as new tokens one after the other: "
            f"{REMEDY}"
        )
    return int(first)


def _reads(tokenizer: Any, names: list[str], first: int) -> bool:
    tokens = tokenizer.encode("".join(names), add_special_tokens=False)
    return bool(tokens == _block(first, names))


def _block(first: int, names: list[str]) -> list[int]:
    return list(range(first, first + len(names)))
