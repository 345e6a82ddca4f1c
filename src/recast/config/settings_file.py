"""The text of a settings file, or of a flag's value, in; plain data out. YAML, read strictly:

nothing but text, numbers, truth values, null, lists and mappings; decimal numbers alone (010 and
1_000 are texts, 1e-4 is a number, a date is a text); no key twice; bounds on size, depth and on
what aliases expand to.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from recast.errors import RecastError

MOST_BYTES = 2**18
MOST_NODES = 20_000
"""Of a file with its aliases written out."""
MOST_DEPTH = 50

_NUMBERS = {
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9]{0,39})$"),
    "float": re.compile(
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
}


def _unique_keys(loader: Any, node: Any, deep: bool = False) -> Any:
    keys = set()
    for key, _ in node.value:
        name = loader.construct_object(key, deep=True) if key.value != "<<" else None
        if isinstance(name, str) and name in keys:
            raise yaml.MarkedYAMLError(
                problem=f"the key {name!r} is there twice", problem_mark=key.start_mark
            )
        keys.add(name if isinstance(name, str) else None)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


# In Python, not in C, whose recursion has no limit.
_Loader: Any = type("_Loader", (yaml.SafeLoader,), {"construct_mapping": _unique_keys})
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list("-+.0123456789"))


def load_text(text: str) -> Any:
    """Plain data of a YAML text. Raises `yaml.YAMLError` for all else."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError(f"nested deeper than {MOST_DEPTH} levels") from error
    finally:
        loader.dispose()


def _count(node: Any, counts: dict[int, int], depth: int) -> int:
    """Nodes below, aliases written out."""
    if depth > MOST_DEPTH:  # an alias of itself too
        raise yaml.YAMLError(f"nested deeper than {MOST_DEPTH} levels")
    if id(node) not in counts:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        counts[id(node)] = 1 + sum(_count(child, counts, depth + 1) for child in children)
    if counts[id(node)] > MOST_NODES:
        raise yaml.YAMLError(f"its aliases make more than {MOST_NODES} values")
    return counts[id(node)]


def read_settings(file: str) -> dict[Any, Any]:
    """The settings of a YAML file. Raises `RecastError` for one that is none."""
    path = Path(file).expanduser()
    if not stat.S_ISREG(path.stat().st_mode):  # a device or a pipe might never end
        raise RecastError(f"{file} is no file: give a YAML file")
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RecastError(f"{file} is larger than {MOST_BYTES} bytes: give a YAML file of settings")
    try:
        settings = load_text(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecastError(f"{file} is not a text file: give a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecastError(f"{file}, line {line}: {error.problem}: write valid YAML") from error
    except (yaml.YAMLError, ValueError) as error:  # a control character
        raise RecastError(f"{file}: {error}: write valid YAML") from error
    if not isinstance(settings, dict):
        raise RecastError(f"{file} holds no settings: write lines of the form `seed: 1`")
    return settings
