"""Windows of users' histories, W items each, and their loss: what SFT trains on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recast.draws import uniforms
from recast.policy.load import Policy
from recast.policy.logprobs import vocabulary_scores
from recast.types import SPLITS, Interactions


def user_windows(
    interactions: Interactions, window: int, seed: int, epoch: int, *, backwards_frac: float = 0.0
) -> Int[Tensor, "N W"]:
    """Every user's training events cut into windows of items, shuffled; -1 pads on the right.

    Each epoch cuts at new offsets, except users who fit one window, and reorders the events that
    share user and time: their order is unknown, so any of them is as true as another. A part of
    the windows is read backwards. Windows of a single item are dropped.
    """
    chosen = (interactions.splits == SPLITS.index("train")).nonzero()[:, 0]
    tie_break = uniforms(seed, epoch, chosen, "order", 1)[:, 0]
    order = tie_break.argsort()
    for key in (interactions.times, interactions.users):
        order = order[key[chosen[order]].argsort(stable=True)]
    users, items = interactions.users[chosen[order]], interactions.items[chosen[order]]
    index = torch.arange(len(users))
    first = torch.searchsorted(users, users)  # sorted: the first event of the same user
    count = torch.searchsorted(users, users, right=True) - first
    shift = (uniforms(seed, epoch, users, "offset", 1)[:, 0] * window).long() * (count > window)
    place = index - first + shift
    starts = (place % window == 0) | (index == first)
    row = starts.long().cumsum(0) - 1
    column = index - index[starts][row]
    windows = items.new_full((int(row[-1]) + 1 if len(row) else 0, window), -1)
    windows[row, column] = items
    windows = windows[windows[:, 1] >= 0]
    number = torch.arange(len(windows))
    backwards = uniforms(seed, epoch, number, "backwards", 1) < backwards_frac
    mirrored = ((windows >= 0).sum(1, keepdim=True) - 1 - torch.arange(window)) % window
    windows = torch.where(backwards, windows.gather(1, mirrored), windows)
    return windows[uniforms(seed, epoch, number, "shuffle", 1)[:, 0].argsort()]


def window_loss(policy: Policy, windows: Int[Tensor, "N W"], dropout: float) -> Float[Tensor, ""]:
    """Mean negative log-likelihood over all tokens of all items of the windows."""
    catalog = policy.catalog
    windows = windows[:, : int((windows >= 0).sum(1).max())].to(catalog.device)
    tokens = catalog.tokens(windows).flatten(1)
    inputs = F.pad(tokens[:, :-1], (1, 0), value=catalog.bos_token)
    embedded = F.dropout(policy.model.get_input_embeddings()(inputs), dropout)
    # Explicit, as in every packed call: some models count positions from elsewhere by themselves.
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand(len(inputs), -1)
    hidden = policy.model.base_model(
        inputs_embeds=embedded, position_ids=positions, use_cache=False
    ).last_hidden_state
    known = (windows >= 0).repeat_interleave(catalog.num_levels, dim=1)
    return -vocabulary_scores(policy.model, hidden[known], tokens[known][:, None]).mean()
