"""What must be remembered of each row, in little memory: first keys on disk, rows packed."""

from __future__ import annotations

import errno
import marshal
import os
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import overload

from aga.data.splitting.patients import SplitRow

_CACHE_KIB = 1024  # of pages held in memory


class FirstSeen:
    """Remembers keys, each with a note.

    SQLite keeps them in a temporary file that has no name any more when it is written: nothing is
    left of it, whatever ends the process. It lies in SQLITE_TMPDIR, or else in TMPDIR.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")  # nobody will roll it back
        self._database.execute(
            "CREATE TABLE seen (key BLOB PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID"
        )

    def earlier(self, key: bytes, note: str) -> str | None:
        """The note that came with the key's first entry; None where this is the first.

        Args:
            key: At best a hash: see `identity`.
            note: What is remembered if it is the first.

        Raises:
            OSError: The disk is full.
        """
        try:
            entry = (key, note.encode("utf-8", "surrogatepass"))
            added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", entry)
            if added.rowcount:
                return None
            found = self._database.execute("SELECT note FROM seen WHERE key = ?", (key,))
            earlier: bytes = found.fetchone()[0]
            return earlier.decode("utf-8", "surrogatepass")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


class PackedRows(Sequence[SplitRow]):
    """Rows, of which each is made when it is asked for: a third of the memory of a list of them."""

    def __init__(self) -> None:
        self._packed = bytearray()
        self._ends = array("Q", [0])

    def append(self, row: SplitRow) -> None:
        """Add a row."""
        fields = (row.patient_id, row.pixel_sha256, row.location, row.given, row.labels)
        self._packed += marshal.dumps(fields)
        self._ends.append(len(self._packed))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> SplitRow: ...

    @overload
    def __getitem__(self, place: slice) -> list[SplitRow]: ...

    def __getitem__(self, place: int | slice) -> SplitRow | list[SplitRow]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        packed = self._packed[self._ends[place] : self._ends[place + 1]]
        return SplitRow(*marshal.loads(packed))  # noqa: S302 (our own bytes)

    def __iter__(self) -> Iterator[SplitRow]:
        return (self[place] for place in range(len(self)))


def identity(*names: str) -> bytes:
    """A key of 16 bytes for some names; where one ends and the next begins counts."""
    digest = blake2b(digest_size=16)
    for name in names:
        content = name.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(content) + content)
    return digest.digest()
