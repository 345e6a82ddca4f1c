"""Shapes and types of the whole package are checked while the tests run, and only then.

It is here, and not in a fixture, because the hook must be in place before `recast` is imported.
"""

from __future__ import annotations

import os

from checked import check_package

# A caller's launcher, or a wish for settings from variables, is not that of the tests.
for name in ("WORLD_SIZE", "RANK", *(x for x in os.environ if x.startswith("JSONARGPARSE_"))):
    os.environ.pop(name, None)
os.environ["COLUMNS"] = "80"  # how wide a help is, not a narrow terminal's

check_package("recast")

pytest_plugins = ["walk_fixtures"]
