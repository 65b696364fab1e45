"""The data card: right numbers, and none that stands for too few patients."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.studies import write_studies

from aga.data.preparing.card import CardConfig, Discretion, build_card, contents
from aga.data.schema import REJECTS
from aga.data.studies import REJECTS_FILE, StudyDataset

CONFIG = CardConfig(min_patients=5)
NAME = "Quaxilbrand"


def studies(folder: Path, *, may_be_shown: bool) -> StudyDataset:
    rows: list[dict[str, object]] = []
    for number in range(83):
        split = "test" if number % 4 == 0 else "train"
        labels = {"effusion": int(number % 3 == 0), "opacity": 1}
        row = {"text": f"report of {NAME}" if number == 9 else "x" * number, "split": split}
        rows.append({**row, "labels": labels, "view": "PA", "patient_id": f"MRN{number}"})
    for number in range(70, 80):  # ten rows of one patient
        rows[number] |= {"view": f"portable {NAME}", "patient_id": "MRN70", "split": "train"}
    rows[5] = rows[5] | {"labels": {f"{NAME}'s disease": 1}}
    rows[81] |= {"split": "validation"}
    dataset = write_studies(folder, rows, may_be_shown=may_be_shown)
    rejects = [{"location": "a:1", "column": None, "reason": "image blank", "detail": NAME}] * 13
    pq.write_table(pa.Table.from_pylist(rejects, schema=REJECTS), folder / REJECTS_FILE)
    return dataset


def tables(dataset: StudyDataset) -> dict[str, dict[str, list[str]]]:
    found = contents(dataset, CONFIG)["tables"]
    return {table.title: {name: list(cells) for name, cells in table.rows} for table in found}


def test_a_source_that_may_be_shown_is_counted_exactly(tmp_path: Path) -> None:
    dataset = studies(tmp_path / "studies", may_be_shown=True)
    found = tables(dataset)
    split = np.asarray(dataset.column("split").to_pylist())
    expected = [str((split == one).sum()) for one in ("train", "validation", "test")]
    assert found["Pairs"] == {"pairs": expected}
    assert sum(map(int, found["Patients"]["patients"])) == 74
    assert sum(map(int, found["Views"]["PA"])) == 73
    rejects = "Rows that are not used; of how many patients is not known"
    assert found[rejects] == {"image blank": ["13"]}
    effusion = [sum(map(int, found[f"Findings {which}"]["effusion"])) for which in
                ("present", "absent")]  # fmt: skip
    assert sum(effusion) == 82
    histograms = contents(dataset, CONFIG)["histograms"]
    assert [one.split for one in histograms] == ["train", "validation", "test"]
    assert sum(histograms[0].shares) == pytest.approx(1)


def test_what_stands_for_too_few_patients_is_not_shown(tmp_path: Path) -> None:
    dataset = studies(tmp_path / "studies", may_be_shown=False)
    found = tables(dataset)
    assert found["Pairs"]["pairs"][1] == "< 5"
    assert found["Patients"]["patients"][1] == "< 5"
    assert list(found["Views"]) == ["PA"], "ten rows, but of one patient"
    assert set(found["Findings present"]) == {"effusion", "opacity"}
    assert found["Height of the original images, pixels"]["median"] == [
        *("100", "not shown", "not shown"),
    ]
    assert [one.split for one in contents(dataset, CONFIG)["histograms"]] == ["train", "test"]
    shown = [cell for table in found.values() for cells in table.values() for cell in cells]
    counts = [cell for title, table in found.items() if "pixels" not in title and "Char" not in
              title for cells in table.values() for cell in cells]  # fmt: skip
    assert shown
    assert all(cell == "< 5" or int(cell) % 5 == 0 for cell in counts)


def test_the_page_names_nobody_and_loads_nothing(tmp_path: Path) -> None:
    dataset = studies(tmp_path / "studies", may_be_shown=False)
    out = tmp_path / "reports/data_card.html"
    build_card(out, dataset.folder, CONFIG)
    page = out.read_text()
    assert NAME not in page
    assert "MRN" not in page
    assert "Data card" in page
    assert not re.search(r"(src|href)=|url\(|<script", page)
    before = out.read_bytes()
    build_card(out, dataset.folder, CONFIG)
    assert out.read_bytes() == before


def test_phrases_of_the_settings_are_counted_not_shown(tmp_path: Path) -> None:
    dataset = studies(tmp_path / "studies", may_be_shown=False)
    phrases = ["notification", f"Dr. {NAME}", "signed by"]
    info = replace(dataset.info, config={"report": {"drop_sentences": phrases}, "seed": 1})
    settings = contents(StudyDataset(dataset.folder, info), CONFIG)["settings"]
    assert json.loads(settings) == {
        "report": {"drop_sentences": ["notification", "2 phrases that are not shown"]},
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("count", "patients", "text"),
    [(0, 0, "0"), (40, 4, "< 5"), (7, 5, "5"), (8, 8, "10"), (12_346, 900, "12\u202f345")],
)
def test_counts_are_withheld_or_rounded(count: int, patients: int, text: str) -> None:
    assert Discretion(5).shown(count, patients) == text
    assert Discretion(1).shown(count, max(patients, 1)) == f"{count:,}".replace(",", "\u202f")
