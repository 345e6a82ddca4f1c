"""Lists behind thoughts: prompts in, beams below thoughts, one list per row and what the thoughts
were out.

Differs from OpenOneRec's benchmark (benchmarks/benchmark/base_generator.py and
tasks/v1_0/recommendation/evaluator.py): beams are constrained by the trie, and a repetition keeps
its place by `top_k_by_logprobs` too, where the benchmark takes texts out that are equal, thoughts
and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from recast.config.think import SelectK, ThinkConfig
from recast.groups import is_first, most_probable_first, reorder
from recast.policy.load import Policy
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.rollout.think import think
from recast.types import Draw, Metrics, Prompts, RolloutGroups, Thoughts


def search_lists(
    policy: Policy,
    prompts: Prompts,
    beam_width: int,
    draw: Draw,
    config: ThinkConfig,
    decoder: Decoder = Decoder(),
) -> RolloutGroups:
    """`beam_search`, or with thoughts `beam_width` / thoughts beams below each; none has more than
    there are semantic IDs. Thoughts are drawn by (seed, row, thought) alone.

    Raises what `recast.rollout.think.think` raises.
    """
    most = policy.catalog.trie.num_leaves
    if config.thoughts is None:
        return beam_search(policy, prompts, min(beam_width, most), draw, decoder)
    return think(
        policy,
        prompts,
        config.thoughts * min(beam_width // config.thoughts, most),
        draw,
        thoughts=config.thoughts,
        max_thought_tokens=config.max_thought_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        prefix=config.prefix,
        closes=True,
        constrained=decoder.constrained,
    )


def as_list(groups: RolloutGroups, select_k: SelectK) -> RolloutGroups:
    """The rollouts of each row in the order of its list, those that do not exist last. An item that
    stands there already is -1: a repetition keeps its place for nothing, as in the benchmark.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[1], [0], [2], [1]]], [[[2]]], logprobs=[[-2.0, -3.0, -1.0, -1.5]])
    >>> as_list(groups, "first_k").items.tolist()
    [[1, 0, 2, -1]]
    >>> as_list(groups, "top_k_by_logprobs").items.tolist()
    [[2, 1, -1, 0]]
    """
    if select_k == "top_k_by_logprobs":
        ordered = most_probable_first(groups)
    else:
        ordered = reorder(groups, (~groups.exists).int().argsort(dim=1, stable=True))
    again = ~is_first(ordered.items[..., None])
    return replace(ordered, items=ordered.items.masked_fill(again, -1))


def thought_sums(thoughts: Thoughts) -> Float[Tensor, " 5"]:
    """Thoughts, their tokens, those closed, those of the right format, and -log p in nats."""
    place = torch.arange(thoughts.tokens.shape[2], device=thoughts.tokens.device)
    own = place < thoughts.num_written[..., None]
    nats = -torch.where(own, thoughts.logprobs, 0.0).double().sum()
    every = torch.ones_like(thoughts.num_written)
    counts = [every, thoughts.num_written, thoughts.is_closed, thoughts.has_format]
    return torch.stack([*(count.double().sum() for count in counts), nats]).cpu()


def thought_metrics(sums: Sequence[Float[Tensor, " 5"]]) -> Metrics:
    """Means over the thoughts of several sums, their entropy by what was drawn; nothing of none.

    >>> thought_metrics([torch.tensor([1.0, 8, 1, 0, 4]), torch.tensor([1.0, 12, 0, 0, 6])])
    {'thought/tokens': 10.0, 'thought/closed_frac': 0.5, 'thought/format_frac': 0.0, \
'thought/entropy': 0.5}
    """
    if not sums:
        return {}
    count, tokens, closed, formatted, nats = torch.stack(list(sums)).sum(0).tolist()
    return {
        "thought/tokens": tokens / count,
        "thought/closed_frac": closed / count,
        "thought/format_frac": formatted / count,
        "thought/entropy": nats / max(tokens, 1.0),  # a turn may end before a thought begins
    }
