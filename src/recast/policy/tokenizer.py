"""The tokenizer of a backbone: read with it, taught the names of semantic IDs, saved with it.

The code c of level l is named by a letter and a number: `<a_0>`, `<a_1>`, ... on the first level,
`<b_0>`, ... on the second, as in MiniOneRec (arXiv 2510.24431).
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer

from recast.run.reading import LOADING, reason_of
from recast.types import RecastError, require

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


def sid_names(codebook_sizes: tuple[int, ...]) -> list[str]:
    """What the tokens of semantic IDs are called, level by level.

    Raises `RecastError` for more levels than there are letters.

    >>> sid_names((2, 1))
    ['<a_0>', '<a_1>', '<b_0>']
    """
    most = len(string.ascii_lowercase)
    remedy = f"a tokenizer names {most} at most, from a to z"
    require(len(codebook_sizes) <= most, "levels of semantic IDs", len(codebook_sizes), remedy)
    levels = zip(string.ascii_lowercase, codebook_sizes, strict=False)
    return [f"<{letter}_{code}>" for letter, size in levels for code in range(size)]


def add_names(tokenizer: Any, codebook_sizes: tuple[int, ...], rows: int, name: str) -> int:
    """Teach the tokenizer the names of all codes, in order; returns the first one's token.

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
    names = sid_names(codebook_sizes)
    if twice := next((word for word in names if word in known), None):
        raise RecastError(
            f"{name}: its tokenizer knows {twice} already, as token {known[twice]}: start from the "
            "model without semantic IDs, or from a policy that `recast sft` made"
        )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in names])
    tokens = tokenizer.convert_tokens_to_ids(names)
    first = tokens[0]
    in_order = tokens == list(range(first, first + len(names))) and first > last
    if not in_order or tokenizer.encode("".join(names), add_special_tokens=False) != tokens:
        raise RecastError(
            f"{name}: its tokenizer does not read semantic IDs as new tokens one after the other: "
            f"{_REMEDY}"
        )
    return int(first)
