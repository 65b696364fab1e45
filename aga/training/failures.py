"""Which of several workers' failures is the cause: the others only lost the one that failed."""

from __future__ import annotations

from collections.abc import Mapping

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


def first_failure(failures: Mapping[int, Exception]) -> tuple[int, str] | None:
    """Rank and error of the failure that caused the others; the lowest rank's in doubt.

    Args:
        failures: Rank to error, as Ray Train gives them: without tracebacks, which it has logged.
    """
    told = sorted((_is_consequence(error), rank) for rank, error in failures.items())
    if not told:
        return None
    rank = told[0][1]
    return rank, _text(failures[rank])


def _is_consequence(error: Exception) -> bool:
    return any(words in _text(error) for words in CONSEQUENCES)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip()
