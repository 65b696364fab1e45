"""An export of a PACS, with all that is found in one."""

from __future__ import annotations

from pathlib import Path

from raw_folders import Rows, noise_dicom, write_csv

STUDIES = (  # patient, accession, views
    ("MRN-1", "A1", ("PA", "LL")),
    ("MRN-2", "A2", ("AP",)),
    ("MRN-3", "A3", ("",)),
    ("MRN-4", "A4", ("PA",)),
)

# No table names the files: a study that keeps one of its two images is whole.
UNMISSED = ("README", "CANARY_NAME_0/ST0/IM0", "CANARY_NAME_0/ST0/IM1")


def by_accession(root: Path) -> None:
    _build(root, "AccessionNumber")


def by_study_uid(root: Path) -> None:
    _build(root, "StudyInstanceUID")


def study_uid(accession: str) -> str:
    return f"1.2.3.{accession.removeprefix('A')}"


def _build(root: Path, key: str) -> None:
    rows: Rows = []
    for number, (patient, accession, views) in enumerate(STUDIES):
        for place, view in enumerate(views):
            noise_dicom(
                root / f"CANARY_NAME_{number}/ST0/IM{place}",
                2 * number + place,
                PatientID=patient,
                AccessionNumber=accession,
                StudyInstanceUID=study_uid(accession),
                ViewPosition=view,
            )
        value = accession if key == "AccessionNumber" else study_uid(accession)
        text = f"Findings: Opacity number {number} at the left base. Impression: Pneumonia."
        rows.append({"study": value, "exam": "chest", "report": text})
    write_csv(root / "reports.csv", rows)
    (root / "README").write_text("Exported from a PACS")
