"""CSV tables as people keep them: byte-order marks, bytes that are not UTF-8, long cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aga.errors import DataError

_STRAY_BYTES = re.compile("[\udc80-\udcff]+")
_LONGEST_CELL = 16 * 2**20  # characters


@dataclass(frozen=True)
class Line:
    """One record of a CSV table.

    Attributes:
        number: The line of the file on which the record starts; the header is line 1.
        cells: Column name to text. Bytes that are not UTF-8 are surrogate escapes (PEP 383).
        surplus: How many cells the record has more than the header (negative: fewer).
    """

    number: int
    cells: dict[str, str]
    surplus: int


def read_csv(path: Path) -> Iterator[Line]:
    """Read a comma-separated table with a header, one record at a time.

    Raises:
        DataError: The table is empty or a quoted cell never ends.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = csv.reader(file, strict=True)
        header = next(records, None)
        if header is None:
            raise DataError("The table is empty", where=path, expected="a header line")
        start = records.line_num + 1
        try:
            for record in records:
                if record:
                    cells = dict(zip(header, record, strict=False))
                    yield Line(start, cells, len(record) - len(header))
                start = records.line_num + 1
        except csv.Error as error:
            raise DataError(
                "The table cannot be read as CSV", where=f"{path}:{start}", got=str(error)
            ) from error


def csv_columns(path: Path) -> list[str]:
    """The header of a CSV table; empty for an empty file."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


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
