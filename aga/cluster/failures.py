"""What a user is told where workers failed: the one error that was the cause, and where it arose.

Pickling drops tracebacks, and Ray Train gives the driver errors without them: so the worker notes
its own on the error, and the driver shows it last, under whatever Ray has logged.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aga.errors import AgaError

# What gloo, NCCL and PyTorch say in a worker whose peer has gone.
CONSEQUENCES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
    "gloo",
    "ncclRemoteError",
)
NOTED = "noted_traceback"


class TrainingFailedError(AgaError):
    """The workers died, or failed, more often than `cluster.max_failures` allows."""


@contextmanager
def noting_traceback() -> Iterator[None]:
    """In a worker: let an error carry the text of its traceback to the driver."""
    try:
        yield
    except Exception as error:
        error.__dict__[NOTED] = traceback.format_exc()
        raise


def told(error: Exception, run: str) -> AgaError:
    """What to raise in the driver for an error of Ray Train.

    Args:
        error: Its `TrainingFailedError`; of failures of workers it has `worker_failures`.
        run: Name of the run.

    Returns:
        The own error of a worker, or of the scaling policy, where it is written for a user; else
        one that names it and has the worker's traceback as a note, which `aga.command.run` prints
        below.
    """
    if isinstance(reason := getattr(error, "controller_failure", None), AgaError):
        return reason
    found = first_failure(getattr(error, "worker_failures", {}))
    if found is None:
        return _failed(run, str(error))
    rank, cause = found
    if isinstance(cause, AgaError):
        cause.add_note(f"(worker {rank} of run {run})")
        return cause
    failed = _failed(run, f"worker {rank}: {_text(cause)}")
    if noted := getattr(cause, NOTED, None):
        failed.add_note(f"Worker {rank}'s {noted.rstrip()}")
    return failed


def first_failure(failures: Mapping[int, Exception]) -> tuple[int, Exception] | None:
    """Rank and error of the failure that caused the others; the lowest rank's in doubt.

    Args:
        failures: Rank to error, as Ray Train gives them.
    """
    ranked = sorted((_is_consequence(error), rank) for rank, error in failures.items())
    if not ranked:
        return None
    rank = ranked[0][1]
    return rank, failures[rank]


def _failed(run: str, got: str) -> TrainingFailedError:
    return TrainingFailedError(
        "The workers failed for good",
        where=run,
        got=got,
        fix="put the cause right; repeating the command resumes from the last checkpoint",
    )


def _is_consequence(error: Exception) -> bool:
    return any(words in _text(error) for words in CONSEQUENCES)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip()
