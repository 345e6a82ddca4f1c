"""TRL's GRPOTrainer with both known overrides, as its users write them by hand.

`rollout_func` searches beams over the trie for the distinct prompts and hands each row one of them;
the log-probability method sends every distinct prompt once, with its completions as branches, and
the output layer sees every distinct beginning of a completion once. Only the beam search, the
packing and the attention are Recast's; its adapter for TRL is not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer as StockTrainer

from benchmarks.harness import stock_attention
from recast.items.catalog import Catalog
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy
from recast.policy.packed import pack, packed_forward
from recast.policy.prompts import make_prompts
from recast.rollout.beam import beam_search


class OverriddenTrainer(StockTrainer):
    """A micro batch is a whole generation batch: all groups, their rows shuffled by TRL."""

    def __init__(self, *, catalog: Catalog, **given: Any) -> None:
        super().__init__(rollout_func=self._beams, **given)
        self._catalog = catalog
        for model in (self.model, self.ref_model):
            model.set_attn_implementation(ATTENTION)

    def _beams(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        distinct = list(dict.fromkeys(prompts))
        ids = self.processing_class(distinct)["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        tokens = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in ids])
        none = torch.empty(len(ids), 0, dtype=torch.long)
        batch = make_prompts(self._catalog, text=(tokens, lengths), targets=none)
        policy = Policy(model=self.model, catalog=self._catalog, window=1)
        found = beam_search(policy, batch, len(prompts) // len(ids)).tokens.tolist()
        left = {text: iter(beams) for text, beams in zip(distinct, found, strict=True)}
        own = dict(zip(distinct, ids, strict=True))
        return {
            "prompt_ids": [own[text] for text in prompts],
            "completion_ids": [next(left[text]) for text in prompts],
            "logprobs": None,
        }

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        width = input_ids.shape[1] - logits_to_keep
        prompts, owners = input_ids[:, :width].unique(dim=0, return_inverse=True)
        order = owners.argsort()
        back = order.argsort()
        lengths = attention_mask[order[:: len(order) // len(prompts)], :width].sum(1)
        columns = torch.arange(width) + (width - lengths)[:, None]  # from the left to the right
        prompts = prompts.gather(1, columns.clamp(max=width - 1))
        branches = input_ids[order, width:].view(len(prompts), -1, logits_to_keep)
        packed = pack(prompts, lengths, branches)
        logits = model.lm_head(packed_forward(model, packed))
        total = logits.logsumexp(-1)
        row, node = torch.arange(len(prompts))[:, None, None], packed.places
        logps = (logits[row, node, branches] - total[row, node]).flatten(0, 1)[back]
        if not compute_entropy:
            return logps, None, None
        with torch.no_grad():  # TRL logs it
            entropies = total - (logits.softmax(-1) * logits).sum(-1)
        return logps, entropies[row, node].flatten(0, 1)[back], None


def check(trainer: OverriddenTrainer, num_prompts: int) -> None:
    """The method against stock TRL's on the last batch: values, entropies and a gradient."""
    batch = trainer._buffered_inputs[0]
    _, owners = batch["prompt_ids"].unique(dim=0, return_inverse=True)
    rows = owners < num_prompts
    ids, mask = (
        torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], dim=1)[rows]
        for x in ("ids", "mask")
    )
    weight = torch.sin(torch.arange(3.0 * len(ids))).view(-1, 3)
    model, found = trainer.model, []

    def measure(kind: Any) -> None:
        model.zero_grad()
        method = kind._get_per_token_logps_and_entropies
        logps, entropies, _ = method(trainer, model, ids, mask, 3, compute_entropy=True)
        (logps * weight).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((logps.detach(), entropies.detach(), gradient / gradient.norm()))

    measure(OverriddenTrainer)
    with stock_attention(model):
        measure(StockTrainer)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    model.zero_grad()
