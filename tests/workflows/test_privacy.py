"""Planted names and record numbers go through the line, and are found nowhere outside data/."""

from __future__ import annotations

import base64
import gzip
import os
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.raw_folders import Rows, noise_dicom, write_csv
from fixtures.leak_scan import leaks
from fixtures.project import run_in, small_project

NAME, MRN, FILE, TAG = "Quaxilbrand", "MRN77104", "Vossenhuber", "Zwartkopje"
CANARIES = (NAME, MRN, FILE, TAG, "19010203", "Canary^Name")
STAGES = (
    *("prepare", "data_card", "tokenize_reports", "pretrain", "register"),
    *("evaluate", "promote", "report"),
)
OUTSIDE = ("runs", "mlflow.db", "mlartifacts", "reports", "metrics", "plots", "models")
FINDINGS = ("nodule", "opacity", "effusion")


def raw_folder(root: Path) -> None:
    """DICOM files and reports of 90 patients, each with a canary in every place that has room."""
    rows: Rows = []
    for number in range(90):
        image = f"{FILE}-{number}/{NAME}-{number}.dcm"
        (root / image).parent.mkdir(parents=True)
        tags = {"PatientID": f"{MRN}{number}", "AccessionNumber": f"{TAG}{number}"}
        noise_dicom(root / image, number, **tags, ReferringPhysicianName=TAG)
        finding = FINDINGS[number % 3]
        text = f"FINDINGS: There is a {finding} in the left lung, image {number % 9}. "
        if number < 4:  # as few patients as the tokenizer must not learn from
            text += f"Mr {NAME}, {MRN}, was told by Dr {TAG}. "
        row = {"patient_id": f"{MRN}-{number}", "study_id": f"{TAG}-{number}", "image": image}
        rows.append({**row, "text": text, "view": "PA", "labels": {finding: 1}})
    (root / str(rows[10]["image"])).unlink()
    (root / str(rows[11]["image"])).write_bytes(NAME.encode())
    rows[12]["text"] = "-"
    rows[13]["view"] = f"portable {NAME}"
    write_csv(root / "pairs.csv", rows)


def pacs_export(root: Path) -> None:
    """A tree of DICOM files and its table, with canaries in tags, comments and file names."""
    rows: Rows = []
    for number in range(90):
        noise_dicom(
            root / f"{FILE}^{NAME}-{number}/{MRN}/IM{number}",
            number,
            PatientName=f"{NAME}^{FILE}",
            PatientID=f"{MRN}-{number}",
            OtherPatientIDs=f"{MRN}X{number}",
            OtherPatientNames=FILE,
            PatientComments=f"{NAME} {TAG}",
            ImageComments=TAG,
            AccessionNumber=f"{TAG}{number}",
            ReferringPhysicianName=TAG,
            ViewPosition="PA",
        )
        finding = FINDINGS[number % 3]
        text = f"FINDINGS: There is a {finding} in the left lung, image {number % 9}. "
        if number < 4:
            text += f"Mr {NAME}, {MRN}, was told by Dr {TAG}. "
        rows.append({"accession_number": f"{TAG}{number}", "report": text})
    images = sorted(path for path in root.rglob("IM*") if path.is_file())
    images[0].write_bytes(images[0].read_bytes()[:700])
    images[1].with_name(f"{NAME}.dcm").write_bytes(NAME.encode())
    images[2].with_name(f"{FILE}.dcm").symlink_to(root / NAME)
    rows[20] = {"accession_number": f"{TAG}-{NAME}", "report": f"Clear, {NAME}."}
    rows.append({"accession_number": rows[21]["accession_number"], "report": f"Not {NAME}'s."})
    rows.append({"accession_number": "", "report": f"Whose? {NAME}'s."})
    write_csv(root / "reports.csv", rows)


def test_the_scan_finds_what_is_planted_in_any_wrapping(tmp_path: Path) -> None:
    text = f"a report of {NAME}".encode()
    (tmp_path / "plain.bin").write_bytes(b"\0\1" + text)
    (tmp_path / "wide.txt").write_bytes(NAME.upper().encode("utf-16-le"))
    (tmp_path / "log.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "code.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(text))
    table = pa.table({"text": [text.decode()] * 3})
    pq.write_table(table, tmp_path / "shard.parquet", compression="zstd")
    page = b"<img src='data:image/svg+xml;base64," + base64.b64encode(text) + b"'>"
    (tmp_path / "page.html").write_bytes(page)
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("create table tags (value text)")
        database.execute("insert into tags values (?)", [f"{'x' * 9000}{NAME}"])
    (tmp_path / f"{NAME}.txt").write_text("nothing")
    (tmp_path / "clean.txt").write_text("nothing")
    found = {Path(line.rpartition(":")[0]).name for line in leaks([tmp_path], CANARIES)}
    assert found == {path.name for path in tmp_path.iterdir()} - {"clean.txt"}


@pytest.mark.slow
def test_no_name_and_no_record_number_leaves_the_data(tmp_path: Path) -> None:
    settings = ("source.name=manifest", "source.root=data/raw/hospital", "training.epochs=1")
    project = small_project(tmp_path / "project", *settings, "tracking.explain_pairs=2")
    raw_folder(project / "data/raw/hospital")
    sessions = Path(f"/tmp/ray-leaks-{os.getpid()}")
    environment = {"RAY_TMPDIR": str(sessions)}
    try:
        sessions.mkdir()
        for stage in STAGES:
            done = run_in(project, "python", f"workflows/{stage}.py", environment=environment)
            (tmp_path / f"{stage}.log").write_text(f"{done.stdout}\n{done.stderr}")
        outside = [project / name for name in OUTSIDE]
        assert all(place.exists() for place in outside)
        assert leaks([*outside, *tmp_path.glob("*.log"), sessions], CANARIES) == []
    finally:
        shutil.rmtree(sessions, ignore_errors=True)
    inside = leaks([project / "data/studies/manifest.parquet"], CANARIES)
    assert any(NAME in line for line in inside), "the canaries did not reach the data"
    assert not any("19010203" in line or "Canary" in line for line in inside), "a tag was copied"


@pytest.mark.slow
def test_nothing_of_a_pacs_export_leaves_the_data(tmp_path: Path) -> None:
    """Of its headers, only what the schema names is in the data themselves."""
    settings = ("source.name=dicom_folder", "source.root=data/raw/pacs", "training.epochs=1")
    project = small_project(tmp_path / "project", *settings, "tracking.explain_pairs=2")
    pacs_export(project / "data/raw/pacs")
    sessions = Path(f"/tmp/ray-pacs-{os.getpid()}")
    environment = {"RAY_TMPDIR": str(sessions)}
    try:
        sessions.mkdir()
        for name, command in {
            "check": ("prepare.py", "--check"),
            **{stage: (f"{stage}.py",) for stage in STAGES[: STAGES.index("register")]},
        }.items():
            stage = ("python", f"workflows/{command[0]}", *command[1:])
            done = run_in(project, *stage, environment=environment, check=name != "check")
            (tmp_path / f"{name}.log").write_text(f"{done.stdout}\n{done.stderr}")
        logs = [*tmp_path.glob("*.log"), sessions]
        assert "file 1: image: image unreadable" in (tmp_path / "check.log").read_text()
        outside = [place for name in OUTSIDE if (place := project / name).exists()]
        assert {"runs", "models", "metrics"} <= {place.name for place in outside}
        assert leaks([*outside, *logs], CANARIES) == []
        assert leaks([project / "data/tokens/tokenizer"], CANARIES) == []
    finally:
        shutil.rmtree(sessions, ignore_errors=True)
    table = pq.read_table(project / "data/studies/manifest.parquet")
    assert f"{MRN}-7" in table.column("patient_id").to_pylist(), "no canary reached the data"
    rejects = pq.read_table(project / "data/studies/rejects.parquet").to_pylist()
    reasons = {one["reason"] for one in rejects}
    assert {"image missing", "report missing", "report ambiguous", "not DICOM"} <= reasons
    copied = [project / "data/studies" / name for name in ("manifest.parquet", "rejects.parquet")]
    assert leaks(copied, (f"{FILE}", f"{MRN}X", "19010203")) == []
    assert leaks(copied[1:], CANARIES) == [], "a reject tells a name"
