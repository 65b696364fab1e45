"""ROCO: figures of articles in PubMed Central with their captions, versions 1 and 2.

A caption is the report. Nobody knows the patients: each figure counts as one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from aga.data.schema import Reject, Split, Study
from aga.data.sources.layouts import Layout, require_layout, table_of
from aga.data.sources.records import Record, files_by_stem, missing_image, records
from aga.data.sources.tables import has_stray_bytes, repair_stray_bytes

_ENDINGS = (".jpg", ".jpeg", ".png")
_COLUMNS = ("ID", "Caption")
_V1: Mapping[Split, str] = {"train": "train", "validation": "validation", "test": "test"}
_V2: Mapping[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
_FIGURE = re.compile(r"\S+\t")
_AROUND = ("", "data/", "all_data/", "all_data_/")  # of the splits' folders, in version 1


def _first(around: str) -> Layout:
    return Layout(
        "roco",
        files=tuple(f"{around}{folder}/radiology/captions.txt" for folder in _V1.values()),
        images=f"{around}train/radiology/images/",
    )


_SECOND = Layout(
    "roco",
    {f"{name}_captions.csv": _COLUMNS for name in _V2.values()},
    images="train/ or train_images/, and so for valid and test",
)


class Roco:
    """Reads either version; the official splits are kept."""

    LICENSE: ClassVar[str] = (
        "of each article (CC BY, CC BY-NC or alike); version 2 as a collection: CC BY 4.0; "
        "https://github.com/razorx89/roco-dataset, https://doi.org/10.5281/zenodo.8333645"
    )
    CITATION: ClassVar[str] = (
        "Pelka et al., Radiology Objects in COntext (ROCO): A Multimodal Image Dataset, LABELS at "
        "MICCAI 2018; Rueckert et al., ROCOv2, Scientific Data 11:688 (2024), arXiv 2405.10004"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (_SECOND, *map(_first, _AROUND))

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the captions of each split; see `Source.studies`.

        Raises:
            LayoutError: A file or a column of the layout is missing.
        """
        layout = require_layout(root, self.LAYOUTS)
        if layout is _SECOND:
            yield from _second_version(root)
        else:
            yield from _first_version(root, layout)


def _second_version(root: Path) -> Iterator[Study | Reject]:
    for split, name in _V2.items():
        images = files_by_stem([root / f"{name}_images", root / name], _ENDINGS)
        table = table_of(root, f"{name}_captions.csv")
        for record in records(table, _COLUMNS, filled=("ID",)):
            yield record if isinstance(record, Reject) else _study(record, split, images)


def _first_version(root: Path, layout: Layout) -> Iterator[Study | Reject]:
    for split, name in zip(_V1, layout.files, strict=True):
        captions = root / name
        images = files_by_stem([captions.parent / "images"], _ENDINGS)
        for record in _lines(captions, f"{split}/captions.txt"):
            yield record if isinstance(record, Reject) else _study(record, split, images)


def _lines(file: Path, name: str) -> Iterator[Record | Reject]:
    """Lines of `ID<tab>caption`; one that does not begin with an ID goes on with the caption."""
    pending: list[str] = []
    start = 1
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if _FIGURE.match(line):
                yield from _record(pending, f"{name}:{start}")
                pending, start = [], number
            pending.append(line)
    yield from _record(pending, f"{name}:{start}")


def _record(lines: Sequence[str], location: str) -> Iterator[Record | Reject]:
    text = "".join(lines)
    if not text.strip():
        return
    figure, tab, caption = repair_stray_bytes(text).partition("\t")
    if tab:
        cells = {"ID": figure.strip(), "Caption": caption.strip()}
        yield Record(location, cells, has_stray_bytes(text))
    else:
        yield Reject(location, "wrong number of columns", "expected ID, tab, caption")


def _study(record: Record, split: Split, images: Mapping[str, Path]) -> Study | Reject:
    figure = record.cells["ID"]
    if figure not in images:
        return missing_image(record.location, "ID")
    return Study(
        patient_id=figure,
        study_id=figure,
        image=images[figure].absolute(),
        report=record.cells["Caption"],
        location=record.location,
        split=split,
        repaired=record.repaired,
    )
