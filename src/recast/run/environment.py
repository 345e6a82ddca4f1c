"""Where a run happened: versions, hardware and commit, for `env.json`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

GIT_S = 1.0
"""Seconds that git may take: the commit is worth no more."""


def environment(data_hash: str | None = None) -> dict[str, Any]:
    """Plain data for `env.json`; `data_hash` is the caller's digest of its data folder."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "memory_gib": memory_gib(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch_threads": torch.get_num_threads(),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "data_hash": data_hash,
    }


def _versions() -> dict[str, str]:
    """This package and its direct dependencies without those of the extras."""
    names, required = ["recast-rl"], list[str]()
    with suppress(PackageNotFoundError):
        required = requires("recast-rl") or []
    for requirement in required:
        if "extra ==" not in requirement:
            names += re.findall(r"^[\w.-]+", requirement)
    return {name: version_of(name) for name in names}


def version_of(package: str) -> str:
    """Its version, or that it has none: a folder of sources on `PYTHONPATH`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Of the machine; None where it does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


@cache
def _git_commit() -> str | None:
    """Commit of the checkout that tracks this very file, with `-dirty` for local changes; None
    where git does not tell in time."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    said = _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return said if re.fullmatch("[0-9a-f]{40,64}(-dirty)?", said or "") else None


def _git(folder: Path, *args: str) -> str | None:
    """What git prints; None where there is none, it fails or it hangs."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        process = subprocess.Popen(
            [git, "-C", str(folder), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            printed = process.communicate(timeout=GIT_S)[0]
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            return None
    return None if process.returncode else printed.decode(errors="replace").strip()
