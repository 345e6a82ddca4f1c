from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_encoder import save_encoder

from recast.types import SPLITS, Interactions


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 8 dimensions with random weights, at most 6 tokens long."""
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder)
    return folder


@pytest.fixture
def make_interactions() -> Callable[..., Interactions]:
    def build(
        users: list[int], items: list[int], splits: list[str], num_items: int
    ) -> Interactions:
        user = torch.tensor(users)
        return Interactions(
            users=user,
            items=torch.tensor(items),
            times=torch.arange(len(items)),
            starts=torch.searchsorted(user, user),
            splits=torch.tensor([SPLITS.index(split) for split in splits]),
            num_users=int(user.max()) + 1,
            num_items=num_items,
            exclude_seen=False,
            split_name="by hand",
        )

    return build
