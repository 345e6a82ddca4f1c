"""The GPU benchmark's instruments, on the CPU: counts by hand, both sides on one small model."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from benchmarks.device import (
    FULL,
    SMOKE,
    AttentionKernels,
    flops,
    large_policy,
    matrix_rate,
    naive_logprobs,
)
from benchmarks.device_check import require_equal, require_near
from benchmarks.harness import actor_of, random_catalog, random_prompts, tiny_policy
from recast.policy.logprobs import branch_logprobs

CPU = torch.device("cpu")


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.run(False) == []
    assert capsys.readouterr().out == "not run: no CUDA device\n"


def test_the_full_size_is_a_qwen3_of_1_7_billion() -> None:
    catalog = random_catalog(60, 8)
    with torch.device("meta"):
        policy = large_policy(FULL.model, catalog, torch.device("meta"))
    body = sum(p.numel() for p in policy.model.model.layers.parameters())
    attention = 2048 * 128 * (16 + 8 + 8 + 16) + 2 * 128
    assert body == 28 * (attention + 3 * 2048 * 6144 + 2 * 2048)
    assert policy.model.dtype == torch.bfloat16


def test_flops_by_hand() -> None:
    policy = tiny_policy(random_catalog(60, 8))
    embedding = 26 * 128
    layer = 128 * 32 * (4 + 2 + 2 + 4) + 2 * 32 + 3 * 128 * 256 + 2 * 128
    expected = 6 * (4 * layer + 128) * 100 + 6 * embedding * 7 + 12 * 4 * 4 * 32 * 5000
    assert flops(policy, tokens=100, pairs=5000, reads=7) == expected


def test_naive_log_probabilities_are_those_of_the_packed_pass() -> None:
    catalog = random_catalog(60, 8)
    policy, prompts = tiny_policy(catalog), random_prompts(catalog, 2, 16)
    branches = catalog.tokens_of(torch.tensor([[5, 9, 31], [0, 5, 7]]))
    copies = prompts.tokens.repeat_interleave(3, dim=0)
    found = naive_logprobs(policy, torch.cat([copies, branches.flatten(0, 1)], dim=1))
    with AttentionKernels() as seen:
        packed = branch_logprobs(policy, prompts, branches, "full")
    torch.testing.assert_close(found.view(2, 3, 3), packed, rtol=0, atol=1e-5)
    assert {name.split()[0] for name in seen.names} == {"prompt", "branches"}


def test_distinct_tokens_are_counted_once() -> None:
    catalog = random_catalog(60, 4)
    policy = tiny_policy(catalog)
    actor = actor_of(
        policy,
        policy,
        torch.optim.SGD(policy.model.parameters(), lr=0.0),
        micro_batch_tokens=2**10,
    )
    bench = gpu.Bench(SMOKE, actor, catalog, width=4, length=7)
    bench.groups.tokens[:] = torch.tensor([[2, 6, 10], [2, 6, 11], [2, 7, 10], [3, 6, 10]])
    # Two prompts of 7 tokens; behind each 2 and 3, which see 8, then 2-6, 2-7, 3-6, which see 9.
    pairs = 2 * (28 + 2 * 8 + 3 * 9)
    assert bench.packed_flops() == flops(policy, tokens=2 * (7 + 5), pairs=pairs, reads=2 * 6)
    assert bench.naive_flops() == flops(policy, tokens=8 * 9, pairs=8 * 45, reads=8 * 3)


def test_a_device_that_computes_something_else_is_refused() -> None:
    one = torch.ones(4)
    require_near("gradient", one + 1e-6, one, 1e-5)
    for wrong in (one + 1e-4, one * torch.nan):
        with pytest.raises(AssertionError, match="gradient on the device"):
            require_near("gradient", wrong, one, 1e-5)
    with pytest.raises(AssertionError, match="beams on the device"):
        require_equal("beams", torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_the_rate_counts_ten_products() -> None:
    assert 1e6 < matrix_rate(CPU, 128) < 1e13
