"""AUROC against scikit-learn, the score rule, classes left out, versioned prompts."""

from __future__ import annotations

import hashlib
import json
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from aga.bundle import Bundle
from aga.data.sources.chexpert_labels import FINDINGS
from aga.data.splitting.id_lists import COMPETITION
from aga.errors import ParamsError
from aga.evaluation.bootstrap import BootstrapConfig
from aga.evaluation.embedded import EmbeddedSplit
from aga.evaluation.zero_shot import (
    ZeroShotConfig,
    class_scores,
    evaluate,
    load_prompts,
    weighted_auroc,
)
from aga.tensors import normalize

BOOTSTRAP = BootstrapConfig(samples=100, confidence=0.95)
CONFIG = ZeroShotConfig(prompts="phantom-v1", min_positives=3)
PROMPTS = resources.files("aga.evaluation") / "prompts"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("zero_shot")
    studies = write_studies(folder / "studies", phantom_rows(20), size=32)
    return write_bundle(folder / "bundle", studies)


def split_of(images: torch.Tensor, labels: dict[str, list[int]]) -> EmbeddedSplit:
    count = len(images)
    return EmbeddedSplit(
        images=normalize(images),
        texts=normalize(images),
        keys=torch.arange(count),
        patients=np.arange(count),
        labels={name: np.array(column, np.int8) for name, column in labels.items()},
        provenance={"split": "test"},
    )


@given(
    scores=st.lists(st.integers(0, 6), min_size=2, max_size=30),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_auroc_equals_scikit_learn(scores: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive = generator.random(len(scores)) < 0.5
    positive[:2] = [True, False]
    weights = generator.integers(0, 4, (5, len(scores))).astype(float)
    weights[:, :2] += 1
    found = weighted_auroc(np.array(scores, float), positive)(weights)
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_auroc_of_one_kind_of_row_is_not_a_number() -> None:
    statistic = weighted_auroc(np.array([0.1, 0.2, 0.3]), np.array([True, False, False]))
    found = statistic(np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    assert np.isnan(found).tolist() == [True, True, False]
    assert found[2] == 0.0


def test_the_score_is_positive_cosines_minus_negative_cosines(bundle: Bundle) -> None:
    images = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    dataset = split_of(images, {})
    prompts = load_prompts("phantom-v1")
    found = class_scores(bundle, dataset, prompts, "nodule")

    def mean_cosine(image: torch.Tensor, sentences: list[str]) -> float:
        cosines = [
            torch.cosine_similarity(image, bundle.embed_texts([sentence])[0], dim=0).item()
            for sentence in sentences
        ]
        return sum(cosines) / len(cosines)

    for image, score in zip(images, found, strict=True):
        positive = mean_cosine(image, list(prompts.positive["nodule"]))
        negative = mean_cosine(image, list(prompts.negative["nodule"]))
        assert score == pytest.approx(positive - negative, abs=1e-5)
    alone = class_scores(bundle, split_of(images[2:3], {}), prompts, "nodule")
    assert alone[0] == pytest.approx(found[2], abs=1e-9), "a score depends on other images"


def test_images_like_their_prompts_are_classified(bundle: Bundle) -> None:
    """Images that lie on the prompts themselves score 1; with swapped labels 0."""
    prompts = load_prompts("phantom-v1")
    sides = (prompts.positive["nodule"], prompts.negative["nodule"])
    positive, negative = (bundle.embed_texts(list(side)).mean(0) for side in sides)
    images = torch.stack([positive - negative, negative - positive]).repeat(8, 1)
    labels = {"nodule": [1, 0] * 8, "effusion": [0, 1] * 8}
    labels["cavity"] = [1, 1] + [0] * 14
    result = evaluate(bundle, split_of(images, labels), CONFIG, BOOTSTRAP, seed=0)
    nodule = result.values["zero_shot/auroc/nodule"]
    assert (nodule.value, nodule.low, nodule.high, nodule.chance, nodule.n) == (1, 1, 1, 0.5, 16)
    effusion = result.values["zero_shot/auroc/effusion"].value
    assert result.values["zero_shot/mean_auroc"].value == pytest.approx((1 + effusion) / 2)
    assert "zero_shot/auroc/cavity" not in result.values
    assert result.provenance["omitted"]["cavity"] == {"positives": 2, "negatives": 14}
    assert set(result.provenance["classes"]) == {"nodule", "effusion"}


def test_unknown_labels_are_not_counted(bundle: Bundle) -> None:
    images = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    labels = [1, 0, 1, 0, 1, 0, -1, -1, -1, -1, 1, 0]
    known = [i for i, label in enumerate(labels) if label >= 0]
    whole = evaluate(bundle, split_of(images, {"nodule": labels}), CONFIG, BOOTSTRAP, seed=0)
    fewer = evaluate(
        bundle,
        split_of(images[known], {"nodule": [labels[i] for i in known]}),
        CONFIG,
        BOOTSTRAP,
        seed=0,
    )
    metric = whole.values["zero_shot/auroc/nodule"]
    assert metric.n == 8
    assert metric.value == fewer.values["zero_shot/auroc/nodule"].value


def test_data_without_labels_give_no_metric_and_a_warning(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    result = evaluate(bundle, split_of(torch.randn(5, 16), {}), CONFIG, BOOTSTRAP, seed=0)
    assert result.values == {}
    assert "nodule" in result.provenance["omitted"]
    assert "leaves out" in caplog.text


def test_prompts_are_versioned_and_hashed() -> None:
    found = load_prompts("phantom-v1")
    content = (PROMPTS / "phantom-v1.json").read_bytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.version == "phantom-v1"


@pytest.mark.parametrize("path", sorted(Path(str(PROMPTS)).glob("*.json")), ids=lambda p: p.stem)
def test_every_prompt_set_is_whole(path: Path) -> None:
    prompts = load_prompts(path.stem)
    assert prompts.version == path.stem
    for side in (prompts.positive, prompts.negative):
        for name, sentences in side.items():
            assert sentences and len(set(sentences)) == len(sentences), f"{name} repeats a prompt"
    assert json.loads(path.read_text())["classes"].keys() == prompts.positive.keys()


def test_the_chest_prompts_are_of_the_five_findings_as_sources_name_them() -> None:
    prompts = load_prompts("chest-v1")
    assert list(prompts.positive) == [FINDINGS[name] for name in COMPETITION]
    sides = (prompts.positive.values(), prompts.negative.values())
    said = [sentence for side in sides for sentences in side for sentence in sentences]
    assert len(set(said)) == len(said), "one sentence, one class and side"


def test_an_unknown_version_names_the_known_ones() -> None:
    with pytest.raises(ParamsError, match="phantom-v1"):
        load_prompts("phantom-v0")


def test_a_thousand_resamples_of_nine_classes_take_seconds(bundle: Bundle) -> None:
    generator = np.random.default_rng(0)
    names = list(load_prompts("phantom-v1").positive)
    labels = {name: generator.integers(0, 2, 500).tolist() for name in names}
    dataset = split_of(torch.randn(500, 16), labels)
    start = time.process_time()
    evaluate(bundle, dataset, CONFIG, BootstrapConfig(samples=1000, confidence=0.95), seed=0)
    assert time.process_time() - start < 10
