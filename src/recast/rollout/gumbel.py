"""Gumbel top-k: G items without replacement, with weights that undo it (arXiv 1903.06059).

Stochastic beam search over the trie. Every leaf i has phi_i = log p_i, p the policy renormalised
over the allowed children, and a perturbed value G_i = phi_i + Gumbel noise; the G largest are a
sample without replacement. They are found from the top: the value of a node is the largest below
it, so its children's values are drawn under the condition that their maximum is the node's own,

    G_root ~ Gumbel(0)
    H_c = phi_c + Gumbel noise;   Z = max_c H_c
    G_c = -log(exp(-G_parent) - exp(-Z) + exp(-H_c))

and the G + 1 best nodes of a level hold the G + 1 best leaves. With kappa the (G + 1)-th value,

    q_i = P(G_i > kappa) = 1 - exp(-exp(phi_i - kappa));   w_i = p_i / q_i
    E[sum_i w_i f(y_i)] = sum over all items of p f

With G or fewer items left kappa is -inf, q = 1 and the sum is exact.

Differs from the paper: nothing known. The value of the root must be drawn: held at 0 it leaves the
sampled set as it is, but it fixes the largest value, and the weights are no longer unbiased. For
G = 1 they are unbiased with infinite variance (E[1/q] diverges), so give 2 or more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from recast.groups import most_probable_first
from recast.policy.load import Policy
from recast.policy.logprobs import over_children
from recast.rollout.check import check_group_size
from recast.rollout.tree import TreeDecoder
from recast.types import Draw, Prompts, RolloutGroups, require


@torch.no_grad()
def gumbel(
    policy: Policy, prompts: Prompts, group_size: int, draw: Draw = Draw(logprob_space="trie")
) -> RolloutGroups:
    """G distinct items drawn without replacement, most probable first, with `weights`.

    Draws depend on (seed, step, row) alone. Raises `RecastError` in a space other than `trie`:
    the weights are made of the probabilities that the items are drawn with.
    """
    remedy = "the gumbel sampler weighs by the probabilities it draws with, give 'trie'"
    require(draw.logprob_space == "trie", "logprob_space", draw.logprob_space, remedy)
    check_group_size(group_size)
    tree = TreeDecoder(policy, prompts, draw.logprob_space)
    found = perturbed_beams(tree, 1, group_size + 1, draw, "gumbel")
    perturbed, phi = found.values[:, 0], found.phi[:, 0, :group_size]
    kappa = perturbed[:, group_size:]
    if not kappa.shape[1]:
        kappa = perturbed.new_full((len(prompts), 1), -torch.inf)
    order = torch.arange(phi.shape[1], device=phi.device).expand(len(phi), -1)
    groups = tree.finish(group_size, draw, order, perturbed[:, :group_size] > -torch.inf)
    weights = torch.zeros_like(groups.rollout_logprobs[..., 0])
    weights[:, : phi.shape[1]] = importance_weights(phi, kappa).to(weights.dtype)
    weights = weights.masked_fill(~groups.exists, 0.0)
    return most_probable_first(replace(groups, weights=weights))


def importance_weights(
    phi: Float[Tensor, "B N"], kappa: Float[Tensor, "B 1"]
) -> Float[Tensor, "B N"]:
    """w = p / (1 - exp(-exp(phi - kappa))) with phi = log p, also where both are tiny.

    >>> phi = torch.tensor([[0.5, 0.25]]).log()
    >>> importance_weights(phi, torch.tensor([[0.0]]))
    tensor([[1.2707, 1.1302]])
    >>> importance_weights(phi, torch.tensor([[-torch.inf]]))
    tensor([[0.5000, 0.2500]])
    """
    above = phi - kappa
    # Far below kappa 1 - exp(-x) is x to the last digit, and x itself may be too small to hold.
    log_q = torch.where(above < -40, above, (-(-above.clamp(min=-40).exp()).expm1()).log())
    return (phi - log_q).exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class Perturbed:
    """D independent orders of the W best leaves of every prompt, by perturbed value.

    W is smaller than asked where the trie has fewer; a value of -inf is no leaf. Example, one order
    (D = 1) of the two best of three items with p = .5, .3, .2, where the noise put the third first:
    `phi=[[[log .2, log .5]]]  values=[[[0.4, -0.1]]]`. The decoder holds their tokens, branch
    d W + w.
    """

    phi: Float[Tensor, "B D W"]
    """Log-probability over the trie, float64."""
    values: Float[Tensor, "B D W"]


@torch.no_grad()
def perturbed_beams(
    tree: TreeDecoder, num_orders: int, width: int, draw: Draw, name: str
) -> Perturbed:
    """Grow the leaves with the `width` largest perturbed values, `num_orders` times independently.

    Read in order, they are drawn one after the other without replacement (Plackett-Luce). The draw
    of a child is found by its order, its parent's rank and its place among its siblings, which
    neither the other rows nor the width of their nodes can change.
    """
    prompts = tree.prompts
    perturbed = _gumbel(draw.uniforms(prompts, f"{name}/root", num_orders))[..., None]
    phi = torch.zeros_like(perturbed)
    trie = tree.policy.catalog.trie
    for level, size in enumerate(trie.widths):
        if tree.is_done:
            break
        choices = tree.choices()
        num_nodes, num_children = phi.shape[2], choices.tokens.shape[2]

        def of_orders(x: Tensor) -> Tensor:
            return x.expand(-1, num_orders * num_nodes, -1)  # noqa: B023, the root is everybody's

        allowed = of_orders(choices.allowed)
        trie_scores = over_children(of_orders(choices.logprobs), allowed)
        slots = width if level else 1
        draws = draw.uniforms(prompts, f"{name}/{level}", num_orders * slots * size)
        if len(trie.domain_widths) > 1:  # counted as in the trie of the row's domain alone
            own = torch.tensor(trie.domain_widths).to(phi.device)[prompts.domains, level]
            slot, child = (torch.arange(n, device=phi.device) for n in (num_orders * slots, size))
            index = own[:, None, None] * slot[:, None] + child
            draws = draws.gather(1, index.flatten(1))
        noise = _gumbel(draws).unflatten(1, (num_orders, slots, size))
        noise = noise[:, :, :num_nodes, :num_children].flatten(1, 2)
        below = phi.flatten(1)[..., None] + trie_scores.double()
        values = given_maximum(below + noise, perturbed.flatten(1)[..., None])
        values = values.masked_fill(~allowed, -torch.inf)
        orders = (num_orders, num_nodes * num_children)
        perturbed, best = values.view(-1, *orders).topk(min(width, orders[1]), dim=2)
        phi = below.view(-1, *orders).gather(2, best)
        # The decoder counts the nodes of all orders in one row; its first call has one, the root.
        first = torch.arange(num_orders, device=best.device)[:, None] * num_nodes * bool(level)
        parents = best // num_children + first
        alive = perturbed > -torch.inf
        tree.take(choices, *(x.flatten(1) for x in (parents, best % num_children, alive)))
    return Perturbed(phi=phi, values=perturbed)


def given_maximum(
    values: Float[Tensor, "B N C"], maximum: Float[Tensor, "B N 1"]
) -> Float[Tensor, "B N C"]:
    """Perturbed values of siblings, shifted so that the largest of them is `maximum`.

    -inf stays -inf; where all are, the result is NaN.

    >>> given_maximum(torch.tensor([[[2.0, 1.0, -torch.inf]]]), torch.tensor([[[0.0]]]))
    tensor([[[ 0.0000, -0.2091,    -inf]]])
    """
    gap = (values - values.amax(-1, keepdim=True)).exp()
    v = maximum - values + (-gap).log1p()
    return maximum - v.clamp(min=0) - (-v.abs()).exp().log1p()


def _gumbel(draws: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Standard Gumbel variables from uniforms in [0, 1), all finite."""
    return -(-draws.clamp(min=2.0**-54).log()).log()
