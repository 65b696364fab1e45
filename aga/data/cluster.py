"""The processes of `prepare` and `tokenize`: of this machine, or of RAY_ADDRESS's cluster.

Plain Ray tasks do: the stages hand out chunks in order and bound what is in flight themselves, so
that the bytes they write depend on no scheduler (docs/decisions/0014-parts-on-disk.md).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aga
from aga.data.workers import LocalWorkers, WorkerDied, Workers
from aga.errors import DataError

Result = TypeVar("Result")


@contextmanager
def open_workers(*shared: Path) -> Iterator[Workers]:
    """Processes on the cluster that RAY_ADDRESS names, or, where it is not set, on this machine.

    Args:
        shared: Folders that the calls read and write; every node must see them.
    """
    if "RAY_ADDRESS" not in os.environ:
        with LocalWorkers() as workers:
            yield workers
        return
    import ray

    attached = not ray.is_initialized()
    if attached:
        ray.init(logging_level=logging.ERROR, runtime_env=_runtime_env())
    try:
        yield RayWorkers(shared)
    finally:
        if attached:
            ray.shutdown()


class RayWorkers:
    """Tasks on the cluster that is connected, one per core.

    Args:
        shared: Folders that every node must see.

    Attributes:
        count: Cores of the cluster.
    """

    def __init__(self, shared: Sequence[Path]) -> None:
        import ray

        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._shared = [str(folder) for folder in shared]
        self._task = ray.remote(max_retries=0, num_cpus=1)(_called)

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """See `Workers.call`.

        Raises:
            DataError: A node does not see the folders.
        """
        import ray
        from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

        try:
            result: Result = ray.get(self._task.remote(self._shared, function, arguments))
        except RayTaskError as error:
            raise error.cause from error
        except OutOfMemoryError as error:
            raise WorkerDied(-signal.SIGKILL) from error
        except WorkerCrashedError as error:
            raise WorkerDied(None) from error  # Ray does not say how
        return result


def _called(shared: Sequence[str], function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    for folder in shared:
        if not Path(folder).is_dir():
            raise DataError(
                "A node of the Ray cluster does not see a folder of the project",
                where=folder,
                got=f"nothing there on {socket.gethostname()}",
                expected="the same folder on every node",
                fix="put the project and the raw data on storage that all nodes mount",
            )
    return function(*arguments)


def _runtime_env() -> dict[str, Any]:
    """A submitted job brings its own copy of the code; else it travels from here."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"py_modules": [str(Path(aga.__file__).parent)]}
