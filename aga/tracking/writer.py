"""Writes a spool from a thread of its own: no disk can hold a training up.

What is logged waits in memory, at most `QUEUE_BYTES` of it, until the disk takes it. A disk that
refuses is tried again every `RETRY_SECONDS`: one that comes back, or is emptied, gets all that
waited. Where the memory, or the file's own limit, is used up, what is logged next is dropped and
counted; the file holds whole lines in any case.
"""

from __future__ import annotations

import errno
import json
import logging
import queue
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aga.tracking.spool import Record, SpoolFile, artifact_folder, now, read_records

log = logging.getLogger(__name__)

QUEUE_BYTES = 16 << 20
"""Most of a day of a run that logs two kilobytes every ten seconds."""
SPOOL_BYTES = 1 << 30
"""Two months of such a run."""
RETRY_SECONDS = 1.0
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class _Event:
    """A line of the spool, and the file that it tells of."""

    line: bytes
    essential: bool = False
    artifact: Path | None = None
    content: bytes = b""

    @property
    def size(self) -> int:
        return len(self.line) + len(self.content)


class _ByteQueue(queue.Queue[_Event | None]):
    """A queue whose `maxsize` counts bytes; one event may exceed it."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._bytes = 0

    def _put(self, item: _Event | None) -> None:
        super()._put(item)
        self._bytes += item.size if item else 1

    def _get(self) -> _Event | None:
        item = super()._get()
        self._bytes -= item.size if item else 1
        return item

    def _qsize(self) -> int:
        return self._bytes


class SpoolWriter:
    """Takes events and returns at once; a metric is kept once per step.

    A run that resumes from a checkpoint repeats the steps after it. Steps of one metric never
    decrease within a run, so a step not beyond the metric's last one is a repetition.

    Killing the process loses what waits, which is nothing while the disk keeps up, and what a
    resumed run repeats otherwise: a disk that takes no line takes no checkpoint either.

    Args:
        path: The spool. Continued where it exists.

    Attributes:
        id: Of the spool; its runs bear it as a tag.
        dropped: Events that were not written and never will be.

    Raises:
        OSError: The spool cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = SpoolFile(path)
        self._last_step: dict[str, int] = {}
        self._artifacts: set[str] = set()
        self._folder = artifact_folder(path)
        self.id = uuid.uuid4().hex
        self.dropped = 0
        for record, _ in read_records(path, 0):
            if record["kind"] == "start":
                self.id = record["id"]
            elif record["kind"] == "metrics":
                self._last_step |= dict.fromkeys(record["values"], record["step"])
            elif record["kind"] == "artifact":
                self._artifacts.add(record["path"])
        self._queue = _ByteQueue(QUEUE_BYTES)
        self._given_up = threading.Event()
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._write, name="spool", daemon=True)
        self._thread.start()

    def append_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add the metrics that have no value at this step or a later one yet."""
        new = {k: float(v) for k, v in values.items() if self._last_step.get(k, -1) < step}
        if new:
            record = {"kind": "metrics", "time": now(), "step": step, "values": new}
            self._put(_Event(_line(record)))
            self._last_step |= dict.fromkeys(new, step)

    def append_artifact(self, path: str, content: bytes) -> None:
        """Keep a file and add its event, unless there has been one of this path."""
        if path not in self._artifacts:
            record = {"kind": "artifact", "time": now(), "path": path}
            self._put(_Event(_line(record), artifact=self._folder / path, content=content))
            self._artifacts.add(path)

    def append_start(self, record: Record) -> None:
        """Add the event that a run starts, or starts again, with."""
        self._put(_Event(_line(record), essential=True))

    def close(self, last: Record, timeout: float) -> bool:
        """Add a last event, for which there is always room in memory, and end.

        Args:
            last: The event.
            timeout: Seconds that a disk gets to take what still waits.

        Returns:
            Whether the spool holds every event.
        """
        self._queue.maxsize = 0
        self._queue.put(_Event(_line(last), essential=True))
        self._queue.put(None)
        self._thread.join(timeout)
        self._given_up.set()  # a thread that still waits for the disk ends now
        self._thread.join(RETRY_SECONDS)
        return not self._thread.is_alive() and self.dropped == 0

    def _put(self, event: _Event) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._drop("the disk has not taken what was logged for too long", event)

    def _drop(self, reason: str, event: _Event) -> None:
        self.dropped += 1
        kind = "pages" if event.artifact else "metrics"
        self._warn(f"{kind} are dropped, the run goes on: {reason}")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            log.warning(message)
        self._warned.add(message)

    def _write(self) -> None:
        """The thread: every event to the disk, in order, until the end."""
        while (event := self._queue.get()) is not None:
            while not self._is_done_with(event):
                if self._given_up.wait(RETRY_SECONDS):
                    self.dropped += 1
                    break
        self._file.close()

    def _is_done_with(self, event: _Event) -> bool:
        """Try to write an event."""
        if not event.essential and self._file.size > SPOOL_BYTES:
            self._drop(f"the spool has {self._file.size} bytes", event)
            return True
        try:
            if event.artifact:
                self._folder.mkdir(exist_ok=True)  # not its parents: its storage may be away
                event.artifact.parent.mkdir(parents=True, exist_ok=True)
                event.artifact.write_bytes(event.content)
            self._file.append(event.line)
        except OSError as error:
            if event.artifact and error.errno in NO_ROOM:  # it would keep numbers waiting
                self._drop(str(error), event)
                return True
            self._warn(f"the spool cannot be written now, the run goes on: {error}")
            return False
        return True


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
