"""The local file that a run's events are appended to, and the note of how far it has been sent.

A spool is a file of JSON lines beside the run, `metrics.jsonl`:

    {"kind": "start", "id": ..., "time": ..., "name": ..., "run_id": ..., "parent": ...,
     "params": {...}, "tags": {...}}                      one per start; the same `id` in each
    {"kind": "metrics", "time": ..., "step": ..., "values": {...}}
    {"kind": "artifact", "time": ..., "path": "explain/epoch-003/row-12.html"}
    {"kind": "status", "time": ..., "status": "FINISHED"}

Times are milliseconds since 1970. An artifact's content is below `metrics.jsonl.artifacts/`.
`metrics.jsonl.sent` holds the MLflow run and the number of
bytes that it has received. Lines are flushed to the operating system one by one: killing the
process loses none, and leaves at most one torn line, which the next writer removes. A writer holds
a shared lock on the file, of which the system lets go when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

Record = Mapping[str, Any]


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
        """The note beside a spool; where there is none, nothing has been sent."""
        try:
            return cls(**json.loads(_note(spool).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()

    def save(self, spool: Path) -> None:
        """Write the note in one step."""
        note = _note(spool)
        temporary = note.with_name(note.name + ".new")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        temporary.replace(note)


class SpoolWriter:
    """Appends events; a metric is kept once per step.

    A run that resumes from a checkpoint repeats the steps after it. Steps of one metric never
    decrease within a run, so a step not beyond the metric's last one is a repetition.

    Args:
        path: The spool. Continued where it exists.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_torn_line(path)
        self._last_step: dict[str, int] = {}
        self._artifacts: set[str] = set()
        self._folder = artifact_folder(path)
        self.id = uuid.uuid4().hex
        for record, _ in read_records(path, 0):
            if record["kind"] == "start":
                self.id = record["id"]
            elif record["kind"] == "metrics":
                self._last_step |= dict.fromkeys(record["values"], record["step"])
            elif record["kind"] == "artifact":
                self._artifacts.add(record["path"])
        self._file = path.open("a+", encoding="utf-8", buffering=1)  # a flush per line
        _mark_written(self._file)

    def append_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add the metrics that have no value at this step or a later one yet."""
        new = {k: float(v) for k, v in values.items() if self._last_step.get(k, -1) < step}
        if new:
            self.append({"kind": "metrics", "time": now(), "step": step, "values": new})
            self._last_step |= dict.fromkeys(new, step)

    def append_artifact(self, path: str, content: bytes) -> None:
        """Keep a file and add its event, unless there has been one of this path.

        Raises:
            OSError: The disk refuses it.
        """
        if path in self._artifacts:
            return
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.append({"kind": "artifact", "time": now(), "path": path})
        self._artifacts.add(path)

    def append(self, record: Record) -> None:
        """Add one event.

        Raises:
            OSError: The disk refuses it.
        """
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """The complete events from a byte offset on, each with the offset behind it.

    A last line that is still being written is left for the next time.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def spool_id(path: Path) -> str | None:
    """What a spool's runs bear as a tag; None where the file holds no whole event."""
    first = next(read_records(path, 0), None)
    return None if first is None else str(first[0]["id"])


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


def _mark_written(file: IO[str]) -> None:
    """Writers do not exclude one another; where the file system knows no locks, none is needed."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _note(spool: Path) -> Path:
    return spool.with_name(spool.name + ".sent")


def _remove_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        if end < os.fstat(file.fileno()).st_size:
            file.truncate(end)
