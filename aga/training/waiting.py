"""A heartbeat for the times when no step is done: what is waited for, and for how long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

logger = logging.getLogger(__name__)


@contextmanager
def telling(waits_for: str | Callable[[], str | None], seconds: float) -> Iterator[None]:
    """Log what the context waits for, every so many seconds until it ends.

    Args:
        waits_for: `waiting for ...`; or a function that is asked each time, in a thread of its
            own, and returns None while nothing is waited for.
        seconds: Between two lines, and before the first one.
    """
    over = threading.Event()

    def tell() -> None:
        since = time.monotonic()
        while not over.wait(seconds):
            words = waits_for if isinstance(waits_for, str) else waits_for()
            if words is None:
                since = time.monotonic()
            else:
                waited = timedelta(seconds=round(time.monotonic() - since))
                logger.info("%s, for %s", words, waited)

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1.0)
