"""Id lists: the right images in any order of the table; by image and patient, never by row."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from aga.data.splitting.id_list import IdList
from aga.data.splitting.id_lists import BUILDERS, COMPETITION
from aga.data.splitting.leaks import LeakConfig, held_out_lists
from aga.data.splitting.patients import HeldOut
from aga.errors import DataError
from workflows import id_lists

FINDINGS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
Table = list[dict[str, str]]


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.suffix == ".gz"
    with gzip.open(path, "wt", newline="") if packed else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def findings(generator: random.Random, number: int) -> dict[str, str]:
    """One competition finding; in every third row another finding or doubt stands in its way."""
    cells = {name: generator.choice(["", "0.0"]) for name in FINDINGS}
    cells[COMPETITION[number % 5]] = "1.0"
    if number % 3 == 0:
        others = [name for name in FINDINGS if name not in (COMPETITION[number % 5], "No Finding")]
        cells[generator.choice(others)] = generator.choice(["1.0", "-1.0"])
    cells["No Finding"] = generator.choice(["", "1.0"])  # not looked at
    return cells


def eligible(cells: Mapping[str, str]) -> str | None:
    positive = [name for name in COMPETITION if cells[name] == "1.0"]
    stated = [name for name in FINDINGS if name != "No Finding" and cells[name] in ("1.0", "-1.0")]
    return positive[0] if len(positive) == 1 and stated == positive else None


def chexpert_table(rows: int = 2600) -> Table:
    generator = random.Random(0)
    table = []
    for number in range(rows):
        view = "lateral" if number % 7 == 0 else "frontal"
        place = f"train/patient{number // 2:05d}/study1/view{number % 2 + 1}_{view}.jpg"
        cells = findings(generator, generator.randrange(15))
        table.append({"Path": f"CheXpert-v1.0/{place}", "Frontal/Lateral": view.title(), **cells})
    return table


def shuffled(table: Table) -> Table:
    rows = table.copy()
    random.Random(1).shuffle(rows)
    return rows


def test_chexpert_5x200_holds_what_it_says(tmp_path: Path) -> None:
    table = chexpert_table()
    write(tmp_path / "train.csv", table)
    found = BUILDERS["chexpert-5x200"](tmp_path, 0)
    by_path = {row["Path"].removeprefix("CheXpert-v1.0/"): row for row in table}
    assert list(found.ids) == list(COMPETITION)
    for finding, images in found.ids.items():
        assert len(images) == len(set(images)) == 200
        for image in images:  # looked up by identifier: a number of a filtered row would be another
            assert eligible(by_path[image]) == finding
            assert by_path[image]["Frontal/Lateral"] == "Frontal"
    listed = {image for images in found.ids.values() for image in images}
    assert set(found.patients) == {image.split("/")[1] for image in listed}


def mimic_tables(root: Path) -> None:
    generator = random.Random(0)
    labels, images, splits = [], [], []
    for study in range(2000):
        patient = str(10_000_000 + study // 2)
        row = {"subject_id": patient, "study_id": str(study)}
        labels.append(row | findings(generator, generator.randrange(15)))
        for number, view in enumerate(("LATERAL", "PA", "AP")):
            image = f"{study:05d}-{number}"
            images.append({"dicom_id": image, **row, "ViewPosition": view})
            splits.append({"dicom_id": image, "split": "test" if study % 11 == 0 else "train"})
    write(root / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
    write(root / "mimic-cxr-2.0.0-negbio.csv", labels[::-1])
    write(root / "mimic-cxr-2.0.0-metadata.csv", images)
    write(root / "mimic-cxr-2.0.0-split.csv.gz", splits)


def test_mimic_5x200_has_one_frontal_training_image_of_a_study(tmp_path: Path) -> None:
    mimic_tables(tmp_path)
    found = BUILDERS["mimic-5x200"](tmp_path, 3)
    with gzip.open(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", "rt") as file:
        labels = {row["study_id"]: row for row in csv.DictReader(file)}
    studies = []
    for finding, images in found.ids.items():
        assert len(images) == 200
        for image in images:
            study, number = image.split("-")
            assert eligible(labels[str(int(study))]) == finding
            assert number == "1" and int(study) % 11
            studies.append(study)
    assert len(set(studies)) == 1000
    assert set(found.patients) == {labels[str(int(study))]["subject_id"] for study in studies}
    assert BUILDERS["mimic-5x200-negbio"](tmp_path, 3).ids == found.ids


def boxes_table(name: str) -> Table:
    """Up to three rows of each image."""
    return [{name: f"image{number}", "box": str(box)} for number in range(200) for box in range(3)]


@pytest.mark.parametrize(
    ("name", "table", "column"),
    [("rsna", "stage_2_train_labels.csv", "patientId"), ("siim", "train-rle.csv", "ImageId")],
)
def test_splits_are_by_image_where_an_image_has_several_rows(
    name: str, table: str, column: str, tmp_path: Path
) -> None:
    rows = boxes_table(column)
    write(tmp_path / table, rows)
    found = BUILDERS[name](tmp_path, 0)
    assert {split: len(ids) for split, ids in found.ids.items()} == {
        "train": 140,
        "validation": 30,
        "test": 30,
    }
    assert sorted(image for ids in found.ids.values() for image in ids) == sorted(
        {row[column] for row in rows}
    )
    assert found.patients == found.ids["test"]


def test_rsna_images_of_an_nih_patient_stay_together(tmp_path: Path) -> None:
    write(tmp_path / "stage_2_train_labels.csv", boxes_table("patientId"))
    images = [
        {"subset_img_id": f"image{n}", "img_id": f"{n // 4:08d}_{n % 4:03d}.png"}
        for n in range(200)
    ]
    mapping = tmp_path / "pneumonia-challenge-dataset-mappings_2018.json"
    mapping.write_text(json.dumps(images))
    found = BUILDERS["rsna"](tmp_path, 0)
    patients = [
        {int(image.removeprefix("image")) // 4 for image in ids} for ids in found.ids.values()
    ]
    assert [len(some) for some in patients] == [35, 8, 7]
    assert len(set.union(*patients)) == 50
    assert found.patients == [f"{patient:08d}" for patient in sorted(patients[2])]
    mapping.write_text("[1]")
    with pytest.raises(DataError, match="mapping"):
        BUILDERS["rsna"](tmp_path, 0)


def covidx_lists(root: Path) -> None:
    lines = [f"p{number // 3} image {number}.png COVID-19 rsna" for number in range(300)]
    (root / "train_COVIDx9A.txt").write_text("\n".join(lines) + "\n")
    tested = [*(f"t{n} test{n}.png normal rsna" for n in range(20)), "p0 more.png normal rsna"]
    (root / "test_COVIDx9A.txt").write_text("\n".join(tested) + "\n")


def test_covidx_is_split_by_patient_and_leaves_tested_patients_out(tmp_path: Path) -> None:
    covidx_lists(tmp_path)
    found = BUILDERS["covidx"](tmp_path, 0)
    assert {split: len(ids) for split, ids in found.ids.items()} == {
        "train": 237,
        "validation": 60,
        "test": 21,
    }
    patients = {
        split: {int(image.split()[1].split(".")[0]) // 3 for image in found.ids[split]}
        for split in ("train", "validation")
    }
    assert not patients["train"] & patients["validation"]
    assert 0 not in patients["train"] | patients["validation"]
    assert "rsna/p0" in found.patients and "more.png" in found.ids["test"]


MAKERS: dict[str, tuple[str, Callable[[], Table]]] = {
    "chexpert-5x200": ("train.csv", chexpert_table),
    "rsna": ("stage_2_train_labels.csv", lambda: boxes_table("patientId")),
    "siim": ("train-rle.csv", lambda: boxes_table("ImageId")),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_alone_decides(name: str, tmp_path: Path) -> None:
    file, make = MAKERS[name]
    write(tmp_path / file, make())
    found = BUILDERS[name](tmp_path, 0)
    assert BUILDERS[name](tmp_path, 0).sha256 == found.sha256
    assert BUILDERS[name](tmp_path, 1).ids != found.ids
    write(tmp_path / file, shuffled(make()))
    assert BUILDERS[name](tmp_path, 0) == found


def test_a_list_is_known_by_its_hash(tmp_path: Path) -> None:
    one = IdList("mine", 0, {"a": ["x", "y"]}, ["p", "q"])
    one.write(tmp_path / "lists/one.json")
    assert IdList.read(tmp_path / "lists/one.json") == one
    config = LeakConfig(lists={"lists/one.json": one.sha256}, elsewhere=[], against=[])
    assert held_out_lists(config, tmp_path) == [
        HeldOut("lists/one.json", frozenset({"p", "q"}), elsewhere=False)
    ]
    elsewhere = config.model_copy(update={"elsewhere": ["lists/one.json"]})
    assert held_out_lists(elsewhere, tmp_path)[0].elsewhere
    with pytest.raises(ValidationError, match=r"elsewhere: two.json is not in lists"):
        LeakConfig(lists={}, elsewhere=["two.json"], against=[])
    content = json.loads((tmp_path / "lists/one.json").read_text())
    content["patients"] = ["p"]
    (tmp_path / "lists/one.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="another one"):
        IdList.read(tmp_path / "lists/one.json")
    with pytest.raises(DataError, match="another one"):
        held_out_lists(config, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": "x", "name": "y"}'])
def test_what_is_no_list_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(content)
    with pytest.raises(DataError, match="no id list"):
        IdList.read(tmp_path / "one.json")


def test_too_few_images_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", chexpert_table(600))
    with pytest.raises(DataError, match=r"(?s)too few.*of Edema.*200 of each"):
        BUILDERS["chexpert-5x200"](tmp_path, 0)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.csv"):
        BUILDERS["chexpert-5x200"](tmp_path, 0)
    with pytest.raises(DataError, match=r"one file train\*\.txt|one file test\*\.txt"):
        BUILDERS["covidx"](tmp_path, 0)


@pytest.mark.parametrize("cell", ["positive", "2.0", "1,0", "nan"])
def test_a_label_that_is_none_is_named_by_line_and_column(cell: str, tmp_path: Path) -> None:
    table = chexpert_table(20)
    table[3]["Edema"] = cell
    write(tmp_path / "train.csv", table)
    with pytest.raises(DataError, match=r"train\.csv:5, column Edema") as error:
        BUILDERS["chexpert-5x200"](tmp_path, 0)
    assert repr(cell) not in str(error.value)


def test_damaged_tables_are_errors_that_name_file_and_column(tmp_path: Path) -> None:
    table = chexpert_table(20)
    first = next(
        n for n, row in enumerate(table) if eligible(row) and row["Path"][-11:-4] != "lateral"
    )
    write(tmp_path / "train.csv", [*table[:first], {**table[first], "Path": "view1.jpg"}])
    with pytest.raises(DataError, match=rf"train\.csv:{first + 2}, column Path"):
        BUILDERS["chexpert-5x200"](tmp_path, 0)
    write(tmp_path / "train.csv", [{k: v for k, v in row.items() if k != "Edema"} for row in table])
    with pytest.raises(DataError, match=r"(?s)lacks a column.*train\.csv.*no Edema"):
        BUILDERS["chexpert-5x200"](tmp_path, 0)
    (tmp_path / "train_COVIDx.txt").write_text("1 a.png positive cohen\n")
    (tmp_path / "test_COVIDx.txt").write_bytes("1 a.png n\u00e9gative cohen\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"(?s)not UTF-8.*test_COVIDx\.txt.*0xe9"):
        BUILDERS["covidx"](tmp_path, 0)


@pytest.mark.parametrize("name", ["stage_2_train.csv", "train-rle.csv", "stage_2_train.csv.gz"])
def test_siim_is_read_from_whichever_table_there_is(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, boxes_table("ImageId"))
    found = BUILDERS["siim"](tmp_path, 0)
    assert {split: len(ids) for split, ids in found.ids.items()} == {
        "train": 140,
        "validation": 30,
        "test": 30,
    }
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"(?s)missing.*stage_2_train\.csv"):
        BUILDERS["siim"](tmp_path, 0)


def test_the_workflow_prints_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "stage_2_train_labels.csv", boxes_table("patientId"))
    out = tmp_path / "lists/rsna.json"
    id_lists.main(["rsna", "--root", str(tmp_path), "--seed", "0", "--out", str(out)])
    sha256 = IdList.read(out).sha256
    assert capsys.readouterr().out == (
        "140 train, 30 validation, 30 test; 30 patients to keep out of training\n"
        f"leaks.lists: {{{out}: {sha256}}}\n"
    )
    assert {"p", "box"}.isdisjoint(json.loads(out.read_text()))
