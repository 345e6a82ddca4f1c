"""BIGRec's grounding (arXiv 2308.08434): free text of an LLM in, ranks of real items out.

    D_i = || emb(text) - emb(item i) ||              L2 distance
    Dh_i = (D_i - min D) / (max D - min D)           over the items of a row, 0 if all are equal
    rank ascending by Dh_i * (1 + W_i) ** -gamma     W: popularity, min-max normalised

Differs from the paper: the embeddings are those of the catalogue's text encoder, not the hidden
states of the LLM itself; gamma is given, not searched (the authors try 0 to 100 on validation).
Items without text are left out of the minimum and maximum and come last.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import GroundConfig
from recast.config.settings_file import read_settings
from recast.data.columns import GROUNDED
from recast.data.folder import data_hash, load_data
from recast.data.tables import read_columns, refuse_swallowed
from recast.evaluation.disk import write_evaluation
from recast.evaluation.rank import rank_scores, rows_to_rank
from recast.items.catalog import Catalog, load_catalog
from recast.items.embed import load_embeddings
from recast.items.encoder import embed_texts
from recast.policy.baselines import Scorer, popularity
from recast.policy.tasks import check_catalog
from recast.run.doors import enter
from recast.run.parts import Parts, parts_of
from recast.run.reading import reading
from recast.types import Interactions, Metrics, RecastError

_PROBES = 8  # item texts embedded again, to see that the encoder is the catalogue's own


def ground(
    generated: Float[Tensor, "N D"],
    items: Float[Tensor, "I D"],
    weights: Float[Tensor, " I"] | None,
    gamma: float,
) -> Float[Tensor, "N I"]:
    """Grounded distance of every item to every text, in float64: the least is the best.

    A row of zeros in `generated` (an empty text) says nothing: all its distances are 0.

    Distances 0, 3 and 10 become 0, .3 and 1:

    >>> items, weights = torch.tensor([[1.0], [4.0], [11.0]]), torch.tensor([0.0, 0.5, 1.0])
    >>> ground(torch.tensor([[1.0]]), items, weights, 2.0).tolist()
    [[0.0, 0.13333333333333333, 0.25]]
    """
    # Not by the matrix product, which would leave equal vectors some 1e-4 apart.
    distance = torch.cdist(generated, items, compute_mode="donot_use_mm_for_euclid_dist").double()
    scaled = _min_max(distance).masked_fill(~generated.any(1, keepdim=True), 0.0)
    return scaled if weights is None else scaled * (1 + weights.double()) ** -gamma


def _min_max(values: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows I"]:
    """Each row from 0 to 1; a constant row gives 0."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    return (values - low) / torch.where(high > low, high - low, 1.0)


def ground_texts(config: GroundConfig) -> Metrics:
    """`recast ground`: rank by what was written for each row, with `evaluate`'s metrics and files.

    Raises `RecastError` when the file does not hold exactly one text per row of the split, when
    data and catalogue do not belong together, and when the catalogue has no text embeddings or
    they come from another encoder.
    """
    enter(config, GroundConfig)
    with parts_of(config.output) as parts:
        return _ground_texts(config, parts)


def _ground_texts(config: GroundConfig, parts: Parts) -> Metrics:
    interactions, catalog = load_data(config.data), load_catalog(config.catalog)
    check_catalog(config.data, catalog)
    items = load_embeddings(config.catalog, catalog)
    rows = rows_to_rank(interactions, config.data, config.split)
    texts = read_texts(config.texts, rows)
    encoder = config.encoder or _encoder_of(config.catalog)
    generated = _embed(texts, encoder, catalog, items, parts)
    weights = None
    if config.gamma > 0:
        weights = _min_max(popularity(interactions)(interactions, rows[:1])[0])
    scorer = grounding_scorer(rows, generated, items, weights, config.gamma)
    ranks = rank_scores(scorer, interactions, catalog, rows, config.seed)
    ranks = replace(ranks, facts=replace(ranks.facts, data=data_hash(config.data)))
    facts = asdict(config) | {
        "encoder": encoder,
        "split_name": interactions.split_name,
        "empty_texts": sum(not text.strip() for text in texts),
    }
    means = write_evaluation(ranks, config.output, facts, config.seed)
    return means | {"rows": float(len(rows)), "users": float(len(ranks.users.unique()))}


def grounding_scorer(
    rows: Int[Tensor, " N"],
    generated: Float[Tensor, "N D"],
    items: Float[Tensor, "I D"],
    weights: Float[Tensor, " I"] | None,
    gamma: float,
) -> Scorer:
    """Items score minus their grounded distance to the text of a row; without text, -inf."""
    place = torch.full((int(rows.max()) + 1,), -1)
    place[rows] = torch.arange(len(rows))
    has_text = items.any(1)

    def score(_: Interactions, chosen: Int[Tensor, " C"]) -> Float[Tensor, "C I"]:
        scores = torch.full((len(chosen), len(items)), -torch.inf, dtype=torch.float64)
        own = None if weights is None else weights[has_text]
        scores[:, has_text] = -ground(generated[place[chosen]], items[has_text], own, gamma)
        return scores

    return score


def read_texts(file: str, rows: Int[Tensor, " N"]) -> list[str]:
    """The `text` of every row, in the order of `rows`, from a CSV or Parquet file with `row_id`.

    A missing text counts as an empty one. Raises `RecastError` for a row that is absent, unknown
    or there twice, and when all texts are empty.
    """
    table, suspects = read_columns(file, {name: name for name in GROUNDED})
    kinds = {name: table[name].dtype for name in GROUNDED}
    is_id = kinds["row_id"].is_integer() or kinds["row_id"] in (pl.String, pl.Null)
    for name, fits, remedy in (
        ("row_id", is_id, "give whole numbers"),
        ("text", kinds["text"] in (pl.String, pl.Null), "give text"),
    ):
        if not fits:
            raise RecastError(f"{file}, column {name} holds {kinds[name]}: {remedy}")
    ids = table["row_id"].cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False)
    if ids.null_count():
        line = int(ids.is_null().arg_max() or 0)
        raise RecastError(
            f"{file}, row {line + 1}: row_id {table['row_id'][line]!r} is no whole number: give "
            "the index of the event in interactions.parquet"
        )
    if not (first := ids.is_first_distinct()).all():
        line = int(first.not_().arg_max() or 0)
        raise RecastError(
            f"{file}, row {line + 1}: row_id {ids[line]} appears more than once: keep one text per "
            "row"
        )
    wanted = pl.Series("row_id", rows.numpy())
    unknown = ids.filter(~ids.is_in(wanted.implode()))
    absent = wanted.filter(~wanted.is_in(ids.implode()))
    refuse_swallowed(suspects, file, absent.cast(pl.String))
    if len(unknown):
        raise RecastError(
            f"{file} has a text for row_id {unknown[0]} ({len(unknown)} such), which is no row of "
            "the split with a history: leave it out, or choose its split"
        )
    if len(absent):
        raise RecastError(
            f"{file} has no text for row_id {absent[0]} ({len(absent)} such of {len(wanted)} "
            "rows): give one for every row of the split"
        )
    texts = dict(zip(ids, table["text"].cast(pl.String).fill_null(""), strict=True))
    if not any(text.strip() for text in texts.values()):
        raise RecastError(f"{file}: all {len(texts)} texts are empty: give what the LLM wrote")
    return [texts[row] for row in rows.tolist()]


def _encoder_of(folder: str) -> str:
    """The encoder that `recast tokenize` noted in the catalogue's folder."""
    file = Path(folder) / "config.yaml"
    with reading(file, "give --encoder the one the catalogue was made with"):
        try:
            encoder = read_settings(str(file))["encoder"]
        except RecastError as error:
            raise ValueError("no YAML") from error
        if not isinstance(encoder, str):
            raise ValueError(f"encoder is {encoder!r}")
        return encoder


def _embed(
    texts: list[str],
    encoder: str,
    catalog: Catalog,
    items: Float[Tensor, "I D"],
    parts: Parts,
) -> Float[Tensor, "N D"]:
    """The texts' embeddings; some item texts go along, which must come out as they are stored."""
    known = items.any(1).nonzero()[:_PROBES, 0]
    probes = [catalog.texts[i] for i in known.tolist()]
    found = embed_texts([*probes, *texts], encoder, parts).vectors
    again, generated = found[: len(known)], found[len(known) :]
    stored = items[known]
    if again.shape != stored.shape or not torch.allclose(again, stored, atol=1e-2):
        raise RecastError(
            f"encoder {encoder} does not give the item embeddings of the catalogue: give the "
            "encoder that `recast tokenize` was run with"
        )
    return generated
