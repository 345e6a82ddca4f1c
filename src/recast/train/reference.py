"""The reference of a KL or a loss: prompts and branches in, log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.lora import has_adapters, without_adapters
from recast.policy.thoughts import Begun, begun_scores
from recast.types import LogprobSpace, Prompts

Reference = Callable[
    [Prompts, Int[Tensor, "B K L"], Bool[Tensor, "B K L"], Begun | None], Float[Tensor, "B K S"]
]
"""Log-probabilities of the tokens in a mask, and of the thoughts before them if there are any: by a
frozen copy, by the policy without its adapters, or by another process."""


def frozen_reference(policy: Policy, space: LogprobSpace) -> Reference:
    """The log-probabilities of a policy that nobody trains; of one with adapters, without them."""

    def reference(
        prompts: Prompts,
        branches: Int[Tensor, "B K L"],
        mask: Bool[Tensor, "B K L"],
        begun: Begun | None,
    ) -> Float[Tensor, "B K S"]:
        with without_adapters(policy.model) if has_adapters(policy.model) else nullcontext():
            if begun is None:
                return branch_logprobs(policy, prompts, branches, space, mask)
            asked = (policy, prompts, branches, space, mask, begun)
            return begun_scores(*asked, with_entropy=False).logprobs

    return reference
