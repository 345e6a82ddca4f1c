"""Decoding G branches of every prompt over one copy of the prompt's keys and values.

The prompt is prefilled once per row. Every step adds one query per distinct branch to the *same*
row; the cache is neither expanded nor reordered, a mask tells each query who its ancestors are. The
targets are scored along the way, as further branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from recast.policy.load import Policy
from recast.policy.logprobs import branch_scores
from recast.policy.packed import grow, merge, root_layout, split_root
from recast.types import Draw, LogprobSpace, Prompts, RolloutGroups


class TreeDecoder:
    """The prompts' keys and values, and the branches grown on them so far.

    `hidden` holds the last hidden states of the newest branches, `[B, N, W]` (N = 1 at the root).
    """

    def __init__(self, policy: Policy, prompts: Prompts, space: LogprobSpace) -> None:
        self.policy, self.prompts, self.space = policy, prompts, space
        # Without a config every layer keeps all keys; the windows are the layout's business.
        self._cache = DynamicCache()
        self.excluded: Int[Tensor, "B S"] = policy.catalog.trie.excluded(prompts.seen)
        prompt, root = split_root(prompts.tokens, prompts.lengths)
        self._layout = root_layout(prompts.lengths, prompt.shape[1])
        self._paths = policy.catalog.path_of(prompts.targets)
        # The query of every branch, those of the targets last.
        self._nodes = root.new_zeros(len(root), 1 + prompts.targets.shape[1])
        columns = torch.arange(prompt.shape[1], device=root.device).expand(len(root), -1)
        self.hidden: Float[Tensor, "B N W"] = self._forward(
            torch.cat([prompt, root], dim=1),
            torch.cat([columns, self._layout.query_positions], dim=1),
        )[:, -1:]
        self.target_logprobs: list[Float[Tensor, "B T"]] = [self._score_targets(self.hidden, 0)]

    def extend(
        self,
        tokens: Int[Tensor, "B N"],
        parents: Int[Tensor, "B N"],
        nodes: Int[Tensor, "B N"],
    ) -> None:
        """Give every branch one more token, which leads to these nodes of the trie (-1 = dead).

        `parents` index the branches of the previous call.
        """
        level, num_targets = len(self.target_logprobs), self.prompts.targets.shape[1]
        targets = self.prompts.targets[:, :, level - 1]
        of_targets = self._nodes[:, self._nodes.shape[1] - num_targets :]
        own = torch.cat([self._nodes.gather(1, parents), of_targets], dim=1)
        tokens = torch.cat([tokens, targets], dim=1)
        if self.space == "trie":
            nodes = torch.cat([nodes, self._paths[:, :, level]], dim=1)
            tokens = self.policy.catalog.without_forced(tokens, nodes, level)
        self._nodes, above, found = merge(own, tokens)
        self._layout = grow(self._layout, above)
        hidden = self._forward(found, self._layout.query_positions)
        index = self._nodes[..., None].expand(-1, -1, hidden.shape[2])
        every = hidden.gather(1, index)
        self.hidden, at_targets = every.tensor_split([every.shape[1] - num_targets], dim=1)
        self.target_logprobs.append(self._score_targets(at_targets, level))

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        outputs = self.policy.model.base_model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            layout=self._layout,
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def _score_targets(self, hidden: Tensor, level: int) -> Float[Tensor, "B T"]:
        targets = self.prompts.targets
        return branch_scores(
            self.policy, hidden, targets, self.excluded, level=level, space=self.space
        )

    def finish(
        self,
        group_size: int,
        draw: Draw,
        *,
        tokens: Int[Tensor, "B N L"],
        logprobs: Float[Tensor, "B N L"],
        alive: Bool[Tensor, "B N"],
    ) -> RolloutGroups:
        """N <= `group_size` branches as a group; what does not exist is padded and masked out."""
        missing = group_size - tokens.shape[1]
        alive = F.pad(alive, (0, missing))
        dead = ~alive[..., None]
        catalog = self.policy.catalog
        tokens = F.pad(tokens, (0, 0, 0, missing)).masked_fill(dead, catalog.pad_token)
        return RolloutGroups(
            prompts=self.prompts,
            tokens=tokens,
            items=catalog.items_of(tokens).masked_fill(~alive, -1),
            rollout_logprobs=F.pad(logprobs, (0, 0, 0, missing)).masked_fill(dead, 0.0),
            target_logprobs=torch.stack(self.target_logprobs, dim=-1),
            loss_mask=alive[..., None].expand(tokens.shape).clone(),
            seed=draw.seed,
            step=draw.step,
        )


def grow_paths(
    paths: Float[Tensor, "*n N depth"] | Int[Tensor, "*n N depth"],
    parents: Int[Tensor, "*n M"],
    new: Float[Tensor, "*n M"] | Int[Tensor, "*n M"],
) -> Tensor:
    """The paths of these parents, each with one more entry at its end.

    >>> grow_paths(torch.tensor([[[1], [2]]]), torch.tensor([[1, 1]]), torch.tensor([[7, 8]]))
    tensor([[[2, 7],
             [2, 8]]])
    """
    index = parents[..., None].expand(*parents.shape, paths.shape[-1])
    return torch.cat([paths.gather(-2, index), new[..., None]], dim=-1)
