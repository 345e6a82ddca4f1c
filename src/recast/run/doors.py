"""The doors of a verb, tried before anything heavy is imported: a config in, an error or nothing
out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recast.config import CompareConfig, QuickstartConfig, RLConfig, SFTConfig, TokenizeConfig
from recast.config.check import RANKERS, names_code, refuse_ranks, split_baseline, take
from recast.config.evaluation import EvaluateConfig, StratifyConfig
from recast.errors import RecastError
from recast.run.files import refuse_existing
from recast.run.reading import kind_of, reading
from recast.run.world import world

_KINDS = {
    "data": (
        ("interactions.parquet|rows.parquet", "users.parquet", "items.parquet", "data.json"),
        "is no data folder (no {}): make one with `recast prepare`",
    ),
    "catalog": (("sid.json",), "holds no catalogue ({}): make one with `recast tokenize`"),
    "extend": (("sid.json",), "holds no catalogue ({}): make one with `recast tokenize`"),
    "policy": (("recast.json",), "holds no policy ({}): make one with `recast sft`"),
    "baseline": (
        ("baseline.json",),
        "holds no baseline ({}): make one with `recast baselines`",
    ),
    "embeddings": (
        ("embeddings.safetensors",),
        "holds no embeddings ({}): give a folder of `recast tokenize`, of titles with --encoder",
    ),
    "encoder": ((), "holds no config.json: give a Hugging Face encoder folder or `minilm`"),
    "tokenizer": (
        (),
        "holds no tokenizer: give the folder of the model that is to write titles",
    ),
    "model.path": (("config.json",), "holds no model ({}): give a Hugging Face folder"),
}
"""Settings that name a folder: the files that it holds (one of those with a bar between them), and
what is said of one without."""
RANKED = (TokenizeConfig, SFTConfig, RLConfig, EvaluateConfig, StratifyConfig)
"""Of verbs that several ranks may run together."""
LED = (QuickstartConfig, CompareConfig)
"""Of lists of such verbs, and of others that the first rank runs alone."""
PUBLISHED = ("movielens-100k", "minilm")
"""Values of settings that name what is fetched, pinned by its hash."""


def enter(config: Any, config_type: type, *, goes_on: bool = False) -> None:
    """Raise `RecastError` unless the inputs of a verb are there, each of its kind, and its output
    is free and lies in none of them. One that `goes_on`, or resumes, may hold something; a verb
    that only looks has none."""
    take(config, config_type)
    if not isinstance(config, (*RANKED, *LED)) and not world().is_alone:
        refuse_ranks()
    output = Path(config.output) if hasattr(config, "output") else None
    goes_on = goes_on or getattr(config, "resume", False)
    if output and not (goes_on and output.is_dir()):
        refuse_existing(output)
    settings = vars(config) | {"model.path": getattr(getattr(config, "model", None), "path", None)}
    paths = [
        (name, path)
        for name, value in settings.items()
        for path in (value if isinstance(value, list) else [value])
    ]
    for name, value in paths:
        if value is None or value in PUBLISHED:
            continue
        if name in ("texts", "plain_text", "predictions", "tables") and not Path(value).exists():
            raise RecastError(f"{value}: no such file: check the path")
        is_rows = name == "rows" and isinstance(value, str)  # elsewhere a number of them
        folder = Path(value) if name in (*_KINDS, "predictions") or is_rows else None
        if name in RANKERS:
            require_ranker(name, value)
            folder = ranker_folder(value)
        elif name in _KINDS:
            is_policy = name == "model.path" and (Path(value) / "recast.json").is_file()
            is_ranked = name == "policy" and isinstance(config, EvaluateConfig)
            is_baseline = is_ranked and (Path(value) / "baseline.json").is_file()
            kind = "policy" if is_policy else "baseline" if is_baseline else name
            require_kind(kind, value)
        if folder and output and output.resolve().is_relative_to(folder.resolve()):
            raise RecastError(
                f"output is {config.output!r}, inside {name} {value!r}, which stays as it is: "
                "choose another output"
            )


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, as llama.cpp writes them, by its ending."""
    return Path(path).suffix.lower() == ".gguf"


def require_gguf(path: str | Path) -> None:
    """Raise `RecastError` unless it is a GGUF file that can be read here."""
    if not Path(path).is_file():
        raise RecastError(f"{path}: no such file: check the path")
    with reading(path, "check its permissions"), Path(path).open("rb") as opened:
        begins = opened.read(4)
    if begins != b"GGUF":
        raise RecastError(
            f"{path} is no GGUF file (it begins with {begins!r}): give one as it was published"
        )
    if find_spec("gguf") is None:
        raise RecastError(f'{path} is read by the package gguf: pip install "recast-rl[gguf]"')


def require_kind(name: str, folder: str | Path) -> None:
    """Raise `RecastError` unless a folder is what the setting `name` asks for."""
    if name == "model.path" and is_gguf(folder) and not Path(folder).is_dir():
        require_gguf(folder)
        return
    files, lacks = _KINDS[name]
    names = [file.split("|") for file in files]
    missing = [some[0] for some in names if not any((Path(folder) / n).is_file() for n in some)]
    if missing or not Path(folder).is_dir():
        first = (missing or [some[0] for some in names])[:1]
        raise RecastError(f"{folder}{kind_of(folder)} {lacks.format(*first)}")


def require_ranker(name: str, spec: str) -> None:
    """Raise `RecastError` unless `spec` is `module:function`, a baseline by its name, or the folder
    of a policy or of a baseline."""
    if names_code(spec):
        return
    baseline, given = split_baseline(spec)
    if baseline == "sasrec" and given is None:
        raise RecastError(
            f"{name} is 'sasrec': it is trained, not fitted on the spot: make one with `recast "
            "baselines` and give sasrec:FOLDER"
        )
    if baseline and given is None:
        return
    if not (given and Path(given).is_dir()):
        what = "a folder of `recast baselines`" if baseline else "the folder of a policy, "
        what += "" if baseline else "of a baseline or module:function"
        code = f"; a module of yours that is called {baseline} needs another name"
        raise RecastError(
            f"{name} is {spec!r}: there is no such folder; give {what}{code if baseline else ''}"
        )
    folder = ranker_folder(spec)
    assert folder is not None
    is_baseline = baseline in ("popularity", "item_knn") or (folder / "baseline.json").is_file()
    require_kind("baseline" if is_baseline else "policy", folder)


def ranker_folder(spec: str) -> Path | None:
    """The folder of a ranker; None for code and for what is fitted on the spot. Of a baseline by
    its name it is inside the folder of `recast baselines`, or that folder itself."""
    baseline, given = split_baseline(spec)
    if names_code(spec) or given is None:
        return None
    folder = Path(given)
    if not baseline:
        return folder
    mark = "recast.json" if baseline == "sasrec" else "baseline.json"
    inner = folder / baseline / "policy" if baseline == "sasrec" else folder / baseline
    places = (folder, folder / "policy") if baseline == "sasrec" else (folder,)
    return next((place for place in places if (place / mark).is_file()), inner)
