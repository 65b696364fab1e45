"""Records of a table, and image files of a tree, as the sources of public data sets need them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aga.data.schema import Region, Reject
from aga.data.sources.tables import has_stray_bytes, read_csv, repair_stray_bytes


@dataclass(frozen=True)
class Record:
    """A record of a table that fits its header.

    Attributes:
        location: `train.csv:17`.
        cells: Column name to text without white space around it.
        repaired: Whether a cell held bytes that are not UTF-8.
    """

    location: str
    cells: dict[str, str]
    repaired: bool


def records(
    table: Path, columns: Sequence[str], filled: Sequence[str] = ()
) -> Iterator[Record | Reject]:
    """Read a CSV table, plain or `.gz`.

    Args:
        table: The table; its header has `columns`.
        columns: What is read; other columns are left out.
        filled: Columns in which every record says something.
    """
    for line in read_csv(table):
        location = f"{table.name}:{line.number}"
        if line.surplus > 0 or any(name not in line.cells for name in columns):
            detail = f"{line.surplus:+d} against the header"
            yield Reject(location, "wrong number of columns", detail)
            continue
        cells = {name: repair_stray_bytes(line.cells[name]).strip() for name in columns}
        empty = next((name for name in filled if not cells[name]), None)
        if empty is not None:
            yield Reject(location, "value missing", "the cell is empty", empty)
        else:
            stray = any(has_stray_bytes(line.cells[name]) for name in columns)
            yield Record(location, cells, stray)


def invalid(location: str, column: str, expected: str) -> Reject:
    """A row with a cell that its column does not allow; the cell itself is not repeated."""
    return Reject(location, "value invalid", f"expected {expected}", column)


def missing_image(location: str, column: str) -> Reject:
    """A row whose image file is not there."""
    return Reject(location, "image missing", "no such file", column)


def region(finding: str, cells: Mapping[str, str], columns: Sequence[str]) -> Region:
    """A box told by the columns of its left, top, width and height.

    Raises:
        ValueError: They are not numbers, or no box.
    """
    left, top, width, height = (float(cells[name]) for name in columns)
    box = (left, top, left + width, top + height)
    if not all(map(math.isfinite, box)) or min(left, top) < 0 or min(width, height) <= 0:
        raise ValueError("no box")
    return Region(finding, box)


def files_by_stem(folders: Iterable[Path], endings: Sequence[str]) -> dict[str, Path]:
    """Every file in and below some folders by its name without the ending.

    Args:
        folders: Where to look; those that are not there are passed over. Of two files with one
            name that of the earlier folder counts, then the first by path.
        endings: In lower case, with their dots.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for place, below, names in os.walk(folder):
            below.sort()
            files = (Path(place, name) for name in sorted(names))
            for file in files:
                if file.suffix.lower() in endings:
                    found.setdefault(file.stem, file)
    return found
