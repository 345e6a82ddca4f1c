"""Rendered prompts of unequal lengths with 1 to 5 targets: packed, and as supervised training reads
them, against plain transformers on one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import small_chat
import tiny
import torch
from small_rows import small_rows

from recast.policy.logprobs import branch_logprobs
from recast.policy.tasks import make_task
from recast.train.sequences import learn

TARGETS = [[1], [3, 2], [4, 5, 6, 7, 0]]
KINDS = ("qwen3", "qwen2", "llama", "gemma3", "t5")


@pytest.mark.parametrize("name", KINDS)
def test_packed_prompts_and_their_sequences_equal_naive_copies(name: str) -> None:
    policy = small_chat.chat_policy(name)
    spelled = "".join(policy.catalog.spell(torch.arange(8)))
    prompts = [small_chat.messages("Next?"), None, small_chat.messages(spelled, "Yes.", "And now?")]
    rows = small_rows(
        TARGETS, prompts=prompts, history=[[], [5, 1, 0], []], num_items=8, is_chat=True
    )
    task, ids = make_task(rows, policy), torch.arange(3)
    made = task.prompts(ids)
    assert len(set(made.lengths.tolist())) == 3
    packed = branch_logprobs(policy, made, made.targets, "full", made.target_mask).detach()
    model = tiny.twin(policy.model)
    with torch.no_grad():
        for row, targets in enumerate(TARGETS):
            for place in range(len(targets)):
                branch = made.targets[row, place].tolist()
                expected = naive.branch_logprobs(model, made, row, branch)
                torch.testing.assert_close(packed[row, place], expected, atol=1e-5, rtol=0)

    sequences = task.sequences(ids, 0)
    tokens, mask = sequences.batch(ids)
    found, total = [], 0.0
    with torch.no_grad():
        for read, counts in zip(tokens.tolist(), mask, strict=True):
            begin, length = int(counts.nonzero()[0]), int(counts.nonzero()[-1]) + 1
            logits = naive.next_logits(model, read[: length - 1], length - begin)
            scores = logits.log_softmax(-1).gather(1, torch.tensor(read[begin:length])[:, None])
            scores = scores[counts[begin:length], 0]
            total += float(scores.sum())
            found.append(scores[:3])
    # The first target of an answer is the branch that RL reads.
    firsts = packed[:, 0].tolist()
    for scores in found:
        gaps = [
            max(abs(a - b) for a, b in zip(scores.tolist(), first, strict=True)) for first in firsts
        ]
        assert min(gaps) < 1e-5
    learned = learn(
        replace(policy, logprob_space="full"),
        tokens,
        mask,
        dropout=0.0,
        precision="float32",
        pass_tokens=64,
        micro_batch_tokens=150,
    )
    # 1, 2 and 5 items of 3 codes and an end, 0, 1 and 4 begins, and the ends of the turn.
    assert int(mask.sum()) == 8 * 4 + 5 + 3
    assert float(learned.loss) == pytest.approx(-total / int(mask.sum()), abs=1e-5)
