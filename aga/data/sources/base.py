"""The contract of a source: a raw layout on disk in, one `Study` or `Reject` per row out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from aga.data.schema import Reject, Study
from aga.errors import DataError


@runtime_checkable
class Source(Protocol):
    """Reads one raw layout.

    Attributes:
        LICENSE: Terms of the raw data, written into `dataset.json`.
        CITATION: How to cite the raw data, written into `dataset.json`.
        MAY_BE_SHOWN: Whether images and reports may leave `data/`, for a page that is passed on.
            False wherever patients stand behind them; written into `dataset.json`.
    """

    LICENSE: ClassVar[str]
    CITATION: ClassVar[str]
    MAY_BE_SHOWN: ClassVar[bool]

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the rows below `root`, in an order that depends on nothing but their content.

        Every row of the source comes out once: as a `Study`, or as a `Reject` with its reason.
        Images are found, not decoded; report text is passed on as it stands.

        Args:
            root: The raw folder.

        Raises:
            DataError: The layout under `root` is not this source's.
        """
        ...


def is_file(path: Path) -> bool:
    """Whether there is a file; False too where a table's cell is no possible path."""
    try:
        return path.is_file()
    except OSError:
        return False


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


def require_file(path: Path, layout: str) -> None:
    """Refuse a raw folder in which a file of the layout is missing.

    Args:
        path: The file that must be there.
        layout: What the folder should hold, for the error message.

    Raises:
        DataError: The folder or the file is missing.
    """
    require_folder(path.parent)
    if not path.is_file():
        entries = list(path.parent.iterdir())
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        raise DataError(
            f"The raw folder has no {path.name}",
            where=path.parent,
            got=f"{len(entries) - len(folders)} files; folders: {', '.join(folders) or 'none'}",
            expected=layout,
            fix="set `source.name` and `source.root` in params.yaml to the layout at hand",
        )
