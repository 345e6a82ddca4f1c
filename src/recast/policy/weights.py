"""The model in a folder or a GGUF file: its own weights, all of them, and none made up.

Enters: a path. Leaves: a causal language model under the packed attention, or a T5. No code of the
folder runs and nothing is asked on stdin.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig
from transformers.utils import logging as hf_logging

from recast.policy.attention import ATTENTION
from recast.policy.body import text_config
from recast.policy.encoder_decoder import auto_class
from recast.policy.folder import TABLES, place_of, require_model_folder, require_size
from recast.policy.packable import other_attention
from recast.run.doors import is_gguf
from recast.run.reading import LOADING, reason_of
from recast.types import RecastError


def load_model(path: Path) -> Any:
    from_file = is_gguf(path)
    stored = None if from_file else require_model_folder(path)
    place = place_of(path)
    try:
        # The library that reads such a file has a bar of its own.
        with no_bars(), redirect_stderr(io.StringIO()) if from_file else nullcontext():
            config = AutoConfig.from_pretrained(**place)
            _require_body(config, path)
            if stored is not None:
                require_size(config, stored, path)
            kind, attention = auto_class(config)
            model, found = kind.from_pretrained(
                **place,
                **({} if from_file else {"config": config, "use_safetensors": True}),
                attn_implementation=attention,
                dtype=torch.float32 if from_file else "auto",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            if from_file:
                _as_plain(model)
    except RecastError:
        raise
    except LOADING as error:
        if ATTENTION in str(error):
            raise other_attention(str(path), "model") from error
        raise RecastError(
            f"{path} does not load ({reason_of(error, 200)}): "
            "give a whole Hugging Face folder with safetensors, or a whole GGUF file"
        ) from error
    # transformers would fill these with random numbers and go on.
    wrong = sorted(found["missing_keys"] | {key for key, *_ in found["mismatched_keys"]})
    if wrong:
        raise RecastError(
            f"{path}: {len(wrong)} of its weights are missing or do not fit its config.json, "
            f"{wrong[0]} first: use the folder as it was saved"
        )
    if more := sorted(x for x in found["unexpected_keys"] if not x.endswith(TABLES)):
        raise RecastError(
            f"{path}: {len(more)} of its weights have no place in the model of its config.json, "
            f"{more[0]} first: use the folder as it was saved"
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    ties = text_config(model).tie_word_embeddings and model._tied_weights_keys
    if ties and head is not None and head.weight is not embedding.weight:
        remedy = "config.json has tie_word_embeddings True: set it to false"
        if config.is_encoder_decoder:
            remedy = "transformers takes both for one in a T5: choose one that is made so"
        raise RecastError(f"{path} stores another output layer than its embeddings, and {remedy}")
    require_finite(model, str(path))
    return model


def _as_plain(model: Any) -> None:
    """Let a model hold what its quantised weights stand for as its own, in float32: transformers
    would neither train nor save it."""
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.generation_config = GenerationConfig.from_model_config(model.config)


def require_same_shapes(model: Any, name: str) -> None:
    """Raise `RecastError` where the model's settings, which are saved with it, say other shapes
    than its weights have now: it would not load again."""
    with torch.device("meta"):
        saved = auto_class(model.config)[0].from_config(model.config, trust_remote_code=False)
    shapes = {key: value.shape for key, value in saved.named_parameters()}
    for key, weight in model.named_parameters():
        if shapes.get(key) != weight.shape:
            raise RecastError(
                f"{name} is a {type(model).__name__}, whose {key} has {list(weight.shape)} numbers "
                f"with the item tokens, config.json would say {list(shapes.get(key, []))}: choose "
                "a plain model, such as Qwen3 or Llama"
            )


def require_finite(model: torch.nn.Module, name: str) -> None:
    for key, weight in model.named_parameters():
        if not weight.is_floating_point():
            raise RecastError(f"{name}: {key} is {weight.dtype}: give floating-point weights")
        if not bool(weight.isfinite().all()):
            raise RecastError(
                f"{name}: {key} holds NaN or infinity: the run diverged, use a lower lr"
            )


def _require_body(config: Any, path: Path) -> None:
    """Raise `RecastError` for a model that transformers has no causal language model for, for an
    encoder-decoder that is no T5, and for a T5 that does not say what its decoder begins with."""
    if config.is_encoder_decoder and config.model_type == "t5":
        start = getattr(config, "decoder_start_token_id", None)
        if not (type(start) is int and 0 <= start < config.vocab_size):
            raise RecastError(
                f"{path}: config.json has decoder_start_token_id {start!r} of {config.vocab_size} "
                "tokens, with which every answer of a T5 begins: name one of them, the pad token "
                "(0) if it was trained as T5 was"
            )
        return
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
        raise RecastError(
            f"{path} holds a {config.model_type} model, {kind}: choose a decoder-only one, such as "
            "Qwen3 or Llama, or a whole T5"
        )


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of the lines of a run."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
