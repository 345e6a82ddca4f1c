"""Training windows and their loss, by hand and against slow code."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recast.config import SFTConfig
from recast.data.windows import user_windows
from recast.policy.prompts import write_items
from recast.policy.tasks import HistoryTask
from recast.train import sft_rows
from recast.train.rates import schedule_factor
from recast.train.sequences import learn
from recast.types import SPLITS, Interactions


def config(**changes: object) -> SFTConfig:
    return SFTConfig(**({"data": "d", "catalog": "c", "output": "o", "window": 3} | changes))


def events_of(
    lengths: list[int], times: list[int] | None = None, split_of: list[str] | None = None
) -> Interactions:
    """Event e is item e, so that a window says which events it holds."""
    count, length = sum(lengths), torch.tensor(lengths)
    users = torch.arange(len(lengths)).repeat_interleave(length)
    splits = ["train"] * count if split_of is None else split_of
    return Interactions(
        users=users,
        items=torch.arange(count),
        times=torch.arange(count) if times is None else torch.tensor(times),
        starts=torch.searchsorted(users, users),
        splits=torch.tensor([SPLITS.index(name) for name in splits], dtype=torch.long),
        num_users=len(lengths),
        num_items=max(count, 1),
        exclude_seen=True,
        split_name="by hand",
    )


def windows_of(events: Interactions, config: SFTConfig, epoch: int) -> Tensor:
    return user_windows(
        events,
        events.rows("train"),
        width=config.window,
        seed=config.seed,
        epoch=epoch,
        backwards_frac=config.backwards_frac,
        crop_frac=config.crop_frac,
    )


def rows_of(windows: Tensor) -> list[list[int]]:
    """The windows without padding, in the order of their first item."""
    return sorted([item for item in row if item >= 0] for row in windows.tolist())


# Seven events in windows of three: the first window is cut short by the offset 0, 1 or 2, and a
# window of one item (6 alone at the end, 0 alone at the beginning) is dropped.
CUTS = [
    [[0, 1, 2], [3, 4, 5]],
    [[0, 1], [2, 3, 4], [5, 6]],
    [[1, 2, 3], [4, 5, 6]],
]


def test_the_windows_of_one_user() -> None:
    events = events_of([7])
    found = [rows_of(windows_of(events, config(), epoch)) for epoch in range(30)]
    assert all(windows in CUTS for windows in found)
    assert all(cut in found for cut in CUTS)


def test_other_splits_never_appear() -> None:
    late = ["rl", "valid", "test"]
    events = events_of([6, 7], split_of=["train"] * 3 + late + ["train"] * 4 + late)
    for epoch in range(10):
        windows = windows_of(events, config(), epoch)
        assert set(windows.flatten().tolist()) <= {-1, 0, 1, 2, 6, 7, 8, 9}
    other = events.items.where(events.splits == 0, (events.items + 1) % 13)
    changed = windows_of(replace(events, items=other), config(), 9)
    assert torch.equal(changed, windows)


def test_users_of_one_event_make_no_window() -> None:
    assert windows_of(events_of([1, 1, 1]), config(), 0).shape == (0, 3)
    assert windows_of(events_of([2], split_of=["rl", "test"]), config(), 0).shape == (0, 3)


def test_backwards_mirrors_every_window() -> None:
    events = events_of([7, 5, 2])
    for epoch in range(5):
        forward = windows_of(events, config(), epoch)
        mirrored = windows_of(events, config(backwards_frac=1.0), epoch)
        assert [[i for i in row if i >= 0][::-1] for row in forward.tolist()] == [
            [i for i in row if i >= 0] for row in mirrored.tolist()
        ]
        assert torch.equal(forward >= 0, mirrored >= 0)


def test_a_part_is_read_backwards() -> None:
    events = events_of([4] * 1000)
    windows = windows_of(events, config(window=4, backwards_frac=0.3), 0)
    backwards = (windows[:, 1] < windows[:, 0]).double().mean().item()
    assert backwards == pytest.approx(0.3, abs=0.06)  # 4 standard errors of about 900 windows


def test_a_crop_begins_at_any_item_but_the_last() -> None:
    """Users of 4 and of 2 events, windows of 5: of the 4 events the last 4, 3 or 2 are left."""
    events = events_of([4, 2] * 900)
    whole = rows_of(windows_of(events, config(window=5), 0))
    cropped = rows_of(windows_of(events, config(window=5, crop_frac=1.0), 0))
    assert all(crop in (row, row[1:], row[2:]) for row, crop in zip(whole, cropped, strict=True))
    lengths = torch.tensor([len(crop) for crop in cropped[::2]])
    assert lengths.bincount().tolist()[2:] == pytest.approx([300] * 3, abs=60)
    # Those that are not chosen stay whole; what is read backwards is what was left.
    few = rows_of(windows_of(events, config(window=5, crop_frac=0.3), 0))
    changed = sum(row != crop for row, crop in zip(whole, few, strict=True))
    assert changed == pytest.approx(900 * 0.3 * 2 / 3, abs=50)
    back = windows_of(events, config(window=5, crop_frac=1.0, backwards_frac=1.0), 0)
    assert rows_of(back) == sorted(crop[::-1] for crop in cropped)


def test_seed_and_epoch_decide() -> None:
    events = events_of([9] * 20, times=[0] * 180)
    first = windows_of(events, config(), 0)
    assert torch.equal(first, windows_of(events, config(), 0))
    assert rows_of(first) != rows_of(windows_of(events, config(), 1))
    assert rows_of(first) != rows_of(windows_of(events, config(seed=1), 0))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_event_once(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    times = [t for n in lengths for t in sorted(data.draw(st.lists(st.integers(0, 3), min_size=n,
                                                                    max_size=n)))]  # fmt: skip
    window, epoch = data.draw(st.integers(2, 5)), data.draw(st.integers(0, 3))
    events = events_of(lengths, times)
    windows = windows_of(events, config(window=window, backwards_frac=0.0), epoch)
    assert windows.shape[1] == window
    known = windows >= 0
    assert (known[:, :-1] | ~known[:, 1:]).all()  # padding on the right
    assert known.sum(1).ge(2).all()
    found = rows_of(windows)
    used = [event for row in found for event in row]
    assert len(used) == len(set(used))
    for row in found:
        assert len({int(events.users[event]) for event in row}) == 1
    for user in range(len(lengths)):
        mine = [row for row in found if events.users[row[0]] == user]
        mine.sort(key=lambda row: (times[row[0]], times[row[-1]]))
        # Order is free within one time only.
        for row in mine:
            assert all(times[a] <= times[b] for a, b in pairwise(row))
        # Dropped: at most one event before the first full cut and one after the last.
        missing = lengths[user] - sum(map(len, mine))
        assert missing <= min(2, lengths[user])
        # Only the first and the last window of a user may be short.
        assert sum(len(row) < window for row in mine) <= 2


def test_order_is_free_within_one_time_only() -> None:
    events = events_of([6], times=[0, 0, 0, 5, 5, 9])
    orders = set()
    for epoch in range(200):
        row = windows_of(events, config(window=20, seed=3), epoch)
        if row.shape[0] == 1 and (row >= 0).sum() == 6:  # not cut in two
            orders.add(tuple(row[0, :6].tolist()))
    assert {(sorted(o[:3]) == [0, 1, 2], sorted(o[3:5]) == [3, 4], o[5]) for o in orders} == {
        (True, True, 5)
    }
    assert len(orders) == 12  # 3! * 2!, each of them seen in 150 draws or so


def slow_loss(model: torch.nn.Module, catalog: object, windows: Tensor) -> float:
    """One forward per token, on its own prefix, without padding."""
    losses = []
    for row in windows:
        tokens = [t for item in row[row >= 0] for t in catalog.tokens_of(item[None])[0].tolist()]  # type: ignore[attr-defined]
        for place, token in enumerate(tokens):
            prefix = torch.tensor([[catalog.bos_token, *tokens[:place]]])  # type: ignore[attr-defined]
            logits = model(input_ids=prefix).logits[0, -1]
            losses.append(-logits.double().log_softmax(0)[token])
    return float(torch.stack(losses).mean())


@torch.no_grad()
def test_the_loss_is_that_of_every_token() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    windows = torch.tensor([[0, 5, 2, -1, -1], [7, 1, 3, 4, -1], [6, 2, -1, -1, -1]])
    tokens, lengths = write_items(catalog, windows)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).index_fill(1, torch.tensor(0), False)

    def loss(mask: Tensor, dropout: float = 0.0) -> float:
        with torch.enable_grad():
            done = learn(
                policy, tokens, mask, dropout=dropout, precision="float32", pass_tokens=65536
            )
        return float(done.loss)

    found, model = loss(mask), tiny.twin(policy.model)
    assert found == pytest.approx(slow_loss(model, catalog, windows), rel=1e-5)
    assert loss(mask) == found
    torch.manual_seed(0)
    assert len({loss(mask, 0.3), loss(mask, 0.3), found}) == 3
    # Only the tokens that count: those of every row's second item.
    second = torch.zeros_like(mask)
    second[:, 4:7] = True
    of_two, of_one = (
        slow_loss(model, catalog, windows[:, :2]),
        slow_loss(model, catalog, windows[:, :1]),
    )
    assert loss(second) == pytest.approx(2 * of_two - of_one, rel=1e-5)


def test_sequences_hold_what_the_windows_hold() -> None:
    """Two users of 5 and 2 events, windows of 3: BOS and the items, everything but BOS counts."""
    events, policy = events_of([5, 2]), tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    task = HistoryTask(interactions=events, catalog=policy.catalog, window=3, seed=4)
    for epoch in range(3):
        sequences = task.sequences(task.rows("train"), epoch)
        windows = windows_of(events, config(seed=4), epoch)
        expected = [
            [policy.catalog.bos_token, *policy.catalog.tokens_of(row[row >= 0]).flatten().tolist()]
            for row in windows
        ]
        assert sequences.lengths.tolist() == [len(row) for row in expected]
        assert sequences.tokens.tolist() == [token for row in expected for token in row]
        assert sequences.loss_mask.tolist() == [t > 0 for row in expected for t in range(len(row))]
        for index in ([len(sequences) - 1, 0], [1]):
            tokens, mask = sequences.batch(torch.tensor(index))
            assert tokens.shape[1] == max(len(expected[i]) for i in index)
            for place, i in enumerate(index):
                assert tokens[place, : len(expected[i])].tolist() == expected[i]
                assert mask[place].nonzero()[:, 0].tolist() == list(range(1, len(expected[i])))


def test_the_rate_never_rises_again() -> None:
    """An epoch may hold a window or two more than the first one, on which the plan is built."""
    factors = [schedule_factor("cosine", step, 40) for step in range(60)]
    assert factors[:2] == [0.5, 1.0]
    assert factors == [*factors[:2], *sorted(factors[2:], reverse=True)]
    assert factors[40:] == [0.0] * 20


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gpt2"])
def test_rows_that_are_shared_and_parts_have_the_gradient_of_the_batch(
    name: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 7, 4 and 2 items: each to itself, several to a row, in parts of like length."""
    policy = tiny.tiny_policy(name, tiny.tiny_catalog())
    draw = torch.Generator().manual_seed(3)
    windows = torch.randint(0, 8, (12, 7), generator=draw)
    windows[3:8, 2:] = -1
    windows[8:10, 4:] = -1
    tokens, lengths = write_items(policy.catalog, windows)
    place = torch.arange(tokens.shape[1])
    mask = (place < lengths[:, None]) & (place > 0)
    found, sent = [], []
    for shared, saved, pass_tokens in ((512, 0, 1), (512, 8, 1), (1, 8, 16), (1, 8, 65536)):
        monkeypatch.setattr(sft_rows, "MOST_SHARED", shared)
        monkeypatch.setattr(sft_rows, "_LEAST_SAVED", saved or 1)
        torch.manual_seed(0)
        policy.model.zero_grad(set_to_none=True)
        done = learn(
            policy, tokens, mask, dropout=dropout, precision="float32", pass_tokens=pass_tokens
        )
        found.append((float(done.loss), naive.flat_gradients(policy.model)))
        sent.append(done.sent_tokens)
        assert done.real_tokens == int((lengths - 1).sum())
    # 12 rows; 5 of 7 items, and 4 2, 4 2, 2 2 2; three parts without padding; one part.
    assert sent == [12 * 21, 8 * 21, 5 * 21 + 5 * 6 + 2 * 12, 12 * 21]
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert naive.relative_error(gradient, found[0][1]) <= 2e-6
