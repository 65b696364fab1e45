"""How far a long stage is: a bar on a terminal, one log line per interval anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_log = logging.getLogger(__name__)
Item = TypeVar("Item")


def progress(
    items: Iterable[Item], what: str, total: int | None = None, interval: float = 10.0
) -> Iterator[Item]:
    """Pass `items` through and show how many went by.

    Args:
        items: Anything iterable; it is not collected.
        what: What the items are, in the plural: `rows`.
        total: How many there will be, where that is known.
        interval: Seconds between log lines where standard error is not a terminal.

    Yields:
        The items, unchanged.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=f" {what}", leave=False)
        return
    started = reported = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - reported >= interval:
            of = "" if total is None else f" of {total}"
            _log.info("%d%s %s, %.0f per second", count, of, what, count / (now - started))
            reported = now
