"""NIH ChestX-ray14: frontal radiographs with fourteen findings and some boxes, without reports."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from aga.data.schema import Region, Reject, Split, Study
from aga.data.sources.layouts import Layout, require_layout, table_of
from aga.data.sources.records import (
    Record,
    files_by_stem,
    invalid,
    missing_image,
    records,
    region,
)
from aga.data.sources.tables import csv_columns

_log = logging.getLogger(__name__)
_TABLE, _BOXES = "Data_Entry_2017*.csv", "BBox_List_2017.csv"
_LISTS: Mapping[str, Split] = {"train_val_list.txt": "train", "test_list.txt": "test"}
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_BOX = ("Bbox [x", "y", "w", "h]")  # so the header of the table is cut at its commas
_BOX_COLUMNS = ("Image Index", "Finding Label", *_BOX)
_NONE = "No Finding"
_FINDINGS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Effusion": "pleural_effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Infiltration": "infiltration",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural_thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
_IN_BOXES = _FINDINGS | {"Infiltrate": "infiltration"}  # as the table of boxes spells it


class Nih14:
    """Reads ChestX-ray14; the official test patients are the test split."""

    LICENSE: ClassVar[str] = (
        "Free use, with acknowledgement of the NIH Clinical Center, a citation and the link "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    )
    CITATION: ClassVar[str] = (
        "Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on "
        "Weakly-Supervised Classification and Localization of Common Thorax Diseases, CVPR 2017"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (
        Layout(
            "nih14",
            {_TABLE: _COLUMNS},
            files=tuple(_LISTS),
            folders=("images*",),
            images="images_001/images/00000001_000.png, or images/00000001_000.png",
        ),
    )

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the table; see `Source.studies`.

        Raises:
            LayoutError: A file, a folder or a column of the layout is missing.
        """
        require_layout(root, self.LAYOUTS)
        splits = {
            name: split
            for file, split in _LISTS.items()
            for name in (root / file).read_text(encoding="utf-8", errors="replace").split()
        }
        boxes = _read_boxes(root)
        images = files_by_stem(sorted(root.glob("images*")), (".png", ".jpg", ".jpeg"))
        table = table_of(root, _TABLE)
        for record in records(table, _COLUMNS, filled=_COLUMNS[:3]):
            if isinstance(record, Reject):
                yield record
            else:
                yield _study(record, splits, images, boxes)


def _study(
    record: Record,
    splits: Mapping[str, Split],
    images: Mapping[str, Path],
    boxes: Mapping[str, list[Region]],
) -> Study | Reject:
    cells, location = record.cells, record.location
    name = cells["Image Index"]
    stem = name.rpartition(".")[0] or name
    named = set(cells["Finding Labels"].split("|"))
    if not named <= _FINDINGS.keys() and named != {_NONE}:
        return invalid(location, "Finding Labels", f"{_NONE}, or findings joined by |")
    if name not in splits:
        detail = f"in neither of {', '.join(_LISTS)}"
        return Reject(location, "split missing", detail, "Image Index")
    if stem not in images:
        return missing_image(location, "Image Index")
    labels = {label: int(finding in named) for finding, label in _FINDINGS.items()}
    return Study(
        patient_id=cells["Patient ID"].zfill(
            8
        ),  # as images name it, and `rsna` takes it from there
        study_id=stem,
        image=images[stem].absolute(),
        report=None,
        location=location,
        view=cells["View Position"] or None,
        split=splits[name],
        labels={"no_finding": int(_NONE in named), **labels},
        regions=tuple(boxes.get(name, ())),
        repaired=record.repaired,
    )


def _read_boxes(root: Path) -> dict[str, list[Region]]:
    """Boxes by the image's name; without a good table of them no row has any."""
    table = table_of(root, _BOXES)
    if not table.is_file() or not set(_BOX_COLUMNS) <= set(csv_columns(table)):
        _log.warning("no %s with %s: the rows have no regions", _BOXES, ", ".join(_BOX_COLUMNS))
        return {}
    found: dict[str, list[Region]] = {}
    unread = 0
    for record in records(table, _BOX_COLUMNS):
        try:
            name, region = _box(record)
        except ValueError:
            unread += 1
        else:
            found.setdefault(name, []).append(region)
    if unread:
        _log.warning("%d rows of %s cannot be read: not used", unread, _BOXES)
    return found


def _box(record: Record | Reject) -> tuple[str, Region]:
    """The image's name and the region of a row; ValueError where it has none."""
    if isinstance(record, Reject) or record.cells["Finding Label"] not in _IN_BOXES:
        raise ValueError("no finding")
    finding = _IN_BOXES[record.cells["Finding Label"]]
    return record.cells["Image Index"], region(finding, record.cells, _BOX)
