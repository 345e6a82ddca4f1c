"""Room is asked before the work."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
from small_walk import failure, rl_args, sft_args

from recast.run.space import require_space
from recast.types import RecastError


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "a" / "b", free // 2)
    with pytest.raises(RecastError) as refused:
        require_space(tmp_path / "a" / "b", 2**62)
    line = str(refused.value)
    assert line.startswith(f"{tmp_path}/a/b takes 4,611,686,018,427,387,904 bytes, its disk has ")
    assert line.endswith(" free: free some space or choose another output")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [sft_args, rl_args])
def test_files_that_may_not_be_as_large(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: object
) -> None:
    """The policy or a checkpoint would not fit: said before the training, nothing is left."""
    assert callable(args)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        line, code = failure(capsys, *map(str, args(walk, tmp_path / "run")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert line.startswith(f"{tmp_path / 'run'} takes a file of ")
    assert line.endswith(" bytes, files are limited to 10,000 here: raise that (ulimit -f)")
    assert list(tmp_path.iterdir()) == []
