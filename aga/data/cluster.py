"""The cluster that RAY_ADDRESS names, and the processes that `prepare` and `tokenize` have there.

Plain Ray tasks do: the stages hand out chunks in order and bound what is in flight themselves, so
that the bytes they write depend on no scheduler (docs/decisions/0014-parts-on-disk.md).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aga
from aga.data.pixels.dicom import codecs
from aga.data.workers import LocalWorkers, WorkerDied, Workers
from aga.errors import ClusterError, DataError

CONNECT_SECONDS = 5.0
Result = TypeVar("Result")


def attach() -> None:
    """Connect to the cluster that RAY_ADDRESS names; it gets this library's code.

    Raises:
        ClusterError: Nobody answers there, or nobody who lets us in.
    """
    import ray
    from ray.exceptions import RayError

    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for over four minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(logging_level=logging.ERROR, runtime_env=_runtime_env())
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(
            "No Ray cluster lets us in at this address",
            where=f"RAY_ADDRESS={address}",
            got=str(error).strip().partition("\n")[0],
            expected="<host>:6379, as `ray start --head` prints it",
            fix="start the cluster (docs/cluster.md), correct RAY_ADDRESS, or unset it to use this "
            "machine; a cluster with tokens wants RAY_AUTH_MODE=token here",
        ) from error


@contextmanager
def open_workers(*shared: Path, decoders: Mapping[str, bool] | None = None) -> Iterator[Workers]:
    """Processes on the cluster that RAY_ADDRESS names, or, where it is not set, on this machine.

    Args:
        shared: Folders that the calls read and write; every node must see them.
        decoders: As of `aga.data.pixels.dicom.codecs`, where the calls decode files: every node
            must have these, lest it depend on the node which files are rejected.

    Raises:
        ClusterError: As `attach`.
    """
    if "RAY_ADDRESS" not in os.environ:
        with LocalWorkers() as workers:
            yield workers
        return
    import ray

    attached = not ray.is_initialized()
    if attached:
        attach()
    try:
        yield RayWorkers(shared, decoders)
    finally:
        if attached:
            ray.shutdown()


class RayWorkers:
    """Tasks on the cluster that is connected, one per core.

    Args:
        shared: Folders that every node must see.
        decoders: As of `open_workers`.

    Attributes:
        count: Cores of the cluster.
    """

    def __init__(self, shared: Sequence[Path], decoders: Mapping[str, bool] | None = None) -> None:
        import ray

        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._needs = [str(folder) for folder in shared], decoders
        self._task = ray.remote(max_retries=0, num_cpus=1)(_called)

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """See `Workers.call`.

        Raises:
            DataError: A node does not see the folders, or decodes other files.
        """
        import ray
        from ray.exceptions import (
            NodeDiedError,
            OutOfMemoryError,
            RayTaskError,
            WorkerCrashedError,
        )

        try:
            result: Result = ray.get(self._task.remote(*self._needs, function, arguments))
        except RayTaskError as error:
            raise error.cause from error
        except (OutOfMemoryError, NodeDiedError) as error:  # no fault of what it worked at
            raise WorkerDied(-signal.SIGKILL) from error
        except WorkerCrashedError as error:
            raise WorkerDied(None) from error  # Ray does not say how
        return result


def _called(
    shared: Sequence[str],
    decoders: Mapping[str, bool] | None,
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> Any:
    for folder in shared:
        if not Path(folder).is_dir():
            raise DataError(
                "A node of the Ray cluster does not see a folder of the project",
                where=folder,
                got=f"nothing there on {socket.gethostname()}",
                expected="the same folder on every node",
                fix="put the project and the raw data on storage that all nodes mount",
            )
    if decoders is not None and (found := codecs()) != decoders:
        names = sorted(found.keys() | decoders)
        other = [name for name in names if found.get(name, False) != decoders.get(name, False)]
        raise DataError(
            "A node of the Ray cluster does not decode the same DICOM files as this machine",
            where=socket.gethostname(),
            got=f"decoders of one and not of the other: {', '.join(other)}",
            fix="install requirements.lock on every node",
        )
    return function(*arguments)


def _runtime_env() -> dict[str, Any]:
    """A submitted job brings its own copy of the code; else it travels from here."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"py_modules": [str(Path(aga.__file__).parent)]}
