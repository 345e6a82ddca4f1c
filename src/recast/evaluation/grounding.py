"""BIGRec's grounding (arXiv 2308.08434): free text of an LLM in, ranks of real items out.

    D_i = || emb(text) - emb(item i) ||              L2 distance
    Dh_i = (D_i - min D) / (max D - min D)           over the items of a row, 0 if all are equal
    rank ascending by Dh_i * (1 + W_i) ** -gamma     W: popularity, min-max normalised

Differs from the paper: the embeddings are those of the catalogue's text encoder, not the hidden
states of the LLM itself; gamma is given, not searched (the authors try 0 to 100 on validation).
Items without text are left out of the minimum and maximum and come last.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import GroundConfig
from recast.config.check import refuse_ranks, take
from recast.config.settings_file import read_settings
from recast.data.folder import load_data
from recast.evaluation.metrics import write_evaluation
from recast.evaluation.rank import rank_scores, rows_to_rank
from recast.items.catalog import Catalog, load_catalog
from recast.items.embed import load_embeddings
from recast.items.encoder import embed_texts
from recast.policy.baselines import Scorer, popularity
from recast.policy.tasks import check_catalog
from recast.run.files import reading, reason_of, refuse_existing
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
    take(config, GroundConfig)
    refuse_ranks()
    refuse_existing(config.output)
    interactions, catalog = load_data(config.data), load_catalog(config.catalog)
    check_catalog(config.data, catalog)
    items = load_embeddings(config.catalog, catalog)
    rows = rows_to_rank(interactions.rows(config.split), config.data, config.split)
    texts = read_texts(config.texts, rows)
    encoder = config.encoder or _encoder_of(config.catalog)
    generated = _embed(texts, encoder, catalog, items)
    weights = None
    if config.gamma > 0:
        weights = _min_max(popularity(interactions)(interactions, rows[:1])[0])
    scorer = grounding_scorer(rows, generated, items, weights, config.gamma)
    ranks = rank_scores(scorer, interactions, catalog, rows, config.seed)
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
    table = _read(file)
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
    texts = dict(zip(ids, table["text"].fill_null(""), strict=True))
    if not any(text.strip() for text in texts.values()):
        raise RecastError(f"{file}: all {len(texts)} texts are empty: give what the LLM wrote")
    return [texts[row] for row in rows.tolist()]


def _read(file: str) -> pl.DataFrame:
    # Absolute and without globs: polars would read a leading ~ and brackets as patterns.
    path, suffix = Path(file).absolute(), Path(file).suffix.lower()
    if not path.is_file() or suffix not in (".csv", ".parquet"):
        raise RecastError(f"texts is {file!r}: give a .csv or .parquet file that exists")
    try:
        table = (
            pl.read_csv(path, infer_schema=False, glob=False)
            if suffix == ".csv"
            else pl.read_parquet(path, glob=False)
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RecastError(
            f"{file} cannot be read ({reason_of(error)}): give a UTF-8 CSV with a header, or "
            "Parquet"
        ) from error
    for name in ("row_id", "text"):
        if name not in table.columns:
            raise RecastError(
                f"{file} has the columns {', '.join(table.columns)[:200]}: name one of them {name}"
            )
    if table["text"].dtype not in (pl.String, pl.Null):
        raise RecastError(f"{file}, column text holds {table['text'].dtype}: give text")
    return table.select("row_id", pl.col("text").cast(pl.String))


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
    texts: list[str], encoder: str, catalog: Catalog, items: Float[Tensor, "I D"]
) -> Float[Tensor, "N D"]:
    """The texts' embeddings; some item texts go along, which must come out as they are stored."""
    known = items.any(1).nonzero()[:_PROBES, 0]
    found = embed_texts([*(catalog.texts[i] for i in known.tolist()), *texts], encoder).vectors
    again, generated = found[: len(known)], found[len(known) :]
    stored = items[known]
    if again.shape != stored.shape or not torch.allclose(again, stored, atol=1e-2):
        raise RecastError(
            f"encoder {encoder} does not give the item embeddings of the catalogue: give the "
            "encoder that `recast tokenize` was run with"
        )
    return generated
