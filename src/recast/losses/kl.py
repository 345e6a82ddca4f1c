"""Estimates of KL(policy || reference) from the tokens that were drawn, as OpenOneRec's verl has
them (`kl_penalty_forward`).

    x = lp - lp_ref;   k1 = x;   abs = |x|;   k2 = x^2 / 2
    k3 = clamp(exp(y) - y - 1, -10, 10)   with y = clamp(-x, -20, 20)

Over tokens that the policy drew, k1 and k3 are the KL in the mean, k2 is close to it. As a loss
their gradients differ, in the mean too: k2's is that of KL(policy || reference), k3's that of
KL(reference || policy), k1's is 0 whatever the reference is, and that of abs knows a sign alone.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def kl_k1(logprobs: Float[Tensor, "*n"], ref_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Unbiased, of any sign; verl's `k1` or `kl`.

    >>> import torch
    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.5000])
    """
    return logprobs - ref_logprobs


def kl_abs(logprobs: Float[Tensor, "*n"], ref_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The distance of the two log-probabilities; verl's `abs`.

    >>> import torch
    >>> kl_abs(torch.tensor([-1.5]), torch.tensor([-1.0]))
    tensor([0.5000])
    """
    return (logprobs - ref_logprobs).abs()


def kl_k2(logprobs: Float[Tensor, "*n"], ref_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Half the square of the distance; verl's `k2` or `mse`.

    >>> import torch
    >>> kl_k2(torch.tensor([-1.5]), torch.tensor([-1.0]))
    tensor([0.1250])
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Float[Tensor, "*n"], ref_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Schulman's: never negative, 0 where both agree; verl's `k3` or `low_var_kl`.

    >>> import torch
    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-1.2]))
    tensor([0.0187])
    """
    difference = (ref_logprobs - logprobs).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(-10, 10)
