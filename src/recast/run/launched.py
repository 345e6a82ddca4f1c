"""How ranks begin and end: what a launcher says of them in; a world in which all have met out, and
who of them speaks in the end."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any, NamedTuple

from recast.config.check import MOST_RANKS, num_ranks
from recast.errors import RecastError
from recast.run.world import World, is_first, stand_in, telling, world

_MEET_S = 60
"""In which all ranks must have come."""
_FIRST_S = 1.0
"""In which the first rank speaks for all, where all have the same to say."""
SAID = "said"
"""Key of the store, once a rank has said how the run ended."""
_HERE = "here"


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


def join() -> None:
    """Meet the other ranks that the environment tells of; without any, and once met, nothing
    happens.

    Raises `RecastError` where they do not meet within a minute.
    """
    size = num_ranks()
    if size == 1 or world().store is not None:
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
        with telling(rank, size, "cannot join the others", "start all of them again"):
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
                store=store,
                rank=rank,
                world_size=size,
            )
    stand_in(World(rank=rank, size=size, local_size=local_size, store=store))


def _meet(rank: int, size: int) -> Any:
    """The store of all ranks, once all are there."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    within = timedelta(seconds=_MEET_S)
    doing = f"cannot reach the others through MASTER_ADDR:MASTER_PORT, {where}"
    remedy = f"check both, that the port is free and that all {size} were started"
    with telling(rank, size, doing, remedy):
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
    if world().size > 1:
        from torch import distributed

        stand_in(World())
        distributed.destroy_process_group()


def speaks() -> bool:
    """Whether this rank is to say how the run ended: one does, the first where it can."""
    if world().store is None:
        return True
    try:
        if not is_first():
            from torch.distributed import DistStoreError

            try:
                world().store.wait([SAID], timedelta(seconds=_FIRST_S))
                return False
            except DistStoreError:
                pass
        return int(world().store.add(SAID, 1)) == 1
    except RuntimeError:  # the store has gone, with the launcher or the first rank that kept it
        return world().rank == (0 if _is_kept() else 1)


def linger() -> None:
    """Part from the other ranks, and stay as long as they need to read that this one has spoken,
    where the store of that ends with this process."""
    if world().size > 1 and is_first() and not _is_kept():
        from torch import distributed

        distributed.destroy_process_group()
        time.sleep(2 * _FIRST_S)


def _is_kept() -> bool:
    """Whether the launcher itself keeps the store, as torchrun does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _number(name: str, most: int, default: str | None = None) -> int:
    """A variable of the launcher, below `most`."""
    text = os.environ.get(name, default)
    if text is None or not (text.isascii() and text.isdigit() and int(text[:9]) < most):
        raise RecastError(
            f"{name} is {text!r} where WORLD_SIZE is {num_ranks()}: start it with torchrun, which "
            "sets them, or unset WORLD_SIZE for one process"
        )
    return int(text)
