"""Counter-based random numbers: (seed, step, row, name) in, uniforms out, no state anywhere.

A draw depends neither on the batch a row came in, nor on the number of processes, nor on what was
drawn before it. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014), in wrapping int64 arithmetic.
"""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def uniforms(
    seed: int, step: int, row_ids: Int[Tensor, " B"], name: str, width: int
) -> Float[Tensor, "B width"]:
    """`width` numbers in [0, 1) for every row, float64, 53 bits each.

    `name` keeps the draws of different purposes apart.

    >>> rows = torch.tensor([3, 4])
    >>> bool((uniforms(0, 1, rows, "a", 2)[1] == uniforms(0, 1, rows[1:], "a", 2)[0]).all())
    True
    """
    word = torch.tensor(zlib.crc32(name.encode()), dtype=torch.int64)
    state = _mix(_mix(_mix(torch.tensor(seed)) + step) + word).to(row_ids.device)
    counter = torch.arange(width, device=row_ids.device)
    bits = _mix(_mix(state + row_ids)[:, None] + counter)
    return (bits >> 11 & (1 << 53) - 1).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _MIX1
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _MIX2
    return x ^ (x >> 31 & (1 << 33) - 1)
