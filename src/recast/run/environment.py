"""Where a run happened: versions, hardware and commit, for `env.json`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

GIT_S = 10.0
"""Seconds that git gets for an answer; on a slow network folder it takes one."""


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
    names = ["recast-rl"]
    for requirement in requires("recast-rl") or []:
        if "extra ==" not in requirement:
            names += re.findall(r"^[\w.-]+", requirement)
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


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


def _git_commit() -> str | None:
    """Commit of the checkout that tracks this very file, with `-dirty` for local changes."""
    git = shutil.which("git")
    if git is None:
        return None
    here = [git, "-C", str(Path(__file__).parent)]
    try:
        tracked = _words([*here, "ls-files", "--error-unmatch", Path(__file__).name])
        asked = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return _words([*here, *asked]) if tracked else None
    except (OSError, subprocess.TimeoutExpired):  # a run does not wait for its record
        return None


def _words(command: list[str]) -> str | None:
    """What a command says within `GIT_S`; None where it fails or says nothing."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=GIT_S,
        check=False,
    )
    return None if done.returncode else done.stdout.decode(errors="replace").strip() or None
