"""The tokenizer of a backbone: read with it, taught the names of semantic IDs, saved with it.

How they are called is the catalogue's (`recast.items.names`): of all codes, level by level, then
what begins and what ends an item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer

from recast.run.reading import LOADING, reason_of
from recast.types import RecastError

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json"),
)
_REMEDY = "give its folder with the tokenizer's files as they were published, or without any"


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a Hugging Face folder, None where there is none.

    Raises `RecastError` when it does not load, or has no vocabulary (transformers makes an empty
    one out of a config alone).
    """
    if not any((folder / name).is_file() for name in _FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except LOADING as error:
        raise RecastError(
            f"{folder}: its tokenizer does not load ({reason_of(error, 200)}): {_REMEDY}"
        ) from error
    if len(tokenizer) == len(tokenizer.get_added_vocab()):
        raise RecastError(f"{folder}: its tokenizer has no vocabulary: {_REMEDY}")
    return tokenizer


def find_names(tokenizer: Any, names: list[str]) -> int | None:
    """The token of the first of these names, where the tokenizer knows all of them already, in this
    order, one after the other and each as one token; else None."""
    known = tokenizer.get_vocab()
    first = known.get(names[0])
    if first is None or [known.get(name) for name in names] != _block(first, names):
        return None
    return int(first) if _reads(tokenizer, names, first) else None


def add_names(tokenizer: Any, names: list[str], rows: int, name: str) -> int:
    """Teach the tokenizer new names of semantic IDs, in order; returns the first one's token.

    A name stays one token whatever stands around it. `rows` is how many tokens the model has.
    Raises `RecastError` when the tokenizer is not the model's, knows a name already or cannot
    number them one after the other.
    """
    known = tokenizer.get_vocab()
    last = max(known.values())
    if last >= rows:
        raise RecastError(
            f"{name}: its tokenizer knows token {last}, its model {rows} tokens: {_REMEDY}"
        )
    if twice := next((word for word in names if word in known), None):
        raise RecastError(
            f"{name}: its tokenizer knows {twice} already, as token {known[twice]}, and not all "
            f"{len(names)} names in their order: start from the model without semantic IDs, or "
            "from a policy that `recast sft` made"
        )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in names])
    first = tokenizer.convert_tokens_to_ids(names[0])
    if first <= last or not _reads(tokenizer, names, first):
        raise RecastError(
            f"{name}: its tokenizer does not read semantic IDs as new tokens one after the other: "
            f"{_REMEDY}"
        )
    return int(first)


def _reads(tokenizer: Any, names: list[str], first: int) -> bool:
    tokens = tokenizer.encode("".join(names), add_special_tokens=False)
    return bool(tokens == _block(first, names))


def _block(first: int, names: list[str]) -> list[int]:
    return list(range(first, first + len(names)))
