"""What a recipe is held to: the settings `expected` and `verify`."""

from __future__ import annotations

from typing import Any

from recast.errors import require


def check_expected(config: Any) -> None:
    """Raise `RecastError` for bands that are none, and for `verify` without one."""
    remedy = "give metrics with their least and most, such as {item/ndcg@10: [0.1, 0.12]}"
    for row, bands in config.expected.items():
        require(isinstance(bands, dict) and bool(bands), f"expected.{row}", bands, remedy)
        for metric, band in bands.items():
            numbers = isinstance(band, list) and all(type(end) in (int, float) for end in band)
            fits = numbers and len(band) == 2 and band[0] <= band[1]
            require(fits, f"expected.{row}.{metric}", band, remedy)
    has_bands = not config.verify or bool(config.expected)
    require(has_bands, "verify", True, "the recipe expects nothing, give it `expected`")
