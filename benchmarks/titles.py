"""Items that write titles: beam search against `generate`, the update of the full group against a
copy of the prompt per rollout, what both sides' numbers are worth, memory by the prompt.

The model has the shape of SmolLM2-135M and random weights. Titles are made up: their lengths and
how early they part are about those of Amazon Office in the tokens of SmolLM2 (29 tokens on average,
3.6 decisions). RECAST_TITLES_POLICY names the folder of a policy whose items are titles, to measure
in place of both.
"""

from __future__ import annotations

import os
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.harness import Row, main, paired, peak_bytes, stock_attention, tiny_qwen3
from benchmarks.rollout import Prefixes, prefixes_of
from benchmarks.update import gradient, policy_gradient
from recast.items.catalog import Catalog, build_token_catalog
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy, load_policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.prompts import make_prompts
from recast.rollout.beam import beam_search
from recast.types import Prompts, RolloutGroups

POLICY = os.environ.get("RECAST_TITLES_POLICY")
END = 2
WIDTH = 16
Scored = list[tuple[list[int], float]]


def smollm2() -> PreTrainedModel:
    """Random weights in the shape of SmolLM2-135M, so large that a beam search finds no ties."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        initializer_range=0.04,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()


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


def text_prompts(catalog: Catalog, length: int) -> Prompts:
    """One prompt of random text, no target."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, catalog.vocab_size, (1, length), generator=draw)
    nothing = torch.empty(1, 0, dtype=torch.long)
    return make_prompts(catalog, text=(tokens, torch.tensor([length])), targets=nothing)


def transformers_beams(policy: Policy, prompts: Prompts, prefixes: Prefixes) -> Scored:
    """What `generate` finds for one prompt under the same constraint, and its scores."""
    [tokens], end = prompts.tokens, policy.catalog.end_token
    length = len(tokens)
    with stock_attention(policy.model):
        made = policy.model.generate(
            tokens[None],
            attention_mask=torch.ones_like(tokens[None]),
            prefix_allowed_tokens_fn=lambda _, x: prefixes.get(tuple(x[length:].tolist()), [end]),
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            max_new_tokens=policy.catalog.max_length,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=policy.catalog.pad_token,
            return_dict_in_generate=True,
            output_scores=True,
        )
    rows = [row[: row.index(end) + 1] for row in made.sequences[:, length:].tolist()]
    return list(zip(rows, made.sequences_scores.tolist(), strict=True))


def our_beams(policy: Policy, prompts: Prompts) -> Scored:
    """The same of Recast's search."""
    groups = beam_search(policy, prompts, WIDTH)
    rows = zip(groups.tokens[0], groups.loss_mask[0], strict=True)
    scores = groups.rollout_logprobs[0].sum(-1).tolist()
    return list(zip([tokens[mask].tolist() for tokens, mask in rows], scores, strict=True))


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


def _rollout(policy: Policy, length: int, repeats: int) -> list[Row]:
    """Time, and how far the scores of both are from float64: its `generate` is the judge."""
    prompts, prefixes = text_prompts(policy.catalog, length), prefixes_of(policy.catalog)
    with torch.no_grad():
        ours, theirs = our_beams(policy, prompts), transformers_beams(policy, prompts, prefixes)
        double = Policy(model=deepcopy(policy.model).double(), catalog=policy.catalog, window=10)
        exact = transformers_beams(double, prompts, prefixes)
        off, theirs_off = (
            max(abs(score - right) for (_, score), (_, right) in zip(some, exact, strict=True))
            for some in (ours, theirs)
        )
        for some in (ours, theirs):
            assert [row for row, _ in some] == [row for row, _ in exact], "not the same titles"
        slow, fast = paired(
            lambda: transformers_beams(policy, prompts, prefixes),
            lambda: our_beams(policy, prompts),
            repeats=repeats,
        )
    what = f"constrained beam rollout, {policy.catalog.num_items:,} titles, prompt {length}, "
    what += f"G {WIDTH}"
    against = "model.generate(num_beams) with prefix_allowed_tokens_fn, the same titles in order"
    return [
        Row(
            name="titles_rollout",
            what=f"{what}, {_shape(policy)}",
            against=against,
            value=slow / fast,
            bar=2.5,
            at_least=True,
            details=f"transformers {slow:.2f} s, Recast {fast:.2f} s, {repeats} repeats",
        ),
        Row(
            name="titles_scores",
            what=f"{what}: largest error of a title's score in float32",
            against="the same generate in float64",
            value=off,
            bar=2e-4,
            at_least=False,
            unit="nats",
            details=f"generate in float32 {theirs_off:.1e}; scores {exact[0][1]:.1f} to "
            f"{exact[-1][1]:.1f}",
        ),
    ]


def _update(policy: Policy, length: int, bar: float, repeats: int) -> Row:
    prompts = text_prompts(policy.catalog, length)
    groups = beam_search(policy, prompts, WIDTH)
    width = int(groups.loss_mask.sum(-1).max())

    def ours() -> None:
        found = branch_logprobs(policy, prompts, groups.tokens, "full", groups.loss_mask)
        policy_gradient(policy, found[..., :width])

    def naive() -> None:
        policy_gradient(policy, naive_logprobs(policy, prompts, groups))

    naive()
    wanted = gradient(policy)
    ours()
    error = float((gradient(policy) - wanted).norm() / wanted.norm())
    assert error < 5e-5, f"the gradients differ by {error:.1e}"
    slow, fast = paired(naive, ours, repeats=repeats)
    return Row(
        name=f"titles_update_{length}",
        what=f"update of the full group, titles, prompt {length}, G {WIDTH}, {_shape(policy)}",
        against="a copy of the prompt per rollout, logits on the answers alone",
        value=slow / fast,
        bar=bar,
        at_least=True,
        details=f"copies {slow:.2f} s, Recast {fast:.2f} s, {repeats} repeats; gradients agree to "
        f"{error:.0e}",
    )


def _memory(policy: Policy, lengths: tuple[int, int, int]) -> Row:
    """What the update of a group takes for every token of its prompt, early and late."""
    items = torch.arange(WIDTH) * (policy.catalog.num_items // WIDTH)
    tokens, mask = policy.catalog.tokens_of(items)[None], policy.catalog.mask_of(items)[None]

    def held(length: int) -> int:
        prompts = text_prompts(policy.catalog, length)
        policy.model.zero_grad(set_to_none=True)  # what is released later would hide as much
        return peak_bytes(
            lambda: policy_gradient(policy, branch_logprobs(policy, prompts, tokens, "full", mask))
        )

    short, middle, long = map(held, lengths)
    a, b, c = lengths
    sizes = ", ".join(f"{size / 1e6:,.0f}" for size in (short, middle, long))
    return Row(
        name="titles_memory",
        what=f"memory of that update: from prompt {b} to {c}, a token",
        against=f"from {a} to {b}, a token; 1 is linear in the prompt",
        value=(long - middle) / (c - b) / ((middle - short) / (b - a)),
        bar=1.1,
        at_least=False,
        details=f"{sizes} MB above the model at prompts of {a}, {b} and {c}",
    )


def _shape(policy: Policy) -> str:
    config = policy.model.config
    return f"{config.model_type} {config.hidden_size} x {config.num_hidden_layers}"


def run(smoke: bool) -> list[Row]:
    """Prompts of 72 and of 163 tokens, 16 titles each."""
    repeats, num_items = (1, 40) if smoke else (3, 3459)
    if POLICY:
        policy = load_policy(POLICY)
    else:
        model = tiny_qwen3(300, ATTENTION, 64, 2) if smoke else smollm2()
        catalog = title_catalog(num_items, model.config.vocab_size)
        policy = Policy(model=model, catalog=catalog, window=10)
    short, long = (16, 120) if smoke else (72, 163)
    return [
        *_rollout(policy, short, repeats),
        _update(policy, short, 1.7, repeats),
        _update(policy, long, 3, repeats),
        _memory(policy, (512, 1024, 2048) if smoke else (128, 256, 512)),
    ]


if __name__ == "__main__":
    main(run)
