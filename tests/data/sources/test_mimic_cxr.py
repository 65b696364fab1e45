"""MIMIC-CXR: the same rows from JPG and DICOM files, and tables that do not meet."""

from __future__ import annotations

from pathlib import Path

import pytest
import tree_of_mimic_cxr

from aga.data.schema import Reject, Study
from aga.data.sources.layouts import LayoutError
from aga.data.sources.mimic_cxr import MimicCxr, MimicCxrConfig

CHEXPERT = MimicCxr(MimicCxrConfig(labels="chexpert"))
NEGBIO = MimicCxr(MimicCxrConfig(labels="negbio"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree_of_mimic_cxr.dicom(tmp_path)
    return tmp_path


def studies(source: MimicCxr, root: Path) -> list[Study]:
    return [row for row in source.studies(root) if isinstance(row, Study)]


def rejects(root: Path) -> list[tuple[str, str]]:
    return [(row.location, row.reason) for row in NEGBIO.studies(root) if isinstance(row, Reject)]


def test_jpg_and_dicom_say_the_same(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("jpg")
    tree_of_mimic_cxr.jpg(other)
    one = [(row.study_id, row.image.stem, row.report, row.split) for row in studies(NEGBIO, root)]
    assert one == [
        (row.study_id, row.image.stem, row.report, row.split) for row in studies(CHEXPERT, other)
    ]
    assert {row.image.suffix for row in studies(NEGBIO, root)} == {".dcm"}


def test_official_splits_views_and_labels(root: Path) -> None:
    rows = {row.image.stem: row for row in studies(NEGBIO, root)}
    assert {name: row.split for name, row in rows.items()} == {
        "a-1": "train",
        "a-2": "train",
        "b-1": "train",
        "c-1": "validation",
        "d-1": "test",
        "e-1": "test",
    }
    assert (rows["a-2"].view, rows["c-1"].view) == ("LATERAL", None)
    assert rows["b-1"].labels["pneumothorax"] == 0
    assert rows["d-1"].labels["cardiomegaly"] == 1
    assert rows["d-1"].labels["edema"] is None  # uncertain
    assert set(rows["e-1"].labels.values()) == {None}  # the labeler gave no row


@pytest.mark.parametrize("place", ["files", "reports", "reports/files", "mimic-cxr-reports"])
def test_reports_are_found_where_they_were_unpacked(root: Path, place: str) -> None:
    for report in sorted((root / "files").rglob("*.txt")):
        target = root / place / report.relative_to(root / "files")
        target.parent.mkdir(parents=True, exist_ok=True)
        report.rename(target)
    assert rejects(root) == []


def test_rows_that_do_not_meet_are_rejected(root: Path) -> None:
    split = root / "mimic-cxr-2.0.0-split.csv"
    lines = split.read_text().splitlines()
    split.write_text("\n".join([lines[0], *lines[2:-1], lines[-1].replace("test", "dev")]) + "\n")
    labels = root / "mimic-cxr-2.0.0-negbio.csv"
    labels.write_text(labels.read_text().replace("-1.0", "maybe"))
    assert rejects(root) == [
        ("mimic-cxr-2.0.0-negbio.csv:5", "value invalid"),
        ("mimic-cxr-2.0.0-metadata.csv:2", "split missing"),
        ("mimic-cxr-2.0.0-metadata.csv:7", "value invalid"),
    ]


def test_bytes_of_a_report_that_are_not_utf8_are_repaired_and_told(root: Path) -> None:
    report = root / "files/p11/p11000002/s50000003.txt"
    report.write_bytes(b"FINDINGS: Tube at 38\xb0.")
    (row,) = (row for row in studies(NEGBIO, root) if row.study_id == "50000003")
    assert (row.report, row.repaired) == ("FINDINGS: Tube at 38°.", True)


def test_the_table_of_the_chosen_labeler_is_asked_for(root: Path) -> None:
    with pytest.raises(LayoutError, match=r"has no mimic-cxr-2\.0\.0-chexpert\.csv"):
        list(CHEXPERT.studies(root))
