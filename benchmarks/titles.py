"""Items that write titles: beam search against `generate`, the update of the full group against a
copy of the prompt per rollout.

Titles are made up: their lengths and how early they part are about those of Amazon Office in the
tokens of SmolLM2 (29 tokens on average, 3.6 decisions). RECAST_TITLES_MODEL names the folder of a
language model to measure in place of a tiny one.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.harness import Row, main, paired, peak_bytes, stock_attention, tiny_qwen3
from benchmarks.rollout import prefixes_of
from benchmarks.update import policy_gradient
from recast.items.catalog import Catalog, build_token_catalog
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.prompts import make_prompts
from recast.policy.weights import load_model
from recast.rollout.beam import beam_search
from recast.types import Prompts, RolloutGroups

MODEL = os.environ.get("RECAST_TITLES_MODEL")
END = 2
WIDTH = 16


def title_catalog(num_items: int, vocab_size: int) -> Catalog:
    """Titles of 4 to 60 tokens; three of four go on from the beginning of an earlier one."""
    draw = torch.Generator().manual_seed(0)
    rows: list[list[int]] = []
    while len(rows) < num_items:
        size = int(torch.randint(4, 60, (), generator=draw))
        row = torch.randint(3, vocab_size, (size,), generator=draw).tolist()
        if rows and float(torch.rand((), generator=draw)) < 0.75:
            other = rows[int(torch.randint(len(rows), (), generator=draw))][:-1]
            kept = 1 + int(torch.randint(min(len(other), 8), (), generator=draw))
            row = other[:kept] + row[: max(size - kept, 1)]
        rows.append([*row, END])
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(num_items, int(lengths.max()), dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return build_token_catalog(tokens, lengths)


def text_prompts(catalog: Catalog, length: int, num_prompts: int, vocab_size: int) -> Prompts:
    """Random text of these lengths, no target."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, vocab_size, (num_prompts, length), generator=draw)
    lengths = torch.full((num_prompts,), length)
    nothing = torch.empty(num_prompts, 0, dtype=torch.long)
    return make_prompts(catalog, text=(tokens, lengths), targets=nothing)


def transformers_beams(
    policy: Policy, prompts: Prompts, prefixes: dict[tuple[int, ...], list[int]]
) -> list[list[list[int]]]:
    """What `generate` finds under the same constraint, prompt by prompt."""
    length, found = prompts.tokens.shape[1], []
    with stock_attention(policy.model):
        for tokens in prompts.tokens:
            made = policy.model.generate(
                tokens[None],
                attention_mask=torch.ones_like(tokens[None]),
                prefix_allowed_tokens_fn=lambda _, x: prefixes.get(
                    tuple(x[length:].tolist()), [END]
                ),
                num_beams=WIDTH,
                num_return_sequences=WIDTH,
                max_new_tokens=policy.catalog.max_length,
                length_penalty=0.0,
                do_sample=False,
                eos_token_id=END,
                pad_token_id=0,
            )
            rows = made[:, length:].tolist()
            found.append([row[: row.index(END) + 1] for row in rows])
    return found


def naive_logprobs(
    policy: Policy, prompts: Prompts, groups: RolloutGroups
) -> Float[Tensor, "B G L"]:
    """Every rollout behind its own copy of the prompt, logits on the answers alone."""
    branches: Int[Tensor, "B G L"] = groups.tokens
    copies = prompts.tokens.repeat_interleave(branches.shape[1], dim=0)
    width = int(groups.loss_mask.sum(-1).max())
    rows = torch.cat([copies, branches.flatten(0, 1)[:, :width]], dim=1)
    with stock_attention(policy.model):
        logits = policy.model(input_ids=rows[:, :-1], use_cache=False, logits_to_keep=width).logits
    chosen = logits.gather(-1, rows[:, -width:, None])[..., 0] - logits.logsumexp(-1)
    mask = groups.loss_mask[..., :width]
    return chosen.view(*branches.shape[:2], width) * mask


def _update(policy: Policy, catalog: Catalog, length: int, vocab: int, repeats: int) -> Row:
    prompts = text_prompts(catalog, length, 1, vocab)
    with torch.no_grad():
        groups = beam_search(policy, prompts, WIDTH)
    width = int(groups.loss_mask.sum(-1).max())

    def ours() -> None:
        found = branch_logprobs(policy, prompts, groups.tokens, "full", groups.loss_mask)
        policy_gradient(policy, found[..., :width])

    def naive() -> None:
        policy_gradient(policy, naive_logprobs(policy, prompts, groups))

    slow, fast = paired(naive, ours, repeats=repeats)
    return Row(
        name=f"titles_update_{length}",
        what=f"update of the full group, titles, prompt {length}, G {WIDTH}",
        against="a copy of the prompt per rollout, logits on the answers alone",
        value=slow / fast,
        bar=1.7 if length < 100 else 3,
        at_least=True,
        details=f"copies {slow:.2f} s, Recast {fast:.2f} s",
    )


def run(smoke: bool) -> list[Row]:
    """Prompts of 72 and of 163 tokens, 16 titles each."""
    repeats, num_items = (1, 40) if smoke else (3, 3459)
    vocab = 300 if smoke else 49152
    model = load_model(Path(MODEL)).float() if MODEL else tiny_qwen3(vocab, ATTENTION, 64, 2)
    catalog = title_catalog(num_items, min(vocab, model.config.vocab_size))
    policy = Policy(model=model.eval(), catalog=catalog, window=10)
    short, long = (16, 120) if smoke else (72, 163)
    prompts = text_prompts(catalog, short, 1 if smoke else 2, vocab)
    prefixes = prefixes_of(catalog)
    with torch.no_grad():
        groups = beam_search(policy, prompts, WIDTH)
        theirs = transformers_beams(policy, prompts, prefixes)
        for row, expected in enumerate(theirs):
            found = [
                tokens[mask].tolist()
                for tokens, mask in zip(groups.tokens[row], groups.loss_mask[row], strict=True)
            ]
            assert found == expected, "the beams are not those of generate"
        slow, fast = paired(
            lambda: transformers_beams(policy, prompts, prefixes),
            lambda: beam_search(policy, prompts, WIDTH),
            repeats=repeats,
        )
    rows = [
        Row(
            name="titles_rollout",
            what=f"constrained beam rollout, {num_items:,} titles, prompt {short}, G {WIDTH}",
            against="model.generate(num_beams) with prefix_allowed_tokens_fn, the same titles",
            value=slow / fast,
            bar=2.5,
            at_least=True,
            details=f"transformers {slow:.2f} s, Recast {fast:.2f} s",
        )
    ]
    rows += [_update(policy, catalog, length, vocab, repeats) for length in (short, long)]
    lengths, held = [short, 2 * short], []
    for length in lengths:
        few = text_prompts(catalog, length, 1, vocab)
        held.append(peak_bytes(partial(beam_search, policy, few, WIDTH)))
    rows.append(
        Row(
            name="titles_memory",
            what=f"memory of that rollout, prompt {lengths[1]} against {lengths[0]}",
            against="twice, as of memory that is linear in the prompt",
            value=held[1] / held[0],
            bar=2.0,
            at_least=False,
            details=f"{held[0] / 1e6:.0f} MB and {held[1] / 1e6:.0f} MB",
        )
    )
    return rows


if __name__ == "__main__":
    main(run)
