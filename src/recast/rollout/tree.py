"""Decoding G branches of every prompt over one copy of the prompt's keys and values.

The prompt is prefilled once per row. Every step adds one query per branch to the *same* row; the
cache is neither expanded nor reordered, a mask tells each query who its ancestors are. The targets
are scored along the way, as further branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from recast.config import LogprobSpace
from recast.policy.load import Policy
from recast.policy.logprobs import target_scores
from recast.policy.packed import Layout, root_layout, split_root
from recast.types import Prompts, RolloutGroups


class TreeDecoder:
    """The prompts' keys and values, and the branches grown on them so far.

    `logits` holds the next-token logits of the newest branches, `[B, N, V]` (N = 1 at the root).
    """

    def __init__(self, policy: Policy, prompts: Prompts, space: LogprobSpace) -> None:
        self._policy, self._prompts, self._space = policy, prompts, space
        # Without a config every layer keeps all keys; the windows are the layout's business.
        self._cache = DynamicCache()
        self.excluded: Int[Tensor, "B S"] = policy.catalog.trie.excluded(prompts.seen)
        prompt, root = split_root(prompts.tokens, prompts.lengths)
        self._layout = root_layout(prompts.lengths, prompt.shape[1], 0, 0)
        columns = torch.arange(prompt.shape[1], device=root.device).expand(len(root), -1)
        self.logits: Float[Tensor, "B N V"] = self._forward(
            torch.cat([prompt, root], dim=1),
            torch.cat([columns, self._layout.query_positions], dim=1),
            keep=1,
        )
        self.target_logprobs: list[Float[Tensor, "B T"]] = [self._score_targets(self.logits, 0)]

    def extend(self, tokens: Int[Tensor, "B N"], parents: Int[Tensor, "B N"]) -> None:
        """Give every branch one more token; `parents` index the branches of the previous call."""
        level = len(self.target_logprobs)
        targets = self._prompts.targets[:, :, level - 1]
        # The targets' branches sit behind the others; at first everybody's parent is the root.
        last = self._layout.query_positions.shape[1]
        behind = torch.arange(targets.shape[1], device=tokens.device) + last - targets.shape[1]
        own = (behind * (level > 1)).expand(len(tokens), -1)
        self._layout = self._grown(torch.cat([parents, own], dim=1))
        logits = self._forward(
            torch.cat([tokens, targets], dim=1),
            self._layout.query_positions,
            keep=tokens.shape[1] + targets.shape[1],
        )
        self.logits, target_logits = logits.tensor_split([tokens.shape[1]], dim=1)
        self.target_logprobs.append(self._score_targets(target_logits, level))

    def _grown(self, parents: Int[Tensor, "B N"]) -> Layout:
        old, num_new = self._layout, parents.shape[1]
        ancestors = old.mask.gather(
            2, parents[:, None, :, None].expand(-1, -1, -1, old.mask.shape[3])
        )
        itself = torch.eye(num_new, dtype=torch.bool, device=parents.device)
        positions = old.query_positions[:, :1].expand(-1, num_new) + 1
        return Layout(
            prompt_width=0,
            mask=torch.cat([ancestors, itself.expand(len(parents), 1, -1, -1)], dim=-1),
            query_positions=positions,
            key_positions=torch.cat([old.key_positions, positions], dim=1),
        )

    def _forward(self, tokens: Tensor, positions: Tensor, keep: int) -> Tensor:
        return self._policy.model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            layout=self._layout,
            logits_to_keep=keep,
        ).logits

    def _score_targets(self, logits: Tensor, level: int) -> Float[Tensor, "B T"]:
        return target_scores(
            logits,
            self._prompts.targets,
            self.excluded,
            level=level,
            space=self._space,
            catalog=self._policy.catalog,
        )

    def finish(
        self,
        group_size: int,
        *,
        tokens: Int[Tensor, "B N L"],
        logprobs: Float[Tensor, "B N L"],
        alive: Bool[Tensor, "B N"],
        seed: int,
        step: int,
        policy_version: int,
    ) -> RolloutGroups:
        """N <= `group_size` branches as a group; what does not exist is padded and masked out."""
        missing = group_size - tokens.shape[1]
        alive = F.pad(alive, (0, missing))
        dead = ~alive[..., None]
        catalog = self._policy.catalog
        tokens = F.pad(tokens, (0, 0, 0, missing)).masked_fill(dead, catalog.pad_token)
        return RolloutGroups(
            prompts=self._prompts,
            tokens=tokens,
            items=catalog.items_of(tokens).masked_fill(~alive, -1),
            rollout_logprobs=F.pad(logprobs, (0, 0, 0, missing)).masked_fill(dead, 0.0),
            target_logprobs=torch.stack(self.target_logprobs, dim=-1),
            loss_mask=alive[..., None].expand(tokens.shape).clone(),
            policy_version=policy_version,
            seed=seed,
            step=step,
        )
