"""A PACS export: what joins, what does not, and what of a header never leaves it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tree_of_dicom_folder
from raw_folders import Rows, noise_dicom, write_csv

from aga.data.pixels.dicom import DicomError, decode_dicom, header_text
from aga.data.schema import Reject, Study
from aga.data.sources.dicom_folder import DicomFolder, DicomFolderConfig

SOURCE = DicomFolder(
    DicomFolderConfig(
        table="reports.csv", key="AccessionNumber", key_column="study", text_column="report"
    )
)
HEADER = {"PatientID": "P1", "AccessionNumber": "B1", "StudyInstanceUID": "1.2.3.9"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree_of_dicom_folder.by_accession(tmp_path)
    return tmp_path


def rejects(root: Path) -> set[tuple[str, str, str | None]]:
    return {
        (row.location, row.reason, row.column)
        for row in SOURCE.studies(root)
        if isinstance(row, Reject)
    }


def test_what_does_not_join_is_rejected_with_its_reason(root: Path) -> None:
    noise_dicom(root / "z/1", 20, **HEADER)
    noise_dicom(root / "z/2", 21, **HEADER | {"AccessionNumber": ""})
    noise_dicom(root / "z/3", 22, **HEADER | {"AccessionNumber": "A1", "PatientID": ""})
    (root / "z/4.dcm").write_bytes(b"no DICOM file")
    with (root / "reports.csv").open("a") as table:
        table.write("C1,chest,A report of which there is no image.\n,chest,Whose?\n")
    assert rejects(root) == {
        ("file 8", "report missing", "AccessionNumber"),
        ("file 9", "value missing", "AccessionNumber"),
        ("file 10", "value missing", "PatientID"),
        ("file 11", "not DICOM", None),
        ("reports.csv:6", "image missing", "study"),
        ("reports.csv:7", "value missing", "study"),
    }


def test_a_file_without_pixels_is_no_image_and_a_directory_is_no_row(root: Path) -> None:
    noise_dicom(root / "z/1", 20, **HEADER | {"AccessionNumber": "A1"})
    for name, changes in (("1", {}), ("DICOMDIR", {"SOPClassUID": "1.2.840.10008.1.3.10"})):
        dataset = pydicom.dcmread(root / "z/1")
        for tag in ("PixelData", "Rows"):
            if tag in dataset:
                delattr(dataset, tag)
        for tag, value in changes.items():
            setattr(dataset, tag, value)
        dataset.save_as(root / "z" / name)
    assert rejects(root) == {("file 8", "not an image", None)}


def test_two_reports_of_one_key_are_used_neither(root: Path) -> None:
    keys = ("A1", "A1", "A2", "A3", "A4")
    rows: Rows = [{"study": key, "report": f"Report {n}."} for n, key in enumerate(keys)]
    write_csv(root / "reports.csv", rows)
    assert {reason for _, reason, _ in rejects(root)} == {"report ambiguous"}
    assert len([row for row in SOURCE.studies(root) if isinstance(row, Study)]) == 3


def test_nothing_of_a_header_or_a_path_is_told_but_what_the_schema_names(root: Path) -> None:
    for row in SOURCE.studies(root):
        said = {k: v for k, v in vars(row).items() if k != "image"}
        assert "canary" not in str(said).casefold()
        assert "1901" not in str(said)


def test_a_damaged_header_is_a_reject_and_says_nothing(
    root: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = root / "CANARY_NAME_0/ST0/IM0"
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    reasons = set()
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(128, min(len(damaged), 700), 8)
        damaged[places] = random.integers(0, 256, 8)
        file.write_bytes(damaged[: random.integers(132, 1000)].tobytes())
        rows = list(SOURCE.studies(root))
        assert len(rows) >= len(tree_of_dicom_folder.STUDIES)
        reasons |= {row.reason for row in rows if isinstance(row, Reject)}
    assert "image unreadable" in reasons
    assert not [one for one in recwarn if "canary" in str(one.message).casefold()]


def test_a_length_that_fits_no_number_is_damage_to_the_decoder_too(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    noise_dicom(file, 0, **HEADER)
    damaged = bytearray(file.read_bytes())
    damaged[138:140] = (351).to_bytes(2, "little")  # of the element that states the meta's length
    file.write_bytes(damaged)
    with pytest.raises(DicomError, match="image unreadable"):
        decode_dicom(file, "voi", "first")
    with pytest.raises(DicomError, match="image unreadable"):
        header_text(file, ["PatientID"])


def test_the_number_of_a_file_is_that_of_the_documented_command(root: Path) -> None:
    for place in ("CANARY_NAME_0/1.dcm", "CANARY_NAME_0.1/2.dcm", "a b/3.dcm", "Z/4.dcm"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes(b"no DICOM file")
    (root / "A/link.dcm").parent.mkdir()
    (root / "A/link.dcm").symlink_to(root / "Z/4.dcm")
    (root / "A/gone.dcm").symlink_to(root / "nowhere")
    (root / "A/folder").symlink_to(root / "Z")
    command = "find . ! -xtype d | LC_ALL=C sort"
    listed = subprocess.check_output(command, shell=True, cwd=root, text=True).splitlines()
    numbers = [i for i, name in enumerate(listed, start=1) if name.endswith(".dcm")]
    assert {location for location, *_ in rejects(root)} == {f"file {n}" for n in numbers}
