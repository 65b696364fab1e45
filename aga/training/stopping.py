"""Ending early and in order: SIGTERM, as a scheduler sends it before it takes a machine away.

The running step ends, all processes agree that it was the last one, its state is saved, and the
process ends with code 143, as a shell reports a process that SIGTERM ended. A second SIGTERM ends
it at once: what was saved before is there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

StopAsked: TypeAlias = Callable[[], bool]
EXIT_CODE = 128 + signal.SIGTERM


class TerminatedError(SystemExit):
    """A run was asked to end; repeating the command goes on with it.

    An exit rather than an error, as KeyboardInterrupt is: nothing failed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def on_sigterm(action: Callable[[], None]) -> Iterator[None]:
    """Do something at the first SIGTERM instead of ending; a second one is as it was before.

    Only a process's main thread hears signals: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def hear(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        action()

    signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
