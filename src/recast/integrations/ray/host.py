"""`--launcher ray`: a stage and its config in; the same run by workers of a Ray cluster out.

Ray finds machines, starts the processes and notices when they end; the run's own checkpoints, which
lie in its output, say where it goes on. So a worker or a machine that is lost costs what was done
since the newest of them, and the run goes on with as many workers as are left.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any

from recast.errors import RecastError
from recast.run.files import is_ended_run
from recast.run.launched import join
from recast.run.world import LostRankError, agreed, is_first

_MOST_LOSSES = 10
"""Of workers in one run; what ends them so often ends them always."""
_START_S = "20"
"""In which Ray has to find room for workers (60 unless told): it counts on a node until about 15 s
after that has gone, and waits for it in vain."""


def run_on_ray(stage: str, config: Any, workers: tuple[int, int]) -> Any:
    """What the `module:function` of a verb gives for a config, by so many workers at least and at
    most.

    Joins the cluster of RAY_ADDRESS, or one of this machine. Raises `RecastError` for what one of
    the workers refuses, where the output is on no file system that all of them see, and when too
    many were lost.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
    except ImportError as error:
        raise RecastError(
            f"launcher is ray, which is not installed ({error}): pip install 'recast-rl[ray]', or "
            "start the processes with torchrun"
        ) from error
    on_gpu = getattr(config, "device", "cpu").startswith("cuda")
    mark = _mark(Path(config.output))
    if not ray.is_initialized():
        ray.init(log_to_driver=True, configure_logging=False)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_S)
    told = {"stage": stage, "config": config, "folder": os.getcwd(), "mark": str(mark)}
    trainer = TorchTrainer(
        _work,
        train_loop_config=told,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
        run_config=RunConfig(
            name=f"recast-{token_hex(4)}",
            storage_path=tempfile.gettempdir(),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        for _ in range(_MOST_LOSSES):
            try:
                return trainer.fit().return_value
            except TrainingFailedError as error:
                if refused := _refused(error):
                    raise refused from error
                lost = error
        raise RecastError(f"{_MOST_LOSSES} times a worker was lost: {str(lost)[:200]}") from lost
    finally:
        with suppress(OSError):
            mark.unlink()


def _mark(output: Path) -> Path:
    """A file beside the output, by which workers know that they see the same folders."""
    above = output.absolute().parent
    above.mkdir(parents=True, exist_ok=True)
    mark = above / f".{output.name}.{token_hex(4)}.partial"
    mark.touch()
    return mark


def _work(told: dict[str, Any]) -> Any:
    """One worker's part; what the first has to say is returned."""
    try:
        os.chdir(told["folder"])
        seen = Path(told["mark"]).exists()
    except OSError:
        seen = False
    join()
    config = told["config"]
    if not seen:
        raise RecastError(
            f"output is {config.output!r}, which a worker on {os.uname().nodename} does not see: "
            "give one on a file system that all machines share"
        )
    if hasattr(config, "resume"):
        config = replace(config, resume=agreed(is_ended_run(Path(config.output))))
    module, name = told["stage"].split(":")
    stage: Callable[[Any], Any] = getattr(import_module(module), name)
    result = stage(config)
    return result if is_first() and isinstance(result, dict | str) else None


def _refused(error: Any) -> RecastError | None:
    """What a worker would refuse again."""
    failures = list(getattr(error, "worker_failures", {}).values())
    if not failures:
        failures = [getattr(error, "controller_failure", error)]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None and not isinstance(cause, RecastError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, RecastError) and not isinstance(cause, LostRankError):
            return RecastError(str(cause))
    return None
