"""`recast tokenize`: a data folder in, a folder with the catalogue of what its items write out.

Semantic IDs that a file or the data holds are taken as they are. The folder holds the catalogue
(`catalog.parquet`, `sid.json`), its quality (`card.json`), the vectors it came from
(`embeddings.safetensors`: `text`, `collaborative`, `centroids.0`, ..., of an RQ-VAE
`encoder.0.weight`, ... too) and the resolved `config.yaml`. With `items_as` item the vectors are
clustered once, and the token behind the cluster is the item itself. A catalogue of one level, for a
ranker, one of random codes, and one of titles without an encoder have no vectors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import TokenizeConfig
from recast.data.folder import load_categories, load_data, load_items
from recast.data.rows import has_rows
from recast.items.card import given_card, sid_card
from recast.items.catalog import Catalog, build_catalog
from recast.items.collisions import (
    require_room,
    resolve_at_random,
    resolve_extra_level,
    resolve_nearest_free,
)
from recast.items.embed import Kept, collaborative_embeddings, mix
from recast.items.encoder import embed_texts
from recast.items.given import data_has_sids, load_sids
from recast.items.new_items import extended_blocks, extended_codes, load_extension
from recast.items.quantize import (
    choose_clusters,
    choose_shape,
    random_codes,
    require_enough,
    rq_kmeans,
)
from recast.items.rq_vae import LR, STEPS, rq_vae
from recast.items.titles import load_writer, title_card, title_catalog
from recast.run.files import staged_folder
from recast.run.fingerprint import meet
from recast.run.parts import Parts, parts_of, say
from recast.run.space import require_space
from recast.run.world import is_first
from recast.types import Interactions, require

ITEMS_AS_ITEM = 65_536
"""Up to so many items each is its own token unless codes are asked for. At a width of 64 their rows
are then 4 M weights, most of the policy; beyond, shared codes are the smaller model by far."""

MOST_ITEMS = 1_000_000
"""That may have a token each: ten times what is sensible, and the rows of a policy of width 128
then take 2.4 GiB in training, each moved by AdamW in every step."""


def tokenize(config: TokenizeConfig) -> Catalog:
    """Embed the items, quantize them, resolve collisions, and write the catalogue's folder.

    Semantic IDs that are given (`items_as` a file, or unset for data that has some) are kept, with
    their collisions. A `collaborative_weight` of 1 needs no encoder, one of 0 no training events.
    With `num_levels` 1 an item's index is its code: nothing is embedded and there are no vectors to
    keep.
    Of several ranks each embeds its part of the texts, and the first writes.
    Raises `RecastError` for what its steps refuse, before anything is written.
    """
    meet(config, TokenizeConfig)
    with parts_of(config.output) as parts:
        return _tokenize(config, parts)


def _tokenize(config: TokenizeConfig, parts: Parts) -> Catalog:
    items = load_items(config.data)
    item_ids, texts = items["item_id"].to_list(), items["text"].to_list()
    if config.extend is not None:
        return _extend(config, config.extend, item_ids, texts, parts)
    if config.items_as == "titles":
        return _titles(config, item_ids, texts, parts)
    is_file = config.items_as not in (None, "codes", "item")
    if is_file or (config.items_as is None and data_has_sids(config.data)):
        return _given(config, item_ids, texts)
    if config.num_levels == 1 and config.resolve != "extra_level":
        return _one_token_each(config, item_ids, texts)
    config = replace(config, encoder=config.encoder or "minilm")
    config, sizes = _shaped(config, len(texts))
    if config.quantizer == "random":
        before = random_codes(len(texts), sizes, config.seed)
        codes = resolve_at_random(before, sizes, config.seed)
        catalog = build_catalog(codes, sizes, item_ids=item_ids, texts=texts)
        _write(config, catalog, before)
        return catalog
    interactions = _events(config, config.collaborative_weight)
    _require_space(config, texts)
    blocks, facts = _embed(config, texts, interactions, parts)
    mixed = next(iter(blocks.values()))
    if len(blocks) == 2:
        mixed = mix(blocks["text"], blocks["collaborative"], config.collaborative_weight)
    before, points, centroids, encoder = _quantize(config, mixed, sizes[0])
    if config.items_as == "item":
        before = codes = torch.cat([before, torch.arange(len(texts))[:, None]], dim=1)
    elif config.resolve == "nearest_free":
        codes = resolve_nearest_free(before, points, centroids)
    else:
        codes = resolve_extra_level(before)
        sizes = (*sizes, int(codes[:, -1].max()) + 1)
    catalog = build_catalog(codes, sizes, item_ids=item_ids, texts=texts)
    _write(config, catalog, before, Kept(blocks, None, centroids, encoder), encoder=facts)
    return catalog


def _extend(
    config: TokenizeConfig, folder: str, item_ids: list[str], texts: list[str], parts: Parts
) -> Catalog:
    """The catalogue of `folder` with codes for the items of the data that it lacks."""
    extension = load_extension(folder, item_ids)
    kept, old = extension.kept, extension.catalog
    require_space(config.output, sum(map(len, texts)) + 4 * len(texts) * 512, largest=0)
    events = _events(config, extension.config.collaborative_weight)
    blocks = extended_blocks(extension, texts, events, parts)
    before, codes = extended_codes(extension, kept.mixed(blocks))
    catalog = build_catalog(
        codes,
        old.codebook_sizes,
        item_ids=item_ids,
        texts=texts,
        first_token=old.first_token,
        pad_token=old.pad_token,
        bos_token=old.bos_token,
    )
    made = replace(extension.config, data=config.data, output=config.output)
    _write(made, catalog, before, kept._replace(blocks=blocks), extension=extension.facts())
    return catalog


def _events(config: TokenizeConfig, weight: float) -> Interactions | None:
    """None of a folder of rows. Raises `RecastError` where the `collaborative_weight` needs any."""
    if not has_rows(config.data):
        return load_data(config.data)
    remedy = f"{config.data} holds rows, no events: give 0, or items_as a file of semantic IDs"
    require(weight == 0, "collaborative_weight", weight, remedy)
    return None


def _shaped(config: TokenizeConfig, num_items: int) -> tuple[TokenizeConfig, tuple[int, ...]]:
    """What the config leaves to the number of items, and the codes of every level.

    Raises `RecastError` where the items do not fit, before anything is embedded.
    """
    given = (config.quantizer, config.num_levels, config.codebook_size, config.resolve)
    is_item = num_items <= ITEMS_AS_ITEM and given == (None, None, None, None)
    config = replace(config, items_as=config.items_as or ("item" if is_item else "codes"))
    config = replace(config, quantizer=config.quantizer or "rq_kmeans")
    if config.quantizer == "rq_vae":
        steps, lr = _training(config)
        config = replace(config, rq_vae_steps=steps, rq_vae_lr=lr)
    if config.items_as == "item":
        gib = 5 * 4 * 128 * num_items / 2**30
        need = f"each is a row of the policy, of its gradient and of the optimizer ({gib:.0f} GiB "
        need += "at a width of 128, the best weights too), use items_as codes"
        require(num_items <= MOST_ITEMS, "number of items", num_items, need)
        size = config.codebook_size or choose_clusters(num_items)
        balance = config.balance is not False
        config = replace(config, codebook_size=size, balance=balance)
        require_enough(num_items, size)
        return config, (size, num_items)
    levels, size = choose_shape(num_items, config.num_levels)
    size = config.codebook_size or size
    resolve, balance = config.resolve or "nearest_free", bool(config.balance)
    config = replace(config, num_levels=levels, codebook_size=size, resolve=resolve)
    config = replace(config, balance=balance)
    require_enough(num_items, size)
    if resolve == "nearest_free":
        require_room(num_items, (size,) * levels)
    return config, (size,) * levels


def _quantize(
    config: TokenizeConfig, vectors: Float[Tensor, "I D"], size: int
) -> tuple[Int[Tensor, "I L"], Float[Tensor, "I Z"], list[Tensor], dict[str, Tensor]]:
    """Codes, the points and the centroids that they are nearest to, and the encoder that made the
    points of the vectors, if they are not the vectors."""
    levels = config.num_levels or 1
    if config.quantizer == "rq_vae":
        steps, lr = _training(config)
        made = rq_vae(vectors, levels, size, config.seed, steps=steps, lr=lr, say=say)
        return made.codes, made.latents, made.codebooks, made.encoder
    codes, centroids = rq_kmeans(vectors, levels, size, config.seed, bool(config.balance))
    return codes, vectors, centroids, {}


def _training(config: TokenizeConfig) -> tuple[int, float]:
    """Steps and learning rate of an RQ-VAE."""
    return config.rq_vae_steps or STEPS, config.rq_vae_lr or LR


def _one_token_each(config: TokenizeConfig, item_ids: list[str], texts: list[str]) -> Catalog:
    """A code per item on one level. Raises `RecastError` for another number of codes."""
    count = len(item_ids)
    remedy = f"with num_levels 1 each of the {count} items is a code, leave it out"
    size = config.codebook_size
    require(size in (None, count), "codebook_size", size, remedy)
    codes = torch.arange(count)[:, None]
    catalog = build_catalog(codes, (count,), item_ids=item_ids, texts=texts)
    used = replace(config, items_as="codes", codebook_size=count, balance=False)
    _write(replace(used, resolve="nearest_free"), catalog, codes)
    return catalog


def _given(config: TokenizeConfig, item_ids: list[str], texts: list[str]) -> Catalog:
    """Semantic IDs that are there already: of the file, else of the data folder."""
    if config.items_as is None:
        config.check_given(f"{config.data} holds semantic IDs, give items_as codes or item to make")
    sids = load_sids(config.items_as, config.data, item_ids, config.codebook_size)
    catalog = build_catalog(
        sids.codes,
        sids.codebook_sizes,
        item_ids=item_ids,
        texts=texts,
        domain_of=sids.domain_of,
        domains=sids.domains,
        names=sids.names,
    )
    _save(config, catalog, given_card(catalog, sids.source, sids.num_unknown))
    return catalog


def _titles(config: TokenizeConfig, item_ids: list[str], texts: list[str], parts: Parts) -> Catalog:
    """Titles in the tokens of a model, and with an encoder the vectors of the texts."""
    assert config.tokenizer is not None, "checked with the settings"
    tokenizer = load_writer(config.tokenizer)
    written = title_catalog(
        tokenizer, texts, item_ids, form=config.form, end_token=config.end_token
    )
    kept, facts = None, None
    if config.encoder is not None:
        _require_space(config, texts)
        blocks, facts = _embed(config, texts, None, parts)
        kept = Kept(blocks, None, [], {})
    card = title_card(written, tokenizer, facts)
    _save(config, written.catalog, card | {"tokenizer": config.tokenizer}, kept)
    return written.catalog


def _write(
    config: TokenizeConfig,
    catalog: Catalog,
    before: Int[Tensor, "I L"],
    kept: Kept | None = None,
    *,
    encoder: dict[str, Any] | None = None,
    extension: dict[str, Any] | None = None,
) -> None:
    """The whole folder; `before` are the codes as they were quantized, `encoder` is what the card
    says of the text embeddings, `extension` of the catalogue that was extended."""
    card = sid_card(
        before,
        catalog.codes,
        catalog.codebook_sizes,
        resolve=config.resolve or "nearest_free",
        items_as=config.items_as or "codes",
        balance=bool(config.balance),
        collaborative_weight=config.collaborative_weight,
        splits=config.splits,
        empty_texts=sum(not text.strip() for text in catalog.texts),
        encoder=encoder,
        quantizer=config.quantizer,
        categories=load_categories(config.data),
        seed=config.seed,
    )
    _save(config, catalog, card | (extension or {}), kept)


def _save(
    config: TokenizeConfig, catalog: Catalog, card: dict[str, Any], kept: Kept | None = None
) -> None:
    if not is_first():
        return
    with staged_folder(config.output) as stage:
        catalog.write(stage)
        (stage / "card.json").write_text(json.dumps(card, indent=2) + "\n")
        (stage / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
        if kept is not None:
            kept.save(stage)


def _require_space(config: TokenizeConfig, texts: list[str]) -> None:
    """Raise `RecastError` where there is no room for the texts and the vectors, before these take
    their time. How wide those of a folder are it tells when it is loaded."""
    width = min(config.collaborative_dim, len(texts)) if config.collaborative_weight > 0 else 0
    width += 384 if config.collaborative_weight < 1 and config.encoder == "minilm" else 0
    vectors = 4 * width * len(texts)
    require_space(config.output, sum(map(len, texts)) + vectors, largest=vectors)


def _embed(
    config: TokenizeConfig, texts: list[str], interactions: Interactions | None, parts: Parts
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The blocks that the weight asks for, `text`, `collaborative` or both, and what the card says
    of the first."""
    blocks, facts = {}, None
    if config.collaborative_weight < 1:
        made = embed_texts(texts, config.encoder or "minilm", parts)
        blocks["text"] = made.vectors
        facts = asdict(made.pooling) | {"longest": made.longest, "cut_texts": made.num_cut}
    if interactions is not None and config.collaborative_weight > 0:
        blocks["collaborative"] = collaborative_embeddings(
            interactions, config.collaborative_dim, config.seed, config.splits
        )
    return blocks, facts
