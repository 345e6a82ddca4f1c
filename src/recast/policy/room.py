"""What a policy is sent, against what its model holds: settings of prompts checked, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from recast.config import PromptConfig
from recast.config.prompt import TEMPLATE
from recast.items.catalog import Catalog
from recast.policy.body import steady_positions, text_config
from recast.run.reading import reading
from recast.types import RecastError, require


def read_prompt(record: dict[str, Any], folder: Path) -> PromptConfig:
    """How the policy of a folder renders what it reads, as its `recast.json` says."""
    with reading(folder / "recast.json", "use the folder as it was saved"):
        try:
            return PromptConfig(**record.get("prompt", {}))
        except RecastError as error:
            raise ValueError(str(error)) from error


def prompt_of(
    tokenizer: Any, prompt: PromptConfig, catalog: Catalog, name: str, *, is_rows: bool = False
) -> PromptConfig:
    """The settings with all that decides a text written out, where something is set or the data
    holds rows; unset without a tokenizer. Raises `RecastError` for settings that need one, and for
    semantic IDs in the prompts where the catalogue has none."""
    if catalog.form is not None:
        remedy = "the catalogue has titles and no semantic IDs, give titles or leave it out"
        fits = prompt.history in (None, "titles")
        require(fits, "prompt.history", prompt.history, remedy)
    if tokenizer is None and prompt.is_set:
        setting, value = next(iter(prompt.given.items()))
        remedy = f"{name} has no tokenizer to render it with, leave it out, or start from a model "
        require(False, f"prompt.{setting}", value, f"{remedy}with one, --model.path")
    if tokenizer is None or not (is_rows or prompt.is_set):
        return prompt
    history = prompt.history or ("sids" if catalog.form is None else "titles")
    template = prompt.template or TEMPLATE
    return replace(prompt, history=history, template=template)


def context_of(model: Any) -> int | None:
    """Tokens that a model may be sent at most; None where it does not say."""
    most = getattr(text_config(model), "max_position_embeddings", None)
    return min((x for x in (most, steady_positions(model)) if x is not None), default=None)


def beside_answers(prompt: PromptConfig, model: Any, catalog: Catalog) -> PromptConfig:
    """The settings that a policy was saved with, for a catalogue in place of its own: where an item
    came that writes more than any before, its prompts have that much less room."""
    context, most = context_of(model), prompt.max_tokens
    left = 0 if context is None else context - catalog.max_length
    is_less = most is not None and 0 < left < most
    return replace(prompt, max_tokens=left) if is_less else prompt


def require_room(
    model: Any, catalog: Catalog, window: int, prompt: PromptConfig, name: str
) -> None:
    """Raise `RecastError` for a window, or a rendered prompt and its answer, that the positions of
    the model do not hold."""
    context = getattr(text_config(model), "max_position_embeddings", None)
    if prompt.is_set:
        require_answer(context_of(model), prompt, catalog.max_length)
        return
    longest = 1 + window * catalog.max_length
    if context is not None and context < longest:
        raise RecastError(
            f"{name} has a context of {context} tokens, a window of {window} items needs "
            f"{longest}: choose a smaller window"
        )
    steady = steady_positions(model)
    if steady is not None and steady < longest:
        raise RecastError(
            f"{name} has rotary position embeddings that look at the longest prompt of a call "
            f"from {steady} tokens on, a window of {window} items needs {longest}: choose a window "
            f"of at most {(steady - 1) // catalog.max_length}"
        )


def require_answer(context: int | None, prompt: PromptConfig, answer: int) -> None:
    """Raise `RecastError` where no prompt, or none of `max_tokens`, fits before an answer of so
    many tokens."""
    if context is None:
        return
    if context <= answer:
        raise RecastError(
            f"the model has a context of {context} tokens, the longest answer has {answer}: choose "
            "a model of a longer context, or rows of fewer targets"
        )
    remedy = f"the context of {context} tokens leaves {context - answer} beside an answer, give "
    most = prompt.max_tokens
    require(most is None or most <= context - answer, "prompt.max_tokens", most, f"{remedy}no more")
