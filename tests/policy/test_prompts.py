"""What no prompt can be made of, and no search can begin with."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from recast.policy.prompts import make_prompts
from recast.rollout import SAMPLERS
from recast.types import RecastError

TARGET = torch.tensor([[3]])


def text(tokens: list[int], length: int) -> dict[str, Any]:
    return {"text": (torch.tensor([tokens]), torch.tensor([length]))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": TARGET.int()}, "targets is tensor.*: give a tensor of torch.long with 2 dim"),
        ({"targets": torch.tensor([[99]])}, r"targets is \[99\]: give items from 0 to 7, or -1"),
        (text([1, -5], 2), r"token of text is \[-5\]: give tokens of 0 or more"),
        (text([1, 5], 0), r"length of text is \[0\]: give a whole number from 1 to 2"),
        (text([1, 5], 9), r"length of text is \[9\]: give a whole number from 1 to 2"),
    ],
)
def test_what_is_no_prompt(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecastError, match=message):
        make_prompts(tiny.tiny_catalog(), **{"targets": TARGET} | given)


@pytest.mark.parametrize("name", ["beam", "sample", "dynamic"])
def test_what_no_search_begins_with(name: str) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog())
    prompts = make_prompts(policy.catalog, targets=TARGET)
    strange = make_prompts(policy.catalog, targets=TARGET, **text([1, 10**6], 2))
    nothing = make_prompts(policy.catalog, targets=TARGET[:0])
    for given, group_size, message in (
        (nothing, 4, "number of prompts is 0: give a search one or more"),
        (strange, 4, "token of a prompt is 1000000: the policy reads 0 to"),
        (prompts, 0, "group_size is 0: give a whole number from 1 to"),
        (prompts, 2**40, "group_size is 1099511627776: give a whole number from 1 to"),
    ):
        with pytest.raises(RecastError, match=message):
            SAMPLERS[name](policy, given, group_size)
