"""The slow and obvious computations that the tests hold the fast core against."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from recast.items.catalog import Catalog
from recast.types import Prompts


def next_logits(model: PreTrainedModel, tokens: list[int], count: int) -> Tensor:
    """Logits after the last `count` tokens of one unpadded sequence, `[count, V]`; of them an
    encoder-decoder reads the first behind its prompt, and the others behind its start token."""
    if model.config.is_encoder_decoder:
        end = len(tokens) - count + 1
        written = [model.config.decoder_start_token_id, *tokens[end:]]
        sent = {"input_ids": torch.tensor([tokens[:end]])}
        sent["decoder_input_ids"] = torch.tensor([written])
        return model(**sent, use_cache=False).logits[0]
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -count:]


def branch_logprobs(
    model: PreTrainedModel, prompts: Prompts, row: int, branch: list[int]
) -> Tensor:
    """Log-probabilities `[L]` of one branch after its own copy of the prompt."""
    prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
    logits = next_logits(model, prompt + branch[:-1], len(branch))
    return logits.log_softmax(-1).gather(1, torch.tensor(branch)[:, None])[:, 0]


def allowed_children(catalog: Catalog, seen: list[int], prefix: list[int]) -> list[int]:
    """Tokens that may follow `prefix`: those of items that are not seen."""
    items = [i for i in range(catalog.num_items) if i not in seen]
    rows = [written(catalog, item) for item in items]
    longer = [row for row in rows if len(row) > len(prefix)]
    return sorted({row[len(prefix)] for row in longer if row[: len(prefix)] == prefix})


def written(catalog: Catalog, item: int) -> list[int]:
    """The tokens of an item, without padding."""
    return catalog.tokens[item, : int(catalog.lengths[item])].tolist()


def decisions(catalog: Catalog, item: int) -> list[int]:
    """Its tokens at the places where another item that began alike goes on otherwise; of an item
    that is alone its first one."""
    own, rows = written(catalog, item), [written(catalog, i) for i in range(catalog.num_items)]
    places = [
        token
        for place, token in enumerate(own)
        if len({row[place] for row in rows if len(row) > place and row[:place] == own[:place]}) > 1
    ]
    return places or own[:1]


def item_logprobs(
    model: PreTrainedModel, catalog: Catalog, prompts: Prompts, row: int, space: str
) -> dict[int, list[float]]:
    """Log-probability of every token of every unseen item, normalised over `space`."""
    seen = prompts.seen[row].tolist()
    found = {}
    prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
    for item in set(range(catalog.num_items)) - set(seen):
        tokens = written(catalog, item)
        with torch.no_grad():
            logits = next_logits(model, prompt + tokens[:-1], len(tokens)).double()
        values = []
        for level, token in enumerate(tokens):
            if space == "full":
                over = list(range(logits.shape[-1]))
            elif space == "level":
                over = list(range(*catalog.level_tokens(level)))
            else:
                over = allowed_children(catalog, seen, tokens[:level])
            values.append(float(logits[level, token] - logits[level, over].logsumexp(0)))
        found[item] = values
    return found


def gradients(model: PreTrainedModel, loss: Tensor) -> Tensor:
    """All parameters' gradients of `loss` in one vector."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return flat_gradients(model)


def flat_gradients(model: PreTrainedModel) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone()
            for p in model.parameters()
        ]
    )


def relative_error(found: Tensor, wanted: Tensor) -> float:
    assert wanted.norm() > 0
    return float((found - wanted).norm() / wanted.norm())


def lift_norms(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute RMS norms in the model's own precision; transformers casts them to float32."""

    def llama_norm(self: torch.nn.Module, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x * scale

    def gemma_norm(self: torch.nn.Module, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    names = ("RMSNorm", "T5LayerNorm")
    for kind in {type(m) for m in model.modules() if type(m).__name__.endswith(names)}:
        norm = gemma_norm if kind.__name__.startswith("Gemma") else llama_norm
        monkeypatch.setattr(kind, "forward", norm)


def chi_square_limit(degrees: int) -> float:
    """99.9 % quantile of the chi-square distribution (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + 3.0902 * math.sqrt(part)) ** 3
