"""MIMIC-CXR's two layouts with six images of five made-up studies."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from raw_folders import noise_dicom, noise_image

STUDIES = (  # patient, study, (image, view) ..., split, report
    (
        "10000001",
        "50000001",
        (("a-1", "PA"), ("a-2", "LATERAL")),
        "train",
        "FINDINGS:  Clear lungs.",
    ),
    ("10000001", "50000002", (("b-1", "AP"),), "train", "IMPRESSION:\n Left pleural effusion."),
    ("11000002", "50000003", (("c-1", ""),), "validate", "FINDINGS:  ___ tube in place.\n"),
    (
        "19000003",
        "50000004",
        (("d-1", "LL"),),
        "test",
        "IMPRESSION:  Cardiomegaly, possibly edema.",
    ),
    ("19000003", "50000005", (("e-1", "PA"),), "test", "FINDINGS:  No change from previous film."),
)
LABELS = {
    "50000001": {"No Finding": "1.0"},
    "50000002": {"Pleural Effusion": "1.0", "Pneumothorax": "0.0"},
    "50000003": {"Support Devices": "1.0"},
    "50000004": {"Cardiomegaly": "1.0", "Edema": "-1.0"},
}
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)


def jpg(root: Path) -> None:
    """MIMIC-CXR-JPG 2.0.0 as downloaded, with the archive of reports unpacked beside it."""
    for number, (place, image) in enumerate(_images()):
        noise_image(root / f"files/{place}/{image}.jpg", number)
    _write_reports(root / "mimic-cxr-reports/files")
    _write_tables(root, "chexpert", ".csv.gz")


def dicom(root: Path) -> None:
    """MIMIC-CXR 2.1.0, reports beside the studies, with tables unpacked from MIMIC-CXR-JPG."""
    for number, (place, image) in enumerate(_images()):
        noise_dicom(root / f"files/{place}/{image}.dcm", number)
    _write_reports(root / "files")
    _write_tables(root, "negbio", ".csv")


def _images() -> list[tuple[str, str]]:
    return [
        (f"p{patient[:2]}/p{patient}/s{study}", image)
        for patient, study, images, *_ in STUDIES
        for image, _ in images
    ]


def _write_reports(folder: Path) -> None:
    for patient, study, _, _, text in STUDIES:
        place = folder / f"p{patient[:2]}/p{patient}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"s{study}.txt").write_text(f"                  FINAL REPORT\n {text}\n")


def _write_tables(root: Path, labeler: str, ending: str) -> None:
    metadata = [["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows"]]
    splits = [["dicom_id", "study_id", "subject_id", "split"]]
    for patient, study, images, split, _ in STUDIES:
        metadata += [[image, patient, study, view, "40"] for image, view in images]
        splits += [[image, study, patient, split] for image, _ in images]
    labels = [["subject_id", "study_id", *FINDINGS]]
    labels += [
        ["1", study, *(cells.get(finding, "") for finding in FINDINGS)]
        for study, cells in LABELS.items()
    ]
    for name, rows in (("metadata", metadata), ("split", splits), (labeler, labels)):
        path = root / f"mimic-cxr-2.0.0-{name}{ending}"
        opened = gzip.open if ending.endswith(".gz") else open
        with opened(path, "wt", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
