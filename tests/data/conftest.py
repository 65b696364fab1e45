"""Small raw folders, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raw_folders import Rows, noise_image, write_csv

from aga.data.preparing.prepare import PrepareConfig
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.workers import LocalWorkers


@pytest.fixture
def prepare_config() -> PrepareConfig:
    return PrepareConfig.model_validate(
        {
            "image": {"size": 16, "mode": "grey", "fit": "pad", "window": "voi", "frames": "first"},
            "report": {
                "prefer": ["findings+impression", "findings", "impression", "whole"],
                "deidentified": "drop",
                "drop_sentences": ["notification", "attestation"],
                "min_characters": 10,
            },
            "views": {"keep": "all", "unknown": "keep"},
            "split": {
                "train": 0.7,
                "validation": 0.1,
                "test": 0.2,
                "fold": 0,
                "stratify": None,
                "conflicts": "refuse",
                "near_duplicates": "link",
            },
            "shard": {"rows": 16, "row_group_mib": 1},
            "row_seconds": 60.0,
            "max_reject_fraction": 0.5,
        }
    )


@pytest.fixture
def raw_rows(tmp_path: Path) -> Callable[[int], Rows]:
    """Rows of a good manifest, two studies per patient, with their images written."""

    def make(count: int) -> Rows:
        rows: Rows = []
        for number in range(count):
            image = f"images/{number}.png"
            noise_image(tmp_path / "raw" / image, number)
            report = f"FINDINGS: Opacity number {number} is seen.\nIMPRESSION: Pneumonia."
            rows.append(
                {
                    "patient_id": f"P{number // 2}",
                    "study_id": f"S{number}",
                    "image": image,
                    "view": "PA" if number % 3 else "",
                    "text": report,
                    "labels": {"opacity": 1, "effusion": 0, "nodule": None},
                }
            )
        return rows

    return make


@pytest.fixture
def save_manifest(tmp_path: Path) -> Callable[[Rows], Path]:
    def save(rows: Rows) -> Path:
        root = tmp_path / "raw"
        root.mkdir(exist_ok=True)
        write_csv(root / "pairs.csv", rows)
        return root

    return save


@pytest.fixture(scope="session")
def workers() -> Iterator[LocalWorkers]:
    """Processes that several tests share: they need not start anew."""
    with LocalWorkers() as processes:
        yield processes


@pytest.fixture
def manifest_source() -> Manifest:
    return Manifest(ManifestConfig(table="pairs.csv", not_utf8="reject"))
