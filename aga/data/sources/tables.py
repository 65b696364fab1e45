"""CSV tables as people keep them: byte-order marks, bytes that are not UTF-8, long cells."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from aga.errors import DataError

_STRAY_BYTES = re.compile("[\udc80-\udcff]+")
_LONGEST_CELL = 16 * 2**20  # characters
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)  # of a .gz file


@dataclass(frozen=True)
class Line:
    """One record of a CSV table.

    Attributes:
        number: The line of the file on which the record starts; the header is line 1.
        cells: Column name, without white space around it, to text. Bytes that are not UTF-8 are
            surrogate escapes (PEP 383).
        surplus: How many cells the record has more than the header (negative: fewer).
    """

    number: int
    cells: dict[str, str]
    surplus: int


def read_csv(path: Path) -> Iterator[Line]:
    """Read a comma-separated table with a header, plain or `.gz`, one record at a time.

    Raises:
        DataError: The table is empty, is damaged, or a quoted cell never ends.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with _open_text(path) as file:
        records = csv.reader(file, strict=True)
        start = 1
        try:
            header = next(records, None)
            if header is None:
                raise DataError("The table is empty", where=path, expected="a header line")
            start = records.line_num + 1
            for record in records:
                if record:
                    cells = dict(zip(map(str.strip, header), record, strict=False))
                    yield Line(start, cells, len(record) - len(header))
                start = records.line_num + 1
        except (csv.Error, *_DAMAGED) as error:
            raise DataError(
                "The table cannot be read as CSV", where=f"{path}:{start}", got=str(error)
            ) from error


def csv_columns(path: Path) -> list[str]:
    """The header of a CSV table, plain or `.gz`; empty for an empty file.

    Raises:
        DataError: The table is damaged.
    """
    with _open_text(path) as file:
        try:
            return [name.strip() for name in next(csv.reader(file), [])]
        except (csv.Error, *_DAMAGED) as error:
            raise DataError(
                "The table cannot be read as CSV", where=f"{path}:1", got=str(error)
            ) from error


def _open_text(path: Path) -> TextIOWrapper:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def has_stray_bytes(text: str) -> bool:
    """Whether `text` was read from bytes that are not UTF-8."""
    return _STRAY_BYTES.search(text) is not None


def repair_stray_bytes(text: str) -> str:
    """Read the bytes that are not UTF-8 as Windows-1252, the usual culprit; keep all others.

    The five bytes that Windows-1252 leaves undefined become U+FFFD.
    """
    return _STRAY_BYTES.sub(
        lambda found: found[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace"), text
    )
