"""Work spread over processes, results in order, bounded memory, and a crash that is survived.

A process of its own is what a damaged file may take down: native decoders do crash. Processes also
share no interpreter lock, which threads that decode, parse and hash fight for.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import LifoQueue
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar, cast, runtime_checkable

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items in flight per process: one to work at, one that waits
# A process gives back what it no longer needs: large buffers, Arrow's among them, are mapped one by
# one, where the allocators would otherwise keep them for later.
_FLAT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(2**18),
}
_SERVE = "from aga.data.workers import serve; serve()"


CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"})
"""Signals that a native library earns by what it does."""


class WorkerDied(Exception):  # noqa: N818 (it names an event)
    """The process that worked at a call ended: a native library crashed, or memory ran out.

    Args:
        status: Of its end: minus the number of a signal, or an exit status; None where unknown.

    Attributes:
        signal: Name of the signal that ended it; None where it was none, or is unknown.
    """

    def __init__(self, status: int | None) -> None:
        names = {number.value: number.name for number in signal.Signals}
        self.signal = None if status is None else names.get(-status)
        how = self.signal or ("an unknown status" if status is None else f"status {status}")
        super().__init__(f"a worker process ended with {how}")

    @property
    def crashed(self) -> bool:
        """Whether it did so itself; else the kernel killed it for memory, or a person did."""
        return self.signal is None or self.signal in CRASHES


@runtime_checkable
class Workers(Protocol):
    """Processes that functions can be called in.

    Attributes:
        count: How many calls can run at once.
    """

    count: int

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a module's function in a process; safe to use from several threads.

        Raises:
            WorkerDied: The process ended. Another takes its place.
        """
        ...


def in_order(call: Callable[[Item], Result], items: Iterable[Item], lanes: int) -> Iterator[Result]:
    """The results of `call` in the order of `items`; few items are in memory at a time.

    Args:
        call: Waits for a process, so that threads are enough to keep all of them busy.
        items: Drawn as results are taken.
        lanes: How many calls run at once.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(lanes) as pool:
        try:
            for item in items:
                pending.append(pool.submit(call, item))
                if len(pending) >= _AHEAD * lanes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def opened(workers: Workers | None) -> AbstractContextManager[Workers]:
    """The workers for the time of a context; those of this machine where there are none."""
    return LocalWorkers() if workers is None else nullcontext(workers)


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalWorkers:
    """Processes of this machine, one per core, each started when it is first needed.

    They are fresh interpreters that import only what they are asked to call, not forks of a process
    that holds the whole library.

    Args:
        count: How many; by default one per core.

    Attributes:
        count: How many.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or cores()
        self._idle: LifoQueue[_Process] = LifoQueue()
        for _ in range(self.count):
            self._idle.put(_Process())

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """See `Workers.call`."""
        process = self._idle.get()
        try:
            result: Result = process.call(function, arguments)
        finally:
            self._idle.put(process)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _ in range(self.count):
            self._idle.get().end()


class _Process:
    """A worker process, or the place of one that is yet to start."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
        process = self._process = self._process or _started()
        requests, answers = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        try:
            pickle.dump((function, arguments), requests)
            requests.flush()
            succeeded, answer = pickle.load(answers)  # noqa: S301 (our own process)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            self._process = None
            status = _ended(process)
            raise WorkerDied(status) from error
        if not succeeded:
            raise answer
        return answer

    def end(self) -> None:
        if self._process is not None:
            _ended(self._process)


def serve() -> None:
    """Answer calls from standard input until it ends: the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints must not stand between the answers
        while True:
            try:
                function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 (our parent)
            except EOFError:
                return
            try:
                answer = (True, function(*arguments))
            except Exception as error:  # raised again where the call was made, whatever it is
                answer = (False, error)
            pickle.dump(answer, answers)
            answers.flush()


def _started() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(  # noqa: S603 (our own interpreter and code)
        [sys.executable, "-P", "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_FLAT | os.environ | {"PYTHONPATH": path},
    )


def _ended(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was not yet written has no reader any more
                continue
    return process.wait()
