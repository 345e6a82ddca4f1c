"""The update of the full group: against a copy of the prompt per rollout, and against the floor.

The floor is a plain causal forward and backward of the same model over as many distinct tokens,
with logits at as many positions and the same loss. Neither side makes an optimizer step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.harness import (
    Row,
    main,
    paired,
    peak_bytes,
    random_catalog,
    random_prompts,
    stock_attention,
    tiny_policy,
)
from recast.items.catalog import Catalog
from recast.losses import ppo_clip
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.types import Prompts

FLOOR_BARS = {256: 1.4, 1024: 1.15, 4096: 1.08}
PROMPTS = {256: 8, 1024: 4, 4096: 2}


def plain_logprobs(
    policy: Policy, tokens: Int[Tensor, "N S"], count: int
) -> Float[Tensor, "N count"]:
    """Log-probabilities of the last `count` tokens, in transformers' own forward."""
    with stock_attention(policy.model):
        logits = policy.model(
            input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=count
        ).logits
    chosen = logits.gather(-1, tokens[:, -count:, None])[..., 0]
    return chosen - logits.logsumexp(-1)


def naive_logprobs(
    policy: Policy, prompts: Prompts, branches: Int[Tensor, "B G L"]
) -> Float[Tensor, "B G L"]:
    """Every rollout behind its own copy of the prompt."""
    copies = prompts.tokens.repeat_interleave(branches.shape[1], dim=0)
    rows = torch.cat([copies, branches.flatten(0, 1)], dim=1)
    return plain_logprobs(policy, rows, branches.shape[2]).view(branches.shape)


def floor_tokens(
    catalog: Catalog, length: int, branches: Int[Tensor, "B G L"]
) -> tuple[Int[Tensor, "B S"], int]:
    """Random sequences with as many distinct tokens as each prompt and its branches have.

    Branches share the tokens of a common beginning, and the last token of a branch is read, never
    sent. Returns the tokens, a last one to predict included, and the number of positions whose
    logits are read: the end of the prompt and all of its branches.
    """
    behind = max(
        sum(len(group[:, :level].unique(dim=0)) for level in range(1, catalog.num_levels))
        for group in branches
    )
    draw = torch.Generator().manual_seed(1)
    shape = (len(branches), length + behind + 1)
    return torch.randint(2, catalog.vocab_size, shape, generator=draw), behind + 1


def policy_gradient(policy: Policy, logprobs: Tensor) -> None:
    """Backward of a clipped policy loss with fixed advantages of mean 0."""
    policy.model.zero_grad(set_to_none=True)
    draw = torch.Generator().manual_seed(2)
    advantages = torch.randn(logprobs.shape, generator=draw)
    ppo_clip(logprobs, logprobs.detach(), advantages).mean().backward()


def gradient(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def _group(catalog: Catalog, num_prompts: int, width: int) -> Int[Tensor, "B G L"]:
    draw = torch.Generator().manual_seed(3)
    return catalog.tokens_of(torch.randint(catalog.num_items, (num_prompts, width), generator=draw))


def against_copies(policy: Policy, num_prompts: int, width: int, length: int) -> list[Row]:
    """Time and memory against the naive update, after both gave the same gradient."""
    prompts = random_prompts(policy.catalog, num_prompts, length)
    branches = _group(policy.catalog, num_prompts, width)

    def naive() -> None:
        policy_gradient(policy, naive_logprobs(policy, prompts, branches))

    def packed() -> None:
        policy_gradient(policy, branch_logprobs(policy, prompts, branches, "full"))

    naive()
    wanted = gradient(policy)
    packed()
    error = float((gradient(policy) - wanted).norm() / wanted.norm())
    assert error < 1e-5, f"the gradients differ by {error:.1e}"

    slow, fast = paired(naive, packed, repeats=5, slow_repeats=3)
    slow_bytes, fast_bytes = peak_bytes(naive), peak_bytes(packed)
    what = f"update of the full group, P {num_prompts}, G {width}, prompt {length}: "
    against = "the naive update, a copy of the prompt per rollout, one pass"
    agree = f"gradients agree to {error:.0e}"
    return [
        Row(
            name="update_time",
            what=what + "time",
            against=against,
            value=slow / fast,
            bar=25,
            at_least=True,
            details=f"naive {slow:.2f} s (3 runs), Recast {fast:.3f} s; {agree}",
        ),
        Row(
            name="update_memory",
            what=what + "memory",
            against=against,
            value=slow_bytes / fast_bytes,
            bar=15,
            at_least=True,
            details=f"naive {slow_bytes / 1e6:,.0f} MB, Recast {fast_bytes / 1e6:.1f} MB "
            "above the model",
        ),
    ]


def against_floor(
    policy: Policy, num_prompts: int, width: int, length: int, bar: float, repeats: int
) -> Row:
    """Time against one plain pass over the distinct tokens."""
    catalog = policy.catalog
    prompts = random_prompts(catalog, num_prompts, length)
    branches = _group(catalog, num_prompts, width)
    tokens, count = floor_tokens(catalog, length, branches)
    packed_s, floor_s = paired(
        lambda: policy_gradient(policy, branch_logprobs(policy, prompts, branches, "full")),
        lambda: policy_gradient(policy, plain_logprobs(policy, tokens, count)),
        repeats,
    )
    return Row(
        name=f"update_floor_{length}",
        what=f"update of the full group, P {num_prompts}, G {width}, prompt {length}",
        against="the floor: a plain causal forward + backward over as many distinct tokens",
        value=packed_s / floor_s,
        bar=bar,
        at_least=False,
        details=f"Recast {packed_s:.3f} s, floor {floor_s:.3f} s, {repeats} repeats, "
        f"{tokens.shape[1] - 1} tokens per prompt, logits at {count} of them",
    )


def run(smoke: bool) -> list[Row]:
    """The naive update at prompt 1024, the floor at three lengths."""
    if smoke:
        policy = tiny_policy(random_catalog(60, 8))
        floor = against_floor(policy, 2, 4, 16, bar=1.4, repeats=1)
        return [*against_copies(policy, 2, 4, 16), floor]
    policy = tiny_policy(random_catalog(100_000, 256))
    floors = [
        against_floor(policy, PROMPTS[length], 32, length, bar, repeats=2**14 // length + 5)
        for length, bar in FLOOR_BARS.items()
    ]
    return [*against_copies(policy, 2, 32, 1024), *floors]


if __name__ == "__main__":
    main(run)
