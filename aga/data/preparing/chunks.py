"""A source's rows examined in processes, in chunks; a row that crashes its process is rejected."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from aga.data.pixels.dicom import UNREADABLE
from aga.data.preparing.examine import examine
from aga.data.preparing.parts import Recipe
from aga.data.schema import Reject, Study
from aga.data.workers import WorkerDied, Workers, in_order
from aga.errors import DataError

Result = TypeVar("Result")
Rows = Sequence[Study | Reject]

CHUNK_ROWS = 64  # what a kill can cost, per process


def examined(
    workers: Workers,
    studies: Iterable[Study | Reject],
    recipe: Recipe,
    function: Callable[[Rows, Recipe], Result],
) -> Iterator[Result]:
    """Call a function with chunks of rows, in processes; results in the order of the rows.

    Args:
        workers: The processes.
        studies: The rows; few chunks are held at a time.
        recipe: How rows are examined; the second argument of each call.
        function: A module's function, or a partial of one.

    Raises:
        DataError: A chunk takes its process down though none of its rows does so alone.
    """
    limited = partial(_limited, function, recipe.row_seconds)
    call = partial(_survived, workers, limited, function, recipe)
    yield from in_order(call, _chunked(studies), workers.count)


def _chunked(rows: Iterable[Study | Reject]) -> Iterator[Rows]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk


def _limited(
    function: Callable[[Any, Recipe], Result], seconds: float, rows: Any, recipe: Recipe
) -> Result:
    """Call a function in this process, which the kernel ends where that takes longer.

    No code of ours must run for that: it may be a native decoder, or an open, that never returns.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(rows, recipe)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _survived(
    workers: Workers,
    limited: Callable[[Rows, Recipe], Result],
    function: Callable[[Rows, Recipe], Result],
    recipe: Recipe,
    rows: Rows,
) -> Result:
    """First with a limit for all rows; where that fails, row by row, and then those that passed."""
    try:
        return workers.call(limited, rows, recipe)
    except WorkerDied:
        harmless = [_harmless(workers, row, recipe) for row in rows]
    try:
        return workers.call(function, harmless, recipe)
    except WorkerDied as error:
        raise _killed(rows, error) from error


def _harmless(workers: Workers, row: Study | Reject, recipe: Recipe) -> Study | Reject:
    try:
        workers.call(partial(_limited, _try, recipe.row_seconds), row, recipe)
    except WorkerDied as error:
        if error.signal == "SIGALRM":
            detail = f"not decoded within {recipe.row_seconds:g} s, prepare.row_seconds"
            return Reject(row.location, UNREADABLE, detail, "image")
        if not error.crashed:
            raise _killed([row], error) from error
        return Reject(row.location, UNREADABLE, "the decoder crashed", "image")
    return row


def _killed(rows: Rows, error: WorkerDied) -> DataError:
    """Of a process that no row has crashed."""
    places = dict.fromkeys((rows[0].location, rows[-1].location))
    return DataError(
        "Worker processes are killed while they examine rows",
        where=" to ".join(places),
        got=f"{error}, twice; a kernel that is short of memory kills so, and so may a person",
        fix="leave memory free, or use fewer processes: `taskset --cpu-list 0 python "
        "workflows/prepare.py` uses one. The same command goes on from the finished parts",
    )


def _try(row: Study | Reject, recipe: Recipe) -> None:
    examine(row, recipe.image, recipe.report, recipe.views)
