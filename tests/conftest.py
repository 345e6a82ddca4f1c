"""Shapes and types of the whole package are checked while the tests run, and only then.

It is here, and not in a fixture, because the hook must be in place before `recast` is imported.
"""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("recast", "checked.check")

pytest_plugins = ["walk_fixtures"]
