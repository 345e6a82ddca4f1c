"""Thoughts and the beams below them against plain transformers, one copy of everything each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import naive
import pytest
import small_actor
import small_chat
import tiny
import torch
from small_thoughts import opened, prompt_of, prompts_of, thinking, written

from recast.config import PromptConfig
from recast.groups import counted_tokens, join, reorder, select
from recast.losses import KLS
from recast.policy.prompts import make_prompts
from recast.rollout.frame import tags_of
from recast.rollout.think import frame_of, think
from recast.train.actor import update
from recast.types import Draw, RecastError, Signal

LIMIT = 7


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("space", ["full", "trie"])
def test_thoughts_and_what_follows_them(name: str, space: str) -> None:
    """Log-probabilities of thoughts, forced tokens, items and targets are those of plain copies,
    and as many beams as there are items list them all, best first."""
    policy = thinking() if name == "llama" else small_chat.chat_policy(name)
    catalog, plain = policy.catalog, tiny.twin(policy.model)
    prompts = prompts_of(policy)
    draw = Draw(logprob_space=space, seed=3, step=2)
    groups = think(policy, prompts, 16, draw, thoughts=2, max_thought_tokens=LIMIT)
    found, frame = groups.thoughts, frame_of(policy, "\n")
    assert found
    assert frame.forced == [*policy.tokenizer.encode("\n"), 313]
    assert found.of.tolist() == [[0] * 8 + [1] * 8] * 3
    if name == "llama":
        assert 0 < int(found.is_closed.sum()) < 6
    for row in range(3):
        prompt = prompt_of(groups, row)
        for thought in range(2):
            tokens = written(groups, row, thought)
            own = tokens[: int(found.num_written[row, thought])]
            assert tokens == own + frame.forced
            assert len(own) <= LIMIT
            closed = own[-1] == frame.close
            assert bool(found.is_closed[row, thought]) == closed
            assert frame.close not in own[:-1]
            assert closed or len(own) == LIMIT or own[-1] in frame.end
            logits = naive.next_logits(plain, prompt + tokens[:-1], len(tokens))
            each = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
            recorded = found.logprobs[row, thought, : len(tokens)]
            assert (recorded - each).abs().max() <= 1e-5
            assert bool(found.loss_mask[row, thought, : len(tokens)].all())
            assert not bool(found.loss_mask[row, thought, len(tokens) :].any())
            behind = torch.tensor([prompt + tokens])
            copy = replace(
                select(prompts, torch.tensor([row])),
                tokens=behind,
                lengths=torch.tensor([behind.shape[1]]),
            )
            exact = naive.item_logprobs(plain, catalog, copy, 0, space)
            best = sorted(exact, key=lambda item: -sum(exact[item]))
            place = slice(8 * thought, 8 * thought + 8)
            assert groups.items[row, place].tolist() == best + [-1] * (8 - len(best))
            values = torch.tensor([exact[item] for item in best])
            assert (groups.rollout_logprobs[row, place][: len(best)] - values).abs().max() <= 1e-5
            if thought == 0:
                for place, item in enumerate(prompts.target_items[row].tolist()):
                    if item >= 0:
                        value = torch.tensor(exact[item])
                        assert (groups.target_logprobs[row, place] - value).abs().max() <= 1e-5


def test_thoughts_depend_on_their_row_and_number_alone() -> None:
    policy = thinking()
    prompts = prompts_of(policy)
    settings = {"max_thought_tokens": LIMIT}
    whole = think(policy, prompts, 6, Draw(seed=1), thoughts=3, **settings)
    fewer = think(policy, prompts, 2, Draw(seed=1), thoughts=1, **settings)
    assert whole.items[:, :2].equal(fewer.items)
    assert len({tuple(written(whole, 0, thought)) for thought in range(3)}) > 1
    parts = []
    for row in range(3):
        alone = think(
            policy, select(prompts, torch.tensor([row])), 6, Draw(seed=1), thoughts=3, **settings
        )
        assert [written(alone, 0, n) for n in range(3)] == [
            written(whole, row, n) for n in range(3)
        ]
        parts.append(alone)
    joined = join(parts, prompts)
    assert joined.thoughts
    assert whole.thoughts
    assert joined.thoughts.tokens.equal(whole.thoughts.tokens)
    assert counted_tokens(joined).equal(counted_tokens(whole))
    other = think(policy, prompts, 6, Draw(seed=1, step=1), thoughts=3, **settings)
    assert written(other, 0, 0) + written(other, 1, 0) != written(whole, 0, 0) + written(
        whole, 1, 0
    )


def test_a_thought_is_drawn_over_what_the_tokenizer_knows() -> None:
    """First tokens against the softmax of plain transformers, cut to the ten most probable."""
    policy = thinking()
    prompts = select(prompts_of(policy), torch.tensor([0]))
    counts: Counter[int] = Counter()
    for step in range(20):
        groups = think(
            policy, prompts, 60, Draw(step=step), thoughts=60, max_thought_tokens=1, top_k=10
        )
        assert groups.thoughts
        counts.update(groups.thoughts.tokens[0, :, 0].tolist())
    logits = naive.next_logits(tiny.twin(policy.model), prompt_of(groups, 0), 1)[0]
    values, tokens = logits[: len(policy.tokenizer)].topk(10)
    expected = dict(zip(tokens.tolist(), (1200 * values.softmax(0)).tolist(), strict=True))
    assert set(counts) <= set(expected)
    large = {token: e for token, e in expected.items() if e >= 5}
    assert len(large) > 1
    statistic = sum((counts[token] - e) ** 2 / e for token, e in large.items())
    assert statistic < naive.chi_square_limit(len(large) - 1)


@pytest.mark.parametrize("loss_over", ["all", "written", "item"])
def test_the_gradient_is_that_of_naive_copies(loss_over: str) -> None:
    """Every kept rollout writes its thought, what was forced and its item in a copy of its own."""
    policy, other = thinking(), small_chat.chat_policy("llama")
    prompts = prompts_of(policy)
    settings = {"thoughts": 2, "max_thought_tokens": LIMIT, "loss_over": loss_over}
    groups = think(policy, prompts, 6, Draw(seed=5), **settings)
    assert groups.thoughts
    order = torch.tensor([5, 0, 3, 1, 4, 2]).expand(3, -1)
    groups = reorder(groups, order)
    draw = torch.Generator().manual_seed(1)
    keep = torch.tensor([[1, 1, 0, 1, 0, 0], [0] * 6, [1, 0, 1, 1, 1, 1]]).bool()
    signal = Signal(
        groups=groups,
        advantages=torch.randn(3, 6, 1, generator=draw),
        keep=keep,
        nll_weight=torch.zeros(3),
        metrics={},
    )
    plain, reference = tiny.twin(policy.model), tiny.twin(other.model)
    terms, kls, count = [], [], 0
    for row, place in keep.nonzero().tolist():
        assert groups.thoughts
        thought = int(groups.thoughts.of[row, place])
        size = int(groups.thoughts.num_written[row, thought])
        tokens, item = written(groups, row, thought), groups.tokens[row, place].tolist()
        mask = {
            "all": [1.0] * len(tokens),
            "written": [1.0] * size + [0.0] * (len(tokens) - size),
            "item": [0.0] * len(tokens),
        }[loss_over] + [1.0] * len(item)
        sequence, counted = prompt_of(groups, row) + tokens + item, torch.tensor(mask)
        index = torch.tensor(tokens + item)[:, None]
        own, theirs = (
            naive.next_logits(model, sequence[:-1], len(index)).log_softmax(-1).gather(1, index)
            for model in (plain, reference)
        )
        count += int(counted.sum())
        ratio = (own[:, 0] - own[:, 0].detach()).exp()
        terms.append(-(signal.advantages[row, place] * ratio * counted).sum())
        kls.append((KLS["k3"](own[:, 0], theirs[:, 0].detach()) * counted).sum())
    wanted = naive.gradients(plain, sum(terms) / count + 0.1 * sum(kls) / count)
    for most in (10**6, 40):
        actor = small_actor.make_actor(
            replace(policy, model=tiny.twin(policy.model, "recast_packed")),
            reference=other,
            kl_coef=0.1,
            micro_batch_tokens=most,
        )
        metrics = update(actor, signal)
        assert metrics["actor/ratio_deviation"] == 0
        found = naive.flat_gradients(actor.policy.model)
        assert naive.relative_error(found, wanted) <= 1e-5


def test_a_thought_that_is_not_closed() -> None:
    """Its items count, unless `strict_think` is asked for; a closed one of few characters has no
    format."""
    policy = thinking()
    prompts = prompts_of(policy)
    settings = {"thoughts": 2, "max_thought_tokens": LIMIT}
    free = think(policy, prompts, 6, Draw(seed=3, step=2), **settings)
    strict = think(policy, prompts, 6, Draw(seed=3, step=2), strict_think=True, **settings)
    assert free.thoughts
    closed = free.thoughts.is_closed.gather(1, free.thoughts.of)
    assert bool((free.items >= 0).all())
    assert bool((strict.items == -1).all())  # nobody writes <think>
    assert bool((strict.predictions == -1).all())
    assert strict.exists.equal(free.exists)
    prompts = opened(policy, prompts)
    free = think(policy, prompts, 6, Draw(seed=3, step=2), **settings)
    strict = think(policy, prompts, 6, Draw(seed=3, step=2), strict_think=True, **settings)
    assert free.thoughts
    closed = free.thoughts.is_closed.gather(1, free.thoughts.of)
    assert bool(closed.any())
    assert strict.items.equal(free.items.masked_fill(~closed, -1))


THINK, SHORT, LONG = "<think>", "ab cd\nef gh ij", "abcd efgh ijk"


@pytest.mark.parametrize(
    ("before", "thought", "found"),
    [
        ("", f"{THINK}\n{LONG}</think>", (True, True)),
        ("", f"{THINK}{SHORT}</think>", (True, False)),
        ("", f"{LONG}</think>", (False, False)),
        ("", f"{LONG}{THINK}</think>", (True, False)),
        (f"user{THINK}\n", f"{LONG}</think>", (True, True)),
        (f"{THINK} user", f"{LONG}</think>", (False, False)),
        ("", "</think>", (False, False)),
        ("", f"{THINK}{THINK}</think>", (True, False)),
    ],
)
def test_tags(before: str, thought: str, found: tuple[bool, bool]) -> None:
    """As `think_format_reward` of the release finds them in the response, but for `<think>` at the
    end of the prompt; ten characters that are no space are too few."""
    policy = small_chat.chat_policy("llama")
    text = torch.tensor([[5, *policy.tokenizer.encode(before), 313]])
    prompts = make_prompts(
        policy.catalog,
        targets=torch.tensor([[7]]),
        text=(text, torch.tensor([text.shape[1]])),
        row_ids=torch.tensor([0]),
    )
    tokens = torch.tensor([[policy.tokenizer.encode(thought)]])
    sizes = torch.tensor([[tokens.shape[2]]])
    tags = tags_of(policy, prompts, torch.tensor([text.shape[1] - 1]), tokens, sizes)
    assert (tags.is_open.item(), tags.is_long.item()) == found
    if not before:
        assert _release_format(thought) == all(found)


def _release_format(text: str) -> bool:
    """onerec_recipe.py, lines 386 to 407."""
    if THINK not in text or "</think>" not in text:
        return False
    start, end = text.find(THINK) + len(THINK), text.find("</think>")
    if end < start:
        return False
    return len(text[start:end].translate(str.maketrans("", "", " \n\r\t"))) > 10


def test_a_thought_that_is_closed() -> None:
    """By `</think>` in place of the end of a turn, and behind the limit: items follow that."""
    policy = thinking()
    policy.model.generation_config.eos_token_id = list(range(20, 35))  # some end by one
    prompts, frame = prompts_of(policy), frame_of(policy, "\n")
    settings = {"thoughts": 4, "max_thought_tokens": 3}
    draw = Draw(seed=3, step=2)
    free = think(policy, prompts, 32, draw, **settings)
    closed = think(policy, prompts, 32, draw, **settings, closes=True, loss_over="written")
    assert free.thoughts
    assert closed.thoughts
    assert closed.thoughts.is_closed.equal(free.thoughts.is_closed)
    ends = Counter[str]()
    plain = tiny.twin(policy.model)
    for row in range(3):
        for n in range(4):
            size = int(free.thoughts.num_written[row, n])
            own, tokens = written(free, row, n)[:size], written(closed, row, n)
            by = "itself" if own[-1] == frame.close else "turn" if own[-1] in frame.end else "limit"
            ends[by] += 1
            kept = own[: size - (by != "limit")]
            assert tokens == [*kept, frame.close, *frame.forced]
            drawn = len(kept) + (by == "itself")
            assert int(closed.thoughts.num_written[row, n]) == drawn
            assert closed.thoughts.loss_mask[row, n].nonzero()[:, 0].tolist() == list(range(drawn))
            behind = torch.tensor([prompt_of(closed, row) + tokens])
            copy = replace(
                select(prompts, torch.tensor([row])),
                tokens=behind,
                lengths=torch.tensor([behind.shape[1]]),
            )
            exact = naive.item_logprobs(plain, policy.catalog, copy, 0, "full")
            best = sorted(exact, key=lambda item: -sum(exact[item]))
            assert closed.items[row, 8 * n : 8 * n + len(best)].tolist() == best
    assert set(ends) == {"itself", "turn", "limit"}


def test_what_cannot_think() -> None:
    policy = thinking()
    prompts = prompts_of(policy)
    for settings, said in (
        ({"thoughts": 4}, "thoughts is 4: give a number of thoughts that divides group_size 6"),
        ({"max_thought_tokens": 0}, "max_thought_tokens is 0: give a number of tokens"),
        ({"loss_over": "tokens"}, "loss_over is 'tokens': choose one of all, written, item"),
        (
            {"max_thought_tokens": 630},
            r"max_thought_tokens is 630: behind a prompt of 6 tokens 629",
        ),
        ({"top_p": 0.0}, "top_p is 0.0: "),
    ):
        with pytest.raises(RecastError, match=said):
            think(policy, prompts, 6, **settings)
    behind = opened(policy, prompts)
    behind.tokens[1, behind.lengths[1] - 2] = frame_of(policy, "\n").close
    with pytest.raises(RecastError, match="row 3 has a prompt that ends in </think>, behind which"):
        think(policy, behind, 6)
    prompt = PromptConfig(history="sids", prefix="<think>\n\n</think>\n")
    for other, said in (
        (replace(policy, tokenizer=None), "the policy has no tokenizer to read thoughts with"),
        (replace(policy, tokenizer=tiny.tiny_tokenizer(9)), "reads </think> as 1 tokens: start"),
        (replace(policy, prompt=prompt), "prompt.prefix is .*: the thought is behind it"),
        (small_chat.chat_policy("t5"), "sampler is 'think': an encoder-decoder reads a prompt and"),
        (replace(policy, catalog=tiny.text_catalog()), "items are titles, and a thought stands be"),
    ):
        with pytest.raises(RecastError, match=said):
            think(other, prompts, 6)
