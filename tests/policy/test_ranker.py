"""Rankers: policies against a naive forward, a user's function, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import naive
import pytest
import small_chat
import tiny
import torch
from torch import Tensor

from recast.items.catalog import Catalog, build_catalog
from recast.losses import ppo_clip
from recast.policy.load import Policy, save_policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.prompts import make_prompts
from recast.policy.ranker import latest, load_ranker, policy_ranker
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.rollout.sample import sample
from recast.signals.recast import recast
from recast.train.actor import Actor, update
from recast.types import Draw, LogprobSpace, Prompts, RecastError

NUM_ITEMS = 12
HISTORIES = [[1, 2, 3, 4, 5, 6, 7], [7], [], [8, 9]]


def one_level(codes: Tensor | None = None) -> Catalog:
    """Codes in another order than the items, so that a mix-up shows."""
    codes = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    return build_catalog(codes[:, None], (NUM_ITEMS,))


def three_levels() -> Catalog:
    codes = torch.tensor([[i // 6, i // 2 % 3, i % 2] for i in range(NUM_ITEMS)])
    return build_catalog(codes, (2, 3, 2))


def ranker_policy(window: int = 5) -> Policy:
    return replace(tiny.tiny_policy("qwen3", one_level(), torch.float64), window=window)


def prompts() -> Prompts:
    """Prompts as the other policy, of three levels, has them."""
    return tiny.make_prompts(three_levels(), HISTORIES, [[10], [11], [0], [1]])


ITEMS = torch.tensor([[0, 3, 3, 11], [4, 2, 1, 0], [5, 6, 7, 8], [9, 9, 0, 1]])


def wanted(policy: Policy) -> Tensor:
    """One unpadded forward per prompt."""
    rows = []
    for history, items in zip(HISTORIES, ITEMS.tolist(), strict=True):
        own = history[-(policy.window - 1) :]
        token = [2 + int(policy.catalog.codes[i, 0]) for i in range(NUM_ITEMS)]
        with torch.no_grad():
            plain = tiny.twin(policy.model)
            logprobs = naive.next_logits(plain, [1] + [token[i] for i in own], 1).log_softmax(-1)
        rows.append([float(logprobs[0, token[item]]) for item in items])
    return torch.tensor(rows)


@pytest.mark.parametrize("window", [2, 5, 20])
def test_scores_are_the_log_probabilities_of_a_naive_forward(window: int) -> None:
    policy = ranker_policy(window)
    with torch.no_grad():
        scores = policy_ranker(policy)(prompts(), ITEMS)
    torch.testing.assert_close(scores, wanted(policy), rtol=1e-5, atol=1e-5)
    assert scores[0, 1] == scores[0, 2]


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_a_policy_of_several_levels_scores_whole_semantic_ids(
    space: LogprobSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unpadded forward per prompt and item; 5 or so items at a time, in another order."""
    monkeypatch.setattr("recast.policy.logprobs._TOKENS", 5)
    policy = tiny.tiny_policy("qwen3", three_levels(), torch.float64)
    policy = replace(policy, window=5, logprob_space=space)
    sizes, codes = (2, 3, 2), policy.catalog.codes.tolist()
    first = [2, 4, 7]  # behind pad and BOS, level by level
    expected = torch.zeros(ITEMS.shape)
    for row, history in enumerate(HISTORIES):
        read = [1] + [f + c for i in history[-4:] for f, c in zip(first, codes[i], strict=True)]
        for column, item in enumerate(ITEMS[row].tolist()):
            written = [f + c for f, c in zip(first, codes[item], strict=True)]
            with torch.no_grad():
                logits = naive.next_logits(tiny.twin(policy.model), read + written[:-1], 3)
            for level, token in enumerate(written):
                # Every node has all its children: 2, 3 and 2 of them.
                over = slice(first[level], first[level] + sizes[level])
                over = slice(None) if space == "full" else over
                expected[row, column] += logits[level, token] - logits[level, over].logsumexp(0)
    with torch.no_grad():
        scores = policy_ranker(policy)(prompts(), ITEMS)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_two_codings_are_averaged() -> None:
    """Whichever of two policies is the guide of the other, the mixture is the same; and it is the
    mean of their probabilities."""
    other = build_catalog(torch.tensor([[i % 4, i // 4] for i in range(NUM_ITEMS)]), (4, 3))
    policies = [tiny.tiny_policy("qwen3", catalog) for catalog in (three_levels(), other)]
    policies = [replace(policy, logprob_space="trie") for policy in policies]
    everything = torch.arange(NUM_ITEMS).expand(len(HISTORIES), -1)
    found = []
    for policy, guide in (policies, policies[::-1]):
        own = tiny.make_prompts(policy.catalog, HISTORIES, [[10], [11], [0], [1]])
        decoder = Decoder(guide=policy_ranker(guide), alpha=0.5, kind="mixture")
        found.append(beam_search(policy, own, NUM_ITEMS, Draw(logprob_space="trie"), decoder).items)
    with torch.no_grad():
        mean = sum(policy_ranker(policy)(prompts(), everything).exp() for policy in policies)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], mean.argsort(dim=1, descending=True))


def test_items_of_another_domain_and_without_a_semantic_id_are_none() -> None:
    """Items 0 to 2 and 3 to 5 write the same; item 2 writes nothing."""
    codes = torch.tensor([[0, 0], [1, 0], [-1, -1], [0, 0], [1, 0], [1, 1]])
    of, names = [0] * 3 + [1] * 3, ("video", "product")
    catalog = build_catalog(codes, (2, 2), domain_of=of, domains=names)
    policy = replace(tiny.tiny_policy("qwen3", catalog), logprob_space="trie")
    asked = make_prompts(
        catalog,
        targets=torch.tensor([[0], [3]]),
        history=torch.tensor([[1], [4]]),
        domains=torch.tensor([0, 1]),
    )
    with torch.no_grad():
        scores = policy_ranker(policy)(asked, torch.arange(6).expand(2, -1))
    held = [[True, True, False] + [False] * 3, [False] * 3 + [True] * 3]
    assert (scores > -torch.inf).tolist() == held
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))


def test_a_folder_is_loaded_without_gradient_or_dropout(tmp_path: Path) -> None:
    policy = ranker_policy()
    save_policy(policy, tmp_path / "ranker")
    ranker = load_ranker(str(tmp_path / "ranker"), three_levels())
    scores = ranker(prompts(), ITEMS)
    torch.testing.assert_close(scores, wanted(policy), rtol=1e-5, atol=1e-5)
    assert not scores.requires_grad
    assert scores.dtype == torch.float32
    assert torch.equal(ranker(prompts(), ITEMS), scores)


def test_the_latest_items_of_short_and_empty_histories() -> None:
    history = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1], [-1, -1, -1, -1]])
    assert latest(history, 3).tolist() == [[2, 3, 4], [5, 6, -1], [-1, -1, -1]]
    assert latest(history, 1).tolist() == [[4], [6], [-1]]
    assert latest(history, 9).tolist() == history.tolist()
    assert latest(history[:, :0], 3).shape == (3, 0)


def test_other_policies_are_refused(tmp_path: Path) -> None:
    def refused(catalog: Catalog, line: str) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save_policy(tiny.tiny_policy("qwen3", catalog), folder)
        with pytest.raises(RecastError, match=line):
            load_ranker(str(folder), three_levels())

    fewer = build_catalog(torch.arange(9)[:, None], (9,))
    refused(fewer, "ranks 9 items, the policy writes 12: train the ranker on the same data")
    shared = build_catalog(torch.arange(NUM_ITEMS)[:, None] // 2, (6,))
    refused(shared, "has 12 items on 6 semantic IDs and cannot tell them apart: make one with")
    ids = [f"film {i}" for i in range(NUM_ITEMS)]
    renamed = build_catalog(torch.arange(NUM_ITEMS)[:, None], (NUM_ITEMS,), item_ids=ids)
    refused(renamed, "item 0 is 'film 0', in the policy's catalogue '0'")
    save_policy(small_chat.chat_policy(), tmp_path / "chat")
    with pytest.raises(RecastError, match="renders its prompts, a ranker reads the items of a his"):
        load_ranker(str(tmp_path / "chat"), three_levels())
    with pytest.raises(RecastError, match=r"ranker is 'nowhere': there is no such folder; give"):
        load_ranker("nowhere", three_levels())
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecastError, match=r"holds no policy"):
        load_ranker(str(tmp_path / "empty"), three_levels())


MODULE = """
import torch

def newest_first(prompts, items):
    last = prompts.history.gather(1, ((prompts.history >= 0).sum(1, keepdim=True) - 1).clamp(min=0))
    return -(items - last).abs()

def trainable(prompts, items):
    return items * torch.ones(1, requires_grad=True)

def short(prompts, items):
    return items[:, :1].float()

def listed(prompts, items):
    return items.tolist()

def unsure(prompts, items):
    return torch.where(items == 6, float("nan"), 1.0)
"""


def test_a_function_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scorer.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    scores = load_ranker("my_scorer:newest_first", three_levels())(prompts(), ITEMS)
    assert scores.dtype == torch.float32
    assert scores[0].tolist() == [-7, -4, -4, -4]
    scores = load_ranker("my_scorer:trainable", three_levels())(prompts(), ITEMS)
    assert torch.equal(scores, ITEMS.float())
    assert not scores.requires_grad

    def refused(name: str, line: str) -> None:
        with pytest.raises(RecastError, match=line):
            load_ranker(f"my_scorer:{name}", three_levels())(prompts(), ITEMS)

    refused(
        "short",
        r"ranker my_scorer:short \(.*, line \d+\) gave the shape \[4, 1\]: return a tensor \[",
    )
    refused(
        "listed", r"ranker my_scorer:listed \(.*, line \d+\) gave a list: return a tensor \[4, 4\]"
    )
    refused(
        "unsure",
        r"ranker my_scorer:unsure \(.*, line \d+\) gave NaN for item 6 in row 2: give every item",
    )
    refused("absent", r"ranker is 'my_scorer:absent': my_scorer, .* has no function 'absent'")
    with pytest.raises(RecastError, match="there is no module 'no_scorer'"):
        load_ranker("no_scorer:f", three_levels())


def test_one_level_goes_through_rollout_signal_and_actor() -> None:
    """L = 1: beams are the best items, samples are items, and an update raises the target."""
    policy = ranker_policy()
    catalog = policy.catalog
    history = [row[-4:] for row in HISTORIES]
    own = tiny.make_prompts(catalog, history, [[10], [11], [0], [1]], seen=history)
    everything = torch.arange(NUM_ITEMS).expand(4, -1)
    with torch.no_grad():
        scores = policy_ranker(policy)(own, everything).double()
    allowed = torch.ones(4, NUM_ITEMS, dtype=torch.bool)
    for row, seen in enumerate(history):
        allowed[row, seen] = False
    best = scores.masked_fill(~allowed, -torch.inf).topk(5, dim=1).indices
    beams = beam_search(policy, own, 5)
    assert beams.tokens.shape == (4, 5, 1)
    assert torch.equal(beams.items, best)
    drawn = sample(policy, own, 5, Draw(logprob_space="trie"))
    assert bool(allowed.gather(1, drawn.items).all())
    logprobs = branch_logprobs(policy, own, drawn.tokens, "trie")
    torch.testing.assert_close(logprobs, drawn.rollout_logprobs)
    odds = scores.masked_fill(~allowed, -torch.inf).log_softmax(1)
    torch.testing.assert_close(logprobs[..., 0], odds.gather(1, drawn.items))
    hits = (drawn.items == own.target_items).double()
    signal = recast(drawn, hits)
    before = branch_logprobs(policy, own, own.targets, "full").detach()
    actor = Actor(
        policy=policy,
        reference=None,
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.1),
        loss=ppo_clip,
        kl_coef=0.0,
        kl_rollouts="kept",
        max_grad_norm=1.0,
        space="full",
        micro_batch_tokens=10**6,
        updates_per_rollout=2,
    )
    assert update(actor, signal)["actor/kept_rows"] == 8
    after = branch_logprobs(policy, own, own.targets, "full")
    assert float((after.detach() - before).mean()) > 0
