"""What a model can still say, against plain transformers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import small_chat
import torch
from small_chat import messages
from transformers import GenerationConfig

from recast.data.plain_text import PlainRow, PlainText
from recast.evaluation import text
from recast.evaluation.text import QUESTIONS, make_probe, said, text_ability
from recast.policy.load import Policy
from recast.policy.packable import own_attention
from recast.types import RecastError

TEXTS = PlainText("f", [PlainRow(None, "the user watched"), PlainRow(None, "what?")], [])
CHATS = PlainText(
    "f", [PlainRow(messages("Hi?"), "Hello."), PlainRow(messages("A longer question?"), "No")], []
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Whose own settings of generation say all that a greedy answer does not read."""
    policy = small_chat.chat_policy()
    policy.model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, max_length=2, repetition_penalty=9.0, eos_token_id=[1, 2]
    )
    return policy


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_ANSWER", 8)


def alone(policy: Policy, texts: list[str]) -> float:
    """Nats a token by transformers' own loss, row by row."""
    total, count = 0.0, 0
    with own_attention(policy.model), torch.no_grad():
        for line in texts:
            ids = policy.tokenizer(line, return_tensors="pt")["input_ids"]
            loss = policy.model(input_ids=ids, labels=ids).loss
            total += float(loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return total / count


def test_an_encoder_decoder_says_no_text() -> None:
    with pytest.raises(RecastError, match="plain_text is 'f': the policy is an encoder-decoder"):
        make_probe(small_chat.chat_policy("t5"), TEXTS)


def greedy(policy: Policy, tokens: list[int]) -> list[int]:
    """Eight further tokens, one after the other, from the whole sequence each time."""
    with own_attention(policy.model), torch.no_grad():
        for _ in range(8):
            logits = policy.model(input_ids=torch.tensor([tokens])).logits
            tokens = [*tokens, int(logits[0, -1].argmax())]
    return tokens[-8:]


def test_nats_are_those_of_plain_transformers(policy: Policy) -> None:
    found = text_ability(policy, make_probe(policy, TEXTS))
    assert found["text/nats"] == pytest.approx(alone(policy, ["the user watched", "what?"]))
    chats = [
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>",
        "<|im_start|>user\nA longer question?<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>",
    ]
    found = text_ability(policy, make_probe(policy, CHATS))
    assert found["text/nats"] == pytest.approx(alone(policy, chats))


def test_an_answer_is_plain_transformers_and_stops_or_does_not(policy: Policy) -> None:
    probe = make_probe(policy, CHATS)
    assert [policy.tokenizer.decode(asked) for asked in probe.questions] == [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in ("Hi?", "A longer question?")
    ]
    # A token that the model writes within its first ones in one answer, and never in the other.
    written = [greedy(policy, asked) for asked in probe.questions]
    only = sorted(set(written[0]) - set(written[1]))
    assert only
    for ends, stopped in (([only[0]], 0.5), ([written[0][-1], written[1][-1]], 1.0), ([299], 0.0)):
        assert text_ability(policy, replace(probe, ends=ends))["text/stops"] == stopped
    line = said({"text/nats": 2.5, "text/stops": 0.5}, probe, "before")
    assert line == (
        "text before: 2.5000 nats a token on 2 held-out rows of f, "
        "50% of 2 answers stop within 8 tokens"
    )


def test_what_is_cut_is_counted(policy: Policy) -> None:
    rows = [PlainRow(None, "the " * 600), PlainRow(None, "what?")]
    probe = make_probe(policy, PlainText("f", rows, []))
    assert probe.notes == ["f: 1 of 2 held-out rows are cut at 512 tokens"]


def test_measuring_changes_nothing(policy: Policy) -> None:
    before, state = copy.deepcopy(policy.model.state_dict()), torch.get_rng_state()
    probe = make_probe(policy, TEXTS)
    first, again = text_ability(policy, probe), text_ability(policy, probe)
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)
    after = policy.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert policy.model.config._attn_implementation == "recast_packed"


def test_whose_questions_are_asked(policy: Policy) -> None:
    probe = make_probe(policy, TEXTS)
    assert len(probe.questions) == len(QUESTIONS)
    assert policy.tokenizer.decode(probe.questions[0]).count(QUESTIONS[0]) == 1
    bare = replace(policy, tokenizer=small_chat.chat_tokenizer(template=None))
    bare.tokenizer.add_tokens(policy.catalog.names.of(policy.catalog.codebook_sizes))
    assert text_ability(bare, make_probe(bare, TEXTS)).keys() == {"text/nats"}
