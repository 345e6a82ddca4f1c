"""The command line: a verb and its settings in, one stage run, one line per error out.

Settings come from the verb's dataclass in `recast.config`. Exit codes: 0 done, 2 bad input or
surroundings (a setting, a file, a full disk), 1 a bug of ours, 128 + its number for a signal:
130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import recast
from recast.run.stop import Stopped, listening
from recast.run.surroundings import drop_output, refuse_surroundings, settle
from recast.verbs import VERBS, overview

BAD_INPUT, BUG = 2, 1
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "failed to map segment",  # of a library that is imported
)
_LONGEST = 4000
"""Characters of an error."""


def main(argv: list[str] | None = None) -> None:
    """Run one verb. Raises `SystemExit` with the codes above, never another exception."""
    if argv is None:
        settle()
    args = list(sys.argv[1:] if argv is None else argv)
    # Each stage has its own progress; the loaders' bars would only break its lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what matters there we raise
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 still gets its lines
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in args
    try:
        with listening():
            run([arg for arg in args if arg != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us left (`| head`)
        drop_output()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exception(error)
        line, code = explain(error)
        fail(line, code)


def run(args: list[str]) -> None:
    """Parse the arguments, run the stage and print the summary it returns."""
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return
    if args[0] == "--version":
        print(f"recast {recast.__version__}")
        return
    try:
        os.getcwd()
    except OSError:
        fail("the working directory is gone: change to one that exists")
    name, launch = args[0], None
    has_ranks = name in VERBS and VERBS[name].has_ranks
    refuse_surroundings(has_ranks=has_ranks)
    if has_ranks:
        from recast import config as configs
        from recast.config.launch import split_launch

        has_workers = hasattr(getattr(configs, VERBS[name].config or ""), "workers")
        args, launch = split_launch(args, has_workers=has_workers)
    config = configure(name, args[1:])
    verb = VERBS[name]
    if sys.flags.optimize > 1:
        fail("PYTHONOPTIMIZE is 2: transformers reads the docstrings that it drops, unset it")
    if config is None:
        print(_resolve(verb.stage)())
        return
    from recast.run.doors import enter
    from recast.run.launched import leave
    from recast.run.world import is_first

    # Before the stage is imported, which takes seconds.
    enter(config, type(config), goes_on=verb.goes_on)
    if verb.check:
        _resolve(verb.check)(config)
    began = time.monotonic()
    if launch:
        result = _resolve("recast.integrations.ray.host:run_on_ray")(
            verb.stage, config, launch.workers
        )
    else:
        result = _resolve(verb.stage)(config)
    if not is_first():
        leave()
        return
    if verb.describe:
        result = _resolve(verb.describe)(config.output)
    if isinstance(result, dict):
        result = "\n".join(f"{key}  {value}" for key, value in result.items())
    print(result)
    where = f", written to {config.output}" if hasattr(config, "output") else ""
    print(f"recast {name}: done in {time.monotonic() - began:.0f} s{where}")
    leave()


def _resolve(path: str) -> Callable[..., Any]:
    module, function = path.split(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
    except ValueError as error:  # of torch, as it is imported
        if "Invalid log settings" not in str(error):
            raise
        fail(f"TORCH_LOGS is {os.environ.get('TORCH_LOGS')!r}: torch knows no such log, unset it")
    return found


def configure(name: str, args: list[str]) -> Any:
    """The config of the verb `name` from its arguments; None for a verb without settings."""
    from recast import config as configs
    from recast.config import arguments

    if name not in VERBS:
        near = arguments.nearest(name, VERBS) or f"choose from {', '.join(VERBS)}"
        fail(f"{name!r} is no verb: {near}")
    verb = VERBS[name]
    if verb.config is None:
        if unknown := set(args) - {"-h", "--help"}:
            fail(f"recast {name} takes no settings: leave out {' '.join(sorted(unknown))}")
        return None
    if verb.takes_file and args and not args[0].startswith("-"):
        args = ["--config", *args]
    asks = bool({"-h", "--help"} & set(args))  # the table of methods takes two seconds to import
    epilog = methods_help() if asks and name in ("rl", "inspect", "compare") else ""
    return arguments.parse(name, getattr(configs, verb.config), verb.summary, epilog, args)


def methods_help() -> str:
    """The methods by name, one line each."""
    from recast.methods.table import METHODS

    width = max(map(len, METHODS)) + 2
    lines = [f"  {name:<{width}}{method.summary}\n" for name, method in METHODS.items()]
    return "\nmethods:\n" + "".join(lines)


def explain(error: BaseException) -> tuple[str, int]:
    """One line for a person and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        return str(error) or "interrupted", 128 + number
    from recast.errors import RecastError

    text = str(error)
    full = "choose another output or free some space"
    if isinstance(error, RecastError):
        return text, BAD_INPUT
    if "No space left on device" in text:  # polars and safetensors wrap it in their own errors
        return f"{getattr(error, 'filename', None) or 'the disk'} is full: {full}", BAD_INPUT
    if isinstance(error, OSError):
        remedies = {
            errno.ENOENT: "check the path",
            errno.EACCES: "choose a path you may use",
            errno.EROFS: "choose a path you may write to",
            errno.EMFILE: "allow more of them, with ulimit -n",
            errno.EFBIG: "allow larger ones, with ulimit -f",
        }
        remedy = remedies.get(error.errno or 0, "check the path and the disk")
        what = f"{error.filename}: {error.strerror}" if error.filename else text
        return f"{what}: {remedy}", BAD_INPUT
    if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        sizes = "take a smaller model, window, group or batch, or a larger machine"
        return f"the memory is not enough ({text[:200] or 'MemoryError'}): {sizes}", BAD_INPUT
    return (
        f"{type(error).__name__}: {text}: this is a bug of recast; "
        "run the same command with --debug and report the trace"
    ), BUG


def fail(line: str, code: int = BAD_INPUT) -> NoReturn:
    """Print one line on stderr, of several ranks one of them, and leave."""
    if "WORLD_SIZE" in os.environ:
        from recast.run.launched import linger, speaks

        if not speaks():
            raise SystemExit(code)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, a pipe that nobody reads
        drop_output()
    line = "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in line)
    line = " ".join(line.split())
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
    with suppress(OSError):
        print(f"recast: error: {line}", file=sys.stderr, flush=True)
    if "WORLD_SIZE" in os.environ:
        linger()
    raise SystemExit(code)


if __name__ == "__main__":
    if not sys.flags.safe_path:  # as in __main__.py
        del sys.path[0]
    main()
