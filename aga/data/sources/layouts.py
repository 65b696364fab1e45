"""How a source knows its raw folder, and what is said where the folder is another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aga.data.sources.tables import csv_columns
from aga.errors import DataError


@dataclass(frozen=True)
class Part:
    """A file, folder or column of a layout, in words, and whether a raw folder has it.

    Attributes:
        words: `studies.csv`, `images/`, `column view`.
        there: Whether it is there.
        table: The table that should have the column, for a column.
    """

    words: str
    there: bool
    table: Path | None = None


@dataclass(frozen=True)
class Layout:
    """The parts of a raw folder without which its source cannot read it.

    Names are paths below the root and may be patterns (`ecgen-radiology/*.xml`); a table may
    be there as `.gz` instead.

    Attributes:
        source: Name of the source; its section of docs/data.md explains the layout.
        tables: Name of each CSV table to the columns that are read.
        files: Other files.
        folders: Folders that must be there.
        images: Where the images lie, for the message where not one is there. They are rows, not
            parts: a root without images still has this layout.
    """

    source: str
    tables: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    images: str = ""

    def parts(self, root: Path) -> Iterator[Part]:
        """Each part, compared with what `root` holds."""
        for name, columns in self.tables.items():
            table = table_of(root, name)
            yield Part(name, table.is_file())
            if table.is_file():
                found = csv_columns(table)
                yield from (Part(f"column {one}", one in found, table) for one in columns)
        for name in self.files:
            yield Part(name, any(path.is_file() for path in _matches(root, name)))
        for name in self.folders:
            yield Part(f"{name}/", any(path.is_dir() for path in _matches(root, name)))

    def missing(self, root: Path) -> list[Part]:
        """The parts that `root` lacks."""
        return [part for part in self.parts(root) if not part.there]

    def __str__(self) -> str:
        tables = (f"{name} ({', '.join(columns)})" for name, columns in self.tables.items())
        return "; ".join([*tables, *self.files, *(f"{name}/" for name in self.folders)])


class LayoutError(DataError):
    """A raw folder lacks a part of the layout that its source reads.

    Args:
        root: The raw folder.
        layouts: The layouts that the source reads; the closest one is spoken of.
        resembles: Other sources whose layout the folder has.
    """

    def __init__(
        self, root: Path, layouts: Sequence[Layout], resembles: Sequence[str] = ()
    ) -> None:
        self.root, self.layouts = root, layouts
        closest = min(layouts, key=lambda layout: _distance(layout, root))
        part = closest.missing(root)[0]
        hint = f"; the folder looks like {' or '.join(resembles)}" if resembles else ""
        super().__init__(
            f"{part.table.name if part.table else 'The raw folder'} has no {part.words}",
            where=part.table or root,
            got=_found(root, closest, part),
            expected="; or else: ".join(map(str, layouts)),
            fix=f"{page(closest.source)} explains this layout; `source` in params.yaml chooses"
            f" folder and layout{hint}",
        )


def _distance(layout: Layout, root: Path) -> tuple[int, int]:
    """How many files and folders are missing, then how many columns."""
    columns = [part.table is not None for part in layout.missing(root)]
    return columns.count(False), columns.count(True)


def page(source: str) -> str:
    """Where the documentation speaks of a source."""
    return f"docs/data.md#{source}"


def require_folder(root: Path) -> None:
    """Refuse a raw folder that is not there.

    Raises:
        DataError: `root` is not a folder.
    """
    if not root.is_dir():
        raise DataError(
            "The raw folder of the source is missing",
            where=root,
            got="a file" if root.exists() else "nothing there",
            expected="a folder",
            fix="put the raw data there, or set `source.root` in params.yaml",
        )


def require_layout(root: Path, layouts: Sequence[Layout]) -> Layout:
    """The first of a source's layouts that `root` has.

    Raises:
        DataError: There is no such folder.
        LayoutError: It has none of them; names the missing part of the closest.
    """
    require_folder(root)
    for layout in layouts:
        if not layout.missing(root):
            return layout
    raise LayoutError(root, layouts)


def resembling(root: Path, layouts: Iterable[Layout]) -> list[str]:
    """Names of the sources with a layout that `root` has."""
    return sorted({layout.source for layout in layouts if not layout.missing(root)})


def table_of(root: Path, name: str) -> Path:
    """The CSV table of that name or pattern below `root`, plain or as `.gz`; the last of several.

    Where there is none, the path that it would have.
    """
    plain, packed = (max(_matches(root, one), default=None) for one in (name, f"{name}.gz"))
    return plain or packed or root / name


def _matches(root: Path, name: str) -> Iterator[Path]:
    exact = root / name  # which may hold characters of patterns
    return iter([exact]) if exact.exists() else root.glob(name)


def _found(root: Path, layout: Layout, missing: Part) -> str:
    """What is there, without the names that are no part of the layout: they may name patients."""
    if missing.table is not None:
        # Without a header the cells of a patient stand there: only the layout's names are told.
        columns = csv_columns(missing.table)
        ours = {name for names in layout.tables.values() for name in names}
        known = ", ".join(name for name in columns if name in ours) or "none of this layout"
        return f"{len(columns)} columns, among them {known}"
    entries = list(root.iterdir())
    folders = sum(entry.is_dir() for entry in entries)
    parts = [part.words for part in layout.parts(root) if part.there and part.table is None]
    known = ", ".join(parts) or "none of this layout"
    return f"{len(entries) - folders} files and {folders} folders, among them {known}"
