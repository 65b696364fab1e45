"""CheXpert: frontal and lateral radiographs with fourteen labels, without reports.

`CheXpert-v1.0` and `CheXpert-v1.0-small` are read alike, and so is the download in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from aga.data.schema import Reject, Split, Study
from aga.data.sources.base import is_file
from aga.data.sources.chexpert_labels import FINDINGS, labels
from aga.data.sources.layouts import Layout, LayoutError, require_layout, table_of
from aga.data.sources.records import Record, invalid, missing_image, records

_VIEW = ("Frontal/Lateral", "AP/PA")
_COLUMNS = ("Path", *_VIEW, *FINDINGS)
_TABLES = ("train.csv", "valid.csv")
_TEST = ("test.csv", "test_labels.csv")
_BESIDE = ("", "CheXpert-v1.0*/")  # of the root: the folder itself, or the one that holds it
_PARTS = 4  # train/patient00001/study1/view1_frontal.jpg


def _layout(folder: str) -> Layout:
    return Layout(
        "chexpert",
        {f"{folder}{table}": _COLUMNS for table in _TABLES},
        images="train/patient00001/study1/view1_frontal.jpg beside the tables",
    )


@dataclass(frozen=True)
class _Part:
    """A table, the split of its rows, and the columns that it has."""

    table: Path
    split: Split
    columns: tuple[str, ...]


class Chexpert:
    """Reads CheXpert; without the later test set, its validation patients are the test split."""

    LICENSE: ClassVar[str] = (
        "Stanford University Dataset Research Use Agreement: non-commercial research, no copies to "
        "others; https://stanfordmlgroup.github.io/competitions/chexpert"
    )
    CITATION: ClassVar[str] = (
        "Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and "
        "Expert Comparison, AAAI 2019, arXiv 1901.07031"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = tuple(map(_layout, _BESIDE))

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the tables of the official splits; see `Source.studies`.

        Raises:
            LayoutError: A table or a column of the layout is missing.
        """
        prefix = _BESIDE[self.LAYOUTS.index(require_layout(root, self.LAYOUTS))]
        home = table_of(root, f"{prefix}{_TABLES[0]}").parent
        places = [home, *sorted(home.parent.glob("CheXpert-v1.0 batch *"))]
        for part in _parts(home):
            for record in records(part.table, part.columns, filled=("Path",)):
                if isinstance(record, Reject):
                    yield record
                else:
                    yield _study(record, part.split, places)


def _parts(home: Path) -> Iterator[_Part]:
    test = next((name for name in _TEST if table_of(home, name).is_file()), None)
    if test is None and (home / "test").is_dir():
        raise LayoutError(home, [Layout("chexpert", files=_TEST[-1:])])
    yield _Part(table_of(home, _TABLES[0]), "train", _COLUMNS)
    yield _Part(table_of(home, _TABLES[1]), "validation" if test else "test", _COLUMNS)
    if test:
        columns = ("Path", *FINDINGS)
        require_layout(home, [Layout("chexpert", {test: columns})])
        yield _Part(table_of(home, test), "test", columns)


def _study(record: Record, split: Split, places: Sequence[Path]) -> Study | Reject:
    parts = PurePosixPath(record.cells["Path"]).parts[-_PARTS:]
    if len(parts) < _PARTS:
        return invalid(record.location, "Path", "train/patient00001/study1/view1_frontal.jpg")
    try:
        known = labels(record.cells)
    except ValueError as column:
        return invalid(record.location, str(column), "1, 0, -1 or nothing")
    # A batch holds the training patients with or without the folder `train` around them.
    tails = (Path(*parts), Path(*parts[1:]))
    files = (place / tail for place in places for tail in tails)
    image = next(filter(is_file, files), None)
    if image is None:
        return missing_image(record.location, "Path")
    return Study(
        patient_id=parts[1],
        study_id=f"{parts[1]}/{parts[2]}",
        image=image.absolute(),
        report=None,
        location=record.location,
        view=_view(record.cells, parts[-1]),
        split=split,
        labels=known,
        repaired=record.repaired,
    )


def _view(cells: dict[str, str], name: str) -> str | None:
    """AP or PA where it is told, else frontal or lateral, by the column or by the file's name."""
    told = next((cells[column] for column in reversed(_VIEW) if cells.get(column)), None)
    return told or next((view for view in ("frontal", "lateral") if view in name), None)
