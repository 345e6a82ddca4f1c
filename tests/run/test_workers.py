"""Workers: results as they come, an error with its trace, a worker that is gone, an end by SIGTERM.

The functions are Python's own: a worker would import this file's neighbours otherwise.
"""

from __future__ import annotations

import math
import operator
import os
import time
from functools import partial
from typing import Any

import pytest

from recast.errors import RecastError
from recast.run.workers import in_workers


def collect(function: Any, arguments: list[Any], count: int = 2) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    in_workers(function, iter(arguments), found.__setitem__, count)
    return found


def test_every_argument_has_its_result() -> None:
    assert collect(math.factorial, [3, 1, 4, 5]) == {3: 6, 1: 1, 4: 24, 5: 120}
    assert collect(math.factorial, []) == {}


def test_an_error_comes_with_its_trace() -> None:
    with pytest.raises(RuntimeError, match="ValueError: ") as failed:
        collect(math.factorial, [-1, 3])
    assert "Traceback" in failed.value.__notes__[0]


def test_a_worker_that_is_gone_is_said() -> None:
    """The other one is asked to end: nobody waits a minute for it."""
    began = time.monotonic()
    with pytest.raises(RecastError, match=r"ended by itself \(exit code 7\).*set workers to 1"):
        collect(operator.call, [partial(time.sleep, 60), partial(os._exit, 7)])
    assert time.monotonic() - began < 40
