"""Thoughts, then items: N thoughts sampled behind each prompt, beams below every one (OpenOneRec,
arXiv 2512.24762, two-stage rollout).

The prompt is sent once; thoughts are branches on its keys and values, and so are the items below
them. A thought ends by `</think>`, by the end of the turn or by the limit; then the same tokens are
forced behind it in every case, and the items follow.

Differs from the release: beams are constrained by the trie unless told otherwise, several thoughts
share a group, a token that the tokenizer does not know is never drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.policy.body import hidden_states
from recast.policy.head import vocabulary_scores
from recast.policy.load import Policy
from recast.policy.logprobs import read_branches
from recast.policy.packed import Packed, grow_branches
from recast.rollout.beam import grow_beams
from recast.rollout.check import check_group_size, check_prompts
from recast.rollout.decoder import Decoder
from recast.rollout.distribution import Distribution
from recast.rollout.frame import Frame, frame_of, require_context, tags_of, thought_begins
from recast.rollout.served import write_by
from recast.rollout.server import Server
from recast.rollout.tree import Prefilled, TreeDecoder
from recast.rollout.written import Written, write
from recast.types import Draw, LogprobSpace, Prompts, RolloutGroups, Thoughts, require

LossOver = Literal["all", "written", "item"]
"""Of thought, forced tokens and item; without the forced tokens; of the item alone."""


@torch.no_grad()
def think(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    *,
    thoughts: int = 1,
    max_thought_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    prefix: str = "\n",
    closes: bool = False,
    constrained: bool = True,
    loss_over: str = "all",
    strict_think: bool = False,
    repeats: bool = False,
    server: Server | str | None = None,
    timeout_s: float = 600.0,
    max_staleness: int = 0,
) -> RolloutGroups:
    """`thoughts` thoughts of at most `max_thought_tokens` tokens, G / thoughts beams below each:
    rollout n G / thoughts + i is beam i of thought n.

    A thought is *drawn* over the tokenizer's tokens, as `Distribution` says, and *recorded* over
    the whole vocabulary, at temperature 1. `prefix` and the name that begins an item are forced
    behind it, closed or not; with `closes` `</think>` is written where a thought that is not closed
    ends, as OpenOneRec's benchmark does. With `strict_think` what follows a thought without both
    tags, `<think>` and a `</think>` of its own, names nothing; with `repeats` the first beam stands
    in for those that there are too few of. Draws depend on (seed, step, row, thought) alone: fewer
    thoughts are the first of more.

    Raises `RecastError` for a policy without a tokenizer that reads `</think>` as one token, for
    prompts that hold it already and for those that a thought and an item do not fit behind.

    A `server` writes the thoughts in place of the policy; `timeout_s` and `max_staleness` are a
    run's, which connects to it and hands it the weights.
    """
    check_group_size(group_size)
    check_prompts(policy, prompts)
    fits = type(thoughts) is int and 1 <= thoughts <= group_size and group_size % thoughts == 0
    need = f"give a number of thoughts that divides group_size {group_size}"
    require(fits, "thoughts", thoughts, need)
    fits = type(max_thought_tokens) is int and max_thought_tokens >= 1
    require(fits, "max_thought_tokens", max_thought_tokens, "give a number of tokens, 1 or more")
    choices = get_args(LossOver)
    require(loss_over in choices, "loss_over", loss_over, f"choose one of {', '.join(choices)}")
    drawn_from = Distribution(temperature=temperature, top_p=top_p, top_k=top_k)
    frame = frame_of(policy, prefix)
    begins = thought_begins(policy, prompts, frame, max_thought_tokens, closes=closes)
    settings = (policy, prompts, begins, thoughts, max_thought_tokens, draw, drawn_from, frame)
    if server is None:
        written = write(*settings, closes)
    else:
        need = "a run connects to it, elsewhere give recast.rollout.server.connect(URL)"
        require(isinstance(server, Server), "server", server, need)
        assert isinstance(server, Server)
        require(not closes, "closes", closes, "a server closes no thought, leave one of them out")
        written = write_by(server, *settings)
    start, forced = _force(policy, prompts, written, frame, draw.logprob_space)
    tree = TreeDecoder(policy, prompts, draw.logprob_space, constrained=constrained, start=start)
    each = group_size // thoughts
    order, alive = grow_beams(tree, each, Decoder(constrained=constrained))
    missing = (0, each - order.shape[2])
    order, alive = F.pad(order, missing), F.pad(alive, missing)
    if repeats:
        order = torch.where(alive, order, order[..., :1])
        alive = alive | alive[..., :1]
    groups = tree.finish(group_size, draw, order.flatten(1), alive.flatten(1))
    place = torch.arange(group_size, device=order.device)
    tags = tags_of(policy, prompts, begins, written.tokens, written.lengths)
    found = _joined(
        begins,
        written,
        forced,
        frame,
        loss_over,
        has_format=tags.is_open & tags.is_long & written.is_closed,
        of=(place // each).expand(len(prompts), -1),
    )
    if strict_think:
        lost = ~(tags.is_open & found.is_closed).gather(1, found.of)
        groups = replace(
            groups,
            items=groups.items.masked_fill(lost, -1),
            predictions=groups.predictions.masked_fill(lost[..., None, None], -1),
        )
    return replace(groups, thoughts=found)


def openonerec(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    *,
    max_thought_tokens: int = 1024,
    server: Server | str | None = None,
    timeout_s: float = 600.0,
    max_staleness: int = 0,
) -> RolloutGroups:
    """`think` as OpenOneRec's release rolls out: one thought at temperature 1, G free beams below
    it, thought and forced tokens in the loss, beams that are missing repeated, nothing named
    without both tags (onerec_vllm_rollout.py, onerec_recipe.py). Where `<think>` ends the prompt
    the release gives 0 to every rollout, since it asks for both in the response; here it counts.

    Raises what `think` raises, and `RecastError` in the `trie` space, which free beams leave.
    """
    need = "its beams leave the trie, give full or choose the sampler think"
    require(draw.logprob_space != "trie", "logprob_space", draw.logprob_space, need)
    return think(
        policy,
        prompts,
        group_size,
        draw,
        max_thought_tokens=max_thought_tokens,
        constrained=False,
        strict_think=True,
        repeats=True,
        server=server,
    )


def require_thoughts(policy: Policy, longest: int, settings: Mapping[str, Any]) -> None:
    """Raise `RecastError` unless the policy can think behind a prompt of so many tokens."""
    frame = frame_of(policy, settings.get("prefix", "\n"))
    limit, closes = settings["max_thought_tokens"], settings.get("closes", False)
    require_context(policy, longest - len(frame.begin), limit, frame, closes=closes)


def _force(
    policy: Policy, prompts: Prompts, written: Written, frame: Frame, space: LogprobSpace
) -> tuple[Prefilled, Float[Tensor, "B N E"]]:
    """The same tokens behind every thought, and the targets behind the first one: where the items
    are searched, and the log-probabilities of what was forced."""
    (rows, count), targets = written.lengths.shape, prompts.targets
    device, num_targets = targets.device, targets.shape[1]
    reading = read_branches(policy.catalog, prompts, targets, prompts.target_mask, space)
    chain = targets.new_tensor(frame.forced)
    size = len(chain)
    branches = torch.cat([chain.expand(rows, num_targets, -1), targets], dim=2)
    asked = reading.asked
    later = asked[..., 1:].flip(2).cummax(2).values.flip(2) if asked.numel() else asked[..., 1:]
    sent = torch.cat([asked.any(-1, keepdim=True).expand(-1, -1, size), later], dim=2)
    branches = torch.cat([F.pad(chain.expand(rows, count, -1), (0, targets.shape[2])), branches], 1)
    is_chain = torch.arange(sent.shape[2], device=device) < size
    sent = torch.cat([is_chain.expand(rows, count, -1), sent], dim=1)
    starts = torch.cat([torch.arange(count, device=device), chain.new_zeros(num_targets)])
    layout = written.layout
    growth = grow_branches(layout, starts.expand(rows, -1), branches[..., :-1], sent)
    hidden = hidden_states(
        policy.model,
        growth.layout.query_positions,
        tokens=growth.tokens,
        layout=growth.layout,
        past_key_values=written.cache,
    )

    def at(places: Int[Tensor, "B n"]) -> Float[Tensor, "B n W"]:
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))

    places = growth.places[:, :count]
    before = at(places[..., : size - 1].flatten(1)).unflatten(1, (count, size - 1))
    states = torch.cat([written.hidden[:, :, None], before], dim=2).flatten(0, 2)
    tokens = chain.expand(rows, count, -1).reshape(-1, 1)
    forced = vocabulary_scores(policy.model, states, tokens).view(rows, count, size)
    last = places[..., size - 1]
    shown = growth.layout
    packed = Packed(
        tokens=growth.tokens,
        positions=shown.query_positions,
        layout=shown,
        places=growth.places[:, count:, size - 1 :],
    )
    logprobs = reading.logprobs(policy, packed, hidden)
    return Prefilled(written.cache, shown.at(last), at(last), logprobs), forced


def _joined(
    begins: Int[Tensor, " B"],
    written: Written,
    forced: Float[Tensor, "B N E"],
    frame: Frame,
    loss_over: str,
    *,
    has_format: Bool[Tensor, "B N"],
    of: Int[Tensor, "B G"],
) -> Thoughts:
    """Each thought with what was forced behind it."""
    lengths, size = written.lengths, len(frame.forced)
    place = torch.arange(int(lengths.max()) + size, device=lengths.device)
    at = place - lengths[..., None]  # among the forced ones
    is_own, is_forced = at < 0, (at >= 0) & (at < size)
    inside = at.clamp(0, size - 1)

    def both(own: Tensor, behind: Tensor) -> Tensor:
        own = F.pad(own, (0, len(place) - own.shape[2]))
        joined = torch.where(is_own, own, behind.gather(2, inside))
        return joined.masked_fill(~(is_own | is_forced), 0)

    chain = lengths.new_tensor(frame.forced).expand(*lengths.shape, -1)
    tokens = both(written.tokens, chain)
    num_written = lengths - written.is_cut.long()
    is_drawn = place < num_written[..., None]
    masks = {"all": is_own | is_forced, "written": is_drawn, "item": torch.zeros_like(is_own)}
    return Thoughts(
        tokens=tokens,
        lengths=lengths + size,
        num_written=num_written,
        loss_mask=masks[loss_over],
        logprobs=both(written.logprobs, forced),
        is_closed=written.is_closed,
        weights_step=written.weights_step,
        server_gap=written.server_gap,
        has_format=has_format,
        begins=begins,
        of=of,
    )
