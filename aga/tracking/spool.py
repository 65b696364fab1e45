"""The local file that a run's events are appended to, and the note of how far it has been sent.

A spool is a file of JSON lines beside the run, `metrics.jsonl`:

    {"kind": "start", "id": ..., "time": ..., "name": ..., "run_id": ..., "parent": ...,
     "params": {...}, "tags": {...}}                      one per start; the same `id` in each
    {"kind": "metrics", "time": ..., "step": ..., "values": {...}}
    {"kind": "artifact", "time": ..., "path": "explain/epoch-003/row-12.html"}
    {"kind": "status", "time": ..., "status": "FINISHED"}

Times are milliseconds since 1970. An artifact's content is below `metrics.jsonl.artifacts/`.
`metrics.jsonl.sent` holds the MLflow run and the number of
bytes that it has received. Killing a writer leaves at most one torn line, which the next one
removes. A writer holds a shared lock on the file, of which the system lets go when the process
dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

BLOCK = 1 << 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """How far a spool has been sent.

    Attributes:
        run_id: The MLflow run that received it; None before one exists.
        offset: Bytes of the spool that need not be sent again.
    """

    run_id: str | None = None
    offset: int = 0

    @classmethod
    def load(cls, spool: Path) -> Sent:
        """The note beside a spool; where there is no usable one, all is sent again, which is safe.

        A note of more than there is outlived a power cut that the spool's end did not.
        """
        try:
            sent = cls(**json.loads(_note(spool).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()
        return sent if sent.offset <= spool.stat().st_size else cls(sent.run_id)

    def save(self, spool: Path) -> None:
        """Write the note in one step."""
        note = _note(spool)
        temporary = note.with_name(note.name + ".new")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        temporary.replace(note)


class SpoolFile:
    """A spool that is open for appending, and opens itself anew after an error.

    Args:
        path: The file. A torn last line, of a writer that was killed, is removed.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = self._opened(os.O_CREAT)

    @property
    def size(self) -> int:
        """Bytes, as of the last time that the file could be looked at."""
        return self._size

    def append(self, line: bytes) -> None:
        """Add a line, as a whole or not at all.

        Raises:
            OSError: The disk refuses it; it may be tried again.
        """
        try:
            if self._descriptor is None:
                # Not created: where its storage is away, the folder below may be somewhere else.
                self._descriptor = self._opened(0)
            if os.write(self._descriptor, line) < len(line):
                os.ftruncate(self._descriptor, self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            self.close()
            raise
        self._size += len(line)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None

    def _opened(self, create: int) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | create, 0o666)
        # Writers do not exclude one another; where the file system knows no locks, none is needed.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._size = _without_torn_line(descriptor)
        return descriptor


def flush(path: Path) -> None:
    """Push what was appended to the disk itself, for a power cut.

    Raises:
        OSError: The disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_records(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """The complete events from a byte offset on, each with the offset behind it.

    A last line that is still being written is left for the next time; a damaged one is passed over.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                log.warning("a damaged line of the spool is passed over: %s", path)
            else:
                yield record, offset


def spool_id(path: Path) -> str | None:
    """What a spool's runs bear as a tag; None where the file holds no whole event."""
    first = next(read_records(path, 0), None)
    return None if first is None else str(first[0]["id"])


def last_status(path: Path) -> str | None:
    """How the last process that wrote a spool said that it ended; None where it did not come to it.

    Raises:
        OSError: The file cannot be read.
    """
    status = None
    for record, _ in read_records(path, 0):
        if record["kind"] in ("start", "status"):
            status = record.get("status")
    return status


def is_written(path: Path) -> bool:
    """Whether a process has the spool open for writing.

    Raises:
        OSError: The file cannot be read, or its file system knows no locks.
    """
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def artifact_folder(spool: Path) -> Path:
    """Where a spool keeps the content of its artifacts."""
    return spool.with_name(spool.name + ".artifacts")


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def status_record(status: str) -> Record:
    """The event of a run's end."""
    return {"kind": "status", "time": now(), "status": status}


def _note(spool: Path) -> Path:
    return spool.with_name(spool.name + ".sent")


def _without_torn_line(descriptor: int) -> int:
    """Cut off what follows the last line's end; the size that is left."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - BLOCK)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        end = begin + newline + 1 if newline >= 0 else begin
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(descriptor, end)
    return end
