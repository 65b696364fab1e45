"""MIMIC-CXR as JPG or DICOM files, releases 2.0.0 and 2.1.0, with its official splits.

The DICOM project holds images and reports; the JPG project holds copies of the images and the
tables of views, splits and labels. Both name their files alike: one folder with the images of
either, the reports and the tables is the layout. Release 2.1.0 has the same tables under the same
names; the readings of the test set and the list of providers that it adds are not read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from aga.config import Config
from aga.data.schema import Reject, Split, Study
from aga.data.sources.base import is_file
from aga.data.sources.chexpert_labels import FINDINGS, labels
from aga.data.sources.layouts import Layout, require_layout, table_of
from aga.data.sources.records import Record, invalid, records
from aga.data.sources.tables import has_stray_bytes, repair_stray_bytes

_METADATA, _SPLIT = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-split.csv"
_METADATA_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
_SPLIT_COLUMNS = ("dicom_id", "split")
_LABEL_COLUMNS = ("study_id", *FINDINGS)
_SPLITS: Mapping[str, Split] = {"train": "train", "validate": "validation", "test": "test"}
_REPORT_FOLDERS = ("reports/files", "reports", "mimic-cxr-reports/files", "mimic-cxr-reports")


class MimicCxrConfig(Config):
    """Whose labels are read.

    Attributes:
        labels: The labeler that read the reports.
    """

    labels: Literal["chexpert", "negbio"]


class _Tables:
    """What the tables of splits and labels say; a few bytes for each image and study."""

    def __init__(self) -> None:
        self._splits: dict[str, str] = {}
        self._labels: dict[str, tuple[int | None, ...]] = {}

    def read(self, splits: Path, labels_of_studies: Path) -> Iterator[Reject]:
        """Take in both tables; rows that cannot be read come out."""
        for row in records(splits, _SPLIT_COLUMNS, _SPLIT_COLUMNS):
            if isinstance(row, Reject):
                yield row
            else:
                self._splits[row.cells["dicom_id"]] = sys.intern(row.cells["split"])
        for row in records(labels_of_studies, _LABEL_COLUMNS, _LABEL_COLUMNS[:1]):
            if isinstance(row, Reject):
                yield row
                continue
            try:
                self._labels[row.cells["study_id"]] = tuple(labels(row.cells).values())
            except ValueError as error:
                yield invalid(row.location, str(error), "1, 0, -1 or nothing")

    def split(self, image: str) -> str | None:
        """The official split of an image, as the table writes it."""
        return self._splits.get(image)

    def labels(self, study: str) -> dict[str, int | None]:
        """The labels of a study; all unknown where the labeler gave none."""
        stated = self._labels.get(study, (None,) * len(FINDINGS))
        return dict(zip(FINDINGS.values(), stated, strict=True))


class MimicCxr:
    """Reads MIMIC-CXR and MIMIC-CXR-JPG.

    Args:
        config: Whose labels.
    """

    LICENSE: ClassVar[str] = "PhysioNet Credentialed Health Data License 1.5.0"
    CITATION: ClassVar[str] = (
        "Johnson et al., MIMIC-CXR, a de-identified publicly available database of chest "
        "radiographs with free-text reports, Scientific Data 6, 317 (2019); Johnson et al., "
        "MIMIC-CXR-JPG, arXiv 1901.07042 (2019)"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (
        Layout(
            "mimic_cxr",
            {_METADATA: _METADATA_COLUMNS, _SPLIT: _SPLIT_COLUMNS},
            folders=("files",),
            images="files/p10/p10000032/s50414267/*.jpg or *.dcm",
        ),
    )

    def __init__(self, config: MimicCxrConfig) -> None:
        self._labels = f"mimic-cxr-2.0.0-{config.labels}.csv"

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the table of metadata, one row per image; see `Source.studies`.

        Raises:
            LayoutError: A table, a column or the folder of images is missing.
        """
        (layout,) = self.LAYOUTS
        tables = {**layout.tables, self._labels: _LABEL_COLUMNS}
        require_layout(root, [replace(layout, tables=tables)])
        known = _Tables()
        yield from known.read(table_of(root, _SPLIT), table_of(root, self._labels))
        reports = next((one for one in _REPORT_FOLDERS if (root / one).is_dir()), "files")
        for row in records(table_of(root, _METADATA), _METADATA_COLUMNS, _METADATA_COLUMNS[:3]):
            yield row if isinstance(row, Reject) else _study(row, root, root / reports, known)


def _study(row: Record, root: Path, reports: Path, known: _Tables) -> Study | Reject:
    patient, study, image = (row.cells[name] for name in ("subject_id", "study_id", "dicom_id"))
    split = known.split(image)
    if split is None:
        return Reject(row.location, "split missing", "not in the table of splits", "dicom_id")
    if split not in _SPLITS:
        return invalid(row.location, "split", " or ".join(_SPLITS))
    place = Path(f"p{patient[:2]}", f"p{patient}", f"s{study}")
    report = (reports / place).with_suffix(".txt")
    if not is_file(report):
        return Reject(row.location, "report missing", "no such file", "study_id")
    text = report.read_text(encoding="utf-8", errors="surrogateescape")
    return Study(
        patient_id=patient,
        study_id=study,
        image=_image(root / "files" / place / image),
        report=repair_stray_bytes(text),
        location=row.location,
        view=row.cells["ViewPosition"] or None,
        split=_SPLITS[split],
        labels=known.labels(study),
        repaired=row.repaired or has_stray_bytes(text),
    )


def _image(stem: Path) -> Path:
    """The JPG file, or the DICOM file where there is no JPG."""
    jpg, dicom = (stem.parent / f"{stem.name}{ending}" for ending in (".jpg", ".dcm"))
    return (dicom if is_file(dicom) and not is_file(jpg) else jpg).absolute()
