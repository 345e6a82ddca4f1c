"""Other ranks: what a launcher says of them in; what all of them know, and who speaks, out.

A *rank* is one of several processes that make one run together, as torchrun starts them. What
decides what a run does next is known to all of them alike (`once`, `gathered`), so that no rank
waits for one that went another way. An error ends the rank that it is on, with its line; the
others notice while they wait for it, and end without another. Alone, nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from recast.config.check import MOST_RANKS, num_ranks
from recast.errors import RecastError, in_short

if TYPE_CHECKING:  # torch takes seconds, and is not needed to know that one is alone
    from torch import Tensor

_MEET_S = 60
"""In which all ranks must have come."""
_FIRST_S = 1.0
"""In which the first rank speaks for all, where all have the same to say."""
_SAID, _HERE = "said", "here"
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
    """Of keys that all ranks read and write; None alone."""


class Launched(NamedTuple):
    """What a launcher tells a process besides WORLD_SIZE."""

    rank: int
    local_rank: int
    local_size: int

    @classmethod
    def told(cls) -> Launched:
        """Raises `RecastError` for what is missing."""
        size = num_ranks()
        if size > MOST_RANKS:
            raise RecastError(f"WORLD_SIZE is {size}: {MOST_RANKS:,} processes are the most")
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise RecastError(
                    f"WORLD_SIZE is {size}: {name}, where the processes meet, is not set; start "
                    "them with torchrun, or unset WORLD_SIZE for one process"
                )
        return cls(
            rank=_number("RANK", size),
            local_rank=_number("LOCAL_RANK", size, "0"),
            local_size=max(_number("LOCAL_WORLD_SIZE", size + 1, "1"), 1),
        )


_world = World()


def world() -> World:
    """This rank among all."""
    return _world


def is_first() -> bool:
    """Whether this rank is the one that speaks and writes."""
    return _world.rank == 0


def join() -> None:
    """Meet the other ranks that the environment tells of; alone, and once met, nothing happens.

    Raises `RecastError` where they do not meet within a minute.
    """
    global _world  # noqa: PLW0603  # there is one, as of torch's process group
    size = num_ranks()
    if size == 1 or _world.size > 1:
        return
    rank, local_rank, local_size = Launched.told()
    # Else torch tells on stderr of every wait that ends; read as it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())  # what `cuda` then is
    if distributed.is_initialized():  # by a launcher that makes processes of its own
        store = distributed.distributed_c10d._get_default_store()
    else:
        store = _meet(rank, size)
        has_nccl = torch.cuda.is_available() and distributed.is_nccl_available()
        with _telling(rank, size, "cannot join the others", "start all of them again"):
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
                store=store,
                rank=rank,
                world_size=size,
            )
    _world = World(rank=rank, size=size, local_size=local_size, store=store)


def _meet(rank: int, size: int) -> Any:
    """The store of all ranks, once all are there."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    within = timedelta(seconds=_MEET_S)
    doing = f"cannot reach the others through MASTER_ADDR:MASTER_PORT, {where}"
    remedy = f"check both, that the port is free and that all {size} were started"
    with _telling(rank, size, doing, remedy):
        store, _, _ = next(rendezvous("env://", rank, size, timeout=within))
        # What an earlier start of the same launcher left is no word of this one.
        begun = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"recast/{begun}", store)
        store.set(f"{_HERE}/{rank}", "")
        names = [f"{_HERE}/{other}" for other in range(size)]
        try:
            store.wait(names, within)
        except RuntimeError:
            missing = [other for other, name in enumerate(names) if not store.check([name])]
            if missing:
                who = ", ".join(map(str, missing[:8]))
                raise RecastError(
                    f"rank {who} of {size} has not come within {_MEET_S} s: {remedy}"
                ) from None
            raise
    return store


def leave() -> None:
    """Part from the other ranks."""
    global _world  # noqa: PLW0603
    if _world.size > 1:
        from torch import distributed

        _world = World()
        distributed.destroy_process_group()


def speaks() -> bool:
    """Whether this rank is to say how the run ended: one does, the first where it can."""
    if _world.store is None:
        return True
    try:
        if not is_first():
            from torch.distributed import DistStoreError

            try:
                _world.store.wait([_SAID], timedelta(seconds=_FIRST_S))
                return False
            except DistStoreError:
                pass
        return int(_world.store.add(_SAID, 1)) == 1
    except RuntimeError:  # the store has gone with its process
        return is_first()


@contextmanager
def alone() -> Iterator[None]:
    """While it lasts this rank is the only one: what it does the others need not do."""
    global _world  # noqa: PLW0603
    before = _world
    _world = World(rank=before.rank, local_size=before.local_size)
    try:
        yield
    finally:
        _world = before


def once(work: Callable[[], Result]) -> Result:
    """What the first rank's `work` gives, for all."""
    if _world.size == 1:
        return work()
    from torch import distributed

    result: list[Any] = [None]
    if is_first():
        with alone():
            result = [work()]
    with _waiting():
        distributed.broadcast_object_list(result, src=0)
    found: Result = result[0]
    return found


def gathered(value: Result) -> list[Result]:
    """The values of all ranks, in their order."""
    if _world.size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _world.size
    with _waiting():
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
        with _waiting():
            distributed.broadcast(value, src=0)
        found[name] = value
    return mine if is_first() else found


def add_up(numbers: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if _world.size > 1:
        from torch import distributed

        with _waiting():
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
def _waiting() -> Iterator[None]:
    """Around what all ranks do together; one that has gone is an error of those that wait."""
    remedy = "look for what ended it, then start all of them again, with --resume"
    with _telling(_world.rank, _world.size, "lost another one", remedy, LostRankError):
        yield


@contextmanager
def lost() -> Iterator[None]:
    """Around work in which torch itself lets ranks wait for each other, among other things."""
    try:
        yield
    except RuntimeError as error:
        if _world.size > 1 and "gloo" in str(error):
            with _waiting():
                raise
        raise


@contextmanager
def _telling(
    rank: int, size: int, what: str, remedy: str, kind: type[RecastError] = RecastError
) -> Iterator[None]:
    try:
        yield
    except RecastError:
        raise
    except (RuntimeError, ValueError) as error:
        from recast.run.reading import reason_of

        reason = reason_of(error, 120)
        raise kind(f"rank {rank} of {size} {what} ({reason}): {remedy}") from error


def _number(name: str, most: int, default: str | None = None) -> int:
    """A variable of the launcher, below `most`."""
    text = os.environ.get(name, default)
    if text is None or not (text.isascii() and text.isdigit() and int(text[:9]) < most):
        raise RecastError(
            f"{name} is {text!r} where WORLD_SIZE is {num_ranks()}: start it with torchrun, which "
            "sets them, or unset WORLD_SIZE for one process"
        )
    return int(text)
