"""The tokenizer of a model's folder, and the token by which what the model says ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer

from recast.run.reading import LOADING, reason_of
from recast.types import RecastError

REMEDY = "give its folder with the tokenizer's files as they were published, or without any"

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json"),
)
_MARK = "recast"  # what an assistant says where only its surroundings are of interest


def load_tokenizer(folder: Path, gguf: dict[str, Any] | None = None) -> Any | None:
    """The tokenizer of a Hugging Face folder, or of a GGUF file as transformers is to read it; None
    where there is none.

    Raises `RecastError` when it does not load, when `config.json`, which transformers reads with
    it, does not, or when it has no vocabulary (transformers makes an empty one out of a config
    alone).
    """
    if gguf is None and not any((folder / name).is_file() for name in _FILES):
        return None
    plain = {"pretrained_model_name_or_path": folder, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**(gguf or plain | {"trust_remote_code": False}))
    except LOADING as error:
        if gguf is None and (folder / "config.json").is_file():
            _require_config(folder)
        remedy = "give a whole GGUF file" if gguf else REMEDY
        raise RecastError(
            f"{folder}: its tokenizer does not load ({reason_of(error, 200)}): {remedy}"
        ) from error
    if len(tokenizer) == len(tokenizer.get_added_vocab()):
        raise RecastError(f"{folder}: its tokenizer has no vocabulary: {REMEDY}")
    return tokenizer


def _require_config(folder: Path) -> None:
    """Raise `RecastError` where the folder's `config.json` does not load by itself."""
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOADING as error:
        raise RecastError(
            f"{folder / 'config.json'} does not load ({reason_of(error, 200)}): use the folder as "
            "it was saved"
        ) from error


def in_template(
    tokenizer: Any, messages: list[dict[str, str]], what: str, *, ends: bool = False
) -> str:
    """Messages through the tokenizer's chat template, up to where an assistant speaks unless the
    conversation `ends`. Raises `RecastError`, which calls them `what`, where it takes none."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not ends
        )
    except (TemplateError, RecursionError, *LOADING) as error:
        raise RecastError(
            f"{what} does not go through the chat template of the policy's tokenizer "
            f"({reason_of(error)}): give messages that it takes, or mend the template"
        ) from error
    return str(text)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token by which the chat template ends what an assistant says; without a template the end
    of text; None where there is neither."""
    end = tokenizer.eos_token_id
    if getattr(tokenizer, "chat_template", None) is not None:
        said = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
        behind = in_template(tokenizer, said, "a conversation", ends=True).rpartition(_MARK)[2]
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
        known = tokenizer.added_tokens_decoder
        end = next((token for token in ids if token in known), end)
    return None if end is None else int(end)
