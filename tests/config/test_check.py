"""Settings as Python callers write them: what they mean, or one line, before any work.

Without the type checks of the tests, which would refuse these types first.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from checked import unchecked

HEAD = """
from pathlib import Path
import numpy as np, torch
from recast.config import ModelConfig, PrepareConfig, RLConfig, SFTConfig
"""
MEANT = {
    "a path": """
config = PrepareConfig(interactions=Path("a") / "b.csv", output=Path("c"))
assert (config.interactions, config.output) == ("a/b.csv", "c")
""",
    "numbers of numpy and torch": """
given = {"w": np.float64(0.5), "v": torch.tensor(2)}
rate = np.logspace(-4, -3, 2)[0]
config = RLConfig(data="d", policy="p", output="o", lr=rate, seed=np.int64(3), signal_args=given)
assert (type(config.lr), type(config.seed), config.seed) == (float, int, 3)
assert config.signal_args == {"w": 0.5, "v": 2}
assert [type(value) for value in config.signal_args.values()] == [float, int]
""",
    "one text for a list": """
assert PrepareConfig(output="o", items="i.csv", text="title").text == ["title"]
""",
    "a dict for nested settings": """
config = SFTConfig(data="d", catalog="c", output="o", model={"hidden_size": np.int64(32)})
assert config.model == ModelConfig(hidden_size=32)
""",
    "what is no path, config or cell, to every public function": """
import recast
import polars as pl
wrong = [None, b"x", 3, True, [], {}, object(), pl.DataFrame({"a": [1]}), torch.tensor(1)]
wrong += ["", "a\\0b", "x" * 300, chr(0xDCFF), lambda x: x]
functions = [getattr(recast, name) for name in recast.__all__ if name[0].islower()]
assert len(functions) == 14, functions
calls = [(f, (value,)) for f in functions if f is not recast.run_cells for value in wrong]
calls += [(recast.run_cells, (value, [])) for value in wrong]
calls += [(recast.run_cells, ("cells", value)) for value in wrong[:4] + wrong[6:]]
calls += [(recast.run_cells, ("cells", [value])) for value in wrong]
for function, args in calls:
    try:
        function(*args)
    except recast.RecastError as error:
        assert ": " in str(error)
    else:
        raise AssertionError((function, args))
assert not Path("cells").exists()
""",
    "a misspelt one": """
try:
    SFTConfig(data="d", catalog="c", output="o", model={"hidden_sizes": 32})
except ValueError as error:
    assert str(error).startswith("model is {'hidden_sizes': 32}: choose from path, kind")
else:
    raise AssertionError
""",
}


@pytest.mark.parametrize("name", MEANT)
def test_settings_mean_what_python_callers_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with unchecked():
        exec(HEAD + MEANT[name], {})
