"""GRPO and ReCast from prompts to update in plain torch and transformers, no Recast in it.

The whole algorithm without the library's fast paths: every rollout carries its own copy of the
prompt and calls the model for each token. A test holds its gradient against the library's:

    roll_out, logprobs   src/recast/rollout/sample.py, src/recast/policy/logprobs.py
    each prompt once     src/recast/rollout/tree.py, src/recast/policy/packed.py
    reward, its scores   src/recast/rewards/hit.py, src/recast/rewards/scores.py
    grpo, recast         src/recast/signals/grpo.py, src/recast/signals/recast.py
    objective            src/recast/losses/ppo_clip.py, src/recast/losses/kl.py
    step, train          src/recast/train/actor.py, src/recast/rl.py

`python examples/plain_loop.py` trains both methods in a few seconds, on six prompts that come back
at every step: it shows that the loop learns, not which method recommends better.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, Qwen3Config

BOS, CODES, LEVELS = 1, 4, 3  # token 0 pads, level l has the tokens 2 + 4 l to 5 + 4 l
GROUP_SIZE, LR, KL_COEF, CLIP, MAX_GRAD_NORM = 8, 3e-3, 0.001, (1 - 0.2, 1 + 0.28), 1.0


class Group(NamedTuple):  # G rollouts of one prompt and what they weigh in the update
    prompt: list[int]
    tokens: Tensor  # [G, L]
    advantages: Tensor  # [G], the same for all tokens of a rollout
    keep: Tensor  # [G], False = in no sum and in no denominator


@torch.no_grad()
def roll_out(model: nn.Module, items: list[list[int]], prompt: list[int], size: int) -> Tensor:
    """G independent draws among `items`, most probable first: ReCast's ties depend on it."""
    rollouts = []
    for _ in range(size):
        path: list[int] = []
        for level in range(len(items[0])):
            # The constraint: only tokens that lead to an item, renormalised over them.
            allowed = sorted({item[level] for item in items if item[:level] == path})
            logits = model(input_ids=torch.tensor([prompt + path])).logits[0, -1, allowed]
            path.append(allowed[int(torch.multinomial(logits.softmax(0), 1))])
        rollouts.append(path)
    tokens = torch.tensor(rollouts)
    return tokens[logprobs(model, prompt, tokens).sum(1).argsort(descending=True, stable=True)]


def logprobs(model: nn.Module, prompt: list[int], tokens: Tensor) -> Tensor:
    """Log-probability of every token, [G, L], over the whole vocabulary as in SFT."""
    rows = torch.cat([torch.tensor(prompt).expand(len(tokens), -1), tokens], dim=1)
    logits = model(input_ids=rows[:, :-1]).logits[:, len(prompt) - 1 :]
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def reward(tokens: Tensor, target: Tensor) -> Tensor:
    """1 for a rollout that is the target."""
    return (tokens == target).all(1).float()


def grpo(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """Rewards of 0 and 1 standardised in their group, exactly 0 where all are equal."""
    return (rewards - rewards.mean()) / (rewards.std() + eps)


def structural_score(tokens: Tensor, target: Tensor) -> Tensor:
    """10^-(levels after the common prefix), 0 where the first level differs."""
    prefix = (tokens == target).int().cumprod(1).sum(1)
    return torch.where(prefix > 0, 10.0 ** (prefix - tokens.shape[1]), 0.0)


def recast(tokens: Tensor, target: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Repair a group without a hit, then contrast its boundary: tokens, advantages, keep."""
    if not (rewards > 0).any():
        # GRPO learns nothing here, so the target takes the place of the worst row: of the lowest
        # scores the last, which is the least probable (argmin finds the first, hence the flip).
        worst = len(tokens) - 1 - structural_score(tokens, target).flip(0).argmin()
        is_worst = torch.arange(len(tokens)) == worst
        tokens, rewards = torch.where(is_worst[:, None], target, tokens), is_worst.to(rewards)
    # The pair is the first hit and the miss that shares most with the target. argmax takes the
    # first of equals, so a rollout that repeats an earlier one is passed over.
    misses, advantages = rewards <= 0, torch.zeros_like(rewards)
    if misses.any():  # a group of hits alone has no boundary
        scores = structural_score(tokens, target)
        advantages[rewards.argmax()] = 1.0
        advantages[scores.masked_fill(~misses, -torch.inf).argmax()] = -1.0
    return tokens, advantages, advantages != 0


def objective(model: nn.Module, reference: nn.Module, groups: list[Group]) -> Tensor:
    """PPO-clip and the KL to the reference, one mean over the kept tokens of all groups."""
    total, count = torch.zeros(()), 0
    for prompt, tokens, advantages, keep in groups:
        new, advantage = logprobs(model, prompt, tokens), advantages[:, None]
        # The old policy is this one: the ratio is 1, its gradient is not 0, and no bound acts.
        ratio = (new - new.detach()).exp()
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(*CLIP))
        gap = (logprobs(reference, prompt, tokens) - new).clamp(-20, 20)
        k3 = (gap.exp() - gap - 1).clamp(-10, 10)  # estimates the KL, never negative
        total = total + (loss + KL_COEF * k3)[keep].sum()
        count += int(keep.sum()) * tokens.shape[1]
    return total / max(count, 1)


def step(model: nn.Module, reference: nn.Module, optimizer: AdamW, groups: list[Group]) -> float:
    """One optimizer step, unless nothing is kept: momentum alone would move the weights."""
    loss = objective(model, reference, groups)
    if any(group.keep.any() for group in groups):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
    return loss.item()


def train(method: str, steps: int = 12) -> None:
    """A random catalogue and model, the same for both methods; prints a line per step."""
    torch.manual_seed(0)
    codes = torch.cartesian_prod(*[torch.arange(CODES)] * LEVELS)[torch.randperm(CODES**LEVELS)]
    items = (codes + 2 + CODES * torch.arange(LEVELS))[:40].tolist()
    prompts = [[BOS, *items[i], *items[i + 1]] for i in range(6)]  # a history of two items each
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2 + CODES * LEVELS}
    config = Qwen3Config(**sizes, bos_token_id=BOS, pad_token_id=0, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    reference = deepcopy(model).requires_grad_(False)
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for number in range(1, steps + 1):
        groups, hits = [], []
        for prompt, target in zip(prompts, torch.tensor(items[-6:]), strict=True):
            tokens = roll_out(model, items, prompt, GROUP_SIZE)
            hits.append(reward(tokens, target))
            advantages, keep = grpo(hits[-1]), torch.ones(GROUP_SIZE, dtype=torch.bool)
            if method == "recast":
                tokens, advantages, keep = recast(tokens, target, hits[-1])
            groups.append(Group(prompt, tokens, advantages, keep))
        all_zero = sum(not rewards.any() for rewards in hits) / len(hits)
        trainable = sum(bool(group.advantages.any()) for group in groups) / len(groups)
        print(f"{method:6}{number:3}  all-zero {all_zero:.2f}  trainable {trainable:.2f}", end="  ")
        # At ratio 1 the advantages of a group cancel: what is left of the loss is its KL.
        loss = step(model, reference, optimizer, groups)
        print(f"reward {torch.stack(hits).mean():.3f}  loss {loss:z.6f}")


if __name__ == "__main__":
    train("grpo")
    train("recast")
