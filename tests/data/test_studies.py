"""Reading the prepared folder: splits, the shared pixel cache, damage."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from raw_folders import Rows

from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.schema import SPLITS
from aga.data.sources.manifest import Manifest
from aga.data.studies import DatasetInfo, StudyDataset
from aga.errors import DataError


@pytest.fixture
def studies(
    tmp_path: Path,
    raw_rows: Callable[[int], Rows],
    save_manifest: Callable[[Rows], Path],
    manifest_source: Manifest,
    prepare_config: PrepareConfig,
) -> Path:
    out = tmp_path / "studies"
    prepare(manifest_source, save_manifest(raw_rows(40)), out, prepare_config, 0, "manifest")
    return out


def test_the_splits_share_out_the_rows(studies: Path) -> None:
    dataset = StudyDataset.open(studies)
    parts = {split: dataset.rows(split) for split in SPLITS}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(40))
    assert {split: len(rows) for split, rows in parts.items()} == dict(dataset.info.splits)
    assert dataset.column("study_id").to_pylist() == dataset.manifest["study_id"].to_pylist()


def test_the_cache_is_private_read_only_and_made_once(studies: Path, tmp_path: Path) -> None:
    dataset = StudyDataset.open(studies)
    images = dataset.images(tmp_path / "cache")
    assert images.shape == (40, 16, 16, 1)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    (path,) = (tmp_path / "cache").glob("*.u8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made = path.stat().st_mtime_ns
    dataset.images(tmp_path / "cache")
    assert path.stat().st_mtime_ns == made
    path.unlink()
    path.write_bytes(b"cut off")
    np.testing.assert_array_equal(dataset.images(tmp_path / "cache"), images)


def first_pixel_sum(studies: Path, cache: Path) -> int:
    return int(StudyDataset.open(studies).images(cache).sum())


def test_many_processes_may_ask_at_once(studies: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(first_pixel_sum, studies, tmp_path / "cache") for _ in range(4)]
        sums = {one.result() for one in asked}
    assert sums == {int(StudyDataset.open(studies).images(tmp_path / "other").sum())}
    assert list((tmp_path / "cache").glob("*.partial")) == []


def test_the_description_survives_json(studies: Path) -> None:
    info = StudyDataset.open(studies).info
    assert DatasetInfo.from_json(info.to_json()) == info


def damage_version(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))


def damage_rows(folder: Path) -> None:
    (folder / "images-00002.parquet").unlink()


def damage_manifest(folder: Path) -> None:
    path = folder / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:-50])


def damage_info(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"rows": 3')


def damage_all(folder: Path) -> None:
    (folder / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_version, "another schema version"),
        (damage_rows, "incomplete: the image shards"),
        (damage_manifest, "are damaged"),
        (damage_info, "dataset.json cannot be read"),
        (damage_all, "There are no prepared studies"),
    ],
)
def test_damage_is_named(studies: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(studies)
    with pytest.raises(DataError, match=f"(?s){message}.*dvc repro prepare"):
        StudyDataset.open(studies)


def test_an_unknown_split_is_refused(studies: Path) -> None:
    with pytest.raises(Exception, match="split"):
        StudyDataset.open(studies).rows("dev")  # type: ignore[arg-type]
