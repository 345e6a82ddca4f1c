"""The supervised loss: token sequences in, their mean negative log-likelihood out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.policy.body import hidden_states
from recast.policy.load import Policy
from recast.policy.logprobs import vocabulary_scores


def sequence_loss(
    policy: Policy, tokens: Int[Tensor, "B P"], loss_mask: Bool[Tensor, "B P"], dropout: float
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood over all tokens that count, each given those before it."""
    embedded = F.dropout(policy.model.get_input_embeddings()(tokens[:, :-1]), dropout)
    positions = torch.arange(embedded.shape[1], device=tokens.device).expand(len(tokens), -1)
    hidden = hidden_states(policy.model, positions, embedded=embedded)
    counts = loss_mask[:, 1:]
    wanted = tokens[:, 1:][counts][:, None]
    return -vocabulary_scores(policy.model, hidden[counts], wanted).mean()
