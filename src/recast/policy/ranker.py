"""A ranker by name: a policy of one-level semantic IDs, or a user's function, as a `Ranker`.

A one-level policy, where an item is one token, is a SASRec: its next-token log-probabilities score
the items. Made by the code that makes every policy: `recast tokenize --num_levels 1`, then
`recast sft`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config.plugin import load_function
from recast.items.catalog import Catalog
from recast.policy.head import vocabulary_scores
from recast.policy.load import Policy, load_policy
from recast.policy.packed import pack, packed_forward
from recast.policy.prompts import write_items
from recast.types import Prompts, Ranker, RecastError

_REMEDY = "make one with `recast tokenize --num_levels 1`, then `recast sft`"


def load_ranker(spec: str, catalog: Catalog) -> Ranker:
    """The ranker in a policy's folder or of a `module:function`, for the items of `catalog`.

    Raises `RecastError` when there is none or it ranks other items; the ranker raises it when a
    score is NaN or the scores have another shape than the items.
    """
    if Path(spec).is_dir():
        return _checked(policy_ranker(_load(spec, catalog)), spec)
    if ":" in spec:
        return _checked(load_function("ranker", spec), spec)
    raise RecastError(
        f"ranker is {spec!r}: there is no such folder; give the folder of a policy of one-level "
        "semantic IDs or module:function"
    )


def policy_ranker(policy: Policy) -> Ranker:
    """Log-probability of each item as the next token after the latest `window - 1` items."""

    def ranker(prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        history = latest(prompts.history, policy.window - 1)
        packed = pack(*write_items(policy.catalog, history), items.new_empty(len(items), 0, 1))
        root = packed_forward(policy.model, packed)[:, 0]
        wanted = policy.catalog.tokens_of(items)[..., 0]
        return vocabulary_scores(policy.model, root, wanted).float()

    return ranker


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


def _load(folder: str, catalog: Catalog) -> Policy:
    policy = load_policy(folder).to(str(catalog.device))
    policy.model.float()
    own = policy.catalog
    if own.num_levels != 1 or own.trie.num_leaves < own.num_items:
        what = "several items on one token" if own.num_levels == 1 else f"{own.num_levels} levels"
        raise RecastError(f"ranker {folder} has {what}, a ranker has one token per item: {_REMEDY}")
    if own.num_items != catalog.num_items:
        raise RecastError(
            f"ranker {folder} ranks {own.num_items} items, the policy writes {catalog.num_items}: "
            "train the ranker on the same data"
        )
    for index, (ours, theirs) in enumerate(zip(own.item_ids, catalog.item_ids, strict=True)):
        if ours != theirs:
            raise RecastError(
                f"ranker {folder}: item {index} is {ours!r}, in the policy's catalogue "
                f"{theirs!r}: train the ranker on the same data"
            )
    return replace(policy, model=policy.model.requires_grad_(False))


def _checked(function: Any, name: str) -> Ranker:
    """The function without gradients, its result refused unless it is one number per item."""

    @torch.no_grad()
    def ranker(prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        scores = function(prompts, items)
        wanted = f"return a tensor {list(items.shape)}, a score per prompt and item"
        if not isinstance(scores, Tensor):
            raise RecastError(f"ranker {name} gave a {type(scores).__name__}: {wanted}")
        if scores.shape != items.shape:
            raise RecastError(f"ranker {name} gave the shape {list(scores.shape)}: {wanted}")
        scores = scores.float()
        if bool((unknown := scores.isnan()).any()):
            row, column = unknown.nonzero()[0].tolist()
            raise RecastError(
                f"ranker {name} gave NaN for item {int(items[row, column])} in row "
                f"{int(prompts.row_ids[row])}: give every item a number"
            )
        return scores

    return ranker
