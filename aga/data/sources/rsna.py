"""The RSNA Pneumonia Detection Challenge: DICOM images, boxes around opacities, no reports."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from aga.data.schema import Region, Reject, Study
from aga.data.sources.base import is_file
from aga.data.sources.layouts import Layout, page, require_layout, table_of
from aga.data.sources.records import Record, invalid, missing_image, records, region
from aga.errors import DataError

_log = logging.getLogger(__name__)
_BOXES, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_IMAGES = "stage_2_train_images"
_ORIGINS = "pneumonia-challenge-dataset-mappings_2018.json"
_BOX = ("x", "y", "width", "height")
_COLUMNS = ("patientId", *_BOX, "Target")
_FINDING = "pneumonia"
_NORMAL = {"Normal": 1, "No Lung Opacity / Not Normal": 0, "Lung Opacity": 0}


@dataclass
class _Image:
    """All rows of an image, which are as many as its boxes, or one.

    Attributes:
        location: Of the first row.
        targets: What its rows say.
        regions: Its boxes.
        problem: The first row that cannot be read.
    """

    location: str
    targets: set[int] = field(default_factory=set)
    regions: list[Region] = field(default_factory=list)
    problem: Reject | None = None


class Rsna:
    """Reads the challenge's training part, the only one with labels; it has no official splits."""

    LICENSE: ClassVar[str] = (
        "RSNA Pneumonia Detection Challenge terms: non-commercial research and education; images "
        "of the NIH Clinical Center; https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    )
    CITATION: ClassVar[str] = (
        "Shih et al., Augmenting the National Institutes of Health Chest Radiograph Dataset with "
        "Expert Annotations of Possible Pneumonia, Radiology: Artificial Intelligence 1(1), 2019; "
        "Wang et al., ChestX-ray8, CVPR 2017"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (
        Layout(
            "rsna",
            {_BOXES: _COLUMNS, _CLASSES: ("patientId", "class")},
            folders=(_IMAGES,),
            images=f"{_IMAGES}/<patientId>.dcm",
        ),
    )

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read both tables, an image's rows as one; see `Source.studies`.

        Raises:
            LayoutError: A table, a column or the folder of images is missing.
            DataError: The mapping to patients is damaged.
        """
        require_layout(root, self.LAYOUTS)
        patients = nih_patients(root)
        if not patients:
            _log.warning(
                "no %s: each image counts as a patient, and images of one patient may come into "
                "different splits; %s says where to get it",
                _ORIGINS,
                page("rsna"),
            )
        images: dict[str, _Image] = {}
        for record in records(table_of(root, _BOXES), _COLUMNS, filled=("patientId", "Target")):
            if isinstance(record, Reject):
                yield record
            else:
                image = images.setdefault(record.cells["patientId"], _Image(record.location))
                _enter(image, record)
        classes = _read_classes(table_of(root, _CLASSES))
        for name, image in images.items():
            yield _study(name, image, classes.get(name, set()), root, patients.get(name, name))


def _enter(image: _Image, record: Record) -> None:
    """Take over what a row says of its image."""
    cells, location = record.cells, record.location
    if cells["Target"] not in ("0", "1"):
        image.problem = image.problem or invalid(location, "Target", "0 or 1")
        return
    target = int(cells["Target"])
    image.targets.add(target)
    if target == 0:
        return
    try:
        image.regions.append(region(_FINDING, cells, _BOX))
    except ValueError:
        image.problem = image.problem or invalid(location, "x", "a box where Target is 1")


def _study(name: str, image: _Image, classes: set[str], root: Path, patient: str) -> Study | Reject:
    if image.problem is not None:
        return image.problem
    if len(image.targets) > 1:
        return Reject(image.location, "rows disagree", "Target is both 0 and 1", "Target")
    if len(classes) != 1 or not classes <= _NORMAL.keys():
        detail = f"{len(classes)} classes in {_CLASSES}; one of {', '.join(_NORMAL)} is expected"
        return Reject(image.location, "rows disagree", detail, "patientId")
    file = root / _IMAGES / f"{name}.dcm"
    if not is_file(file):
        return missing_image(image.location, "patientId")
    return Study(
        patient_id=patient,
        study_id=name,
        image=file.absolute(),
        report=None,
        location=image.location,
        view="frontal",
        labels={_FINDING: image.targets.pop(), "no_finding": _NORMAL[min(classes)]},
        regions=tuple(image.regions),
    )


def _read_classes(table: Path) -> dict[str, set[str]]:
    """The classes of each image; its rows repeat the one it has."""
    found: dict[str, set[str]] = {}
    for record in records(table, ("patientId", "class")):
        if isinstance(record, Record):
            found.setdefault(record.cells["patientId"], set()).add(record.cells["class"])
    return found


def nih_patients(root: Path) -> dict[str, str]:
    """The NIH patient of each image: what the challenge calls a patient is an image.

    Args:
        root: May hold the challenge's mapping to the images of the NIH.

    Returns:
        Patient by image; empty where there is no mapping.

    Raises:
        DataError: The mapping is damaged.
    """
    file = root / _ORIGINS
    if not file.is_file():
        return {}
    try:
        origins = json.loads(file.read_text(encoding="utf-8"))
        return {one["subset_img_id"]: one["img_id"].partition("_")[0] for one in origins}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "The mapping of images to patients is damaged",
            where=file,
            got=type(error).__name__,
            fix=f"get it again; {page('rsna')} says where",
        ) from error
