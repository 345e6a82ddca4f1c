"""What a language model can still say: held-out plain rows in, nats a token and stopped answers
out.

Nats are over the whole vocabulary, semantic IDs among it, behind every token but the first of a
row, prompts of chats included: what plain transformers gives as the loss of these rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from recast.data.plain_text import PlainText
from recast.policy.alignment import plain_renderer, plain_rows
from recast.policy.body import hidden_states
from recast.policy.encoder_decoder import is_encoder_decoder
from recast.policy.head import vocabulary_scores
from recast.policy.load import Policy
from recast.policy.packable import own_attention
from recast.policy.room import context_of
from recast.policy.sharded import whole_weights
from recast.run.log import RunLog
from recast.types import Metrics, Sequences, require

MOST_ANSWER = 64
"""Tokens within which an answer has to end."""

_MOST_QUESTIONS = 16
_PASS_TOKENS = 4096

QUESTIONS = (
    "What is the capital of France?",
    "How many days has a week?",
    "Name a colour.",
    "What is two plus three?",
    "Who wrote Hamlet?",
    "Which animal barks?",
    "What is the opposite of hot?",
    "Is water wet? Answer with one word.",
)
"""Asked where the plain rows are texts: a sentence answers each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextProbe:
    """What is measured of every policy that starts from the same folder.

    Example, one text of three tokens and a question: `rows` of `lengths=[3]`,
    `questions=[[301, 5, 9]]  ends=[302]`.
    """

    rows: Sequences
    questions: list[list[int]]
    """Prompts of chats; none without a chat template."""
    ends: list[int]
    """The token that ends an answer."""
    file: str
    notes: list[str]
    """Lines on what was cut."""


def make_probe(policy: Policy, plain: PlainText) -> TextProbe:
    """Raises `RecastError` for a policy without a tokenizer, for an encoder-decoder, whose decoder
    writes answers alone, and for rows that it cannot read."""
    remedy = "the policy is an encoder-decoder and writes answers alone, leave it out"
    require(not is_encoder_decoder(policy.model), "plain_text", plain.file, remedy)
    rows, notes = plain_rows(policy, plain.held_out, plain.file, "held-out rows")
    renderer = plain_renderer(policy, plain.file)
    context, questions = context_of(policy.model), list[list[int]]()
    if plain.held_out[0].prompt is not None:
        for place in range(len(rows)):
            one = rows.take(torch.tensor([place], device=rows.lengths.device))
            questions.append(one.tokens[~one.loss_mask].tolist())
    elif renderer.has_template:
        asked = [renderer.question(question, 0) for question in QUESTIONS]
        questions, _ = renderer.tokens(asked, [0] * len(asked), None)
    if context is not None:
        questions = [asked for asked in questions if len(asked) + MOST_ANSWER <= context]
    questions = questions[:_MOST_QUESTIONS] if renderer.end_of_turn else []
    ends = renderer.end_of_turn
    return TextProbe(rows=rows, questions=questions, ends=ends, file=plain.file, notes=notes)


def text_ability(policy: Policy, probe: TextProbe) -> Metrics:
    """`text/nats`, and `text/stops` where there are questions; draws nothing."""
    policy.model.eval()
    metrics = {"text/nats": nats(policy, probe.rows)}
    if probe.questions:
        metrics["text/stops"] = stops_frac(policy, probe.questions, probe.ends)
    return metrics


def tell(
    run: RunLog, policy: Policy, probe: TextProbe | None, *, step: int, stage: str, when: str
) -> Metrics:
    """Measure, log and say it, and before all else what was cut; nothing without a probe."""
    if probe is None:
        return {}
    with whole_weights(policy.model):
        metrics = text_ability(policy, probe)
    run.metrics(step, metrics, stage=stage)
    run.say("\n".join([*(probe.notes if when == "before" else []), said(metrics, probe, when)]))
    return metrics


def said(metrics: Metrics, probe: TextProbe, when: str) -> str:
    """The numbers in a line for the screen."""
    line = f"text {when}: {metrics['text/nats']:.4f} nats a token on {len(probe.rows)} held-out"
    line += f" rows of {probe.file}"
    if probe.questions:
        line += f", {metrics['text/stops']:.0%} of {len(probe.questions)} answers stop"
        line += f" within {MOST_ANSWER} tokens"
    return line


@torch.no_grad()
def nats(policy: Policy, rows: Sequences) -> float:
    """Mean negative log-likelihood of all tokens but the first of each row."""
    total, count = 0.0, 0
    order = rows.lengths.argsort()
    size = max(1, _PASS_TOKENS // int(rows.lengths.max()))
    for index in order.split(size):
        tokens, _ = rows.batch(index)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        inside = place[1:] < rows.lengths[index][:, None]
        positions = place[:-1].expand(len(tokens), -1)
        hidden = hidden_states(policy.model, positions, tokens=tokens[:, :-1])
        labels = tokens[:, 1:][inside][:, None]
        total -= float(vocabulary_scores(policy.model, hidden[inside], labels).cpu().double().sum())
        count += len(labels)
    return total / count


@torch.no_grad()
def stops_frac(policy: Policy, questions: list[list[int]], ends: list[int]) -> float:
    """Share of the greedy answers that end by themselves, in transformers' own generation."""
    model, device = policy.model, policy.catalog.device
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    width = max(map(len, questions))
    tokens = torch.full((len(questions), width), policy.catalog.pad_token)
    for row, question in enumerate(questions):
        tokens[row, width - len(question) :] = torch.tensor(question)
    lengths = torch.tensor([len(question) for question in questions])
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=MOST_ANSWER,
        eos_token_id=ends,
        pad_token_id=policy.catalog.pad_token,
    )
    # Beside settings that it is given transformers reads the model's, and complains of some.
    before, plain.generation_config = plain.generation_config, settings
    try:
        with own_attention(model):
            written: Int[Tensor, "B S"] = plain.generate(
                tokens.to(device), attention_mask=mask.to(device)
            )
    finally:
        plain.generation_config = before
    answers = written[:, width:]
    is_end = torch.isin(answers, torch.tensor(ends, device=device))
    return float(is_end.any(1).double().mean())
