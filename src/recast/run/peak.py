"""The most memory held at once: a device in; bytes out, of the whole process and of a phase of it.

Of a GPU it is what torch holds on it, of the CPU what the process holds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import torch

_before: dict[str, int] = {}
"""Most until a phase last began, by kind of device."""


def peak_bytes(device: torch.device) -> int:
    """Since the process began."""
    return max(_before.get(device.type, 0), phase_peak_bytes(device))


def begin_phase(device: torch.device) -> bool:
    """From now on `phase_peak_bytes` is of what follows; False where the system does not let it.

    On Linux that is the process' own VmHWM, which others then read too: `/usr/bin/time -v` says
    what was held since the last phase began.
    """
    _before[device.type] = peak_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc
    except OSError:
        return False
    return True


def phase_peak_bytes(device: torch.device) -> int:
    """Since the phase began; since the process did where none has."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file() and (line := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(line[1]) * 1024
    most = getrusage(RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
