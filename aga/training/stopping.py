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
