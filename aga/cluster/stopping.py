"""How a run's workers, and the process that waits for them, are asked to end in order.

See `aga.training.stopping`, which a worker's loop knows.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aga.training.stopping import TerminatedError, on_sigterm

logger = logging.getLogger(__name__)


@contextmanager
def on_sigterm_in_ray(action: Callable[[], None]) -> Iterator[None]:
    """`on_sigterm` for a process that waits for Ray, which turns every exit into one of code 1.

    Only a KeyboardInterrupt gets through its calls unchanged.
    """
    ended: list[TerminatedError] = []

    def hear() -> None:
        try:
            action()
        except TerminatedError as error:
            logger.info("%s", error)
            ended.append(error)
            raise KeyboardInterrupt from error

    try:
        with on_sigterm(hear):
            yield
    except KeyboardInterrupt:
        if ended:
            raise ended[0] from None
        raise


_HEARD, _ENDED = threading.Event(), threading.Event()  # a process that hears has one life


def hear_sigterm() -> None:
    """Make SIGTERM no more than heard; for the main thread of a process that trains in another."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: _HEARD.set())


def sigterm_heard() -> bool:
    """Whether this process got SIGTERM since `hear_sigterm`."""
    return _HEARD.is_set()


def end_in_order(patience: float) -> None:
    """Do in this process as if it had got SIGTERM; wait so many seconds for the run's end."""
    _HEARD.set()
    _ENDED.wait(patience)


def tell_end() -> None:
    """Tell `end_in_order` that this process's part of the run has ended."""
    _ENDED.set()


class StopFile:
    """The file in a run's folder by which whoever started the workers asks them to end.

    It reaches every node, as the checkpoints do, whatever starts the workers.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "stop"

    def make(self) -> None:
        """Ask the workers to end.

        Raises:
            TerminatedError: The storage is away: nobody would read it, so this process ends itself.
        """
        try:
            self.path.touch()
        except OSError as error:
            message = f"Ended without the running step, as {self.path} cannot be written: {error}"
            raise TerminatedError(message) from error

    def is_there(self) -> bool:
        """Whether the workers are asked to end; not while the storage is away."""
        try:
            return self.path.exists()
        except OSError:
            return False
