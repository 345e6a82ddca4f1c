"""A whole step of the loop: beam rollout, reward, signal, reference pass, update.

Both sides clip the gradient and make one AdamW step, at a learning rate of 0, so that every repeat
does the same work. Each target is one of the beams, so that no group is dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.harness import (
    MAX_GRAD_NORM,
    Row,
    actor_of,
    main,
    paired,
    peak_bytes,
    random_catalog,
    random_prompts,
    tiny_policy,
)
from benchmarks.update import floor_tokens, plain_logprobs, policy_gradient
from recast.policy.load import Policy
from recast.policy.prompts import make_prompts
from recast.rewards.hit import set_ratio
from recast.rollout.beam import beam_search
from recast.signals.grpo import grpo
from recast.train.actor import update


class Step:
    """The step of one shape on one policy, and its floor."""

    def __init__(self, policy: Policy, num_prompts: int, width: int, length: int) -> None:
        self.width = width
        prompts = random_prompts(policy.catalog, num_prompts, length)
        groups = beam_search(policy, prompts, width)
        target = groups.items[:, width // 2, None]
        self.length = prompts.tokens.shape[1]
        self.prompts = make_prompts(
            policy.catalog, history=prompts.history, targets=target, row_ids=prompts.row_ids
        )
        model = copy.deepcopy(policy.model).requires_grad_(False)
        self.reference = replace(policy, model=model)
        self.actor = actor_of(policy, self.reference, micro_batch_tokens=2**20)
        self.tokens, self.count = floor_tokens(policy.catalog, self.length, groups.tokens)

    def whole(self) -> None:
        groups = beam_search(self.actor.policy, self.prompts, self.width)
        metrics = update(self.actor, grpo(groups, set_ratio(groups)))
        assert metrics["actor/sent_rows"] == groups.exists.numel(), "a rollout was dropped"
        assert metrics["actor/grad_norm"] > 0

    def floor(self) -> None:
        """Two forwards and one forward + backward over the distinct tokens, and the same step."""
        policy, reference = self.actor.policy, self.reference
        with torch.no_grad():
            plain_logprobs(policy, self.tokens, self.count)
            plain_logprobs(reference, self.tokens, self.count)
        policy_gradient(policy, plain_logprobs(policy, self.tokens, self.count))
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), MAX_GRAD_NORM)
        self.actor.optimizer.step()


def against_floor(policy: Policy, num_prompts: int, width: int, length: int, repeats: int) -> Row:
    """Time against the passes that no step can do without."""
    step = Step(policy, num_prompts, width, length)
    whole_s, floor_s = paired(step.whole, step.floor, repeats)
    return Row(
        name="step_floor",
        what=f"whole step (rollout, reference, update), P {num_prompts}, G {width}, "
        f"prompt {length}",
        against="the floor: two forwards and one forward + backward over the distinct tokens; "
        "optimizer step on both sides",
        value=whole_s / floor_s,
        bar=1.3,
        at_least=False,
        details=f"Recast {whole_s:.3f} s, floor {floor_s:.3f} s, {repeats} repeats, "
        f"{step.tokens.shape[1] - 1} distinct tokens per prompt",
    )


def wide_against_narrow(
    policy: Policy, num_prompts: int, wide: int, narrow: int, length: int, repeats: int
) -> list[Row]:
    """What search width costs."""
    large, small = (Step(policy, num_prompts, width, length) for width in (wide, narrow))
    large_s, small_s = paired(large.whole, small.whole, repeats)
    what = f"whole step, P {num_prompts}, G {wide}, prompt {length}: "
    return [
        Row(
            name="step_width_time",
            what=what + "time",
            against=f"itself at G {narrow}",
            value=large_s / small_s,
            bar=1.35,
            at_least=False,
            details=f"G {wide} {large_s:.3f} s, G {narrow} {small_s:.3f} s, {repeats} repeats",
        ),
        memory_row("step_width_memory", what, f"itself at G {narrow}", large, small, 1.3),
    ]


def memory_row(name: str, what: str, against: str, large: Step, small: Step, bar: float) -> Row:
    large_bytes, small_bytes = _peak(large.whole), _peak(small.whole)
    return Row(
        name=name,
        what=what + "peak memory",
        against=against,
        value=large_bytes / small_bytes,
        bar=bar,
        at_least=False,
        details=f"{large_bytes / 1e6:.0f} MB against {small_bytes / 1e6:.0f} MB above model and "
        f"optimizer, prompts of {large.length:,} and {small.length:,} tokens",
    )


def _peak(work: Callable[[], None]) -> int:
    work()
    return peak_bytes(work)


def run(smoke: bool) -> list[Row]:
    """Prompt 1024 with P 4, and P 2 where memory is compared at long prompts."""
    num_prompts, width, wide, narrow, length, long, repeats = (
        (2, 4, 8, 4, 16, 32, 1) if smoke else (4, 32, 128, 16, 1024, 4096, 11)
    )
    policy = tiny_policy(random_catalog(60, 8) if smoke else random_catalog(100_000, 256))
    return [
        against_floor(policy, num_prompts, width, length, repeats),
        *wide_against_narrow(policy, num_prompts, wide, narrow, length, repeats),
        memory_row(
            "step_length_memory",
            f"whole step, P 2, G {width}, prompt {2 * long}: ",
            f"itself at prompt {long}",
            Step(policy, 2, width, 2 * long),
            Step(policy, 2, width, long),
            2.2,
        ),
    ]


if __name__ == "__main__":
    main(run)
