"""A ranker by name: a policy, a baseline, or a user's function, as a `Ranker`.

A policy of one-level semantic IDs, where an item is one token, is a SASRec: its next-token
log-probabilities score the items. It is the cheap one: one forward per prompt. Made by the code
that makes every policy: `recast tokenize --num_levels 1`, then `recast sft`, or both by `recast
baselines`. Of several levels all items that are asked for go through the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config.check import names_code, split_baseline
from recast.config.plugin import load_function
from recast.config.user_code import is_dense, place_of, require_call, short
from recast.data.folder import data_hash, load_data
from recast.data.rows import has_rows
from recast.groups import select
from recast.items.catalog import Catalog
from recast.policy.baseline_folder import FACTS, load_baseline, require_of
from recast.policy.baselines import FIT_SPLITS, Baseline, fit_item_knn, fit_popularity
from recast.policy.encoder_decoder import start_token
from recast.policy.head import vocabulary_scores
from recast.policy.load import Policy, load_policy
from recast.policy.logprobs import item_logprobs
from recast.policy.packed import pack, packed_forward
from recast.policy.prompts import make_prompts, write_items
from recast.policy.tasks import check_catalog
from recast.run.blame import blame, show
from recast.run.doors import ranker_folder, require_ranker
from recast.run.reading import read_json
from recast.types import Prompts, Ranker, RecastError

_MOST = 1e30  # sums of larger scores leave float32
_REMEDY = "make one with `recast tokenize --num_levels 1`, then `recast sft`"


def load_ranker(
    spec: str,
    catalog: Catalog,
    folder: str | Path = "",
    *,
    kind: str = "ranker",
    data: str | Path | None = None,
    splits: Sequence[str] = FIT_SPLITS,
) -> Ranker:
    """The ranker in a folder, of a `module:function` or of a baseline's name, for the items of
    `catalog`; `kind` is the setting that names it, `data` the data folder of the run.

    `popularity` and `item_knn` alone are fitted on the `splits` of `data`, with their default
    settings. What was fitted on other events is refused, as far as it is known.

    Raises `RecastError` when there is none or it ranks other items; the ranker raises it when it
    fails, when a score is NaN or infinite and when the scores have another shape than the items,
    and writes the row into `folder`.
    """
    require_ranker(kind, spec)
    name = f"{kind} {spec}"
    if names_code(spec):
        function = load_function(kind, spec)
        require_call(f"{kind} is {spec!r}, which", function, ("prompts", "items"))
        return _checked(function, name, folder)
    place = ranker_folder(spec)
    if place is None:
        baseline = _fit(spec, name, catalog, data, splits)
    elif (place / FACTS).is_file():
        baseline = _load_baseline(spec, name, place, catalog, data)
    else:
        ranker = policy_ranker(_load(place, name, catalog, data))
        return _checked(ranker, name, folder, is_ours=True)
    return _checked(baseline.ranker, name, folder, is_ours=True)


def _fit(
    spec: str, name: str, catalog: Catalog, data: str | Path | None, splits: Sequence[str]
) -> Baseline:
    if data is None:
        raise RecastError(f"{name} is fitted on events: give data, the data folder")
    check_catalog(data, catalog)
    if has_rows(data):
        raise RecastError(
            f"{name} is fitted on events, and {data} holds rows: give module:function, or the "
            "folder of what was made of events with the same items"
        )
    fit = fit_popularity if spec == "popularity" else fit_item_knn
    return fit(load_data(data), splits=splits)


def _load_baseline(
    spec: str, name: str, place: Path, catalog: Catalog, data: str | Path | None
) -> Baseline:
    baseline, facts = load_baseline(place)
    asked = split_baseline(spec)[0] or baseline.kind
    if asked != baseline.kind:
        raise RecastError(
            f"{name}: {place} holds {baseline.kind}, no {asked}: give {baseline.kind}:FOLDER, or "
            f"the folder of {asked}"
        )
    require_of(facts, name, catalog.item_ids, data)
    return baseline


def policy_ranker(policy: Policy) -> Ranker:
    """Log-probability of each item as the next one after the latest `window - 1` items: of its
    token or, with several levels, of its whole semantic ID in the policy's own space."""

    def tokens(prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        history = latest(prompts.history, policy.window - 1)
        packed = pack(
            *write_items(policy.catalog, history),
            items.new_empty(len(items), 0, 1),
            start_token=start_token(policy.model),
        )
        root = packed_forward(policy.model, packed)[:, 0]
        wanted = policy.catalog.tokens_of(items)[..., 0]
        scores = vocabulary_scores(policy.model, root, wanted).float()
        return scores.masked_fill(policy.catalog.lengths[items] == 0, -torch.inf)

    def semantic_ids(prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        catalog, domains = policy.catalog, prompts.domains
        history = latest(prompts.history, policy.window - 1)
        # Nothing is seen: whoever asks knows which of the items are candidates.
        own = make_prompts(catalog, targets=items[:, :0], history=history, domains=domains)
        # In the order of the trie, where neighbours share what is sent.
        order = catalog.trie.leaves[items].argsort(dim=1)
        items = items.gather(1, order)
        is_held = catalog.trie.holds(domains).gather(1, items)
        scores = item_logprobs(policy, own, items, policy.logprob_space, is_held)
        scores = scores.float().masked_fill(~is_held, -torch.inf)
        return scores.gather(1, order.argsort(dim=1))

    return tokens if policy.catalog.max_length == 1 else semantic_ids


def latest(history: Int[Tensor, "B H"], width: int) -> Int[Tensor, "B W"]:
    """The last `width` items of every history, oldest first, padded with -1 on the right.

    >>> latest(torch.tensor([[5, 6, 7], [8, -1, -1]]), 2)
    tensor([[ 6,  7],
            [ 8, -1]])
    """
    count = (history >= 0).sum(1, keepdim=True)
    width = min(width, history.shape[1])
    place = torch.arange(width, device=history.device) + (count - width).clamp(min=0)
    return history.gather(1, place)


def _load(folder: Path, name: str, catalog: Catalog, data: str | Path | None) -> Policy:
    policy = load_policy(folder).to(str(catalog.device))
    policy.model.float()
    own = policy.catalog
    if policy.prompt.is_set:
        raise RecastError(
            f"{name} renders its prompts, a ranker reads the items of a history alone: give one "
            "that was trained on events without prompt settings"
        )
    if own.trie.has_collisions:
        written, distinct = len(own.trie.items), own.trie.num_leaves
        raise RecastError(
            f"{name} has {written} items on {distinct} semantic IDs and cannot tell them apart: "
            f"{_REMEDY}"
        )
    if own.num_items != catalog.num_items:
        raise RecastError(
            f"{name} ranks {own.num_items} items, the policy writes {catalog.num_items}: "
            "train the ranker on the same data"
        )
    for index, (ours, theirs) in enumerate(zip(own.item_ids, catalog.item_ids, strict=True)):
        if ours != theirs:
            raise RecastError(
                f"{name}: item {index} is {ours!r}, in the policy's catalogue "
                f"{theirs!r}: train the ranker on the same data"
            )
    if data is not None:
        _refuse_other_events(folder, name, data)
    return replace(policy, model=policy.model.requires_grad_(False))


def _refuse_other_events(policy: Path, name: str, data: str | Path) -> None:
    """Raise `RecastError` for a policy whose run, where it still lies in its folder, read other
    events: it may have been shown what it is to judge."""
    try:
        then = read_json(policy.absolute().parent / "env.json", dict)["data_hash"]
    except (OSError, ValueError, LookupError, RecursionError):
        return
    if isinstance(then, str) and then != (now := data_hash(data)):
        raise RecastError(
            f"{name} was trained on other events ({then[:12]}) than those of {data} "
            f"({now[:12]}), and may have seen what is judged: train it on this data"
        )


def _checked(
    function: Callable[..., Any], owner: str, folder: str | Path, *, is_ours: bool = False
) -> Ranker:
    """The function without gradients, its result refused unless it is one number per item."""

    who = owner if is_ours else owner + place_of(function)

    @torch.no_grad()
    def ranker(prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        # Copies: what is written into them reaches nobody else.
        own = select(prompts, torch.arange(len(prompts), device=items.device)), items.clone()
        scores: Any = None
        try:
            with nullcontext() if is_ours else blame(owner, function):
                scores = function(*own)
            what, row = _fault(scores, items, prompts)
            what = what and f"{who} gave {what}"
        except RecastError as error:
            is_named = is_ours or owner in str(error)
            what, row = str(error) if is_named else f"{who}: {short(error)}", 0
        if what:
            fits = isinstance(scores, Tensor) and is_dense(scores) and scores.shape == items.shape
            content = {
                "row_id": int(prompts.row_ids[row]),
                "history": prompts.history[row],
                "target_items": prompts.target_items[row],
                "items": items[row],
                "scores": scores[row] if fits else short(scores),
            }
            raise RecastError(f"{what}{show(content, folder)}")
        checked: Tensor = scores.as_subclass(Tensor).float()
        return checked

    return ranker


def _fault(scores: Any, items: Int[Tensor, "B N"], prompts: Prompts) -> tuple[str, int]:
    """What is wrong with the scores, or nothing, and in which row."""
    wanted = f"return a tensor {list(items.shape)}, a score per prompt and item"
    if not isinstance(scores, Tensor):
        return f"a {type(scores).__name__}: {wanted}", 0
    if not is_dense(scores) or scores.is_complex() or scores.device != items.device:
        what = f"a tensor of {scores.dtype} on {scores.device}, or one that is not dense"
        return f"{what}: {wanted}, real, dense and on {items.device}", 0
    if scores.shape != items.shape:
        return f"the shape {list(scores.shape)}: {wanted}", 0
    scores = scores.float()
    # -inf says that an item is none, of all of them that nothing was computed.
    wrong = scores.isnan() | (scores > _MOST)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        what = "NaN" if bool(scores[row, column].isnan()) else f"{float(scores[row, column]):g}"
        where = f"item {int(items[row, column])} in row {int(prompts.row_ids[row])}"
        return f"{what} for {where}: give every item a number", row
    if items.shape[1] and bool((nothing := (scores == -torch.inf).all(1)).any()):
        row = int(nothing.nonzero()[0])
        return f"-inf for every item in row {int(prompts.row_ids[row])}: give one a number", row
    return "", 0
