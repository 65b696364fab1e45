"""Open-I: labels from index terms, damaged XML, reports without images, and the real tables."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import tree_of_openi
from hypothesis import given
from hypothesis import strategies as st
from raw_folders import noise_image

from aga.data.schema import Reject, Study
from aga.data.sources.openi import CLASSES, Openi, mesh_labels, report_text

BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>
<eCitation><AbstractText Label="FINDINGS">&c;</AbstractText></eCitation>"""


@pytest.mark.parametrize(
    ("terms", "present", "absent"),
    [
        ("normal", "no_finding", " ".join(CLASSES[:-1])),
        ("Cardiomegaly/mild;Opacity/lung/left", "cardiomegaly lung_opacity", "no_finding"),
        ("Fractures, Bone/ribs/right", "fracture", "no_finding"),
        ("Calcinosis/aorta", "", "no_finding"),
        ("No Indexing", "", ""),
        ("Technical Quality of Image Unsatisfactory ", "", ""),
        ("", "", ""),
    ],
)
def test_labels_say_no_more_than_the_index_terms(terms: str, present: str, absent: str) -> None:
    labels = mesh_labels(terms.split(";"))
    assert tuple(sorted(labels)) == tuple(sorted(CLASSES))
    assert {name for name, value in labels.items() if value == 1} == set(present.split())
    assert {name for name, value in labels.items() if value == 0} == set(absent.split())


@given(
    st.dictionaries(
        st.sampled_from(["comparison", "indication", "findings", "impression"]), st.text()
    )
)
def test_a_report_without_findings_and_impression_is_empty(sections: dict[str, str]) -> None:
    whole = dict.fromkeys(("comparison", "indication", "findings", "impression"), "") | sections
    said = whole["findings"].strip() or whole["impression"].strip()
    assert bool(report_text(whole)) == bool(said)
    if said:
        assert all(text in report_text(whole) for text in whole.values() if text.strip())


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    tree_of_openi.kaggle(tmp_path / "kaggle")
    tree_of_openi.original(tmp_path / "original")
    said = [
        [(row.study_id, row.report, row.labels) for row in Openi().studies(tmp_path / name)]
        for name in ("kaggle", "original")
    ]
    assert said[0] == said[1]


def test_xml_that_is_damaged_or_would_expand_is_rejected(tmp_path: Path) -> None:
    tree_of_openi.original(tmp_path)
    folder = tmp_path / "ecgen-radiology"
    (folder / "20.xml").write_text(BOMB)
    (folder / "21.xml").write_text((folder / "1.xml").read_text()[:-30])
    (folder / "22.xml").write_text(tree_of_openi.citation("22", tree_of_openi.REPORTS["1"], []))
    noise_image(tmp_path / "NLMCXR_png/CXR99_IM-0001.png", 99)
    rejects = [row for row in Openi().studies(tmp_path) if isinstance(row, Reject)]
    assert [(row.location, row.reason) for row in rejects] == [
        ("ecgen-radiology/20.xml", "not XML"),
        ("ecgen-radiology/21.xml", "not XML"),
        ("ecgen-radiology/22.xml", "no image"),
        ("NLMCXR_png/CXR99_IM-0001.png", "report missing"),
    ]


def test_tables_that_do_not_meet_are_told(tmp_path: Path) -> None:
    tree_of_openi.kaggle(tmp_path)
    with (tmp_path / "indiana_reports.csv").open("a") as table:
        table.write("77,normal,normal,,,,Clear.,Clear.\n")
    with (tmp_path / "indiana_projections.csv").open("a") as table:
        table.write("78,78_IM.png,Frontal\n79,,Frontal\n1,a.png\n")
    rejects = [row for row in Openi().studies(tmp_path) if isinstance(row, Reject)]
    assert [(row.location, row.reason) for row in rejects] == [
        ("indiana_projections.csv:9", "report missing"),
        ("indiana_projections.csv:10", "value missing"),
        ("indiana_projections.csv:11", "wrong number of columns"),
        ("indiana_reports.csv:7", "no image"),
    ]


@pytest.mark.realdata
def test_all_real_reports_are_read() -> None:
    rows = list(Openi().studies(Path(os.environ["AGA_REALDATA"]) / "iu_xray"))
    assert all(isinstance(row, Study) for row in rows)
    reports = {row.study_id: row.report for row in rows if isinstance(row, Study)}
    assert (len(rows), len(reports)) == (7466, 3851)
    assert sum(not report for report in reports.values()) == 25
    views = Counter(row.view for row in rows if isinstance(row, Study))
    assert views == {"Frontal": 3818, "Lateral": 3648}
