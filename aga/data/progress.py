"""How far a long stage is: a bar on a terminal, one log line per interval anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

_log = logging.getLogger(__name__)
Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    interval: float = 10.0,
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Pass `items` through and show how many went by.

    Args:
        items: Anything iterable; it is not collected.
        what: What the items are, in the plural: `rows`.
        total: How many there will be, where that is known.
        interval: Seconds between log lines where standard error is not a terminal.
        size: How many an item stands for; one where it is not given.

    Yields:
        The items, unchanged.
    """
    count_of = size or (lambda _: 1)
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {what}", leave=False) as bar:
            for item in items:
                yield item
                bar.update(count_of(item))
        return
    started = reported = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += count_of(item)
        now = time.monotonic()
        if now - reported >= interval:
            speed = count / (now - started)
            of, left = "", ""
            if total is not None:
                of = f" of {total}"
                left = f", ETA {timedelta(seconds=round(max(0, total - count) / speed))}"
            _log.info("%d%s %s, %.1f per second%s", count, of, what, speed, left)
            reported = now
