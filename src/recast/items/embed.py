"""Item embeddings: training events or a catalogue's folder in, one float32 vector per item out.

Rows of either kind have length 1, or 0 where an item has no text or no training event. `mix` puts
the two side by side. What `recast tokenize` kept is read back strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from recast.items.catalog import Catalog, load_catalog
from recast.run.doors import require_kind
from recast.run.reading import read_json, reading
from recast.types import Interactions, RecastError

_WINDOW = 10  # events on either side; a pair at distance k counts _DECAY ** (k - 1)
_DECAY = 0.9
_FILE = "embeddings.safetensors"
_MOST_DIMENSIONS = 2**16  # of a vector; the widest encoders have 2**13
_SMOOTHING = 0.75  # of the context counts: Levy, Goldberg and Dagan, TACL 2015, section 3.1


def collaborative_embeddings(
    interactions: Interactions, dim: int, seed: int, splits: Sequence[str] = ("train",)
) -> Float[Tensor, "I dim"]:
    """Truncated SVD of which items follow each other in the events of `splits`.

    Items at most 10 events apart in one user's sequence count as neighbours; the positive pointwise
    mutual information of the counts is factored into U sqrt(S) (Levy and Goldberg, NeurIPS 2014),
    rows scaled to length 1, zeros for items without a neighbour. At most as many dimensions as
    items. Sparse throughout: memory grows with the number of distinct pairs.
    """
    size = interactions.num_items
    shown = interactions.within(splits)
    ppmi = _ppmi(interactions.users[shown], interactions.items[shown].long(), size)
    with torch.random.fork_rng(devices=[]):  # svd_lowrank draws from the global generator
        torch.manual_seed(seed)
        # 6 power iterations: the spectrum is flat (2 find 88 % of the exact subspace of 64
        # dimensions on MovieLens-100K, 6 find 98 %).
        left, strength, _ = torch.svd_lowrank(ppmi, q=min(dim + 16, size), niter=6)
    embeddings = (left * strength.sqrt())[:, :dim]
    linked = torch.zeros(size, dtype=torch.bool)
    linked[ppmi.indices()[0]] = True
    # Where nothing was factored the SVD leaves rounding noise, which must not be scaled up.
    return F.normalize(embeddings, dim=1).masked_fill(~linked[:, None], 0.0).float()


def _ppmi(users: Tensor, items: Tensor, size: int) -> Tensor:
    """log(pair * total / (item * context)) where positive; in float64, so that the number of
    threads does not show in the embeddings."""
    counts = _sparse(torch.empty(2, 0, dtype=torch.long), torch.empty(0), size)
    for gap in range(1, min(_WINDOW, len(items) - 1) + 1):
        same = users[gap:] == users[:-gap]
        pairs = torch.stack([items[:-gap][same], items[gap:][same]])
        pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
        weight = torch.full((pairs.shape[1],), _DECAY ** (gap - 1))
        counts = (counts + _sparse(pairs, weight, size)).coalesce()
    pairs, values = counts.indices(), counts.values()
    item = torch.zeros(size, dtype=torch.float64).index_add_(0, pairs[0], values)
    context = item**_SMOOTHING
    information = (values * context.sum() / (item[pairs[0]] * context[pairs[1]])).log()
    positive = information > 0
    return _sparse(pairs[:, positive], information[positive], size)


def _sparse(pairs: Tensor, values: Tensor, size: int) -> Tensor:
    matrix = torch.sparse_coo_tensor(pairs, values.double(), (size, size), check_invariants=True)
    return matrix.coalesce()


def mix(
    text: Float[Tensor, "I D"], collaborative: Float[Tensor, "I C"], weight: float
) -> Float[Tensor, "I D_plus_C"]:
    """Both blocks side by side; the collaborative one is scaled to hold `weight` of the variance.

    The variance of a block is the mean squared distance of its rows from their mean; a constant
    block has none at any scale and is left as it is.

    >>> mix(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]]), 0.5)
    tensor([[0.0000, 0.0000],
            [1.4142, 1.4142]])
    """
    scales = mix_scales(text, collaborative, weight)
    return torch.cat([text * scales[0], collaborative * scales[1]], dim=1)


def mix_scales(
    text: Float[Tensor, "I D"], collaborative: Float[Tensor, "I C"], weight: float
) -> Float[Tensor, " 2"]:
    """What `mix` multiplies the blocks by."""
    scales = []
    for block, share in ((text, 1 - weight), (collaborative, weight)):
        variance = block.var(0, correction=0).sum()
        scales.append((share / variance).sqrt() if variance > 0 else torch.ones(()))
    return torch.stack(scales)


def beside_neighbours(
    interactions: Interactions,
    known: Float[Tensor, "I C"],
    is_new: Bool[Tensor, " I"],
    splits: Sequence[str],
) -> Float[Tensor, "I C"]:
    """Collaborative vectors of all items, where those of the new ones are not known: the sum of
    the others' by the mutual information with them, of length 1; zeros without a neighbour."""
    shown = interactions.within(splits)
    users, items = interactions.users[shown], interactions.items[shown].long()
    known = known.masked_fill(is_new[:, None], 0)
    found = torch.sparse.mm(_ppmi(users, items, len(known)), known.double())
    return torch.where(is_new[:, None], F.normalize(found, dim=1).float(), known)


def load_embeddings(folder: str, catalog: Catalog) -> Float[Tensor, "I D"]:
    """The text embeddings that `recast tokenize` left in its folder, scaled to length 1.

    Raises `RecastError` when there are none or they are of other items.
    """
    require_kind("embeddings", folder)
    text = _kept(folder, catalog, ("text",)).get("text")
    if text is None:
        raise RecastError(
            f"{folder} holds no text embeddings: run `recast tokenize` with a "
            "collaborative_weight below 1"
        )
    with reading(Path(folder) / _FILE, "make it again with `recast tokenize`"):
        if not bool(text.any()):
            raise ValueError("it holds no finite table of vectors")
    return F.normalize(text, dim=1)


def has_vectors(folder: str | Path) -> bool:
    """Whether the folder of a catalogue holds what it was quantized from."""
    return (Path(folder) / _FILE).is_file()


def load_vectors(folder: str, catalog: Catalog) -> Float[Tensor, "I D"]:
    """What `recast tokenize` quantized into the catalogue of a folder: the text embeddings, the
    collaborative ones, or both as it mixed them.

    Raises `RecastError` when there are none or they are of other items.
    """
    kept = load_kept(folder, catalog)
    return kept.mixed(kept.blocks)


class Kept(NamedTuple):
    """What `recast tokenize` left of its work."""

    blocks: dict[str, Float[Tensor, "I _D"]]
    """`text`, `collaborative` or both."""
    scales: Float[Tensor, " 2"] | None
    """What the blocks are multiplied by where there are two."""
    centroids: list[Float[Tensor, "_K Z"]]
    """Of every level."""
    encoder: dict[str, Tensor]
    """Of an RQ-VAE, whose latents the centroids are of; empty for others."""

    def mixed(self, blocks: dict[str, Float[Tensor, "N _D"]]) -> Float[Tensor, "N D"]:
        """Blocks of this kind as they are quantized."""
        if self.scales is None:
            return next(iter(blocks.values()))
        text, collaborative = blocks["text"], blocks["collaborative"]
        return torch.cat([text * self.scales[0], collaborative * self.scales[1]], dim=1)

    def save(self, folder: Path) -> None:
        """Write it into the folder of a catalogue, a staged one."""
        tables = self.blocks | {f"centroids.{i}": book for i, book in enumerate(self.centroids)}
        tables |= {f"encoder.{name}": weight for name, weight in self.encoder.items()}
        tables |= {} if self.scales is None else {"scales": self.scales}
        save_file(tables, folder / _FILE)


def load_kept(folder: str, catalog: Catalog) -> Kept:
    """All of it; raises `RecastError` when there is none, it is damaged or of other items."""
    if not has_vectors(folder):
        raise RecastError(
            f"{folder} holds no vectors ({_FILE}): give the folder of `recast tokenize`"
        )
    blocks = _kept(folder, catalog, ("text", "collaborative"))
    remedy = "make it again with `recast tokenize`"
    with reading(Path(folder) / _FILE, remedy), safe_open(Path(folder) / _FILE, "pt") as held:
        if not blocks:
            raise ValueError("it holds neither 'text' nor 'collaborative'")
        small = {k: held.get_tensor(k) for k in held.keys() if k not in blocks}  # noqa: SIM118
        if not all(bool(x.float().isfinite().all()) for x in small.values()):
            raise ValueError("it holds numbers that are not finite")
        num_levels = sum(name.startswith("centroids.") for name in small)
        centroids = [small[f"centroids.{level}"] for level in range(num_levels)]
    scales = small.get("scales") if len(blocks) == 2 else None
    if len(blocks) == 2 and scales is None:
        with reading(Path(folder) / "card.json", remedy):
            weight = read_json(Path(folder) / "card.json", dict)["collaborative_weight"]
            if not (isinstance(weight, float) and 0 < weight < 1):
                raise ValueError(
                    f"it has collaborative_weight {weight!r} and vectors of both kinds"
                )
            scales = mix_scales(blocks["text"], blocks["collaborative"], weight)
    encoder = {k.removeprefix("encoder."): x for k, x in small.items() if k.startswith("encoder.")}
    return Kept(blocks, scales, centroids, encoder)


def _kept(folder: str, catalog: Catalog, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Those of the tables that the folder holds, in float32, each with a row per item."""
    file, tables = Path(folder) / _FILE, {}
    with reading(file, "make it again with `recast tokenize`"), safe_open(file, "pt") as held:
        names = tuple(name for name in names if name in held.keys())  # noqa: SIM118
        is_same = not names or load_catalog(folder).item_ids == catalog.item_ids
        for name in names:
            shape = held.get_slice(name).get_shape()
            # Before the table is read: a file may claim any size.
            if len(shape) != 2 or not 0 < shape[1] <= _MOST_DIMENSIONS:
                raise ValueError(f"{name!r} has the shape {shape}")
            if not is_same or shape[0] != catalog.num_items:
                raise RecastError(
                    f"{folder} embeds {shape[0]} items, which are not the {catalog.num_items} of "
                    "the catalogue: give the folder of its own catalogue"
                )
            table = held.get_tensor(name)
            if not (table.is_floating_point() and bool(table.float().isfinite().all())):
                raise ValueError("it holds no finite table of vectors")
            tables[name] = table.float()
    return tables
