"""Items that came after a catalogue of codes was made: they get codes of their own, no code moves.

Enters: the folder of the catalogue and a data folder with more items. Leaves: the catalogue of all
items of the data, which a policy of the first one takes over as it is (`in_place_of`).

A new item is embedded as the others were, quantized by the kept centroids (of an RQ-VAE: by the
kept encoder and codebooks) and, where its SID is taken, given the nearest free one. Its
collaborative vector is what its neighbours have, each by its weight: the SVD is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import TokenizeConfig
from recast.config.settings_file import read_settings
from recast.items.catalog import Catalog, load_catalog
from recast.items.collisions import resolve_nearest_free
from recast.items.embed import Kept, beside_neighbours, has_vectors, load_kept
from recast.items.encoder import embed_texts
from recast.items.numbering import numbered_like
from recast.items.quantize import nearest_codes
from recast.items.rq_vae import encode
from recast.run.parts import Parts
from recast.run.reading import reading
from recast.types import Interactions, RecastError, in_short, require

_PROBES = 4  # items that are embedded again, to see whether the encoder is the same
_SAME = 1e-3  # of vectors of length 1: batches of other shapes differ by 1e-7


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """A catalogue as it was made, and which items of a data folder it has."""

    folder: str
    catalog: Catalog
    config: TokenizeConfig
    """What it was made with."""
    kept: Kept
    place: Int[Tensor, " I"]
    """Of every item of the data its index in the catalogue, -1 for a new one."""

    @property
    def is_new(self) -> Bool[Tensor, " I"]:
        return self.place < 0

    def facts(self) -> dict[str, Any]:
        """What the card says."""
        new = int(self.is_new.sum())
        gone = self.catalog.num_items - (len(self.place) - new)
        return {"extends": self.folder, "new_items": new, "left_out_items": gone}


def load_extension(folder: str, item_ids: list[str]) -> Extension:
    """Raises `RecastError` for a catalogue whose items are tokens or that kept no centroids, and
    where the data shares no item with it."""
    catalog = load_catalog(folder)
    with reading(Path(folder) / "config.yaml", "make the catalogue again with `recast tokenize`"):
        settings = read_settings(str(Path(folder) / "config.yaml")) | {"extend": None}
        config = TokenizeConfig(**settings)
    is_one = config.num_levels == 1 and config.resolve != "extra_level"
    if config.items_as == "item" or is_one:
        raise RecastError(
            f"extend is {folder!r}, where every item has a token of its own: a policy has no row "
            "for a new one, make it again from this data, or extend a catalogue of codes"
        )
    if config.items_as == "titles":
        raise RecastError(
            f"extend is {folder!r}, a catalogue of titles, and new items bring their own: make it "
            "of this data with items_as titles and the same tokenizer, and give it as `--catalog`"
        )
    is_made = config.items_as in (None, "codes") and config.quantizer != "random"
    if not is_made or not has_vectors(folder):
        raise RecastError(
            f"extend is {folder!r}, whose semantic IDs were given or drawn, so it kept nothing to "
            "make more by: give items_as a file that holds those of the new items too"
        )
    kept = load_kept(folder, catalog)
    with reading(Path(folder) / "embeddings.safetensors", "make the catalogue again"):
        _check(kept, catalog)
    index = {item: row for row, item in enumerate(catalog.item_ids)}
    place = torch.tensor([index.get(item, -1) for item in item_ids])
    if bool((place < 0).all()):
        raise RecastError(
            f"extend is {folder!r}, which has none of the {len(item_ids)} items of the data: give "
            "the catalogue of an earlier state of this data"
        )
    return Extension(folder=folder, catalog=catalog, config=config, kept=kept, place=place)


def _check(kept: Kept, catalog: Catalog) -> None:
    """Raise `ValueError` unless the centroids are those of its codes and of its points."""
    num_levels = catalog.num_levels
    point = kept.mixed({name: table[:1] for name, table in kept.blocks.items()})
    width = (encode(kept.encoder, point) if kept.encoder else point).shape[1]
    shapes = [tuple(book.shape) for book in kept.centroids]
    expected = [(size, width) for size in catalog.codebook_sizes[: len(shapes)]]
    if shapes != expected or len(shapes) not in (num_levels, num_levels - 1) or not shapes:
        raise ValueError(f"it has centroids of the shapes {shapes}, the codes need {expected}")


def extended_blocks(
    extension: Extension, texts: list[str], interactions: Interactions | None, parts: Parts
) -> dict[str, Tensor]:
    """The vectors of all items of the data: those that were kept, and new ones of their kind."""
    is_new, place = extension.is_new, extension.place
    blocks = {}
    for name, table in extension.kept.blocks.items():
        rows = table[place.clamp(min=0)].masked_fill(is_new[:, None], 0)
        if name == "text":
            rows[is_new] = _embed(extension, texts, parts)
        else:
            assert interactions is not None, "a collaborative block is of events"
            rows = beside_neighbours(interactions, rows, is_new, extension.config.splits)
        blocks[name] = rows
    return blocks


def _embed(extension: Extension, texts: list[str], parts: Parts) -> Float[Tensor, "N D"]:
    """Of the new items; raises `RecastError` where the encoder is not the one of the catalogue."""
    kept, catalog = extension.kept.blocks["text"], extension.catalog
    new = [texts[item] for item in extension.is_new.nonzero()[:, 0].tolist()]
    if not any(text.strip() for text in new):
        return torch.zeros(len(new), kept.shape[1])
    probes = [item for item, text in enumerate(catalog.texts) if text.strip()][:_PROBES]
    encoder = extension.config.encoder or "minilm"
    vectors = embed_texts(new + [catalog.texts[item] for item in probes], encoder, parts).vectors
    again, then = vectors[len(new) :], F.normalize(kept[probes], dim=1)
    if again.shape != then.shape or float((again - then).abs().max()) > _SAME:
        raise RecastError(
            f"encoder {encoder} gives item {catalog.item_ids[probes[0]]!r} another vector than "
            f"{extension.folder} holds: put the encoder back with which that was made"
        )
    return vectors[: len(new)]


def extended_codes(
    extension: Extension, vectors: Float[Tensor, "I D"]
) -> tuple[Int[Tensor, "I L"], Int[Tensor, "I L"]]:
    """Codes of all items as the new ones are quantized, and without collisions of these."""
    kept, is_new, sizes = extension.kept, extension.is_new, extension.catalog.codebook_sizes
    own = extension.catalog.codes.long()
    before = own[extension.place.clamp(min=0)]
    if not bool(is_new.any()):
        return before, before
    points = vectors[is_new]
    points = encode(kept.encoder, points) if kept.encoder else points
    books, found = list(kept.centroids), nearest_codes(points, kept.centroids)
    if len(sizes) > len(books):  # an extra level: its codes are alike, so the lowest free is taken
        books.append(torch.zeros(sizes[-1], points.shape[1]))
        found = F.pad(found, (0, 1))
    after = before.clone()
    before[is_new] = found
    after[is_new] = resolve_nearest_free(found, points, books, taken=own)
    return before, after


def in_place_of(old: Catalog, new: Catalog, name: str) -> Catalog:
    """The new catalogue in the tokens of a policy, called `name`, that writes the old one.

    Raises `RecastError` unless both have codebooks of the same sizes and shared items, whose codes
    are the same.
    """
    if old.form is not None and new.form is not None:
        return _titles_in_place_of(old, new, name)
    kinds = ["titles" if x.form is not None else "semantic IDs" for x in (old, new)]
    if kinds[0] != kinds[1]:
        raise RecastError(
            f"{name} writes {kinds[0]}, and the items of this catalogue write {kinds[1]}: give the "
            "policy's own, or train a policy on this one"
        )
    new = numbered_like(old, new, name)
    if not old.codebook_sizes or old.codebook_sizes != new.codebook_sizes:
        raise RecastError(
            f"{name} writes other semantic IDs than this catalogue: codebooks of the sizes "
            f"{list(old.codebook_sizes)}, not {list(new.codebook_sizes)}: use its own, or one that "
            "`recast tokenize --extend` made of it"
        )
    require_alike(old, new, name)
    index = {item: row for row, item in enumerate(old.item_ids)}
    pairs = [(index[item], row) for row, item in enumerate(new.item_ids) if item in index]
    theirs, ours = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    differs = (old.codes[theirs] != new.codes[ours]).any(1)
    if not pairs or bool(differs.any()):
        what = "none of its items is there"
        if pairs:
            item = new.item_ids[int(ours[differs][0])]
            what = f"item {item!r} has others"
        raise RecastError(
            f"{name} writes other semantic IDs than this catalogue ({what}): use its own, or one "
            "that `recast tokenize --extend` made of it"
        )
    first, tokens = old.first_token, new.tokens + (old.first_token - new.first_token)
    return replace(
        new,
        tokens=tokens.masked_fill(~new.is_written[:, None], old.pad_token),
        first_token=first,
        bos_token=old.bos_token,
        pad_token=old.pad_token,
    )


def _titles_in_place_of(old: Catalog, new: Catalog, name: str) -> Catalog:
    remedy = f"{name} has another one, make it by `recast tokenize` with the same settings"
    for what in ("form", "end_token", "bos_token"):
        value = getattr(new, what)
        require(value == getattr(old, what), f"{what} of the catalogue", value, remedy)
    index = {item: row for row, item in enumerate(old.item_ids)}
    pairs = [(index[item], row) for row, item in enumerate(new.item_ids) if item in index]
    for theirs, ours in pairs:
        before = old.tokens[theirs, : int(old.lengths[theirs])]
        if not torch.equal(before, new.tokens[ours, : int(new.lengths[ours])]):
            raise RecastError(
                f"{name} writes item {new.item_ids[ours]!r} as {in_short(old.texts[theirs])}, this "
                f"catalogue as {in_short(new.texts[ours])}: keep the titles of the policy's items"
            )
    require(bool(pairs), "items of the policy in the catalogue", 0, "give one of the same data")
    return new


def require_alike(old: Catalog, new: Catalog, name: str) -> None:
    """Raise `RecastError` unless the domains and the names of the semantic IDs are the same."""
    for what in ("domains", "names"):
        theirs, ours = getattr(old, what), getattr(new, what)
        remedy = f"{name} has {theirs}, give a catalogue with these"
        require(ours == theirs, f"{what} of the catalogue", ours, remedy)
