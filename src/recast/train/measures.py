"""What an update measures beside its loss: log-probabilities and entropies in, sums out.

Sums alone: they are added over micro-batches and divided once.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.items.catalog import Catalog
from recast.methods.parts import needs
from recast.types import Loss, Metrics


def has_clip(loss: Loss) -> bool:
    """Whether the loss has a trust region, by its parameter `clip_low`."""
    return needs(loss, "clip_low")


def clipped_tokens(
    slope: Float[Tensor, "B K L"],
    log_ratio: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    *,
    has_dual: bool,
) -> Int[Tensor, " 3"]:
    """How many tokens the clip keeps from being pushed further down (low) or up (high), and how
    many the dual clip no longer pushes down: those with an advantage whose `slope`, the loss's
    derivative by their log-probability, is 0.

    >>> slope, ratio = torch.tensor([[[0.0, 0.0, -1.0, 0.0]]]), torch.tensor([1.5, 0.5, 1.0, 4.0])
    >>> advantages, every = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]), torch.ones(1, 1, 4) > 0
    >>> clipped_tokens(slope, ratio.log()[None, None], advantages, every, has_dual=True).tolist()
    [1, 1, 1]
    """
    still = (slope == 0) & loss_mask
    down = still & (advantages < 0)
    dual = down & (log_ratio > 0) if has_dual else torch.zeros_like(down)
    high = still & (advantages > 0)
    return torch.stack([(down & ~dual).sum(), high.sum(), dual.sum()])


def clip_metrics(loss: Loss, clipped: list[float], num_tokens: int) -> Metrics:
    """Shares of the tokens; nothing for a loss without a trust region."""
    names = ["actor/clip_low_frac", "actor/clip_high_frac", "actor/dual_clip_frac"]
    known = names[: 2 + needs(loss, "dual_clip")] if has_clip(loss) else []
    return {name: count / num_tokens for name, count in zip(known, clipped, strict=False)}


def levels_of(catalog: Catalog, tokens: Int[Tensor, "B K L"]) -> Int[Tensor, "B K L"]:
    """The decision that every token belongs to: of semantic IDs its level, of texts the edge of the
    trie that holds it; D where it has left the catalogue.
    """
    place = torch.arange(tokens.shape[2], device=tokens.device)
    if catalog.codebook_sizes:
        return place.expand(tokens.shape)
    path, most = catalog.path_of(tokens), catalog.num_levels
    ends = catalog.ends_of(path)[..., 1:].masked_fill(path[..., 1:] < 0, tokens.shape[2])
    level = (ends[..., None, :] <= place[:, None]).sum(-1)
    node = path[..., 1:].gather(-1, level.clamp(max=most - 1))
    return torch.where(node < 0, most, level)


def entropy_sums(
    entropy: Float[Tensor, "B K L"],
    levels: Int[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    num_levels: int,
) -> Float[Tensor, "2 _levels"]:
    """By level the entropies, summed, and the tokens that count; the last are of no level."""
    where, counted = levels[loss_mask], entropy[loss_mask].double()
    sums = counted.new_zeros(2, num_levels + 1)
    sums[0].index_add_(0, where, counted)
    sums[1].index_add_(0, where, torch.ones_like(counted))
    return sums


def entropy_metrics(sums: Float[Tensor, "2 _levels"]) -> Metrics:
    """Mean entropy in nats of all tokens, and of those of every level that there are.

    >>> entropy_metrics(torch.tensor([[6.0, 1.0, 0.0, 0.5], [3.0, 1.0, 0.0, 1.0]]))
    {'actor/entropy': 1.5, 'actor/entropy_l0': 2.0, 'actor/entropy_l1': 1.0}
    """
    total, count = sums.tolist()
    if not sum(count):
        return {}
    per_level = [(level, n) for level, n in enumerate(count[:-1]) if n]
    means = {f"actor/entropy_l{level}": total[level] / n for level, n in per_level}
    return {"actor/entropy": sum(total) / sum(count)} | means


def mean_metrics(steps: list[Metrics]) -> Metrics:
    """Over the steps that have a metric; of one step its own.

    >>> mean_metrics([{"actor/kl": 0.5}, {"actor/kl": 1.0, "actor/entropy": 2.0}])
    {'actor/kl': 0.75, 'actor/entropy': 2.0}
    """
    names = dict.fromkeys(name for step in steps for name in step)
    values = {name: [step[name] for step in steps if name in step] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
