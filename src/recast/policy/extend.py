"""How the rows for the tokens of semantic IDs begin; a backbone that learns to write items.

Enters: a model of one's own, its tokenizer if there is one, a catalogue. Leaves: both extended in
place, and the catalogue in their tokens. The new rows stand behind the tokenizer's last token, or
behind the model's last row where there is no tokenizer; spare rows are used before any is added.

How they begin (`new_rows`), in the input embedding and, where that is another table, the output
layer with its bias, each by its own rows, of which none is changed:

- `spread`: normal with the mean and the standard deviation of every column of the own rows.
- `text`: the mean over the code's items, at that level, of the mean row of their text's tokens,
  plus a tenth of that spread, without which items of one text would begin alike. A code without an
  item whose text has a token begins as `spread` says.

A new model has random rows (`spread`); with `vectors` what its items' vectors say (`vector_rows`)
is added to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from recast.config import ModelConfig, NewRows
from recast.items.catalog import Catalog
from recast.policy.body import text_config
from recast.policy.tokenizer import add_names, find_sids
from recast.types import RecastError, require

_TEXT_NOISE = 0.1
"""Of the own rows' deviation: see docs/log.md, 2026-11-25, "how new rows begin"."""
_TEXTS = 4096  # that are tokenized together
_VECTOR_SCALE = 2.0
"""Deviation of what `vectors` adds, in deviations of the noise: see docs/log.md."""
_FLAT = 1e-6  # of the largest number: deviations below are rounding


def is_policy(folder: str | Path) -> bool:
    """Whether `recast.policy.load.save_policy` made the folder."""
    return os.path.isfile(Path(folder) / "recast.json")  # Path raises for links in a circle


def choose_new_rows(
    config: ModelConfig, catalog: Catalog, tokenizer: Any, *, has_vectors: bool = False
) -> NewRows | None:
    """How new rows of the model that is asked for begin: as asked, else by the vectors that a new
    one is given, in another by `text` where there is a tokenizer and an item with a text; None for
    noise that was not asked for, and where none are new. `tokenizer` is the model's as it lies in
    its folder.

    Raises `RecastError` for what is asked for and cannot be.
    """
    asked = config.new_rows
    if not catalog.codebook_sizes:
        remedy = "the catalogue has no semantic IDs, leave it out"
        require(asked is None, "model.new_rows", asked, remedy)
        return None
    if config.path is None:
        remedy = "there are no vectors, give them or spread"
        require(has_vectors or asked != "vectors", "model.new_rows", asked, remedy)
        return "vectors" if has_vectors else asked
    if is_policy(config.path):
        remedy = f"{config.path} is a policy and has its rows, leave it out"
        require(asked is None, "model.new_rows", asked, remedy)
        return None
    if tokenizer is not None and find_sids(tokenizer, catalog, config.path) is not None:
        remedy = f"{config.path} knows the semantic IDs and has their rows, leave it out"
        require(asked is None, "model.new_rows", asked, remedy)
        return None
    has_text = any(text.strip() for text in catalog.texts)
    remedy = f"{config.path} has no tokenizer, give spread"
    require(tokenizer is not None or asked != "text", "model.new_rows", asked, remedy)
    remedy = "no item has a text, give spread, or `recast prepare` --items and --text"
    require(has_text or asked != "text", "model.new_rows", asked, remedy)
    return asked or ("text" if tokenizer is not None and has_text else "spread")


def add_sid_tokens(
    model: Any, tokenizer: Any, catalog: Catalog, new_rows: NewRows | None, seed: int, name: str
) -> Catalog:
    """The catalogue in the model's tokens; model and tokenizer are extended in place, unless the
    tokenizer knows the names of all semantic IDs: then `new_rows` is None and both stay.

    Prompts begin with the model's BOS, or its end of text where it has none. The pad token is its
    own one or its end of text, unless prompts begin with it; `name` is what errors call the model.

    Raises `RecastError` when there is no token to begin with, when the tokenizer is not the model's
    or knows the names of semantic IDs
    in places that are none of a catalogue's.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    first = rows
    if tokenizer is not None:
        known = find_sids(tokenizer, catalog, name)
        if known is None:
            first = add_names(tokenizer, _names(catalog), rows, name)
        else:
            first, catalog = known
    count = catalog.vocab_size - catalog.first_token
    bos, pad = _begin_and_pad(model, tokenizer, first, count, name)
    tokens = catalog.tokens + (first - catalog.first_token)
    tokens = tokens.masked_fill(~catalog.is_written[:, None], pad)
    catalog = replace(catalog, tokens=tokens, first_token=first, bos_token=bos, pad_token=pad)
    if new_rows is None:
        remedy = f"the tokenizer of {name} has {catalog.vocab_size}, give both as they were"
        require(catalog.vocab_size <= rows, "tokens of the model", rows, remedy)
        return catalog
    if catalog.vocab_size > rows:
        model.resize_token_embeddings(catalog.vocab_size, mean_resizing=False)
    titles = title_weights(tokenizer, catalog) if new_rows == "text" else None
    draw = torch.Generator().manual_seed(seed)
    for table in tables(model):
        rows = table.data if table.ndim == 2 else table.data[:, None]
        begin_rows(rows, first, count, titles, draw)
    return catalog


def num_rows(tokenizer: Any, catalog: Catalog) -> int:
    """Tokens that a model needs for what its tokenizer knows and for semantic IDs that it lacks."""
    known, names = {} if tokenizer is None else tokenizer.get_vocab(), _names(catalog)
    new = 0 if any(name in known for name in names) else len(names)
    return max(known.values(), default=-1) + 1 + new


def _names(catalog: Catalog) -> list[str]:
    return catalog.names.of(catalog.codebook_sizes)


def _begin_and_pad(
    model: Any, tokenizer: Any, first: int, count: int, name: str
) -> tuple[int, int]:
    """BOS and pad token. A model whose pad would hide its BOS from `generate` gets this one."""
    settings, generation = text_config(model), model.generation_config

    def named(kind: str, *sources: Any) -> list[int]:
        listed = [getattr(source, f"{kind}_token_id", None) for source in sources]
        flat = [x for y in listed for x in (y if isinstance(y, list | tuple) else [y])]
        return [token for token in flat if token is not None]

    pads, ends = (named(kind, settings, generation, tokenizer) for kind in ("pad", "eos"))
    begins = named("bos", settings, tokenizer)
    bos = next(iter(begins or ends), None)
    if not (isinstance(bos, int) and 0 <= bos < first):
        key = "eos_token_id" if ends and not begins else "bos_token_id"
        raise RecastError(f"{name} has {key} {bos!r} of {first} tokens: name one of them")
    for kind, tokens in (("eos", ends), ("pad", pads)):
        if taken := next((x for x in tokens if first <= x < first + count), None):
            raise RecastError(
                f"{name} has {kind}_token_id {taken} and {first} tokens, behind which semantic IDs "
                "stand: name one of them"
            )
    special = [] if tokenizer is None else tokenizer.all_special_ids
    pad = next((x for x in (*pads, *ends, *special, 0, 1) if x != bos and 0 <= x < first), bos)
    if generation is not None and generation.pad_token_id == bos and bos not in ends:
        settings.pad_token_id = generation.pad_token_id = pad
    return bos, pad


def tables(model: Any) -> Iterator[torch.nn.Parameter]:
    """What holds a row for every token: the input embedding, the output layer, its bias."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    yield embedding
    if head.weight is not embedding:
        yield head.weight
    if getattr(head, "bias", None) is not None:
        yield head.bias


def begin_rows(
    table: Float[Tensor, "V W"],
    first: int,
    count: int,
    titles: Float[Tensor, "N F"] | None,
    draw: torch.Generator,
) -> None:
    """Fill the `count` rows of a table from `first` on; those in front of them are its own.

    `titles`, sparse, says how much of each of the F = `first` own rows a new one begins with
    (`title_weights`).
    """
    own = table[:first].float()
    mean, spread = own.mean(0), own.std(0, correction=0)
    noise = torch.randn(count, table.shape[1], generator=draw).to(table.device) * spread
    rows = mean + noise
    if titles is not None:
        has_title = (titles.sum(1).to_dense() > 0)[:, None]
        rows = torch.where(has_title, titles @ own + _TEXT_NOISE * noise, rows)
    table[first : first + count] = rows.to(table.dtype)


def add_vectors(model: Any, catalog: Catalog, vectors: Float[Tensor, "I D"], noise: float) -> None:
    """Add what the vectors say to the rows of a new model, whose deviation is `noise`."""
    for table in tables(model):
        rows = vector_rows(catalog, vectors, table.shape[1])
        table.data[catalog.first_token :][: len(rows)] += _VECTOR_SCALE * noise * rows


def vector_rows(
    catalog: Catalog, vectors: Float[Tensor, "I D"], width: int
) -> Float[Tensor, "N W"]:
    """What the vectors of the items say of every code of every level, of deviation 1 over items.

    The vectors are centred, turned to their first `width` principal axes where they are wider, and
    padded with zeros where they are narrower. A code is the mean, over its items, of what the codes
    of the levels above leave over, as it was quantized; a code of the last level that is one item
    stands for all of it. Codes without an item are zero, and so is everything where the vectors do
    not differ.

    Example: items 0 and 1 of cluster 0 with the vectors 1 and 3, item 2 of cluster 1 with 8; the
    last token is the item. Centred -3, -1, 4, of deviation sqrt(26 / 3) = 2.94: the rows are
    -2 and 4 for the clusters, -3, -1 and 4 for the items, each divided by 2.94.
    """
    vectors = vectors[catalog.is_written]
    rows = vectors.double() - vectors.double().mean(0)
    if rows.shape[1] > width:
        size = min(width + 16, *rows.shape)
        axes = torch.svd_lowrank(rows, q=size, niter=6)[2][:, :width]
        # An axis has no direction of its own: the largest number shows the way.
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        rows = rows @ axes
    deviation = rows.std(correction=0)
    scale = 0.0 if bool(deviation <= _FLAT * vectors.abs().max()) else 1 / deviation
    rows = F.pad((rows * scale).float(), (0, width - rows.shape[1]))
    begun, left = [], rows
    for level, size in enumerate(catalog.codebook_sizes):
        codes = catalog.codes[catalog.is_written, level].long()
        number = codes.bincount(minlength=size)[:, None]
        is_item = (
            level == catalog.num_levels - 1 and size == len(rows) and bool((number == 1).all())
        )
        mean = rows.new_zeros(size, width).index_add_(0, codes, rows if is_item else left)
        begun.append(mean / number.clamp(min=1))
        left = left - begun[-1][codes]
    return torch.cat(begun)


def title_weights(tokenizer: Any, catalog: Catalog) -> Float[Tensor, "N F"]:
    """For every code of every level the share of each token in its items' texts, sparse.

    Every item with a token counts the same, however long its text; the shares of a code sum to 1,
    or are all 0 where no item has one. The token of unknown text is none, nor is a semantic ID's.

    Example: codes 0 and 1 of one level; item 0 has code 0 and the tokens 5 5 7, item 1 the same
    code and the token 7: the row of code 0 is 1/3 at 5 and 2/3 at 7, that of code 1 is empty.
    """
    codes = catalog.codes.long() + torch.tensor((0, *catalog.codebook_sizes[:-1])).cumsum(0)
    codes = codes[catalog.is_written]
    texts = [text for text, n in zip(catalog.texts, catalog.lengths.tolist(), strict=True) if n]
    size = (catalog.vocab_size - catalog.first_token, catalog.first_token)
    total = _sparse(torch.empty(2, 0, dtype=torch.long), torch.empty(0), size)
    num_items = torch.zeros(size[0])
    for start in range(0, len(texts), _TEXTS):
        read = tokenizer(texts[start : start + _TEXTS], add_special_tokens=False)
        words = [
            [word for word in text if word != tokenizer.unk_token_id and word < size[1]]
            for text in read["input_ids"]
        ]
        length = torch.tensor([len(text) for text in words])
        token = torch.tensor([word for text in words for word in text], dtype=torch.long)
        share = (1 / length).repeat_interleave(length)
        for level in codes[start : start + _TEXTS].T:
            index = torch.stack([level.repeat_interleave(length), token])
            total = (total + _sparse(index, share, size)).coalesce()
            num_items.index_add_(0, level, (length > 0).float())
    index, share = total.indices(), total.values()
    return _sparse(index, share / num_items[index[0]], size)


def _sparse(index: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(index, value, size, check_invariants=True).coalesce()
