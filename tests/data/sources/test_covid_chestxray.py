"""The ieee8023 layout: a made folder with every oddity, and the real collection."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from raw_folders import noise_image, write_csv

from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.schema import SPLITS, Reject, Study
from aga.data.sources.covid_chestxray import (
    CLASSES,
    CovidChestxray,
    CovidChestxrayConfig,
    finding_labels,
)
from aga.data.studies import StudyDataset
from aga.errors import DataError

NOTE = "Bilateral opacities in the lower zones, more on the right."
SOURCE = CovidChestxray(CovidChestxrayConfig(min_characters=40))


def metadata_row(**changes: str) -> dict[str, object]:
    row: dict[str, object] = {
        "patientid": "2",
        "offset": "3",
        "finding": "COVID-19",
        "view": "PA",
        "modality": "X-ray",
        "filename": "a.png",
        "clinical_notes": NOTE,
        "other_notes": "Credit to a journal",
    }
    return row | changes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    noise_image(tmp_path / "images/a.png", 0, (100, 50))
    noise_image(tmp_path / "images/b.png", 1, (100, 100))
    boxes = {
        "categories": [{"id": 1, "name": "Right Lung"}, {"id": 2, "name": "Left Lung"}],
        "images": [
            {"id": 7, "file_name": "a.png", "height": 1000, "width": 500},
            {"id": 8, "file_name": "b.png", "height": 1000, "width": 500},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [50, 100, 100, 600]},
            {"image_id": 7, "category_id": 2, "bbox": [300, 120, 300, 600]},
            {"image_id": 8, "category_id": 2, "bbox": [300, 120, 150, 600]},
            {"image_id": 8, "category_id": 1, "bbox": [None] * 4},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/imageannotation_ai_lung_bounding_boxes.json").write_text(
        json.dumps(boxes)
    )
    return tmp_path


def read(root: Path, *rows: dict[str, object]) -> list[Study | Reject]:
    write_csv(root / "metadata.csv", list(rows))
    return list(SOURCE.studies(root))


def test_every_row_is_used_or_rejected_with_a_reason(root: Path) -> None:
    found = read(
        root,
        metadata_row(),
        metadata_row(modality="CT"),
        metadata_row(filename="c.png"),
        metadata_row(clinical_notes=" "),
        metadata_row(clinical_notes="Opacity."),
        metadata_row(filename="b.png", view="?"),
    )
    assert [one.reason if isinstance(one, Reject) else one.view for one in found] == [
        *("PA", "not an x-ray", "image missing", "no note", "note too short", None),
    ]
    assert [one.location for one in found] == [f"metadata.csv:{line}" for line in range(2, 8)]
    first, last = found[0], found[-1]
    assert isinstance(first, Study)
    assert isinstance(last, Study)
    assert first.report == NOTE
    assert first.study_id != last.study_id
    assert first.patient_id == last.patient_id == "2"


def test_lung_boxes_are_scaled_to_the_image_at_hand(root: Path) -> None:
    first, other_shape = read(root, metadata_row(), metadata_row(filename="b.png"))
    assert isinstance(first, Study)
    assert isinstance(other_shape, Study)
    assert [(region.finding, region.box) for region in first.regions] == [
        ("right lung", pytest.approx((5, 10, 15, 70))),
        ("left lung", pytest.approx((30, 12, 50, 72))),  # cut at the image's edge
    ]
    assert other_shape.regions == ()


def test_bytes_that_are_not_utf8_are_repaired_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_csv(root / "metadata.csv", [metadata_row(), metadata_row(filename="b.png")])
    text = (root / "metadata.csv").read_bytes()
    note = "Fever of 38°C, naïve patient, opacities in both lungs; Ü stays UTF-8: "
    damaged = note.encode("cp1252") + "Ü.".encode()
    (root / "metadata.csv").write_bytes(text.replace(NOTE.encode(), damaged, 1))
    first, second = SOURCE.studies(root)
    assert isinstance(first, Study)
    assert isinstance(second, Study)
    assert first.report == f"{note}Ü."
    assert (first.repaired, second.repaired) == (True, False)
    assert "1 rows were not UTF-8" in caplog.text
    assert "Fever" not in caplog.text


@pytest.mark.parametrize(
    ("finding", "present", "absent"),
    [
        ("COVID-19", "covid_19 viral pneumonia", "bacterial fungal lipoid no_finding"),
        ("COVID-19, ARDS", "covid_19 viral pneumonia ards", "bacterial fungal lipoid no_finding"),
        ("ARDS", "ards", "no_finding"),
        ("Pneumonia", "pneumonia", "no_finding"),
        ("Streptococcus", "bacterial pneumonia", "covid_19 viral fungal lipoid no_finding"),
        ("Pneumonia/Viral/SARS", "viral pneumonia", "covid_19 bacterial fungal lipoid no_finding"),
        ("Pneumonia/Viral", "viral pneumonia", "bacterial fungal lipoid no_finding"),
        ("Tuberculosis", "", "no_finding"),
        ("No Finding", "no_finding", "covid_19 pneumonia viral bacterial fungal lipoid ards"),
        ("todo", "", ""),
        ("", "", ""),
    ],
)
def test_labels_say_no_more_than_the_finding(finding: str, present: str, absent: str) -> None:
    labels = finding_labels(finding)
    assert set(labels) == set(CLASSES)
    assert {name for name, value in labels.items() if value == 1} == set(present.split())
    assert {name for name, value in labels.items() if value == 0} == set(absent.split())


def test_the_prompts_are_those_of_the_labels() -> None:
    prompts = Path(__file__).parents[3] / "aga/evaluation/prompts/covid-v1.json"
    values = json.loads(prompts.read_text(encoding="utf-8"))
    assert values["version"] == "covid-v1"
    assert set(values["classes"]) == set(CLASSES)
    assert all(sides["positive"] and sides["negative"] for sides in values["classes"].values())


def test_another_layout_is_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no metadata.csv.*images/"):
        list(SOURCE.studies(root))
    write_csv(root / "metadata.csv", [{"patientid": "1", "offset": "0"}])
    with pytest.raises(DataError, match="no column finding"):
        list(SOURCE.studies(root))


@pytest.mark.parametrize("content", ['{"images": []}', "[]", "{", None])
def test_damaged_or_missing_boxes_cost_the_regions_only(
    root: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = root / "annotations/imageannotation_ai_lung_bounding_boxes.json"
    boxes.unlink()
    if content is not None:
        boxes.write_text(content)
    (found,) = read(root, metadata_row())
    assert isinstance(found, Study)
    assert found.regions == ()
    assert "the rows have no regions" in caplog.text


@pytest.mark.realdata
def test_the_real_collection_is_accounted_for(
    tmp_path: Path, prepare_config: PrepareConfig
) -> None:
    root = Path(os.environ["AGA_REALDATA"]) / "covid-chestxray"
    summary = prepare(SOURCE, root, tmp_path / "studies", prepare_config, 0, "covid_chestxray")
    assert summary.rows == 751
    assert summary.rejects == {
        "no note": 111,
        "not an x-ray": 84,
        "note too short": 18,
        "image missing": 14,
        "repeated pair": 6,
    }
    assert summary.used == 751 - sum(summary.rejects.values())
    dataset = StudyDataset.open(tmp_path / "studies")
    assert dataset.info.rows == summary.used
    for identity in ("patient_id", "pixel_sha256"):
        found = set(zip(dataset.column(identity).to_pylist(), splits(dataset), strict=True))
        assert max(Counter(value for value, _ in found).values()) == 1
    assert set(splits(dataset)) == set(SPLITS)
    assert len(set(dataset.column("study_id").to_pylist())) == summary.used
    lungs = [regions for regions in dataset.column("regions").to_pylist() if regions]
    assert len(lungs) > 100
    for regions, height, width in zip(
        dataset.column("regions").to_pylist(),
        dataset.column("height").to_pylist(),
        dataset.column("width").to_pylist(),
        strict=True,
    ):
        for region in regions:
            left, top, right, bottom = region["box"]
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def splits(dataset: StudyDataset) -> list[str]:
    return dataset.column("split").to_pylist()
