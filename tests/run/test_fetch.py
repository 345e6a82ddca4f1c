from __future__ import annotations

import hashlib
import re
import resource
import stat
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from recast.run.fetch import cache_folder, fetch_from_wheel
from recast.types import RecastError

METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"


def build_wheel(folder: Path, files: dict[str, str]) -> str:
    """A wheel `tiny==1.0` that holds `files`; returns its sha256."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("tiny-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the user's pip configuration names as its only source, and a fresh cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())  # a path may hold spaces
    monkeypatch.setenv("RECAST_CACHE", str(tmp_path / "cache"))
    return folder


def leftovers(tmp_path: Path) -> list[Path]:
    cache = tmp_path / "cache"
    return [p for p in cache.rglob("*") if p.is_file() or "." in p.name[:1]]


def test_a_folder_is_extracted_once_and_then_comes_from_the_cache(index: Path) -> None:
    files = {"tiny/a/one.txt": "1", "tiny/a/deep/two.txt": "2", "tiny/ab.txt": "3", "tiny/b": "4"}
    sha256 = build_wheel(index, files)
    folder = fetch_from_wheel("tiny==1.0", sha256, "tiny/a/")
    found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.*")}
    assert found == {"one.txt": "1", "deep/two.txt": "2"}
    assert sha256[:16] in str(folder)
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    assert fetch_from_wheel("tiny==1.0", sha256, "tiny/a") == folder


def test_a_single_file(index: Path) -> None:
    sha256 = build_wheel(index, {"tiny/a/one.txt": "1"})
    file = fetch_from_wheel("tiny==1.0", sha256, "tiny/a/one.txt")
    assert file.read_text() == "1"
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_another_hash_is_refused_and_nothing_is_kept(index: Path, tmp_path: Path) -> None:
    found = build_wheel(index, {"tiny/a/one.txt": "1"})
    with pytest.raises(RecastError, match=f"tiny-1.0-py3-none-any.whl has the sha256 {found}"):
        fetch_from_wheel("tiny==1.0", "0" * 64, "tiny/a")
    assert not leftovers(tmp_path)


def test_a_missing_member(index: Path, tmp_path: Path) -> None:
    sha256 = build_wheel(index, {"tiny/a/one.txt": "1"})
    with pytest.raises(RecastError, match="holds no tiny/c: check the requirement"):
        fetch_from_wheel("tiny==1.0", sha256, "tiny/c")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("evil", ["../../../evil.txt", "/evil.txt", "..\\evil.txt", "C:evil.txt"])
def test_paths_that_leave_the_folder_are_refused(index: Path, tmp_path: Path, evil: str) -> None:
    sha256 = build_wheel(index, {"tiny/a/one.txt": "1", f"tiny/a/{evil}": "x"})
    with pytest.raises(RecastError, match="unsafe path"):
        fetch_from_wheel("tiny==1.0", sha256, "tiny/a")
    assert not leftovers(tmp_path)
    assert not list(tmp_path.rglob("*evil*"))


def test_pip_without_the_package(index: Path) -> None:
    with pytest.raises(RecastError) as caught:
        fetch_from_wheel("tiny==1.0", "0" * 64, "tiny")
    assert str(caught.value) == (
        "pip could not download tiny==1.0 (ERROR: No matching distribution found for tiny==1.0): "
        "check the network and pip's configuration"
    )


def test_python_without_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RecastError, match=r"No module named pip\): run `.*python -m ensurepip`"):
        fetch_from_wheel("tiny==1.0", "0" * 64, "tiny")


def test_a_cache_that_cannot_be_written(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(RecastError, match="Not a directory: free some space there, make it"):
        fetch_from_wheel("tiny==1.0", "0" * 64, "tiny")


def test_a_disk_that_takes_no_more(index: Path, tmp_path: Path) -> None:
    """A limit on the size of files lets the small wheel pass and stops its large member."""
    sha256 = build_wheel(index, {"tiny/a/one.txt": "1" * 10**6})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))
    try:
        with pytest.raises(RecastError, match=r"tiny\+a: File too large: free some space there, m"):
            fetch_from_wheel("tiny==1.0", sha256, "tiny/a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not leftovers(tmp_path)


def test_what_was_changed_in_the_cache_is_named(index: Path, tmp_path: Path) -> None:
    sha256 = build_wheel(index, {"tiny/a/one.txt": "1"})
    # sha256 of "one.txt\n" + sha256("1") + "\n"
    inner = hashlib.sha256(b"1").hexdigest()
    content = hashlib.sha256(f"one.txt\n{inner}\n".encode()).hexdigest()
    folder = fetch_from_wheel("tiny==1.0", sha256, "tiny/a", content)
    assert fetch_from_wheel("tiny==1.0", sha256, "tiny/a", content) == folder
    line = f"{folder} is damaged, it is not what tiny==1.0 holds: delete it, it will be fetched"
    for text, name in (("2", "one.txt"), ("1", "two.txt"), ("", "one.txt")):
        (folder / "one.txt").unlink()
        (folder / name).write_text(text)
        with pytest.raises(RecastError, match=re.escape(line)):
            fetch_from_wheel("tiny==1.0", sha256, "tiny/a", content)
        (folder / name).rename(folder / "one.txt")
    (folder / "one.txt").unlink()
    folder.rmdir()
    folder.write_text("a file in its place")
    with pytest.raises(RecastError, match=re.escape(line)):
        fetch_from_wheel("tiny==1.0", sha256, "tiny/a", content)


def test_pip_that_hangs_is_ended(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pip that writes into its temporary folder, says pages and waits for ever."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho $$ > "$TMPDIR/pip-x"\nseq 9999\nexec sleep 600\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("recast.run.fetch.STALL_S", 0.3)
    line = r"could not download tiny==1.0 \(nothing arrived for 0 s\): check the network"
    with pytest.raises(RecastError, match=line):
        fetch_from_wheel("tiny==1.0", "0" * 64, "tiny")
    assert not leftovers(tmp_path)
    monkeypatch.setattr("recast.run.fetch.STALL_S", 60.0)  # a busy machine is slow to say a word
    python.write_text("#!/bin/sh\nseq 99999\necho $TMPDIR\necho " + "x" * 999 + "\nexit 3\n")
    with pytest.raises(RecastError, match=rf"\({'x' * 147}\.\.\.\): check the network"):
        fetch_from_wheel("tiny==1.0", "0" * 64, "tiny")


def test_wheels_that_unpack_to_too_much_or_to_links(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index / "tiny-1.0-py3-none-any.whl"
    build_wheel(index, {"tiny/a/one.txt": "1" * 10**6})
    link = zipfile.ZipInfo("tiny/a/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(RecastError, match="holds the unsafe path 'tiny/a/link': do not use it"):
        fetch_from_wheel("tiny==1.0", sha256, "tiny/a")
    monkeypatch.setattr("recast.run.fetch._MOST_BYTES", 10**6)
    with pytest.raises(RecastError, match=r"tiny-1.0-.* unpacks to 1,000,\d+ bytes: do not use it"):
        fetch_from_wheel("tiny==1.0", sha256, "tiny/a")
    assert not leftovers(tmp_path)


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(RecastError, match=r"no folder for downloads \(HOME is 'here'\): set R"):
        cache_folder()
    monkeypatch.setenv("HOME", "/x")
    monkeypatch.setenv("RECAST_CACHE", "~/y")
    assert cache_folder() == Path("/x/y")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "recast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "recast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/recast")
    monkeypatch.setenv("RECAST_CACHE", "/y")
    assert cache_folder() == Path("/y")
