"""What training presupposes: each premise broken once, and one line that names row and value."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from small_walk import failure, rl_args
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recast.items.catalog import build_catalog
from recast.items.names import PLAIN
from recast.methods.table import METHODS
from recast.policy.load import Policy
from recast.policy.prompts import make_prompts
from recast.rewards import first_hit, partial_hit, semantic
from recast.testing import make_groups
from recast.train.premises import (
    below_others,
    check_lengths,
    check_prompts,
    check_sequences,
    check_target_is_best,
    check_tokens,
    is_history,
    target_among_others,
)
from recast.types import Prompts, RecastError, RolloutGroups, Sequences

CATALOG = tiny.tiny_catalog()


def policy() -> Policy:
    return tiny.tiny_policy("qwen3", CATALOG)


def prompts(seen: list[list[int]] | None = None) -> Prompts:
    """Four rows from 7 on, whose last item is their target in the second alone."""
    histories, targets = [[0, 1], [3], [2, 4], [5]], [[2], [3], [0], [1]]
    return tiny.make_prompts(CATALOG, histories, targets, seen, first_row=7)


def test_a_prompt_is_not_empty_and_leaves_room_for_an_item() -> None:
    rows = torch.tensor([7, 8])
    check_lengths(policy(), rows, torch.tensor([3, 637]))  # 637 + 3 = 640, the context
    with pytest.raises(RecastError, match=r"^row 8 has a prompt of 638 tokens.* context of 640"):
        check_lengths(policy(), rows, torch.tensor([3, 638]))
    with pytest.raises(RecastError, match=r"^row 7 has a prompt of 0 tokens: give it"):
        check_lengths(policy(), rows, torch.tensor([0, 3]))


def named(tokenizer: PreTrainedTokenizerFast, first_token: int) -> Policy:
    catalog = build_catalog(tiny.CODES, tiny.SIZES, first_token=first_token)
    return Policy(model=None, catalog=catalog, window=4, tokenizer=tokenizer)


def test_a_name_is_one_token_whatever_stands_around_it() -> None:
    words, tokenizer = PLAIN.of(tiny.SIZES), tiny.tiny_tokenizer(5)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    check_tokens(named(tokenizer, 5))
    check_tokens(policy())  # without a tokenizer there are no names
    with pytest.raises(RecastError, match=r"reads <a_0> twice as \[5, 5\], .* token 6 for each"):
        check_tokens(named(tokenizer, 6))
    # Words of the vocabulary, but between spaces alone.
    numbers = {word: token for token, word in enumerate(["<unk>", "<s>", *words])}
    apart = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=apart, unk_token="<unk>")
    with pytest.raises(RecastError, match=r"reads <a_0> twice as \[0\], .* token 2 for each"):
        check_tokens(named(tokenizer, 2))


def test_what_a_row_lacks_is_named() -> None:
    check_prompts(policy(), prompts())
    none = prompts()
    none.target_items[2] = -1
    with pytest.raises(RecastError, match=r"^row 9 has no target that is in the catalogue: "):
        check_prompts(policy(), none)
    with pytest.raises(RecastError, match=r"^row 8 has the target '3' \(tokens .*row's history"):
        check_prompts(policy(), prompts(seen=[[0], [3], [], []]))
    lost = prompts()
    lost.targets[3, 0, 2] = CATALOG.level_tokens(2)[0]  # 0 0 0, which no item is
    with pytest.raises(RecastError, match=r"^row 10 has the target '1' .* lead to \(it has no pa"):
        check_prompts(policy(), lost)
    strange = prompts()
    strange.tokens[1, 2] = 99
    with pytest.raises(RecastError, match=r"^row 8 has the token 99 in its prompt, and the policy"):
        check_prompts(policy(), strange)


def test_rendered_prompts_do_not_all_end_in_their_answer() -> None:
    plain = prompts()
    assert is_history(CATALOG, plain).tolist() == [True] * 4
    told = torch.cat([torch.full((4, 2), 1), plain.targets[:, 0]], dim=1)
    length = torch.full((4,), 5)
    shown = make_prompts(
        CATALOG, targets=plain.target_items, text=(told, length), row_ids=plain.row_ids
    )
    assert is_history(CATALOG, shown).tolist() == [False] * 4
    with pytest.raises(RecastError, match=r"^row 7 .* ends in its own target '2', like all of the"):
        check_prompts(policy(), shown)
    told[0, 4] += 1  # one of them does not
    check_prompts(policy(), shown)
    again = tiny.make_prompts(CATALOG, [[0, 1], [3], [4], [5]], [[1], [3], [4], [5]])
    check_prompts(policy(), again)  # who buys again ends a history so


def sequences(loss_mask: list[int]) -> Sequences:
    tokens = [1, 2, 5, 8, 1, 3, 6, 9]
    return Sequences(
        tokens=torch.tensor(tokens),
        loss_mask=torch.tensor(loss_mask).bool(),
        lengths=torch.tensor([4, 4]),
    )


def test_the_loss_covers_the_end_of_an_answer() -> None:
    check_sequences(policy(), sequences([0, 1, 1, 1, 0, 0, 0, 1]))
    with pytest.raises(RecastError, match=r"^training sequence 1 has no loss on its last token"):
        check_sequences(policy(), sequences([0, 1, 1, 1, 0, 1, 1, 0]))
    with pytest.raises(RecastError, match=r"^training sequence 0 has a loss on its first token"):
        check_sequences(policy(), sequences([1, 1, 1, 1, 0, 1, 1, 1]))


def reversed_hit(groups: RolloutGroups) -> Tensor:
    return 1 - first_hit(groups)


def test_made_up_groups_hold_the_target_its_neighbour_and_others_that_are_not_seen() -> None:
    rows = prompts(seen=[[3, 5, 6], [], [], []])
    groups = target_among_others(CATALOG, rows, 6)
    assert groups.items[:, 0].tolist() == [2, 3, 0, 1]
    # Items by their codes: 0 1 2 4 3 5 6 7.
    assert groups.items[:, 1].tolist() == [1, 4, 1, 0]
    assert not torch.isin(groups.items[0], torch.tensor([3, 5, 6])).any()
    assert (groups.items[:, 1:] != groups.items[:, :1]).all()
    assert target_among_others(CATALOG, rows, 12, list_length=2).items.shape == (4, 12)


def test_a_reward_is_highest_at_the_target() -> None:
    for reward in (first_hit, partial_hit, METHODS["rere"].reward, METHODS["gflowgr"].reward):
        check_target_is_best(reward, CATALOG, prompts(), 6)
    line = r"reversed_hit.* gave the target '2' of row 7 0 and item '1' 1: mend it .*target_is_best"
    with pytest.raises(RecastError, match=line):
        check_target_is_best(reversed_hit, CATALOG, prompts(), 6)
    groups = make_groups([[[3, 8], [3, 9]]], [[[3, 8]]], items=[[0, 1]], target_items=[[0]])
    assert below_others(groups, torch.tensor([[1.0, 1.0]]), CATALOG) is None
    assert below_others(groups, torch.tensor([[0.9, 1.0]]), CATALOG) is not None
    same = torch.tensor([[0.6, 0.8]]).repeat(8, 1)  # equal texts: none is above another
    check_target_is_best(lambda groups: semantic(groups, embeddings=same), CATALOG, prompts(), 6)


def test_rl_refuses_a_reward_that_is_not_unless_it_is_told_so(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "def miss(groups):\n    return 1.0 * (groups.items != groups.prompts.target_items)\n"
    (tmp_path / "odd_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    args = [str(x) for x in rl_args(walk, tmp_path / "run", "--reward=odd_rewards:miss")]
    line, status = failure(capsys, *args)
    assert status == 2
    assert "reward odd_rewards:miss" in line
    assert "0 and item" in line
    assert not (tmp_path / "run").exists()
