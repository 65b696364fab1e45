"""Images with labels and no reports, from the raw folder to what an encoder is worth on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fixtures.bundles import PARAMS, write_bundle
from fixtures.studies import phantom_rows, write_studies
from PIL import Image

from aga.bundle import Bundle
from aga.data.preparing.checking import check
from aga.data.preparing.prepare import PrepareConfig, PrepareSummary, prepare
from aga.data.schema import Region, Reject, Study
from aga.data.studies import StudyDataset
from aga.data.tokenizing.tokens import TokenDataset, TokenizerConfig, tokenize
from aga.errors import DataError
from aga.evaluation import EvaluationConfig, Metrics, evaluate
from aga.explain import explain
from aga.training.recipe import RunData

ROWS = 60
TOKENIZER = TokenizerConfig(path=None, vocabulary=60, lowercase=True, min_patients=1, max_tokens=16)
PREPARE = PrepareConfig.model_validate(
    PARAMS["prepare"] | {"image": PARAMS["prepare"]["image"] | {"size": 32}}
)


class Labelled:
    """Bright images are positive; every positive one has a box; `said` gives row 0 a report."""

    LICENSE: ClassVar[str] = "CC0-1.0"
    CITATION: ClassVar[str] = "none"
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[tuple[()]] = ()

    def __init__(self, said: str | None = None) -> None:
        self.said = said

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        for number, image in enumerate(sorted(root.glob("*.png"))):
            positive = number % 2
            yield Study(
                patient_id=f"P{number}",
                study_id=f"S{number}",
                image=image,
                report=None if number else self.said,
                location=f"table:{number}",
                labels={"effusion": positive},
                regions=(Region("effusion", (0, 0, 8, 8)),) * positive,
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    generator = np.random.default_rng(0)
    for number in range(ROWS):
        pixels = generator.integers(0, 128, (32, 32)) + 100 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    prepared(root, home)
    return home


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An encoder of other pairs, which have reports."""
    folder = tmp_path_factory.mktemp("model")
    return write_bundle(
        folder / "bundle", write_studies(folder / "studies", phantom_rows(20), size=32)
    )


def prepared(root: Path, home: Path, source: Labelled | None = None) -> PrepareSummary:
    return prepare(source or Labelled(), root, home / "data/studies", PREPARE, 0, "labelled")


def measured(bundle: Bundle, home: Path) -> dict[str, Metrics]:
    config: dict[str, Any] = json.loads(json.dumps(PARAMS["evaluation"]))
    config["bootstrap"]["samples"] = 50
    config["zero_shot"]["min_positives"] = config["probe"]["min_positives"] = 2
    studies = StudyDataset.open(home / "data/studies")
    settings = EvaluationConfig.model_validate(config)
    results = evaluate(bundle, studies, home / "cache", settings, seed=0)
    return {result.task: result for result in results}


def test_rows_have_labels_and_regions_and_no_text(root: Path, home: Path) -> None:
    manifest = StudyDataset.open(home / "data/studies").manifest
    assert manifest.num_rows == ROWS
    assert manifest["report"].null_count == ROWS
    assert set(manifest["section"].to_pylist()) == {"none"}
    assert set(manifest["text"].to_pylist()) == {""}
    assert not any(manifest["text_offsets"].to_pylist())
    assert sum(map(bool, manifest["regions"].to_pylist())) == ROWS // 2
    assert check(Labelled(), root, PREPARE) == []


def test_an_empty_report_is_still_none_at_all(root: Path, tmp_path: Path) -> None:
    """What a source gives empty is a fault of the row; what no row can have is not."""
    summary = prepared(root, tmp_path, Labelled(said=" "))
    assert summary.rejects == {"report empty": 1}
    assert summary.sections == {"none": ROWS - 1}


def test_a_tokenizer_needs_a_report_but_an_existing_one_does_not(
    home: Path, bundle: Bundle, tmp_path: Path
) -> None:
    studies = home / "data/studies"
    with pytest.raises(DataError, match=r"(?s)no report in the training.*evaluate\.py"):
        tokenize(studies, tmp_path / "tokens", TOKENIZER)
    bundle.tokenizer.save_pretrained(tmp_path / "existing")
    config = TOKENIZER.model_copy(update={"path": str(tmp_path / "existing")})
    summary = tokenize(studies, tmp_path / "tokens", config)
    assert (summary.rows, summary.longest, summary.unknown_share) == (ROWS, 2, {})
    tokens = TokenDataset.open(tmp_path / "tokens", StudyDataset.open(studies))
    assert not any(tokens.content(row).any() for row in range(ROWS))


@pytest.mark.parametrize("said", [None, "One pair of them has a report."])
def test_pretraining_refuses_a_split_with_rows_of_labels_alone(
    root: Path, tmp_path: Path, said: str | None
) -> None:
    prepared(root, tmp_path, Labelled(said))
    with pytest.raises(DataError, match=r"(?s)train split has images without.*evaluate\.py"):
        RunData.open(tmp_path)


def test_what_needs_no_words_is_measured_and_the_rest_says_why(home: Path, bundle: Bundle) -> None:
    results = measured(bundle, home)
    assert results["zero_shot"].values["zero_shot/auroc/effusion"].n > 0
    probe = results["probe"].values["probe/auroc_at_100/effusion"]
    assert probe.value == 1.0, "brightness tells the classes apart"
    for task, reason in (("retrieval", "without a report"), ("grounding", "words name")):
        assert not results[task].values
        assert reason in str(results[task].provenance["left_out"])
        assert results[task].measured_on


def test_a_row_without_words_cannot_be_explained(home: Path, bundle: Bundle) -> None:
    studies = StudyDataset.open(home / "data/studies")
    with pytest.raises(DataError, match="no words to explain"):
        explain(bundle, studies, home / "cache", [0])
