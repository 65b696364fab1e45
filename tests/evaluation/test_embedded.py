"""A split as a bundle embeds it: raw texts and pixels, duplicates, labels, provenance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.errors import CheckpointError, DataError
from aga.evaluation import EvaluationConfig, embed_split, evaluate
from aga.evaluation.metrics import TASKS

ROWS = 30


def rows() -> list[dict[str, object]]:
    """Six test rows: two share a statement, two a text but for case, two a patient."""
    filled = phantom_rows(ROWS)
    test = [row for row in filled if row["split"] == "test"]
    test[0] |= {"statement": "a", "text": "One wording.", "patient_id": "p"}
    test[1] |= {"statement": "a", "text": "Another wording.", "patient_id": "p"}
    test[2] |= {"text": "No effusion.", "labels": {"effusion": 0, "nodule": None}}
    test[3] |= {"text": "NO EFFUSION.", "labels": {"effusion": 1}}
    test[4] |= {"text": "a"}
    test[5] |= {"text": "Clear lungs."}
    return filled


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> StudyDataset:
    return write_studies(tmp_path_factory.mktemp("data") / "studies", rows(), size=32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, studies: StudyDataset) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("models") / "bundle", studies)


def test_rows_keep_their_own_image_and_text(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    found = embed_split(bundle, studies, "test", tmp_path, batch_size=4)
    numbers = studies.rows("test")
    pixels = studies.images(tmp_path)
    texts = studies.column("text").to_pylist()
    assert len(found) == 6
    for place, row in enumerate(numbers):
        image = bundle.embed_images(np.array(pixels[row : row + 1]))[0]
        text = bundle.embed_texts([texts[row]])[0]
        torch.testing.assert_close(found.images[place], image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.texts[place], text, atol=1e-5, rtol=1e-5)


def test_duplicates_share_a_statement_or_else_a_text(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    keys = embed_split(bundle, studies, "test", tmp_path, 4).keys.tolist()
    assert keys[0] == keys[1], "equal statements"
    assert keys[2] == keys[3], "texts that differ in case only"
    assert len(set(keys)) == 4, "a text is never mistaken for a statement"


def test_labels_and_patients(bundle: Bundle, studies: StudyDataset, tmp_path: Path) -> None:
    found = embed_split(bundle, studies, "test", tmp_path, 4)
    assert found.labels["effusion"].tolist() == [-1, -1, 0, 1, -1, -1]
    assert found.labels["nodule"].tolist()[2] == -1
    assert found.patients[0] == found.patients[1]
    assert len(set(found.patients.tolist())) == 5
    assert found.provenance["patients"] == 5


def test_the_gallery_hash_follows_its_content(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    first = embed_split(bundle, studies, "test", tmp_path / "a", 4).provenance
    changed = rows()
    changed[-1]["text"] = "Clear lungs!"
    other = write_studies(tmp_path / "studies", changed, size=32)
    second = embed_split(bundle, other, "test", tmp_path / "b", 2).provenance
    again = embed_split(bundle, studies, "test", tmp_path / "a", 3).provenance
    assert first == again
    assert first["gallery_sha256"] != second["gallery_sha256"]
    assert first["bundle_sha256"] == bundle.sha256


def test_an_empty_split_and_broken_weights_are_refused(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    training = [row | {"split": "train"} for row in phantom_rows(4)]
    empty = write_studies(tmp_path / "empty", training, size=32)
    with pytest.raises(DataError, match="test split is empty"):
        embed_split(bundle, empty, "test", tmp_path, 4)
    broken = write_bundle(tmp_path / "bundle", studies)
    next(iter(broken.model.image_projection.parameters())).data.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        embed_split(broken, studies, "test", tmp_path, 4)


def test_every_task_runs_from_raw_pairs(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    config = EvaluationConfig.model_validate(
        {
            "batch_size": 4,
            "retrieval": {"ranks": [1, 5], "chunk": 2, "rerank": {"top": 3, "weight": 0.5}},
            "zero_shot": {"prompts": "phantom-v1", "min_positives": 1},
            "probe": {
                "fractions": [0.5, 1.0],
                "repeats": 2,
                "regularisation": 1.0,
                "min_positives": 1,
            },
            "grounding": {"words": "phantom-v1"},
            "bootstrap": {"samples": 20, "confidence": 0.9},
        }
    )
    results = {r.task: r for r in evaluate(bundle, studies, tmp_path, config, seed=0)}
    assert tuple(results) == TASKS
    assert len({result.measured_on for result in results.values()}) == len(TASKS)
    assert results["retrieval"].values["retrieval/mean_recall_at_5"].n == 6
    assert results["retrieval"].values["retrieval/rerank/mean_recall_at_5"].n == 6
    assert set(results["zero_shot"].provenance["classes"]) == {"effusion"}
    again = {r.task: r for r in evaluate(bundle, studies, tmp_path, config, seed=0)}
    assert again == results
