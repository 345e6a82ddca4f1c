"""Other ranks: what this one knows in; what all of them know out.

A *rank* is one of several processes that make one run together (`recast.run.launched`). What
decides what a run does next is known to all of them alike (`once`, `gathered`), so that no rank
waits for one that went another way. An error ends the rank that it is on, with its line; the
others notice while they wait for it, and end without another. Alone, nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, TypeVar

from recast.errors import RecastError, in_short

if TYPE_CHECKING:  # torch takes seconds, and is not needed to know that one is alone
    from torch import Tensor

_BUCKET = 2**24
"""Numbers that go through the network together."""

Result = TypeVar("Result")


class LostRankError(RecastError):
    """Another rank has gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Who else there is."""

    rank: int = 0
    size: int = 1
    """Ranks in all."""
    local_size: int = 1
    """Of them on this machine, which share its cores and its memory."""
    store: Any = None
    """Of keys that all ranks read and write; None where there are no others."""
    led: World | None = None
    """All, while this one leads them (`recast.run.lead`)."""

    @property
    def is_alone(self) -> bool:
        """Whether the others need not do what this one does."""
        return self.size == 1 and self.store is not None


_world = World()


def world() -> World:
    """This rank among all."""
    return _world


def is_first() -> bool:
    """Whether this rank is the one that speaks and writes."""
    return _world.rank == 0


def stand_in(other: World) -> None:
    """From now on this rank is in another world."""
    global _world  # noqa: PLW0603  # there is one, as of torch's process group
    _world = other


@contextmanager
def alone() -> Iterator[None]:
    """While it lasts this rank is the only one: what it does the others need not do."""
    before = _world
    stand_in(replace(before, size=1))
    try:
        yield
    finally:
        stand_in(before)


def once(work: Callable[[], Result]) -> Result:
    """What the first rank's `work` gives, for all."""
    if _world.size == 1:
        return work()
    from torch import distributed

    result: list[Any] = [None]
    if is_first():
        with alone():
            result = [work()]
    with waiting():
        distributed.broadcast_object_list(result, src=0)
    found: Result = result[0]
    return found


def gathered(value: Result) -> list[Result]:
    """The values of all ranks, in their order."""
    if _world.size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _world.size
    with waiting():
        distributed.all_gather_object(values, value)
    return values


def agreed(value: Result) -> Result:
    """The first rank's: numbers that were computed alike may differ in their last bit."""
    return once(lambda: value)


def shared(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The first rank's tensors, for all; elsewhere they are on the CPU."""
    if _world.size == 1:
        return tensors or {}
    import torch
    from torch import distributed

    mine = tensors or {}
    shapes = agreed([(name, value.shape, value.dtype) for name, value in mine.items()])
    found = {}
    for name, shape, dtype in shapes:
        value = mine[name].cpu().contiguous() if is_first() else torch.empty(shape, dtype=dtype)
        with waiting():
            distributed.broadcast(value, src=0)
        found[name] = value
    return mine if is_first() else found


def add_up(numbers: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if _world.size > 1:
        from torch import distributed

        with waiting():
            distributed.all_reduce(numbers)
    return numbers


def total(number: float) -> float:
    """The sum of the ranks' numbers."""
    return sum(gathered(number))


def add_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients over all ranks; a parameter that none has a gradient of keeps none.

    Those of weights that ranks share are sums already (`recast.policy.sharded`).
    """
    if _world.size == 1:
        return
    import torch
    from torch.distributed.tensor import DTensor

    if isinstance(parameters[0], DTensor):
        return

    has_any = add_up(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
    bucket: list[Tensor] = []
    due = [p for p, has in zip(parameters, has_any, strict=True) if has]
    for place, parameter in enumerate(due):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        after = due[place + 1] if place + 1 < len(due) else None
        full = sum(gradient.numel() for gradient in bucket) >= _BUCKET
        if after is None or full or after.dtype != parameter.dtype:
            flat = add_up(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, total in zip(bucket, flat.split(sizes), strict=True):
                gradient.copy_(total.view_as(gradient))
            bucket.clear()


def share(costs: Iterable[float]) -> list[int]:
    """The positions that this rank works on, so that all have about the same cost: the dearest
    first, each to the rank that has least.

    >>> share([3, 1, 2])
    [0, 1, 2]
    """
    each = list(costs)
    if _world.size == 1:
        return list(range(len(each)))
    loads, own = [(0.0, rank) for rank in range(_world.size)], []
    for position in sorted(range(len(each)), key=lambda i: -each[i]):
        load, rank = heappop(loads)
        heappush(loads, (load + each[position], rank))
        if rank == _world.rank:
            own.append(position)
    return sorted(own)


def spread(batches: Sequence[Any], work: Callable[[Any], Result]) -> list[Result]:
    """What `work` gives for every batch, in their order; each rank does its part of them."""
    if _world.size == 1:
        return [work(batch) for batch in batches]
    own = batches[_world.rank :: _world.size]
    with alone():
        done = [work(batch) for batch in own]
    parts = gathered(done)
    return [parts[i % _world.size][i // _world.size] for i in range(len(batches))]


def require_same(what: dict[str, Any]) -> None:
    """Raise `RecastError` for the first of these facts that another rank knows otherwise."""
    first, *others = gathered(what)
    for rank, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            mine, its = first.get(name), other.get(name)
            if mine != its:
                raise RecastError(
                    f"{name} is {in_short(mine)} on rank 0 and {in_short(its)} on rank {rank}: "
                    "start all ranks with the same command, files and versions"
                )


@contextmanager
def waiting() -> Iterator[None]:
    """Around what all ranks do together; one that has gone is an error of those that wait."""
    remedy = "look for what ended it, then start all of them again, sft and rl with --resume"
    with telling(_world.rank, _world.size, "lost another one", remedy, LostRankError):
        yield


@contextmanager
def lost() -> Iterator[None]:
    """Around work in which torch itself lets ranks wait for each other, among other things."""
    try:
        yield
    except RuntimeError as error:
        if _world.size > 1 and "gloo" in str(error):
            with waiting():
                raise
        raise


@contextmanager
def telling(
    rank: int, size: int, what: str, remedy: str, kind: type[RecastError] = RecastError
) -> Iterator[None]:
    """Errors of the network around what a rank was doing as one line of `kind`."""
    try:
        yield
    except RecastError:
        raise
    except (RuntimeError, ValueError) as error:
        from recast.run.reading import reason_of

        reason = reason_of(error, 120)
        raise kind(f"rank {rank} of {size} {what} ({reason}): {remedy}") from error
