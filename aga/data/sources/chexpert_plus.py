"""CheXpert Plus: the CheXpert images with their reports, one table for all.

The images may be the PNGs or the DICOM files of the release, or the JPEGs of CheXpert itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from aga.config import Config
from aga.data.schema import Reject, Split, Study
from aga.data.sources.base import is_file
from aga.data.sources.chexpert_labels import FINDINGS, labels
from aga.data.sources.layouts import Layout, require_layout, table_of
from aga.data.sources.records import Record, invalid, missing_image, records
from aga.errors import DataError

_log = logging.getLogger(__name__)
_TABLE = "df_chexpert_plus_240401.csv"
_SECTIONS = {"section_findings": "FINDINGS", "section_impression": "IMPRESSION"}
_NAMES = ("path_to_image", "path_to_dcm", "deid_patient_id", "split")
_COLUMNS = (*_NAMES, "frontal_lateral", "ap_pa", "report", *_SECTIONS)
_SPLITS: Mapping[str, Split] = {"train": "train", "valid": "test"}
_PARTS = 4  # train/patient00001/study1/view1_frontal.jpg
_DEPTHS = ("", "*/", "*/*/")  # of the folders that hold train/ and valid/, below the root
Labels = Mapping[str, int | None]


class ChexpertPlusConfig(Config):
    """Which of the labels are used.

    Attributes:
        labels: Of what the labeler read: the whole `report`, its `findings` or its `impression`.
    """

    labels: Literal["report", "findings", "impression"]


class ChexpertPlus:
    """Reads CheXpert Plus; its validation patients are the test split, as it has no other.

    Args:
        config: Which of the labels are used.
    """

    LICENSE: ClassVar[str] = (
        "Stanford University Dataset Research Use Agreement: non-commercial research, no copies to "
        "others; https://stanfordaimi.azurewebsites.net"
    )
    CITATION: ClassVar[str] = (
        "Chambon et al., CheXpert Plus: Augmenting a Large Chest X-ray Dataset with Text Radiology "
        "Reports, Patient Demographics and Additional Image Formats, arXiv 2405.19538 (2024); "
        "Irvin et al., arXiv 1901.07031 (2019)"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (
        Layout(
            "chexpert_plus",
            {_TABLE: _COLUMNS},
            images="PNG/train/patient00001/study1/view1_frontal.png, or DICOM/ with .dcm",
        ),
    )

    def __init__(self, config: ChexpertPlusConfig) -> None:
        self._labels = config.labels

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the table; see `Source.studies`.

        Raises:
            LayoutError: The table or a column of it is missing.
            DataError: A file of labels is damaged.
        """
        require_layout(root, self.LAYOUTS)
        known = _read_labels(root, self._labels)
        holders = (root.glob(f"{depth}{split}") for depth in _DEPTHS for split in _SPLITS)
        places = sorted({folder.parent for found in holders for folder in found})
        for record in records(table_of(root, _TABLE), _COLUMNS, filled=(_NAMES[0], *_NAMES[2:])):
            yield record if isinstance(record, Reject) else _study(record, places, known)


def _study(record: Record, places: Sequence[Path], known: Mapping[str, Labels]) -> Study | Reject:
    cells = record.cells
    parts = PurePosixPath(cells["path_to_image"]).parts[-_PARTS:]
    if len(parts) < _PARTS:
        expected = "train/patient00001/study1/view1_frontal.jpg"
        return invalid(record.location, "path_to_image", expected)
    if cells["split"] not in _SPLITS:
        return invalid(record.location, "split", " or ".join(_SPLITS))
    image = _image(cells, Path(*parts), places)
    if image is None:
        return missing_image(record.location, "path_to_image")
    return Study(
        patient_id=cells["deid_patient_id"],
        study_id=f"{parts[1]}/{parts[2]}",
        image=image.absolute(),
        report=_report(cells),
        location=record.location,
        view=cells["ap_pa"] or cells["frontal_lateral"] or None,
        split=_SPLITS[cells["split"]],
        labels=dict(known.get("/".join(parts), {})),
        repaired=record.repaired,
    )


def _image(cells: Mapping[str, str], path: Path, places: Sequence[Path]) -> Path | None:
    """The row's PNG, JPEG or DICOM file, the first of these that is there."""
    files = [path.with_suffix(".png"), path]
    if cells["path_to_dcm"]:
        files.append(Path(cells["path_to_dcm"]))
    return next((p / file for file in files for p in places if is_file(p / file)), None)


def _report(cells: Mapping[str, str]) -> str:
    """The sections that the release took out of the report under their headings, else all of it."""
    parts = [f"{heading}: {cells[name]}" for name, heading in _SECTIONS.items() if cells[name]]
    return "\n".join(parts) or cells["report"]


def _read_labels(root: Path, kind: str) -> dict[str, Labels]:
    """Labels by the image's path; one JSON object a line, in a folder of its own."""
    file = min(root.glob(f"*/{kind}_fixed.json"), default=None)
    if file is None:
        _log.warning("no folder has a %s_fixed.json: the rows have no labels", kind)
        return {}
    found: dict[str, Labels] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
                path = "/".join(PurePosixPath(values["path_to_image"]).parts[-_PARTS:])
                found[path] = labels(values)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    "A line of the labels cannot be read",
                    where=f"{file}:{number}",
                    got=type(error).__name__,
                    expected=f"a JSON object of path_to_image, {', '.join(FINDINGS)}",
                    fix="get the file again, or take it away: the rows have no labels then",
                ) from error
    return found
