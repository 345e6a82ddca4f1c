"""How an encoder wants its token states made into one vector: its folder in, a `Pooling` out.

The files are those of sentence-transformers: `modules.json` names the steps,
`1_Pooling/config.json` the pooling, `sentence_bert_config.json` the longest input,
`config_sentence_transformers.json` the prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.run.reading import read_json, reading, stays_inside
from recast.types import RecastError

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The flags of older folders and the names of newer ones, in the order in which they are joined."""

_FOLLOWED = ("Transformer", "Pooling", "Normalize")
_REMEDY = "use the folder as it was published"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """What an encoder's folder says of its vectors; without a word of it the mean over the tokens.

    Example: `modes=("cls", "mean")` puts the first token's state and the mean side by side.
    """

    modes: tuple[str, ...] = ("mean",)
    is_named: bool = False
    """Whether the folder names one."""
    include_prompt: bool = True
    """Whether the tokens of the prompt are pooled too."""
    prompt: str = ""
    """What stands before every text: the folder's default prompt."""
    unused_prompts: tuple[str, ...] = ()
    """Names of its prompts, where none of them is the default."""
    longest: int | None = None
    """Tokens of the longest input, by the folder."""
    lower_case: bool = False
    model: str = ""
    """Where the model lies within the folder."""


def read_pooling(folder: Path, encoder: str) -> Pooling:
    """What the folder says; raises `RecastError` for steps that are not followed here (a dense
    layer, say), since the vectors would be others, and for damaged files."""
    found: dict[str, Any] = {"model": "", "pooling": "1_Pooling"}
    if (folder / "modules.json").exists():
        with reading(folder / "modules.json", _REMEDY):
            found |= _steps(read_json(folder / "modules.json", list), encoder)
    settings = {**_lengths(folder), **_prompts(folder)}
    file = folder / found["pooling"] / "config.json"
    if not file.exists():
        return Pooling(model=found["model"], **settings)
    with reading(file, _REMEDY):
        config = read_json(file, dict)
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [name for flag, name in _MODES.items() if _flag(config, flag)] or ["mean"]
        modes = [modes] if isinstance(modes, str) else modes
        if not isinstance(modes, list) or not modes or set(modes) - set(_MODES.values()):
            raise ValueError(f"pooling_mode {modes!r} is none of {', '.join(_MODES.values())}")
        include_prompt = _flag(config, "include_prompt", True)
    return Pooling(
        modes=tuple(modes),
        is_named=True,
        include_prompt=include_prompt,
        model=found["model"],
        **settings,
    )


def _steps(modules: list[Any], encoder: str) -> dict[str, str]:
    """Where the model and its pooling lie; other steps than those of `_FOLLOWED` are refused."""
    found = {}
    for module in modules:
        kind, path = str(module["type"]).rpartition(".")[2], str(module["path"])
        if kind not in _FOLLOWED:
            raise RecastError(
                f"encoder {encoder} asks for a {kind} step ({path}), which is not made here: give "
                "a folder whose modules.json names no more than Transformer, Pooling and Normalize"
            )
        if not stays_inside(path):
            raise ValueError(f"it names the path {path!r}, which leaves the folder")
        found["model" if kind == "Transformer" else kind.lower()] = path
    return found


def _lengths(folder: Path) -> dict[str, Any]:
    # Named by the kind of model: sentence_bert_config.json, sentence_xlnet_config.json, ...
    for file in sorted(folder.glob("sentence_*_config.json")):
        with reading(file, _REMEDY):
            config = read_json(file, dict)
            longest = config.get("max_seq_length")
            if longest is not None and (type(longest) is not int or longest < 1):
                raise ValueError(f"max_seq_length {longest!r} is no whole number from 1 on")
            return {"longest": longest, "lower_case": _flag(config, "do_lower_case")}
    return {}


def _prompts(folder: Path) -> dict[str, Any]:
    file = folder / "config_sentence_transformers.json"
    if not file.exists():
        return {}
    with reading(file, _REMEDY):
        config = read_json(file, dict)
        prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
        prompts = {str(name): text for name, text in prompts.items() if text}
        if not all(isinstance(text, str) for text in prompts.values()):
            raise ValueError(f"prompts {prompts!r} are no texts")
        if default is None:
            return {"unused_prompts": tuple(prompts)}
        if default not in config["prompts"]:
            raise ValueError(f"default_prompt_name {default!r} is none of its prompts")
        return {"prompt": prompts.get(default, "")}


def _flag(config: dict[str, Any], name: str, default: bool = False) -> bool:
    value = config.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{name} {value!r} is neither true nor false")
    return value


def pool(
    states: Float[Tensor, "N P D"], mask: Int[Tensor, "N P"], modes: tuple[str, ...]
) -> Float[Tensor, "N modes_D"]:
    """One vector a text, mode beside mode; `mask` is 1 where a token counts, on whichever side.

    As sentence-transformers has them, but that of its `weightedmean` the weights count a text's own
    tokens (1, 2, ...), where that counts the padding before them too.

    >>> states, mask = torch.tensor([[[1.0], [4.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    >>> pool(states, mask, ("cls", "lasttoken", "max", "mean", "weightedmean")).tolist()
    [[1.0, 4.0, 4.0, 2.5, 3.0]]
    """
    rows = torch.arange(len(states))
    counted = mask[..., None].to(states.dtype)
    vectors = []
    for mode in modes:
        if mode == "cls":
            vectors.append(states[rows, mask.argmax(1)])
        elif mode == "lasttoken":
            vectors.append(states[rows, mask.cumsum(1).argmax(1)])
        elif mode == "max":
            vectors.append(states.masked_fill(counted == 0, -torch.inf).amax(1))
        else:
            weight = counted * mask.cumsum(1)[..., None] if mode == "weightedmean" else counted
            total = weight.sum(1)
            total = total.sqrt() if mode == "mean_sqrt_len_tokens" else total
            vectors.append((states * weight).sum(1) / total)
    return torch.cat(vectors, dim=1)
