"""The contract of a source: a raw layout on disk in, one `Study` or `Reject` per row out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from aga.data.schema import Reject, Study
from aga.data.sources.layouts import Layout


@runtime_checkable
class Source(Protocol):
    """Reads one raw layout.

    A source without settings is made without arguments; one with settings takes its own config,
    which is the field of its name in `SourceConfig`.

    Attributes:
        LICENSE: Terms of the raw data, written into `dataset.json`.
        CITATION: How to cite the raw data, written into `dataset.json`.
        MAY_BE_SHOWN: Whether images and reports may leave `data/`, for a page that is passed on.
            False wherever patients stand behind them; written into `dataset.json`.
        LAYOUTS: The layouts by which a folder of this source is known, whatever the settings;
            empty where only the settings tell.
    """

    LICENSE: ClassVar[str]
    CITATION: ClassVar[str]
    MAY_BE_SHOWN: ClassVar[bool]
    LAYOUTS: ClassVar[Sequence[Layout]]

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the rows below `root`, in an order that depends on nothing but their content.

        Every row of the source comes out once: as a `Study`, or as a `Reject` with its reason.
        Images are found, not decoded; report text is passed on as it stands.

        Args:
            root: The raw folder.

        Raises:
            LayoutError: `root` has no layout of this source.
        """
        ...


def is_file(path: Path) -> bool:
    """Whether there is a file; False too where a table's cell is no possible path."""
    try:
        return path.is_file()
    except OSError:
        return False
