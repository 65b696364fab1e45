"""The whole stage: every row accounted for, equal bytes, clear errors, nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_folders import Rows

from aga.data.pixels.images import decode_image, prepare_image
from aga.data.preparing.checking import check
from aga.data.preparing.prepare import PrepareConfig, PrepareSummary, prepare
from aga.data.schema import IMAGES, MANIFEST, REJECTS, SPLITS, TOKENS
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.studies import StudyDataset
from aga.data.workers import LocalWorkers
from aga.errors import DataError

Make = Callable[[int], Rows]
Save = Callable[[Rows], Path]


@pytest.fixture
def run(
    tmp_path: Path,
    manifest_source: Manifest,
    prepare_config: PrepareConfig,
    workers: LocalWorkers,
) -> Callable[..., PrepareSummary]:
    def run(root: Path, out: Path | None = None, seed: int = 0) -> PrepareSummary:
        out = out or tmp_path / "studies"
        return prepare(manifest_source, root, out, prepare_config, seed, "manifest", workers)

    return run


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_schemas_are_the_golden_ones(golden: Callable[[str, object], None]) -> None:
    schemas = {"manifest": MANIFEST, "images": IMAGES, "rejects": REJECTS, "tokens": TOKENS}
    golden(
        "parquet_schemas",
        {name: {f.name: str(f.type) for f in schema} for name, schema in schemas.items()},
    )


def test_a_good_folder(
    tmp_path: Path,
    raw_rows: Make,
    save_manifest: Save,
    run: Callable,
    prepare_config: PrepareConfig,
) -> None:
    rows = raw_rows(40)
    root = save_manifest(rows)
    summary = run(root)
    assert (summary.rows, summary.used, summary.patients, summary.rejects) == (40, 40, 20, {})
    assert {name: count.rows for name, count in summary.splits.items()} == {
        "train": 28,
        "validation": 4,
        "test": 8,
    }
    assert summary.sections == {"findings+impression": 40}

    dataset = StudyDataset.open(tmp_path / "studies")
    assert dataset.info.sha256 == summary.sha256
    manifest = dataset.manifest
    assert manifest.schema.equals(MANIFEST)
    assert manifest["row"].to_pylist() == list(range(40))
    assert manifest["study_id"].to_pylist() == [row["study_id"] for row in rows]
    assert manifest["text"][7].as_py() == "Opacity number 7 is seen. Pneumonia."
    assert manifest["labels"][7].as_py() == [("effusion", 0), ("nodule", None), ("opacity", 1)]
    assert manifest["view"][6].as_py() is None
    assert manifest["view"][7].as_py() == "PA"
    assert (manifest["height"][0].as_py(), manifest["width"][0].as_py()) == (40, 30)

    images = dataset.images(tmp_path / "cache")
    for number in (0, 15, 16, 39):
        raw = decode_image(root / f"images/{number}.png", prepare_config.image)
        np.testing.assert_array_equal(images[number], prepare_image(raw, prepare_config.image))
        sha256 = hashlib.sha256(images[number].tobytes()).hexdigest()
        assert manifest["pixel_sha256"][number].as_py() == sha256


def test_files_are_few_and_cut_as_configured(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    run(save_manifest(raw_rows(40)))
    names = sorted(path.name for path in (tmp_path / "studies").iterdir())
    shards = [f"images-0000{number}.parquet" for number in range(3)]
    assert names == ["dataset.json", *shards, "manifest.parquet", "rejects.parquet"]
    rows = [pq.read_metadata(tmp_path / "studies" / shard).num_rows for shard in shards]
    assert rows == [16, 16, 8]
    assert list(tmp_path.glob(".studies*")) == []


def test_row_groups_are_capped_in_bytes(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, prepare_config: PrepareConfig
) -> None:
    wide = prepare_config.image.model_copy(update={"size": 400, "mode": "rgb"})  # 0.46 MiB each
    config = prepare_config.model_copy(update={"image": wide})
    source = Manifest(ManifestConfig(table="pairs.csv", not_utf8="reject"))
    prepare(source, save_manifest(raw_rows(20)), tmp_path / "studies", config, 0, "manifest")
    metadata = pq.read_metadata(tmp_path / "studies" / "images-00000.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [2] * 8


def test_equal_input_gives_equal_bytes(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    root = save_manifest(raw_rows(40))
    first = run(root, tmp_path / "one")
    assert run(root, tmp_path / "two") == first
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    other = run(root, tmp_path / "three", seed=1)
    assert other.sha256 != first.sha256


def test_any_change_of_the_content_changes_the_hash(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(40)
    root = save_manifest(rows)
    seen = {run(root).sha256}
    rows[3]["labels"] = {"opacity": 0}
    seen.add(run(save_manifest(rows)).sha256)
    rows[3]["text"] = f" {rows[3]['text']}"  # the same cleaned text, at other offsets
    seen.add(run(save_manifest(rows)).sha256)
    pixels = np.asarray(Image.open(root / "images/3.png")).copy()
    Image.fromarray(255 - pixels).save(root / "images/3.png")
    seen.add(run(root).sha256)
    assert len(seen) == 4


def test_bad_rows_are_rejected_with_reasons_and_counted(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(40)
    root = save_manifest(rows)
    (root / "images/4.png").write_text("this is a text file")
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(root / "images/6.png")
    rows[8]["text"] = "  "
    rows[10]["text"] = "FINDINGS: ___"
    rows[12]["text"] = "Short."
    rows[14]["image"] = "images/none.png"
    summary = run(save_manifest(rows))
    assert summary.rejects == {
        "report empty": 2,
        "image blank": 1,
        "image missing": 1,
        "image unreadable": 1,
        "report too short": 1,
    }
    assert summary.used + sum(summary.rejects.values()) == summary.rows == 40
    rejects = pq.read_table(tmp_path / "studies/rejects.parquet").to_pylist()
    assert rejects[0] == {
        "location": "pairs.csv:10",
        "column": "image",
        "reason": "image unreadable",
        "detail": "not an image format",
    }
    assert json.loads(json.dumps(summary.to_metrics()))["splits"]["test"]["rows"] > 0


def test_a_repeated_pair_is_used_once_and_keeps_its_patient_in_the_split(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(40)
    # Row 0 of patient P0 comes again under P9, and with another report under P10.
    rows[18] |= {"image": rows[0]["image"], "text": rows[0]["text"]}
    rows[20] |= {"image": rows[0]["image"]}
    summary = run(save_manifest(rows))
    assert summary.rejects == {"repeated pair": 1}
    assert summary.linked_patients == 3
    table = StudyDataset.open(tmp_path / "studies").manifest.to_pylist()
    linked = {row["split"] for row in table if row["patient_id"] in ("P0", "P9", "P10")}
    assert len(linked) == 1


def test_too_many_rejects_stop_the_stage(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(40)
    for row in rows[:21]:
        row["text"] = "-"
    with pytest.raises(DataError, match=r"(?s)Too many.*21 of 40 rows: 21 report too short.*50%"):
        run(save_manifest(rows))
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("study_id", "reason"),
    [
        ("S0", "duplicate study id.*pairs.csv:2 has this study id for another patient"),
        ("S2", "duplicate study id.*pairs.csv:6 has this study id with another report"),
    ],
)
def test_contradictions_stop_the_stage_and_keep_the_old_result(
    raw_rows: Make, save_manifest: Save, run: Callable, study_id: str, reason: str
) -> None:
    rows = raw_rows(40)
    root = save_manifest(rows)
    studies = root.parent / "studies"
    run(root)
    before = digests(studies)
    rows[3]["study_id"] = study_id
    with pytest.raises(DataError, match=f"(?s){reason}") as caught:
        run(save_manifest(rows))
    assert "pairs.csv:8" in str(caught.value)
    assert digests(studies) == before
    assert list(root.parent.glob(".studies*")) == []


def test_a_row_twice_is_a_duplicate_study(
    raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(40)
    with pytest.raises(DataError, match=r"(?s)duplicate study id.*with the same image"):
        run(save_manifest([*rows, rows[5]]))


def test_two_views_of_one_study_are_two_rows(
    raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(40)
    rows[1] |= {"study_id": rows[0]["study_id"], "text": rows[0]["text"]}
    assert run(save_manifest(rows)).used == 40


def test_given_splits_are_used_and_a_patient_in_two_is_an_error(
    tmp_path: Path, raw_rows: Make, save_manifest: Save, run: Callable
) -> None:
    rows = raw_rows(12)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number // 2 % 3]
    summary = run(save_manifest(rows))
    assert {split: count.rows for split, count in summary.splits.items()} == dict.fromkeys(
        SPLITS, 4
    )
    rows[1]["split"] = "test"
    with pytest.raises(
        DataError, match=r"(?s)patient in two splits.*pairs.csv:4.*in test.*pairs.csv:2 "
    ):
        run(save_manifest(rows))


def test_a_missing_raw_folder(tmp_path: Path, run: Callable) -> None:
    with pytest.raises(DataError, match=r"(?s)raw folder of the source is missing.*source.root"):
        run(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_check_lists_every_bad_row_and_writes_nothing(
    tmp_path: Path,
    raw_rows: Make,
    save_manifest: Save,
    manifest_source: Manifest,
    prepare_config: PrepareConfig,
) -> None:
    rows = raw_rows(12)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number // 2 % 3]
    root = save_manifest(rows)
    assert check(manifest_source, root, prepare_config) == []
    (root / "images/1.png").write_text("text")
    rows[2]["patient_id"] = ""
    rows[5]["split"] = "train"  # its patient is in test
    rows[8]["image"] = rows[0]["image"]  # of another patient, in validation
    before = sorted(tmp_path.rglob("*"))
    bad = check(manifest_source, save_manifest(rows), prepare_config)
    assert [(one.location, one.column, one.reason) for one in bad] == [
        ("pairs.csv:4", "image", "image unreadable"),
        ("pairs.csv:6", "patient_id", "value missing"),
        ("pairs.csv:12", "split", "patient in two splits"),
        ("pairs.csv:18", "split", "image in two splits"),
    ]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_nothing_half_written(
    small_disk: Path,
    raw_rows: Make,
    save_manifest: Save,
    manifest_source: Manifest,
    prepare_config: PrepareConfig,
) -> None:
    root = save_manifest(raw_rows(60))
    image = prepare_config.image.model_copy(update={"size": 128})  # 60 rows x 16 kB of noise
    config = prepare_config.model_copy(update={"image": image})
    with pytest.raises(DataError, match=r"(?s)disk is full.*MiB free"):
        prepare(manifest_source, root, small_disk / "studies", config, 0, "manifest")
    assert list(small_disk.iterdir()) == []
    small = prepare_config.model_copy()
    prepare(manifest_source, root, small_disk / "studies", small, 0, "manifest")
    before = digests(small_disk / "studies")
    with pytest.raises(DataError, match="disk is full"):
        prepare(manifest_source, root, small_disk / "studies", config, 0, "manifest")
    assert digests(small_disk / "studies") == before
