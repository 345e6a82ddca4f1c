"""Items that write their titles: texts and a tokenizer in, a catalogue of token sequences out.

An item writes a form with its title in it, `{title}` alone or such as `"{title}"` and a line break,
and then the token that ends it. Titles are compared as a reader sees them: Unicode's compatible
forms and any white space are the same, and characters that are not seen do not count. Of titles
that are the same, all but the first item's get a number behind them, as in `Stapler (2)`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recast.items.catalog import Catalog, build_token_catalog
from recast.items.tokenizer import end_of_turn, load_tokenizer
from recast.types import RecastError, in_short, require

MOST_TITLE_TOKENS = 1024
"""Ten times the longest of 3,459 products (93 tokens): a text is none."""
PLAIN_FORM = "{title}"
_TOGETHER = 4096  # texts that are tokenized
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
"""What Unicode calls Default_Ignorable_Code_Point, but for controls and formats (Cc, Cf)."""


class Written(NamedTuple):
    """A catalogue and what was done to its titles."""

    catalog: Catalog
    num_numbered: int
    """Items whose title got a number."""


def load_writer(folder: str) -> Any:
    """The tokenizer of a folder; `RecastError` where it has none."""
    tokenizer = load_tokenizer(Path(folder))
    remedy = "the folder holds none, give that of the model that is to write the titles"
    require(tokenizer is not None, "tokenizer", folder, remedy)
    return tokenizer


def title_catalog(
    tokenizer: Any,
    texts: Sequence[str],
    item_ids: Sequence[str],
    *,
    form: str | None = None,
    end_token: str | None = None,
) -> Written:
    """Items with these texts as titles, in the tokens of a tokenizer.

    The end is `end_token`, by default the token by which the chat template ends what an assistant
    says, or the end of text. Prompts of histories begin with the tokenizer's BOS, or its end of
    text where it has none; the pad token is one that no item holds.

    Raises `RecastError` for an item without a title, one of more than 1,024 tokens, one that holds
    a special token, titles that differ and that the tokenizer reads alike, and without an end.
    """
    form = PLAIN_FORM if form is None else form
    end = _end(tokenizer, end_token)
    titles = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts]
    keys: list[Any] = [_as_read(title) for title in titles]
    for item, key in zip(item_ids, keys, strict=True):
        if not key:
            raise RecastError(
                f"item {item!r} has no text, and its title is what it writes: give it one "
                "(`recast prepare` --items and --text), or leave it out of the data"
            )
    numbered = _numbered(titles, keys)
    keys = [tuple(row) for row in _tokens(tokenizer, numbered, form)]
    numbered = _numbered(numbered, keys)  # for this tokenizer, which may know no capitals
    tokens = _tokens(tokenizer, numbered, form)
    _check(tokenizer, tokens, numbered, item_ids, form, end)
    lengths = torch.tensor([len(row) + 1 for row in tokens])
    bos, pad = _begin_and_pad(tokenizer, tokens, end)
    padded = torch.full((len(tokens), int(lengths.max()) if len(tokens) else 0), pad)
    for row, written in zip(padded, tokens, strict=True):
        row[: len(written) + 1] = torch.tensor([*written, end])
    catalog = build_token_catalog(
        padded,
        lengths,
        item_ids=item_ids,
        texts=numbered,
        pad_token=pad,
        bos_token=bos,
        form=form,
    )
    changed = sum(new != old for new, old in zip(numbered, titles, strict=True))
    return Written(catalog, changed)


def title_card(
    written: Written, tokenizer: Any, encoder: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Plain data for `card.json`: what the items write, and what `encoder` says of embeddings."""
    catalog = written.catalog
    tokens, lengths = catalog.tokens.long(), catalog.lengths.float()
    decisions = (catalog.sids_of(tokens) >= 0).sum(1)
    path = catalog.path_of(tokens)
    is_edge = catalog.ends_of(path).diff(dim=1) > 0
    edges = sum(
        len(nodes[some].unique())
        for nodes, some in zip(path[:, 1:].unbind(1), is_edge.unbind(1), strict=True)
    )
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    assert catalog.end_token is not None, "titles end in it"
    inside = torch.arange(catalog.max_length) < catalog.lengths[:, None] - 1  # its end may be one
    return {
        "num_items": catalog.num_items,
        "codebook_sizes": [],
        "items_as": "titles",
        "form": catalog.form,
        "end_token": tokenizer.convert_ids_to_tokens(catalog.end_token),
        "mean_tokens": float(lengths.mean()),
        "most_tokens": int(lengths.max()),
        "mean_decisions": float(decisions.float().mean()),
        "most_decisions": int(decisions.max()),
        "edges": edges,
        "numbered_titles": written.num_numbered,
        "unknown_titles": int(((tokens == unknown) & inside).any(1).sum()),
        "collaborative_weight": 0.0,
        "empty_texts": 0,
        "encoder": encoder,
    }


def title_lines(card: dict[str, Any]) -> list[str]:
    """What a person reads of it."""
    items, form, end = card["num_items"], card["form"], card["end_token"]
    lines = [
        f"{items:,} items write their titles as {form!r}, then {end}: {card['mean_tokens']:.1f} "
        f"tokens on average, at most {card['most_tokens']}",
        f"decisions of an item: {card['mean_decisions']:.1f} on average, at most "
        f"{card['most_decisions']}; {card['edges']:,} edges of the trie",
    ]
    if card["numbered_titles"]:
        lines.append(
            "titles that an item before has too, in all but spaces and forms of characters: "
            f"{card['numbered_titles']:,}, written with a number behind them"
        )
    if card["unknown_titles"]:
        lines.append(
            "warning: titles with characters that the tokenizer does not know: "
            f"{card['unknown_titles']:,}"
        )
    return lines


def check_writer(tokenizer: Any, catalog: Catalog, name: str) -> None:
    """Raise `RecastError` unless the tokenizer of a model, which errors call `name`, reads every
    title as the tokens that its item writes: then it is the one that wrote them."""
    remedy = "make it with `recast tokenize --items_as titles --tokenizer`, this model's folder"
    if tokenizer is None:
        raise RecastError(
            f"{name} has no tokenizer, and the items of the catalogue are titles, written by one: "
            "give the model's folder with it"
        )
    again = _tokens(tokenizer, catalog.texts, catalog.form or PLAIN_FORM)
    lengths = catalog.lengths.tolist()
    for item, (row, length) in enumerate(zip(catalog.tokens.tolist(), lengths, strict=True)):
        if again[item] != row[: length - 1]:
            raise RecastError(
                f"the tokenizer of {name} reads {in_short(catalog.texts[item])}, the title of item "
                f"{catalog.item_ids[item]!r}, as other tokens than the catalogue has: {remedy}"
            )


def _as_read(title: str) -> str:
    """What a reader tells titles apart by: no form of a character, and none that is not seen, such
    as a space without width, a soft hyphen or what chooses the form of an emoji.

    >>> _as_read("Pen\u200b"), _as_read("\ufeff"), _as_read("\ufb01n\xa0 Ink")
    ('Pen', '', 'fin Ink')
    """
    words = " ".join(unicodedata.normalize("NFKC", title).split())
    seen = (x for x in _UNSEEN.sub("", words) if unicodedata.category(x) not in ("Cc", "Cf"))
    return " ".join("".join(seen).split())


def _numbered(titles: list[str], keys: Sequence[Any]) -> list[str]:
    """The titles, all but the first of those with the same key with a number behind them that makes
    them unlike all others.

    >>> _numbered(["Pen", "Ink", "Pen", "Pen (2)", "Pen"], ["Pen", "Ink", "Pen", "Pen (2)", "Pen"])
    ['Pen', 'Ink', 'Pen (3)', 'Pen (2)', 'Pen (4)']
    """
    taken, count, found = {*titles}, dict.fromkeys(keys, 0), []
    for title, key in zip(titles, keys, strict=True):
        count[key] += 1
        made = title
        while count[key] > 1 and made in taken:
            made = f"{title} ({count[key]})"
            count[key] += made in taken
        taken.add(made)
        found.append(made)
    return found


def _tokens(tokenizer: Any, titles: Sequence[str], form: str) -> list[list[int]]:
    """What items with these titles write, without what ends them."""
    found: list[list[int]] = []
    for start in range(0, len(titles), _TOGETHER):
        said = [form.replace("{title}", title) for title in titles[start : start + _TOGETHER]]
        found += tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _end(tokenizer: Any, name: str | None) -> int:
    """The token that ends an item."""
    if name is None:
        end = end_of_turn(tokenizer)
        remedy = "the tokenizer has no end of text and no chat template, name one of its tokens"
        require(end is not None, "end_token", None, remedy)
        return int(end)  # type: ignore[arg-type]  # required just now
    ids = tokenizer(name, add_special_tokens=False, verbose=False)["input_ids"]
    is_known = ids[:1] != [tokenizer.unk_token_id] or name == tokenizer.unk_token
    fits = len(ids) == 1 and is_known  # GPT-2 and its kin call their end of text unknown
    require(fits, "end_token", name, f"the tokenizer reads it as {ids[:8]}, name one of its tokens")
    return int(ids[0])


def _begin_and_pad(tokenizer: Any, tokens: list[list[int]], end: int) -> tuple[int, int]:
    """BOS, and a pad token that no item holds."""
    bos = next(x for x in (tokenizer.bos_token_id, tokenizer.eos_token_id, end) if x is not None)
    held = {end, bos} | {token for row in tokens for token in row}
    special = [tokenizer.pad_token_id, *tokenizer.all_special_ids]
    pads = (x for x in (*special, *range(len(tokenizer))) if x is not None and x not in held)
    pad = next(pads, None)
    remedy = "its items hold them all, and one has to pad: give a tokenizer with a token more"
    require(pad is not None, "tokens of the tokenizer", len(tokenizer), remedy)
    return int(bos), int(pad)  # type: ignore[arg-type]  # required just now


def _check(
    tokenizer: Any,
    tokens: list[list[int]],
    titles: list[str],
    item_ids: Sequence[str],
    form: str,
    end: int,
) -> None:
    """Raise `RecastError` for what no item can write, and for two that would write the same."""
    added = [token for token, word in tokenizer.added_tokens_decoder.items() if word.special]
    special = {*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id} | {end}
    first: dict[tuple[int, ...], int] = {}
    for item, (row, title) in enumerate(zip(tokens, titles, strict=True)):
        named = f"item {item_ids[item]!r} has the title {in_short(title)}"
        if held := special & {*row}:
            word = tokenizer.convert_ids_to_tokens(held.pop())
            what = "which ends every item" if word == tokenizer.convert_ids_to_tokens(end) else ""
            where = f"form is {in_short(form)} with" if word in form else f"{named} with"
            raise RecastError(
                f"{where} the special token {word} {what}: leave it out".replace(" :", ":")
            )
        if not 0 < len(row) < MOST_TITLE_TOKENS:
            raise RecastError(
                f"{named} of {len(row):,} tokens: give it 1 to {MOST_TITLE_TOKENS - 1:,}, a title "
                "and no description"
            )
        other = first.setdefault(tuple(row), item)
        if other != item:
            raise RecastError(
                f"{named}, which the tokenizer reads like that of item {item_ids[other]!r}: give "
                "them others, or a tokenizer that knows their characters"
            )
