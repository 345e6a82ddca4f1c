"""Making and reading catalogues: codes, tokens or a folder in, a `Catalog` out."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.config.check import as_path
from recast.data.parquet import read_parquet
from recast.items.names import PLAIN, SidNames
from recast.items.trie import build_compressed_trie, build_trie
from recast.items.writes import Catalog
from recast.run.doors import require_kind
from recast.run.fingerprint import check_seal
from recast.run.reading import read_json, reading, reason_of
from recast.types import RecastError, in_short, require

_MOST = 2**31  # tokens are kept in 32 bits
_MOST_CODES = 2**20  # of a level with fewer items: each code is a row of a policy's embeddings

__all__ = ["Catalog", "build_catalog", "build_token_catalog", "load_catalog"]


def build_catalog(
    codes: Any,
    codebook_sizes: Any,
    *,
    item_ids: Any = None,
    texts: Any = None,
    domain_of: Any = None,
    domains: Sequence[str] = ("items",),
    names: SidNames = PLAIN,
    first_token: SupportsIndex = 2,
    pad_token: SupportsIndex = 0,
    bos_token: SupportsIndex = 1,
) -> Catalog:
    """A catalogue of semantic IDs: codes `[I, L]` and the size of every level `[L]`, tensors,
    arrays or lists; an id and a text per item, by default its index and none. A row of -1 is an
    item without a semantic ID. `domain_of` `[I]` says which of the `domains` an item is of, by
    default the first.

    Raises `RecastError` for codes that are no whole numbers or outside their codebook, codebooks
    far larger than the items, duplicate item ids, unequal lengths, a pad or first token that is a
    semantic ID's too, a domain in which no item has a semantic ID.
    """
    codes = _whole("codes", codes, 2)
    codebook_sizes = tuple(_whole("codebook_sizes", codebook_sizes, 1).tolist())
    first_token, pad_token, bos_token = (index(t) for t in (first_token, pad_token, bos_token))
    item_ids, texts = _named("codes", len(codes), item_ids, texts)
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
    called = [len(numbers) for numbers in names.numbers] or list(codebook_sizes)
    remedy = f"codebooks {list(codebook_sizes)} need as many"
    require(called == list(codebook_sizes), "numbers of the names", called, remedy)
    remedy = f"codebooks {list(codebook_sizes)} then need more tokens than fit into 32 bits"
    end = first_token + sum(codebook_sizes)
    require(first_token >= 0 and end <= _MOST, "first_token", first_token, remedy)
    most = max(_MOST_CODES, len(codes))
    remedy = f"give at most {most} codes a level for {len(codes)} items"
    require(max(codebook_sizes) <= most, "codebook_sizes", list(codebook_sizes), remedy)
    end += len([word for word in (names.begin, names.end) if word])
    for name, token in (("pad_token", pad_token), ("bos_token", bos_token)):
        remedy = f"semantic IDs are the tokens {first_token} to {end - 1}, give another"
        require(token >= 0 and not first_token <= token < end, name, token, remedy)
    starts = first_token + torch.tensor((0, *codebook_sizes[:-1])).cumsum(0)
    is_written = (codes != -1).any(1)
    domain_of = _of_domains(domain_of, domains, is_written)
    return Catalog(
        tokens=(codes + starts).masked_fill(~is_written[:, None], pad_token).int(),
        lengths=(is_written * len(codebook_sizes)).int(),
        codebook_sizes=codebook_sizes,
        item_ids=item_ids,
        texts=texts,
        trie=build_trie(codes, domain_of),
        domain_of=domain_of,
        domains=tuple(domains),
        names=names,
        first_token=first_token,
        pad_token=pad_token,
        bos_token=bos_token,
    )


def build_token_catalog(
    tokens: Any,
    lengths: Any,
    *,
    item_ids: Any = None,
    texts: Any = None,
    pad_token: SupportsIndex = 0,
    bos_token: SupportsIndex = 1,
    form: str | None = None,
) -> Catalog:
    """A catalogue of items that write sequences of unequal lengths, as texts do: tokens `[I, L]`
    and how many of them count, `[I]`; `form` of titles (`recast.items.titles`).

    What follows an item's last token is ignored. Raises `RecastError` for duplicate item ids, for
    an item that holds the pad token or none at all, and for one that another begins with.
    """
    tokens, lengths = _whole("tokens", tokens, 2), _whole("lengths", lengths, 1)
    pad_token, bos_token = index(pad_token), index(bos_token)
    item_ids, texts = _named("rows of tokens", len(tokens), item_ids, texts)
    require(len(lengths) == len(tokens), "lengths", len(lengths), f"give {len(tokens)} of them")
    most = int(lengths.max()) if len(lengths) else 0
    remedy = f"rows have {tokens.shape[1]} tokens, give no more"
    require(most <= tokens.shape[1], "largest of the lengths", most, remedy)
    outside = torch.arange(tokens.shape[1]) >= lengths[:, None]
    held = ((tokens == pad_token) | (tokens < 0) | (tokens >= _MOST)) & ~outside
    if bool(held.any()):
        row = int(held.any(1).nonzero()[0])
        raise RecastError(
            f"item {item_ids[row]!r} writes {tokens[row, : int(lengths[row])].tolist()} and the "
            f"pad token is {pad_token}: pad with a token that no item holds, the others are 0 or "
            "more and fit into 32 bits"
        )
    width = max(int(lengths.max()), 1) if len(lengths) else 0
    trie = build_compressed_trie(tokens[:, :width], lengths, pad_token)
    tokens = tokens[:, :width].masked_fill(outside[:, :width], pad_token)
    last = tokens.gather(1, (lengths - 1)[:, None]).flatten().unique().tolist()
    is_end = len(last) == 1 and int((tokens == last[0]).sum()) == len(tokens)
    return Catalog(
        tokens=tokens.int(),
        lengths=lengths.int(),
        codebook_sizes=(),
        item_ids=item_ids,
        texts=texts,
        trie=trie,
        domain_of=torch.zeros(len(tokens), dtype=torch.int32),
        pad_token=pad_token,
        bos_token=bos_token,
        form=form,
        end_token=last[0] if is_end else None,
    )


def _named(what: str, num_items: int, item_ids: Any, texts: Any) -> tuple[list[str], list[str]]:
    item_ids = [str(i) for i in range(num_items)] if item_ids is None else item_ids
    texts = [""] * num_items if texts is None else texts
    item_ids, texts = _texts("item_ids", item_ids), _texts("texts", texts)
    if not len(item_ids) == len(texts) == num_items:
        raise RecastError(
            f"{num_items} {what}, {len(item_ids)} item ids and {len(texts)} texts: "
            "give as many of each"
        )
    if len(set(item_ids)) < num_items:
        seen: set[str] = set()
        twice = next(i for i in item_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise RecastError(f"item id {twice!r} appears more than once: keep one row per item")
    return item_ids, texts


def _of_domains(
    domain_of: Any, domains: Sequence[str], is_written: Bool[Tensor, " I"]
) -> Int[Tensor, " I"]:
    """The domain of every item; raises `RecastError` unless each has an item that is written."""
    count, names = len(is_written), _texts("domains", domains)
    fits = bool(names) and all(names) and len(set(names)) == len(names)
    require(fits, "domains", names, "give one or more names, each once")
    number_of = torch.zeros(count, dtype=torch.long)
    if domain_of is not None:
        number_of = _whole("domain_of", domain_of, 1)
    require(len(number_of) == count, "length of domain_of", len(number_of), f"give {count} of them")
    wrong = number_of[(number_of < 0) | (number_of >= len(names))].tolist()[:1]
    require(not wrong, "domain_of", wrong, f"give numbers from 0 to {len(names) - 1}")
    number = number_of[is_written].bincount(minlength=len(names))
    if bool(is_written.any()) and not bool(number.all()):
        name = names[int(number.argmin())]
        raise RecastError(
            f"no item of domain {name!r} has a semantic ID: give its items theirs or leave them out"
        )
    return number_of.int()


def _whole(name: str, values: Any, num_dims: int) -> Int[Tensor, " ..."]:
    """A tensor, an array of numpy or lists as a tensor of whole numbers."""
    try:
        made = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecastError(
            f"{name} are no table of whole numbers ({reason_of(error)}): give a tensor"
        ) from error
    is_whole = not (made.is_floating_point() or made.is_complex() or made.dtype == torch.bool)
    if not is_whole or made.ndim != num_dims:
        raise RecastError(
            f"{name} have {made.ndim} dimensions of {made.dtype}: give {num_dims} of whole numbers"
        )
    return made.long()


def _texts(name: str, values: Any) -> list[str]:
    if isinstance(values, str):
        raise RecastError(f"{name} is the text {values[:60]!r}: give a list of texts, one an item")
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise RecastError(f"{name}[{place}] is {value!r}: give a text")
    return [str(value) for value in values]


def load_catalog(folder: str | Path) -> Catalog:
    """Read a catalogue written by `Catalog.save`; the trie is rebuilt, never stored.

    Raises `RecastError` when the folder holds none or it is damaged.
    """
    folder = Path(as_path("catalog", folder))
    require_kind("catalog", folder)
    with reading(folder, "use it as it was saved, or make it again with `recast tokenize`"):
        try:
            return _read_catalog(folder)
        except RecastError as error:
            raise ValueError(str(error)) from error


def _read_catalog(folder: Path) -> Catalog:
    facts = _read_sid(folder / "sid.json")
    table = read_parquet(folder / "catalog.parquet", facts)
    sid = {name: value for name, value in facts.items() if name not in ("files", "digest")}
    sizes = tuple(sid.pop("codebook_sizes"))
    kind, levels = ("codes" if sizes else "tokens"), len(sizes)
    domains = sid.pop("domains", ["items"])  # older folders name none
    table = table.select("item_id", kind, "text", *(["domain"] if len(domains) > 1 else []))
    types = table.schema
    written = types[kind]
    whole = isinstance(written, pl.List) and written.inner.is_integer()
    texts = {types[name] for name in table.columns if name != kind}
    if table.is_empty() or not whole or texts != {pl.String}:
        raise ValueError(f"catalog.parquet has {len(table)} rows of {dict(types)}")
    lengths = table[kind].list.len()
    flat = table[kind].filter(lengths > 0).explode()
    if table.null_count().sum_horizontal()[0] or flat.null_count():
        raise ValueError("catalog.parquet has empty cells")
    sid |= {"item_ids": table["item_id"].to_list(), "texts": table["text"].to_list()}
    values = torch.from_numpy(flat.cast(pl.Int64).to_numpy(writable=True))
    if not sizes:
        del sid["first_token"], sid["names"]
        length = torch.from_numpy(lengths.cast(pl.Int64).to_numpy(writable=True))
        tokens = torch.full((len(table), int(length.max())), sid["pad_token"])
        tokens[torch.arange(tokens.shape[1]) < length[:, None]] = values
        return build_token_catalog(tokens, length, **sid)
    uneven = ((lengths != levels) & (lengths > 0)).arg_true()
    if len(uneven):
        raise ValueError(
            f"catalog.parquet row {uneven[0]} has the codes "
            f"{table['codes'][uneven[0]].to_list()}: sid.json names {levels} levels"
        )
    codes = torch.full((len(table), levels), -1)
    codes[torch.from_numpy((lengths > 0).to_numpy(writable=True))] = values.view(-1, levels)
    if len(domains) > 1:
        number = table["domain"].replace_strict(domains, list(range(len(domains))))
        sid["domain_of"] = torch.from_numpy(number.to_numpy(writable=True))
    return build_catalog(codes, sizes, domains=domains, **sid)


def _read_sid(file: Path) -> dict[str, Any]:
    sid: dict[str, Any] = read_json(file, dict)
    check_seal(sid)
    sizes, first = sid["codebook_sizes"], sid["first_token"]
    if not (isinstance(sizes, list) and all(type(size) is int for size in sizes)):
        raise ValueError(f"sid.json has codebook_sizes {sizes!r}: no list of whole numbers")
    last = first if sizes else _MOST  # texts are of the same vocabulary
    for name, below in (("first_token", _MOST), ("pad_token", last), ("bos_token", last)):
        if not (type(sid[name]) is int and 0 <= sid[name] < below):
            raise ValueError(f"sid.json has {name} {sid[name]!r} and first_token {first!r}")
    domains, names = sid.get("domains", ["items"]), sid.get("names", {})
    if not (isinstance(domains, list) and domains and all(type(x) is str for x in domains)):
        raise ValueError(f"sid.json has domains {domains!r}: no list of names")
    if not isinstance(names, dict):
        raise ValueError(f"sid.json has names {in_short(names)}: no table of texts")
    numbers = names.pop("numbers", [])
    if not all(type(x) is str for x in names.values()):
        raise ValueError(f"sid.json has names {in_short(names)}: no table of texts")
    if not (isinstance(numbers, list) and all(map(_are_numbers, numbers))):
        raise ValueError(f"sid.json has numbers {in_short(numbers)}: no lists of different ones")
    form = sid.get("form", "{title}")
    if not (type(form) is str and form.count("{title}") == 1 and not (sizes and "form" in sid)):
        raise ValueError(f"sid.json has form {in_short(form)}: no text around a title")
    sid["names"] = SidNames(**names, numbers=tuple(map(tuple, numbers)))
    return sid


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of whole numbers from 0 on, each once."""
    is_whole = isinstance(values, list) and all(type(x) is int and x >= 0 for x in values)
    return is_whole and len(set(values)) == len(values)
