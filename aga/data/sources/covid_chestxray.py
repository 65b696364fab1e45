"""The ieee8023 collection of chest radiographs with clinical notes (`metadata.csv` + `images/`).

One row per radiograph that has a clinical note. `other_notes` is left out: it credits publications
rather than describing images. Labels come from `finding`, regions from the lung boxes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from aga.config import Config
from aga.data.pixels.images import image_size
from aga.data.schema import Region, Reject, Study
from aga.data.sources.base import is_file
from aga.data.sources.layouts import Layout, require_layout
from aga.data.sources.tables import Line, has_stray_bytes, read_csv, repair_stray_bytes

_log = logging.getLogger(__name__)
_BOXES = Path("annotations") / "imageannotation_ai_lung_bounding_boxes.json"
_COLUMNS = ("patientid", "offset", "finding", "view", "modality", "filename", "clinical_notes")
_UNKNOWN = frozenset({"", "?", "todo", "unknown"})
_ASPECT_TOLERANCE = 0.02  # a resized copy keeps its shape to within a pixel

_CAUSES = {
    "viral": ("viral", "covid-19", "sars", "mers-cov", "influenza", "h1n1", "varicella", "herpes"),
    "bacterial": (
        *("bacterial", "streptococcus", "staphylococcus", "mrsa", "klebsiella", "legionella"),
        *("e.coli", "mycoplasma", "mycoplasma bacterial pneumonia", "chlamydophila", "nocardia"),
    ),
    "fungal": ("fungal", "pneumocystis", "aspergillosis"),
    "lipoid": ("lipoid",),
}
CLASSES = ("covid_19", "pneumonia", *_CAUSES, "ards", "no_finding")


class CovidChestxrayConfig(Config):
    """Which rows are used.

    Attributes:
        min_characters: Rows with a shorter clinical note are rejected.
    """

    min_characters: int = Field(ge=1)


@dataclass(frozen=True)
class _Boxes:
    """Lung boxes of one image, (left, top, width, height) at the size the annotators saw."""

    height: int
    width: int
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]


class CovidChestxray:
    """Reads the ieee8023 layout.

    Args:
        config: Which rows are used.
    """

    LICENSE: ClassVar[str] = (
        "images: per image, see the column `license` of metadata.csv; metadata: CC BY-NC-SA 4.0"
    )
    CITATION: ClassVar[str] = (
        "Cohen et al., COVID-19 Image Data Collection: Prospective Predictions Are the Future, "
        "arXiv 2006.11988 (2020); Cohen et al., arXiv 2003.11597 (2020)"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (
        Layout("covid_chestxray", {"metadata.csv": _COLUMNS}, folders=("images",)),
    )

    def __init__(self, config: CovidChestxrayConfig) -> None:
        self._config = config

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read `metadata.csv`; see `Source.studies`.

        Raises:
            LayoutError: A file, a folder or a column of the layout is missing.
        """
        require_layout(root, self.LAYOUTS)
        boxes = _read_boxes(root / _BOXES)
        repaired = 0
        for line in read_csv(root / "metadata.csv"):
            stray = any(has_stray_bytes(cell) for cell in line.cells.values())
            repaired += stray
            yield self._study(line, root, boxes, stray)
        if repaired:
            _log.warning("metadata.csv: %d rows were not UTF-8, read as Windows-1252", repaired)

    def _study(
        self, line: Line, root: Path, boxes: dict[str, _Boxes], stray: bool
    ) -> Study | Reject:
        location = f"metadata.csv:{line.number}"
        cells = {name: repair_stray_bytes(cell).strip() for name, cell in line.cells.items()}
        if not all(name in cells for name in _COLUMNS):
            detail = f"{line.surplus:+d} against the header"
            return Reject(location, "wrong number of columns", detail)
        if cells["modality"].casefold() != "x-ray":
            return Reject(location, "not an x-ray", "X-ray is expected", "modality")
        image = root / "images" / cells["filename"]
        if not is_file(image):
            return Reject(location, "image missing", "no such file in images/", "filename")
        note = cells["clinical_notes"]
        if len(note) < self._config.min_characters:
            reason = "note too short" if note else "no note"
            expected = f"{len(note)} characters, fewer than {self._config.min_characters}"
            return Reject(location, reason, expected, "clinical_notes")
        return Study(
            patient_id=cells["patientid"],
            study_id=_study_id(cells),
            image=image.absolute(),
            report=note,
            location=location,
            view=None if cells["view"].casefold() in _UNKNOWN else cells["view"],
            labels=finding_labels(cells["finding"]),
            regions=_regions(image, boxes.get(cells["filename"])),
            repaired=stray,
        )


def finding_labels(finding: str) -> dict[str, int | None]:
    """Labels of the classes that a cell of the column `finding` settles.

    The cell names diagnoses, separated by `,`, or by `/` from general to special. A named cause of
    pneumonia denies the other causes; ARDS is a finding that nobody denies by leaving it out.

    Args:
        finding: The cell: `COVID-19, ARDS`, `Pneumonia/Viral/SARS`, `No Finding`, `todo`.

    Returns:
        For each of `CLASSES` 1, 0, or None where the cell does not say.
    """
    named = {part.strip().casefold() for part in re.split("[,/]", finding)} - _UNKNOWN
    labels: dict[str, int | None] = dict.fromkeys(CLASSES)
    if not named:
        return labels
    if "no finding" in named:
        return {name: int(name == "no_finding") for name in CLASSES}
    labels["no_finding"] = 0
    if "ards" in named:
        labels["ards"] = 1
    if "pneumonia" in named:
        labels["pneumonia"] = 1
    causes = {cause for cause, names in _CAUSES.items() if named & set(names)}
    if causes:
        labels |= {cause: int(cause in causes) for cause in _CAUSES}
        labels["pneumonia"] = 1
        if "viral" not in causes or named & (set(_CAUSES["viral"]) - {"viral"}):
            labels["covid_19"] = int("covid-19" in named)
    return labels


def _study_id(cells: dict[str, str]) -> str:
    """Unique for each row: the collection numbers patients and days, not studies."""
    file_key = hashlib.sha256(cells["filename"].encode()).hexdigest()[:8]
    return f"{cells['patientid']}-{cells['offset'] or 'x'}-{file_key}"


def _read_boxes(path: Path) -> dict[str, _Boxes]:
    if not path.is_file():
        _log.warning("%s is missing: the rows have no regions", path.name)
        return {}
    try:
        coco: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"].casefold() for category in coco["categories"]}
        by_image: dict[int, list[tuple[str, tuple[float, float, float, float]]]] = {}
        for annotation in coco["annotations"]:
            if None in annotation["bbox"]:
                continue  # a lung that the annotators left out
            left, top, width, height = map(float, annotation["bbox"])
            boxes = by_image.setdefault(annotation["image_id"], [])
            boxes.append((names[annotation["category_id"]], (left, top, width, height)))
        return {
            image["file_name"]: _Boxes(
                image["height"], image["width"], tuple(by_image.get(image["id"], []))
            )
            for image in coco["images"]
        }
    except (ValueError, KeyError, TypeError) as error:
        _log.warning(
            "%s is not in COCO form (%s): the rows have no regions", path.name, type(error).__name__
        )
        return {}


def _regions(image: Path, annotated: _Boxes | None) -> tuple[Region, ...]:
    """The lung boxes in pixels of the image at hand, which may be a resized copy.

    A copy of another shape is not the image that was annotated, and gets no regions.
    """
    if annotated is None:
        return ()
    size = image_size(image)
    if size is None:
        return ()
    height, width = map(float, size)
    x_scale, y_scale = width / annotated.width, height / annotated.height
    if abs(x_scale / y_scale - 1) > _ASPECT_TOLERANCE:
        return ()
    return tuple(
        Region(
            name,
            (
                min(max(left, 0) * x_scale, width),
                min(max(top, 0) * y_scale, height),
                min((left + box_width) * x_scale, width),
                min((top + box_height) * y_scale, height),
            ),
        )
        for name, (left, top, box_width, box_height) in annotated.boxes
    )
