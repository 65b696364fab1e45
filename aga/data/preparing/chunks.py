"""A source's rows examined in processes, in chunks; a row that crashes its process is rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

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
    call = partial(_survived, workers, function, recipe)
    yield from in_order(call, _chunked(studies), workers.count)


def _chunked(rows: Iterable[Study | Reject]) -> Iterator[Rows]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk


def _survived(
    workers: Workers, function: Callable[[Rows, Recipe], Result], recipe: Recipe, rows: Rows
) -> Result:
    try:
        return workers.call(function, rows, recipe)
    except WorkerDied:
        harmless = [_harmless(workers, row, recipe) for row in rows]
    try:
        return workers.call(function, harmless, recipe)
    except WorkerDied as error:
        raise DataError(
            "Worker processes are killed while they examine rows",
            where=f"{rows[0].location} to {rows[-1].location}",
            got=error,
            fix="see that the machine has memory to spare, and run the same command again",
        ) from error


def _harmless(workers: Workers, row: Study | Reject, recipe: Recipe) -> Study | Reject:
    try:
        workers.call(_try, row, recipe)
    except WorkerDied:
        return Reject(row.location, UNREADABLE, "the decoder crashed", "image")
    return row


def _try(row: Study | Reject, recipe: Recipe) -> None:
    examine(row, recipe.image, recipe.report, recipe.views)
