"""A policy to train: settings of a model and a catalogue in, a `Policy` that writes it out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, T5Config

from recast.config import ModelConfig, PromptConfig
from recast.config.prompt import UNSET
from recast.items.catalog import Catalog
from recast.items.new_items import in_place_of, require_alike
from recast.items.numbering import numbered_like
from recast.items.titles import check_writer
from recast.policy.encoder_decoder import T5_DISTANCES, auto_class
from recast.policy.extend import add_sid_tokens, add_vectors, choose_new_rows, is_policy
from recast.policy.load import Policy, as_policy, load_policy
from recast.policy.room import beside_answers, prompt_of, require_room
from recast.policy.tokenizer import load_tokenizer
from recast.policy.weights import load_model, require_same_shapes
from recast.types import RecastError, require


def create_policy(
    config: ModelConfig,
    catalog: Catalog,
    window: int,
    seed: int,
    vectors: Float[Tensor, "I D"] | None = None,
    *,
    prompt: PromptConfig = UNSET,
    num_targets: int | None = None,
) -> Policy:
    """A Qwen3 or a T5 with random weights, or the model of `config.path`, with the SID tokens
    added; its own tokenizer has to be the one that wrote the titles of a catalogue.

    `prompt` says how it renders what it reads; unset: as the policy that it starts from, or with
    the defaults rows of a data folder, which have up to `num_targets` targets. A new model's rows
    of semantic IDs begin as the `vectors` of the items (`recast.items.embed.load_vectors`), where
    these are given.
    Added tokens come behind the model's own ones (`recast.policy.extend`), so the policy's
    catalogue may differ from `catalog` in its token numbers, never in its codes. A policy of the
    same semantic IDs has them already.

    Raises `RecastError` when a given model is of another kind than `config.kind`, when its context
    is shorter than a window, when its attention cannot be replaced by the packed one, or when it
    has no tokenizer to render with.
    """
    name, tokenizer = config.path or "the model", None
    items = window - 1 + (num_targets or 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.path is None:
            choose_new_rows(config, catalog, None, has_vectors=vectors is not None)
            is_t5 = config.kind == "t5"
            shape = _t5(config, catalog) if is_t5 else _qwen3(config, catalog, items)
            make, attention = auto_class(shape)
            model = make.from_config(shape, attn_implementation=attention)
            if vectors is not None:
                noise = shape.initializer_factor if is_t5 else config.initializer_range
                add_vectors(model, catalog, vectors, noise)
        elif is_policy(name):
            policy = load_policy(name, masters=True)
            _require_kind(policy.model, config)
            catalog = numbered_like(policy.catalog, catalog, name)
            if _same_codes(policy.catalog, catalog):
                _require_same_items(policy.catalog, catalog, name)
            else:
                policy = replace(policy, catalog=in_place_of(policy.catalog, catalog, name))
            choose_new_rows(config, catalog, policy.tokenizer)
            kept = beside_answers(policy.prompt, policy.model, policy.catalog)
            prompt = prompt if prompt.is_set else kept
            is_rows = num_targets is not None
            prompt = prompt_of(policy.tokenizer, prompt, policy.catalog, name, is_rows=is_rows)
            require_room(policy.model, policy.catalog, items, prompt, name)
            # `load_policy` has checked the rest.
            return replace(policy, window=window, prompt=prompt)
        else:
            model, catalog, tokenizer = _that_writes(name, config, catalog, seed)
    prompt = prompt_of(tokenizer, prompt, catalog, name, is_rows=num_targets is not None)
    policy = as_policy(model, catalog, items, name, prompt)
    return replace(policy, window=window, tokenizer=tokenizer)


def _same_codes(own: Catalog, other: Catalog) -> bool:
    has_codes = bool(own.codebook_sizes and other.codebook_sizes)
    return has_codes and torch.equal(own.codes, other.codes)


def _qwen3(config: ModelConfig, catalog: Catalog, items: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=catalog.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=1 + items * catalog.max_length,
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=catalog.bos_token,
        pad_token_id=catalog.pad_token,
        eos_token_id=None,
    )


def _t5(config: ModelConfig, catalog: Catalog) -> T5Config:
    """Dropout is that of supervised training, as for every new model, and the decoder begins with
    the pad token, as a T5's does."""
    return T5Config(
        vocab_size=catalog.vocab_size,
        d_model=config.hidden_size,
        d_kv=config.head_dim,
        d_ff=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=T5_DISTANCES,
        dropout_rate=0.0,
        bos_token_id=catalog.bos_token,
        pad_token_id=catalog.pad_token,
        decoder_start_token_id=catalog.pad_token,
        eos_token_id=None,
    )


def _require_kind(model: Any, config: ModelConfig) -> None:
    """Raise `RecastError` where the model of a folder is of another kind than was asked for."""
    kind = model.config.model_type
    remedy = f"{config.path} holds a {kind}, leave it out or give another path"
    require(config.kind in (None, kind), "model.kind", config.kind, remedy)


def _that_writes(
    name: str, config: ModelConfig, catalog: Catalog, seed: int
) -> tuple[PreTrainedModel, Catalog, Any]:
    """The model of a folder, with rows for semantic IDs, the catalogue in its tokens, and its
    tokenizer."""
    if not catalog.codebook_sizes and catalog.form is None:
        raise RecastError(
            f"{name} has a vocabulary of its own, and this catalogue writes tokens of another: "
            "give semantic IDs, or leave model.path out"
        )
    tokenizer = load_tokenizer(Path(name))
    new_rows = choose_new_rows(config, catalog, tokenizer)
    if catalog.form is not None:
        check_writer(tokenizer, catalog, name)
    model = load_model(Path(name))
    _require_kind(model, config)
    if catalog.form is not None:
        return model, catalog, tokenizer
    catalog = add_sid_tokens(model, tokenizer, catalog, new_rows, seed, name)
    require_same_shapes(model, name)
    return model, catalog, tokenizer


def _require_same_items(own: Catalog, catalog: Catalog, name: str) -> None:
    """Raise `RecastError` where the same codes are those of other items, domains or names."""
    require_alike(own, catalog, name)
    if own.item_ids != catalog.item_ids or not torch.equal(own.domain_of, catalog.domain_of):
        raise RecastError(
            f"{name} writes other items than this catalogue, by the same semantic IDs: give "
            f"{Path(name) / 'catalog'}, its own"
        )
