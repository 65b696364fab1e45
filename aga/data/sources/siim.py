"""SIIM-ACR Pneumothorax Segmentation: DICOM images and masks as run lengths, without reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from aga.data.schema import Region, Reject, Study
from aga.data.sources.layouts import Layout, require_layout, table_of
from aga.data.sources.records import files_by_stem, invalid, missing_image, records

TABLES = ("stage_2_train.csv", "train-rle.csv")
_COLUMNS = ("ImageId", "EncodedPixels")
_FINDING = "pneumothorax"
_ABSENT = "-1"
SIDE = 1024  # pixels; all images and masks are squares of it
Box = tuple[float, float, float, float]


@dataclass
class _Image:
    """All rows of an image: one for each part of the mask, or one that says there is none.

    Attributes:
        location: Of the first row.
        boxes: Around each part of the mask.
        absent: Whether a row says that there is no mask.
        problem: The first row that cannot be read.
    """

    location: str
    boxes: list[Box] = field(default_factory=list)
    absent: bool = False
    problem: Reject | None = None


class Siim:
    """Reads the training part, the only one with masks; it has no official splits."""

    LICENSE: ClassVar[str] = (
        "SIIM-ACR Pneumothorax Segmentation terms: non-commercial research and education; images "
        "of the NIH Clinical Center; https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation"
    )
    CITATION: ClassVar[str] = (
        "Filice et al., Crowdsourcing pneumothorax annotations using machine learning annotations "
        "on the NIH chest X-ray dataset, Journal of Digital Imaging 33, 490-496 (2020); "
        "Wang et al., ChestX-ray8, CVPR 2017"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = tuple(
        Layout("siim", {table: _COLUMNS}, images="<ImageId>.dcm in any folder below")
        for table in TABLES
    )

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the table, an image's rows as one; see `Source.studies`.

        Raises:
            LayoutError: The table or a column of it is missing.
        """
        layout = require_layout(root, self.LAYOUTS)
        (table,) = layout.tables
        images: dict[str, _Image] = {}
        for record in records(table_of(root, table), _COLUMNS, filled=_COLUMNS):
            if isinstance(record, Reject):
                yield record
            else:
                image = images.setdefault(record.cells["ImageId"], _Image(record.location))
                _enter(image, record.cells["EncodedPixels"], record.location)
        files = files_by_stem([root], (".dcm",))
        for name, image in images.items():
            yield _study(name, image, files.get(name))


def mask_box(encoded: str) -> Box:
    """The box around a mask given as run lengths.

    Runs follow each other down the columns, left to right; each is how many pixels after the end of
    the one before it begins, and how many it covers.

    Args:
        encoded: `start length start length ...`.

    Returns:
        (left, top, right, bottom) in pixels of the image.

    Raises:
        ValueError: It is no such list, or leaves the image.
    """
    numbers = np.array(encoded.split(), dtype=np.int64)
    skips, lengths = numbers[::2], numbers[1::2]
    if len(skips) != len(lengths) or not len(skips) or (skips < 0).any() or (lengths < 1).any():
        raise ValueError("no pairs of start and length")
    # Beyond the image before they are added up, so that no sum overflows.
    if (numbers > SIDE**2).any() or len(numbers) > SIDE**2:
        raise ValueError("longer than the image")
    ends = np.cumsum(skips + lengths)
    if ends[-1] > SIDE**2:
        raise ValueError("outside the image")
    first, last = ends - lengths, ends - 1
    over = first // SIDE != last // SIDE  # such a run has pixels at the bottom and at the top
    top = np.where(over, 0, first % SIDE).min()
    bottom = np.where(over, SIDE - 1, last % SIDE).max()
    left, right = first[0] // SIDE, last[-1] // SIDE
    return float(left), float(top), float(right + 1), float(bottom + 1)


def _enter(image: _Image, encoded: str, location: str) -> None:
    """Take over what a row says of its image."""
    if encoded == _ABSENT:
        image.absent = True
        return
    try:
        image.boxes.append(mask_box(encoded))
    except (ValueError, OverflowError):
        expected = f"{_ABSENT}, or run lengths in {SIDE} x {SIDE} pixels"
        image.problem = image.problem or invalid(location, "EncodedPixels", expected)


def _study(name: str, image: _Image, file: Path | None) -> Study | Reject:
    if image.problem is not None:
        return image.problem
    if image.absent and image.boxes:
        detail = "one row has a mask and another says there is none"
        return Reject(image.location, "rows disagree", detail, "EncodedPixels")
    if file is None:
        return missing_image(image.location, "ImageId")
    return Study(
        patient_id=name,
        study_id=name,
        image=file.absolute(),
        report=None,
        location=image.location,
        view="frontal",
        labels={_FINDING: int(not image.absent)},
        regions=tuple(Region(_FINDING, box) for box in image.boxes),
    )
