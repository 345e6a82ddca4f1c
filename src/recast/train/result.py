"""What a run leaves: room for it asked before the work, its policy written wherever there is room.

Enters: a trained policy and its folder. Leaves: that folder, or another one and an error that
names it.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from recast.policy.load import Policy, save_policy
from recast.policy.lora import has_adapters
from recast.policy.save import saved_dtype
from recast.policy.sharded import whole_weights
from recast.run.files import UnwritableError
from recast.run.space import require_space
from recast.run.stop import Stopped
from recast.run.world import is_first
from recast.types import RecastError

_ASKED = "Enter tries that again, the name of another folder writes it there: "


def require_room(
    output: str, policy: Policy, *, copies: int, checkpoints: int, policies: int = 1
) -> None:
    """Refuse an output where there is no room for so many policies and so many checkpoints, each
    with so many copies of the trained weights: themselves, AdamW's two moments, the best ones."""
    numbers = sum(p.numel() for p in policy.model.parameters())
    saved = numbers * saved_dtype(policy.model).itemsize
    trained = sum(p.nbytes for p in policy.model.parameters() if p.requires_grad)
    if saved_dtype(policy.model).itemsize < 4 and not has_adapters(policy.model):
        saved += trained  # the masters
    kept = copies * trained
    if is_first():  # which alone writes
        largest = max(saved, kept)
        require_space(output, policies * saved + checkpoints * kept, largest=largest)


def save_result(policy: Policy, folder: Path, *, merge: bool = True) -> None:
    """`save_policy`, by which no weights are lost: where the folder cannot be written, a person at
    a terminal is asked for another one until one can; elsewhere, and when the terminal goes away,
    the policy goes below the home or the temporary folder. Of several ranks the first alone writes.

    Raises `RecastError` that names where it is, if not in `folder`. Ctrl-C gives it up.
    """
    with whole_weights(policy.model):
        if is_first():
            _save_result(policy, folder, merge=merge)


def _save_result(policy: Policy, folder: Path, *, merge: bool) -> None:
    def failed(place: Path) -> UnwritableError | None:
        try:
            save_policy(policy, place, merge=merge)
        except UnwritableError as error:
            return error
        return None

    place, first = folder, failed(folder)
    error = first
    while error and (chosen := _asked(error, folder)):
        place, error = chosen, failed(chosen)
    name = f"recast-policy-{token_hex(4)}"
    for above in (Path.home, tempfile.gettempdir):
        if error:
            with suppress(OSError, RuntimeError):  # there is none
                place = Path(above()) / name
                error = failed(place)
    if error and first:
        raise first
    if first and place != folder:
        raise RecastError(f"{first}; the policy is in {place}, whole: move it there") from first


def _asked(error: UnwritableError, folder: Path) -> Path | None:
    """The folder that a person names; None where there is nobody."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        return Path(input(f"warning: {error}\n{_ASKED}").strip() or folder)
    except (EOFError, OSError):
        return None
    except Stopped as stopped:
        if stopped.number == signal.SIGINT:
            raise
        return None
