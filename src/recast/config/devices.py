"""Cards of a cluster by name: `64xH100` in, how many of what out."""

from __future__ import annotations

import re
from typing import NamedTuple

from recast.errors import RecastError, in_short


class Card(NamedTuple):
    """Its maker's figures."""

    name: str
    """As in `64xH100`."""
    flops: float
    """A second, dense, in bfloat16."""
    memory: float
    """Bytes."""
    near: float
    """Bytes a second to another card of its machine, one way."""
    far: float
    """Bytes a second to another machine, for every card, as such machines are sold."""


CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 80e9, 300e9, 25e9),
        Card("H100", 989e12, 80e9, 450e9, 50e9),
        Card("H200", 989e12, 141e9, 450e9, 50e9),
        Card("B200", 2250e12, 180e9, 900e9, 50e9),
    )
}
_MACHINE = 8
"""Cards in one."""
_MOST = 100_000


class Devices(NamedTuple):
    """Cards that make a step together."""

    number: int
    """Of all machines together."""
    card: Card
    """All alike."""

    @property
    def link(self) -> float:
        """Bytes a second between those that are furthest apart."""
        return self.card.near if self.number <= _MACHINE else self.card.far


def parse_devices(text: str) -> Devices:
    """So many of a card.

    >>> parse_devices("64xH100").number
    64
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5})x(\w+)", text)
    if not found or found[2] not in CARDS or int(found[1]) > _MOST:
        raise RecastError(
            f"devices is {in_short(text)}: give a number up to {_MOST:,} and one of "
            f"{', '.join(CARDS)}, such as 64xH100"
        )
    return Devices(int(found[1]), CARDS[found[2]])
