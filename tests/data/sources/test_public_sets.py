"""Public data sets beyond what is asked of every source: rows joined, splits, labels, bad cells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trees_of_public_sets as trees
from hypothesis import given
from hypothesis import strategies as st

from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.schema import Reject, Study
from aga.data.sources import SOURCES
from aga.data.sources.base import Source
from aga.data.sources.chexpert_plus import ChexpertPlus, ChexpertPlusConfig
from aga.data.sources.siim import SIDE, mask_box
from aga.data.splitting.splits import SplitConfig, SplitRow, assign_splits
from aga.data.studies import StudyDataset
from aga.errors import DataError


def rows(source: str | Source, root: Path) -> list[Study | Reject]:
    opened = SOURCES[source]() if isinstance(source, str) else source
    return list(opened.studies(root))


def replace_in(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# --- SIIM

boxes = st.tuples(
    st.integers(0, SIDE - 2), st.integers(0, SIDE - 2), st.integers(1, 40), st.integers(1, 40)
).map(lambda b: (b[0], b[1], min(b[0] + b[2], SIDE), min(b[1] + b[3], SIDE)))


@given(boxes)
def test_a_mask_of_one_box_has_that_box(box: tuple[int, int, int, int]) -> None:
    assert mask_box(trees.runs(box)) == box


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), min_size=1, max_size=20))
def test_the_box_of_run_lengths_is_that_of_the_drawn_mask(pairs: list[tuple[int, int]]) -> None:
    flat = np.zeros(SIDE * SIDE, bool)
    end = 0
    for skip, length in pairs:
        flat[end + skip : end + skip + length] = True
        end += skip + length
    lines, columns = np.nonzero(flat.reshape(SIDE, SIDE).T)
    expected = (columns.min(), lines.min(), columns.max() + 1, lines.max() + 1)
    assert mask_box(" ".join(f"{skip} {length}" for skip, length in pairs)) == expected


@pytest.mark.parametrize(
    "encoded", ["", "5", "5 0", "-3 4", "a b", "1 2 3", f"0 {SIDE**2 + 1}", f"9 9 {2**63} 9"]
)
def test_what_is_no_mask_is_rejected(encoded: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OverflowError)):
        mask_box(encoded)
    trees.siim(tmp_path / "raw")
    replace_in(tmp_path / "raw/stage_2_train.csv", "1.2.3.2, -1", f"1.2.3.2,{encoded}")
    (bad,) = [row for row in rows("siim", tmp_path / "raw") if isinstance(row, Reject)]
    assert bad.column == "EncodedPixels"
    assert bad.reason in ("value invalid", "value missing")


def test_no_image_of_several_masks_is_in_two_splits(tmp_path: Path) -> None:
    """Splitting the table's rows, as others do, parts such images; here they are one row."""
    root = tmp_path / "raw"
    trees.siim(root)
    names = [f"7.{number}" for number in range(200)]
    mask = trees.runs((3, 4, 5, 6))
    lines = [f"{name},{mask}" for name in names] * 3
    (root / "stage_2_train.csv").write_text("\n".join(["ImageId,EncodedPixels", *lines]) + "\n")
    for name in names:
        (root / f"{name}.dcm").touch()
    found = [row for row in rows("siim", root) if isinstance(row, Study)]
    assert [row.study_id for row in found] == names
    assert all(len(row.regions) == 3 for row in found)
    shares = SplitConfig(
        train=0.7,
        validation=0.15,
        test=0.15,
        fold=0,
        stratify=None,
        near_duplicates="link",
        conflicts="refuse",
    )
    by_row = assign_splits(
        [SplitRow(str(number), str(number), line) for number, line in enumerate(lines)],
        [],
        shares,
        0,
    )
    parted = {line: set() for line in lines}
    for line, split in zip(lines, by_row, strict=True):
        parted[line].add(split)
    assert any(len(splits) > 1 for splits in parted.values()), "what splitting rows would do"


def test_an_image_with_a_mask_and_without_one_is_rejected(tmp_path: Path) -> None:
    trees.siim(tmp_path / "raw")
    replace_in(tmp_path / "raw/stage_2_train.csv", "1.2.3.2, -1", "1.2.3.1, -1")
    assert [r.reason for r in rows("siim", tmp_path / "raw") if isinstance(r, Reject)] == [
        "rows disagree"
    ]


# --- RSNA


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("c,,,,,0", "c,,,,,2", "value invalid"),
        ("c,,,,,0", "c,,,,,1", "value invalid"),
        ("c,,,,,0", "c,1,2,0,4,1", "value invalid"),
        ("c,,,,,0", "c,1,2,nan,4,1", "value invalid"),
        ("c,,,,,0", "c,,,,,", "value missing"),
        ("c,,,,,0", "a,,,,,0", "rows disagree"),
        ("c,,,,,0", "c,,,,,0,0", "wrong number of columns"),
        ("c,,,,,0", "z,,,,,0", "rows disagree"),
    ],
)
def test_bad_rows_of_rsna_are_rejected(tmp_path: Path, old: str, new: str, reason: str) -> None:
    trees.rsna(tmp_path / "raw")
    replace_in(tmp_path / "raw/stage_2_train_labels.csv", old, new)
    found = [row.reason for row in rows("rsna", tmp_path / "raw") if isinstance(row, Reject)]
    assert found == [reason]


def test_without_the_mapping_each_image_is_a_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "raw"
    trees.rsna(root)
    mapping = root / "pneumonia-challenge-dataset-mappings_2018.json"
    assert len({row.patient_id for row in rows("rsna", root) if isinstance(row, Study)}) == 3
    mapping.write_text(json.dumps([{"subset_img_id": "a"}]))
    with pytest.raises(DataError, match=r"(?s)mapping.*damaged.*data.md#rsna"):
        rows("rsna", root)
    mapping.unlink()
    assert all(row.patient_id == row.study_id for row in rows("rsna", root))
    assert "may come into different splits" in caplog.text


# --- NIH ChestX-ray14


def test_validation_of_nih_is_drawn_by_patient_and_test_is_the_official_one(
    tmp_path: Path, prepare_config: PrepareConfig
) -> None:
    root = tmp_path / "raw"
    trees.nih14(root)
    config = prepare_config.model_copy(
        update={
            "split": prepare_config.split.model_copy(
                update={"train": 0.3, "validation": 0.5, "test": 0.2}
            )
        }
    )
    prepare(SOURCES["nih14"](), root, tmp_path / "studies", config, 0, "nih14")
    table = StudyDataset.open(tmp_path / "studies").manifest
    placed = set(zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert len(placed) == 5, "no patient is in two"
    assert {patient for patient, split in placed if split == "test"} == {"00000004", "00000005"}
    assert {split for _, split in placed} == {"train", "validation", "test"}


def test_bad_rows_of_nih_are_rejected(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    trees.nih14(root)
    replace_in(root / "Data_Entry_2017.csv", "Cardiomegaly|Effusion", "Cardiomegaly|Nothing")
    replace_in(root / "train_val_list.txt", "00000002_000.png", "")
    found = {row.location: row.reason for row in rows("nih14", root) if isinstance(row, Reject)}
    assert found == {
        "Data_Entry_2017.csv:3": "value invalid",
        "Data_Entry_2017.csv:4": "split missing",
    }


# --- CheXpert and CheXpert Plus


def test_a_label_that_is_none_is_rejected_by_its_column(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    trees.chexpert(root)
    replace_in(root / "valid.csv", ",1.0", ",2.0")
    (bad,) = [row for row in rows("chexpert", root) if isinstance(row, Reject)]
    assert (bad.reason, bad.column) == ("value invalid", "Pleural Effusion")


def test_images_of_a_batch_are_found_beside_the_tables(tmp_path: Path) -> None:
    trees.chexpert(tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)")
    root = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)"
    (root / "train").rename(tmp_path / "CheXpert-v1.0 batch 2 (train 1)")
    found = rows("chexpert", root)
    assert all(isinstance(row, Study) and row.image.is_file() for row in found)


def test_a_test_set_without_its_labels_is_an_error(tmp_path: Path) -> None:
    trees.chexpert(tmp_path, test=True)
    (tmp_path / "CheXpert-v1.0-small/test_labels.csv").unlink()
    with pytest.raises(DataError, match=r"no test_labels.csv"):
        rows("chexpert", tmp_path)


def test_the_labels_are_those_of_the_chosen_text_and_may_not_be_damaged(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    trees.chexpert_plus(root)
    folder = root / "chexbert_labels"
    (folder / "report_fixed.json").rename(folder / "findings_fixed.json")
    of = {kind: ChexpertPlus(ChexpertPlusConfig(labels=kind)) for kind in ("report", "findings")}
    assert not any(row.labels for row in rows(of["report"], root) if isinstance(row, Study))
    assert sum(bool(row.labels) for row in rows(of["findings"], root)) == 3
    with (folder / "findings_fixed.json").open("a") as file:
        file.write("{")
    with pytest.raises(DataError, match=r"findings_fixed.json:4"):
        rows(of["findings"], root)


# --- COVIDx and ROCO


def test_half_of_a_validation_split_is_an_error_and_a_line_without_class_a_reject(
    tmp_path: Path,
) -> None:
    root = tmp_path / "raw"
    trees.covidx(root)
    replace_in(root / "train.txt", "negative", "unknown")
    found = [row.reason for row in rows("covidx", root) if isinstance(row, Reject)]
    assert found == ["wrong number of columns"]
    (root / "val.txt").unlink()
    with pytest.raises(DataError, match=r"has no val\*.txt"):
        rows("covidx", root)


def test_bytes_of_a_caption_that_are_not_utf8_are_repaired(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    trees.roco_first(root)
    file = root / "data/test/radiology/captions.txt"
    file.write_bytes(file.read_bytes().replace(b"radius", b"radius at 37\xb0"))
    (found,) = [row for row in rows("roco", root) if isinstance(row, Study) and row.repaired]
    assert found.report == "Fracture of the radius at 37°."
