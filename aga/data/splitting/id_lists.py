"""Lists of identifiers that protocols of the field are measured on, rebuilt from a user's download.

A list names images or patients; it holds no text and no pixels. What is drawn is drawn by the
SHA-256 of seed and identifier: the same table in any order gives the same list, and its SHA-256
says whether two people measure on the same images.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from aga.data.schema import Reject
from aga.data.sources.layouts import table_of
from aga.data.sources.records import Record, records
from aga.data.sources.rsna import nih_patients
from aga.data.sources.siim import TABLES as SIIM_TABLES
from aga.data.sources.tables import csv_columns
from aga.data.splitting.id_list import IdList
from aga.errors import DataError

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_OTHERS = (
    *("Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Pneumonia", "Pneumothorax"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
_PER_CLASS = 200
_TRAIN_IMAGE = re.compile(r"train/(?P<patient>[^/]+)/.+")
_VALUES = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
_SHARES = {"train": Fraction(70, 100), "validation": Fraction(15, 100)}


def chexpert_5x200(root: Path, seed: int) -> IdList:
    """200 frontal training images of CheXpert for each of the five competition findings.

    An image is eligible where exactly one of the five is positive and all other findings are
    negative or not mentioned; an uncertain finding rules it out. Identifiers are paths from
    `train/` on, as the table states them.

    Args:
        root: Holds `train.csv`.
        seed: Another seed draws other images.

    Raises:
        DataError: The table is damaged, or has fewer than 200 images of a class.
    """
    columns = ("Path", "Frontal/Lateral", *COMPETITION, *_OTHERS)
    by_class: dict[str, dict[str, str]] = {name: {} for name in COMPETITION}
    for record in _records(table_of(root, "train.csv"), columns):
        finding = _only_finding(record)
        if record.cells["Frontal/Lateral"] == "Frontal" and finding is not None:
            found = _TRAIN_IMAGE.search(record.cells["Path"])
            if found is None:
                raise _wrong(record, "Path", "train/<patient>/<study>/<image>")
            by_class[finding][found[0]] = found["patient"]
    return _five_classes("chexpert-5x200", by_class, seed, root)


def mimic_5x200(root: Path, seed: int, labeler: str = "chexpert") -> IdList:
    """200 frontal training images of MIMIC-CXR for each of the five competition findings.

    Eligible is what is eligible in `chexpert_5x200`, by the labels of the image's study; of a study
    with several frontal images the first by identifier stands for it. Identifiers are `dicom_id`s.

    Args:
        root: Holds the tables of MIMIC-CXR-JPG, plain or `.gz`.
        seed: Another seed draws other images.
        labeler: `chexpert` or `negbio`.

    Raises:
        DataError: A table is missing or damaged, or there are fewer than 200 images of a class.
    """
    columns = ("study_id", *COMPETITION, *_OTHERS)
    labels = _records(table_of(root, f"mimic-cxr-2.0.0-{labeler}.csv"), columns)
    finding_of = {record.cells["study_id"]: _only_finding(record) for record in labels}
    splits = _records(table_of(root, "mimic-cxr-2.0.0-split.csv"), ("dicom_id", "split"))
    train = {record.cells["dicom_id"] for record in splits if record.cells["split"] == "train"}
    about = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    first: dict[str, tuple[str, str]] = {}
    for record in _records(table_of(root, "mimic-cxr-2.0.0-metadata.csv"), about):
        image, patient, study, view = (record.cells[name] for name in about)
        if image in train and view in {"PA", "AP"}:
            first[study] = min(first.get(study, (image, patient)), (image, patient))
    by_class: dict[str, dict[str, str]] = {name: {} for name in COMPETITION}
    for study, (image, patient) in first.items():
        finding = finding_of.get(study)
        if finding is not None:
            by_class[finding][image] = patient
    return _five_classes(f"mimic-5x200-{labeler}", by_class, seed, root)


def rsna_splits(root: Path, seed: int) -> IdList:
    """RSNA Pneumonia in 70, 15 and 15 of 100 by patient; an image's boxes are rows of their own.

    What the table calls a patient is an image. The challenge's mapping to the NIH's images says
    whose it is; without that file, images of one patient may come into different splits.

    Args:
        root: Holds `stage_2_train_labels.csv`, and the mapping.
        seed: Another seed draws other patients.

    Raises:
        DataError: The table is missing or damaged, or the mapping is damaged.
    """
    images = set(_column(table_of(root, "stage_2_train_labels.csv"), "patientId"))
    patients = nih_patients(root)
    return _three_splits("rsna-70-15-15", {one: patients.get(one, one) for one in images}, seed)


def siim_splits(root: Path, seed: int) -> IdList:
    """SIIM-ACR Pneumothorax in 70, 15 and 15 of 100 by image; its masks are rows of their own.

    Args:
        root: Holds `stage_2_train.csv` or `train-rle.csv`; the first, where both are there.
        seed: Another seed draws other images.

    Raises:
        DataError: The table is missing or damaged.
    """
    tables = [table_of(root, name) for name in SIIM_TABLES]
    table = next((one for one in tables if one.is_file()), tables[0])
    images = set(_column(table, "ImageId"))
    return _three_splits("siim-70-15-15", {one: one for one in images}, seed)


def covidx_splits(root: Path, seed: int) -> IdList:
    """COVIDx: the official test list, and the training list in 80 and 20 of 100 by patient.

    Patients of the test list who stand in the training list, too, are left out of it. Each of the
    collections numbers its patients for itself: a patient is `collection/number`.

    Args:
        root: Holds one `train*.txt` and one `test*.txt`: patient, file, class, source.
        seed: Another seed draws other validation patients.

    Raises:
        DataError: There is no such list, or more than one, or a line is damaged.
    """
    test = dict(_covidx_images(root, "test"))
    train = {
        image: patient
        for image, patient in _covidx_images(root, "train")
        if patient not in set(test.values())
    }
    order = _drawn(set(train.values()), seed)
    validation = set(order[: round(len(order) / 5)])
    ids = {
        "train": sorted(image for image, patient in train.items() if patient not in validation),
        "validation": sorted(image for image, patient in train.items() if patient in validation),
        "test": sorted(test),
    }
    return IdList("covidx-80-20", seed, ids, sorted(set(test.values())))


BUILDERS: Mapping[str, Callable[[Path, int], IdList]] = {
    "chexpert-5x200": chexpert_5x200,
    "mimic-5x200": mimic_5x200,
    "mimic-5x200-negbio": lambda root, seed: mimic_5x200(root, seed, "negbio"),
    "rsna": rsna_splits,
    "siim": siim_splits,
    "covidx": covidx_splits,
}
"""Builders by the name under which `workflows/id_lists.py` offers them."""


def _records(table: Path, columns: Sequence[str]) -> Iterator[Record]:
    if not table.is_file():
        raise DataError("A table is missing", where=table, fix="name its folder with --root")
    lacking = [name for name in columns if name not in csv_columns(table)]
    if lacking:
        raise DataError(
            "A table lacks a column",
            where=table,
            got=f"no {', '.join(lacking)}",
            expected=", ".join(columns),
            fix="get the table again, or name another folder with --root",
        )
    for record in records(table, columns):
        if isinstance(record, Reject):
            raise DataError(
                "A record is damaged", where=table.parent / record.location, got=record.reason
            )
        yield record


def _only_finding(record: Record) -> str | None:
    """The competition finding that is positive where no other finding is, or may be."""
    values = {name: record.cells[name] for name in (*COMPETITION, *_OTHERS)}
    wrong = next((name for name, value in values.items() if value not in _VALUES), None)
    if wrong is not None:
        raise _wrong(record, wrong, "1.0, 0.0, -1.0 or nothing")
    present = [name for name, value in values.items() if _VALUES[value]]
    if len(present) != 1 or _VALUES[values[present[0]]] != 1 or present[0] not in COMPETITION:
        return None
    return present[0]


def _wrong(record: Record, column: str, expected: str) -> DataError:
    """An error about a cell; the cell itself is not repeated."""
    return DataError(
        "A cell holds what its column does not allow",
        where=f"{record.location}, column {column}",
        expected=expected,
        fix="get the table again; an edited copy may have lost or moved columns",
    )


def _five_classes(
    name: str, by_class: Mapping[str, Mapping[str, str]], seed: int, root: Path
) -> IdList:
    """Draw from image-to-patient mappings by class."""
    few = {finding: len(images) for finding, images in by_class.items() if len(images) < _PER_CLASS}
    if few:
        raise DataError(
            "There are too few eligible images",
            where=root,
            got=", ".join(f"{count} of {finding}" for finding, count in few.items()),
            expected=f"{_PER_CLASS} of each finding",
        )
    drawn = {finding: _drawn(images, seed)[:_PER_CLASS] for finding, images in by_class.items()}
    patients = {by_class[finding][image] for finding, images in drawn.items() for image in images}
    return IdList(name, seed, {one: sorted(ids) for one, ids in drawn.items()}, sorted(patients))


def _three_splits(name: str, patient_of: Mapping[str, str], seed: int) -> IdList:
    order = _drawn(set(patient_of.values()), seed)
    train = round(_SHARES["train"] * len(order))
    validation = train + round(_SHARES["validation"] * len(order))
    parts = {
        "train": set(order[:train]),
        "validation": set(order[train:validation]),
        "test": set(order[validation:]),
    }
    ids = {
        split: sorted(image for image, patient in patient_of.items() if patient in patients)
        for split, patients in parts.items()
    }
    return IdList(name, seed, ids, sorted(parts["test"]))


def _drawn(identifiers: Iterable[str], seed: int) -> list[str]:
    return sorted(identifiers, key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest())


def _column(table: Path, name: str) -> Iterator[str]:
    return (record.cells[name] for record in _records(table, (name,)))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "A list is not UTF-8",
            where=file,
            got=f"the byte {error.object[error.start]:#x} at {error.start}",
            fix="get the file again, or save it as UTF-8",
        ) from error


def _covidx_images(root: Path, split: str) -> Iterator[tuple[str, str]]:
    found = sorted(root.glob(f"{split}*.txt"))
    if len(found) != 1:
        raise DataError(
            f"There is not one list of the {split} images",
            where=root,
            got=", ".join(path.name for path in found) or "none",
            expected=f"one file {split}*.txt",
        )
    for number, line in enumerate(_text(found[0]).splitlines(), 1):
        words = line.split()
        if len(words) < 4:
            raise DataError(
                "A line has too few words",
                where=f"{found[0].name}:{number}",
                got=len(words),
                expected="patient, file, class and source",
            )
        yield " ".join(words[1:-2]), f"{words[-1]}/{words[0]}"
