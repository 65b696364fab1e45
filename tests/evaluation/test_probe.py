"""The linear probe: which rows it sees, what it scores, and what it leaves out."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.evaluation.bootstrap import BootstrapConfig
from aga.evaluation.embedded import PreparedSplit, embed_split
from aga.evaluation.metrics import Metrics
from aga.evaluation.probe import LabelledFeatures, ProbeConfig, draw_rows, evaluate, probe

BOOTSTRAP = BootstrapConfig(samples=100, confidence=0.95)
CONFIG = ProbeConfig(fractions=(0.1, 1.0), repeats=3, regularisation=0.5, min_positives=2)
FRACTIONS = (0.05, 0.2, 1.0)


def images(count: int, seed: int, signal: float = 1.0) -> LabelledFeatures:
    """Two images a patient; the third of eight features tells `nodule`, none tells `noise`."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 8)) * [1, 100, 1, 1, 1, 0.01, 1, 0]
    nodule = features[:, 2] * signal + generator.normal(size=count) * 0.3 > 0
    noise = generator.random(count) < 0.5
    labels = {"nodule": nodule.astype(np.int8), "noise": noise.astype(np.int8)}
    return LabelledFeatures(features, np.arange(count) // 2, labels)


@given(
    seed=st.integers(0, 999),
    patients=st.lists(st.integers(0, 30), min_size=2, max_size=60),
    data=st.data(),
)
@settings(max_examples=150)
def test_draws_are_whole_patients_nested_and_large_enough(
    seed: int, patients: list[int], data: st.DataObject
) -> None:
    size = len(patients)
    labels = np.array(
        data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=size, max_size=size))
    )
    labels[:2] = [0, 1]
    owner = np.array(patients)
    labels = labels.astype(np.int8)
    drawn = draw_rows(labels, owner, FRACTIONS, np.random.default_rng(seed))
    known = np.flatnonzero(labels >= 0)
    assert drawn[-1].tolist() == known.tolist()
    for smaller, larger in itertools.pairwise(drawn):
        assert set(smaller) <= set(larger)
    for rows, fraction in zip(drawn, FRACTIONS, strict=True):
        chosen = set(owner[rows])
        assert set(rows) == {row for row in known if owner[row] in chosen}, "whole patients"
        assert len(rows) >= fraction * len(known) - 1e-9
        largest = max(np.bincount(owner[known]))
        assert len(rows) < fraction * len(known) + largest, "not one patient more than needed"
    again = draw_rows(labels, owner, FRACTIONS, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_the_fewest_rows_are_drawn_anew_until_they_hold_both_kinds() -> None:
    labels = np.zeros(100, np.int8)
    labels[:10] = 1
    for seed in range(50):
        drawn = draw_rows(labels, np.arange(100), (0.02, 1.0), np.random.default_rng(seed))
        assert sorted(labels[drawn[0]]) == [0, 1]


def test_the_score_is_that_of_scikit_learn_on_standardised_features() -> None:
    train, test = images(200, 0), images(100, 1)
    values, undrawn = probe(train, test, CONFIG, BOOTSTRAP, seed=0)
    scaler = StandardScaler().fit(train.features)
    for name in ("nodule", "noise"):
        model = LogisticRegression(C=0.5, max_iter=1000)
        model.fit(scaler.transform(train.features), train.labels[name])
        scores = model.decision_function(scaler.transform(test.features))
        expected = roc_auc_score(test.labels[name], scores)
        metric = values[f"probe/auroc_at_100/{name}"]
        assert metric.value == pytest.approx(expected, abs=2e-3)
        assert (metric.chance, metric.n) == (0.5, 100)
        assert metric.low is not None and metric.low <= metric.value
    assert undrawn == {}
    assert set(values) == {
        f"probe/{name}"
        for percent in (10, 100)
        for name in (
            f"mean_auroc_at_{percent}",
            f"auroc_at_{percent}/nodule",
            f"auroc_at_{percent}/noise",
        )
    }
    for percent in (10, 100):
        each = [values[f"probe/auroc_at_{percent}/{name}"].value for name in ("nodule", "noise")]
        assert values[f"probe/mean_auroc_at_{percent}"].value == pytest.approx(np.mean(each))


def test_small_shares_are_averaged_over_their_draws() -> None:
    train, test = images(200, 0), images(100, 1)
    values, _ = probe(train, test, CONFIG, BOOTSTRAP, seed=3)
    scaler = StandardScaler().fit(train.features)
    found = []
    for repeat in range(3):
        generator = np.random.default_rng([3, repeat])
        rows = draw_rows(train.labels["nodule"], train.patients, (0.1, 1.0), generator)[0]
        assert len(rows) == 20
        model = LogisticRegression(C=0.5, max_iter=1000)
        model.fit(scaler.transform(train.features[rows]), train.labels["nodule"][rows])
        scores = model.decision_function(scaler.transform(test.features))
        found.append(roc_auc_score(test.labels["nodule"], scores))
    assert values["probe/auroc_at_10/nodule"].value == pytest.approx(np.mean(found), abs=2e-3)


def test_what_is_there_is_found_and_noise_is_chance() -> None:
    values, _ = probe(images(600, 0), images(400, 1), CONFIG, BOOTSTRAP, seed=0)
    assert values["probe/auroc_at_100/nodule"].value > 0.95
    # Three standard errors of an AUROC of 200 against 200 rows.
    assert abs(values["probe/auroc_at_100/noise"].value - 0.5) < 0.087


def test_unknown_labels_are_neither_learned_nor_tested() -> None:
    train, test = images(200, 0), images(100, 1)
    hidden = train.labels["nodule"].copy()
    hidden[::2] = -1
    masked = test.labels["nodule"].copy()
    masked[50:] = -1
    values, _ = probe(
        LabelledFeatures(train.features, train.patients, {"nodule": hidden}),
        LabelledFeatures(test.features, test.patients, {"nodule": masked}),
        CONFIG,
        BOOTSTRAP,
        seed=0,
    )
    scaler = StandardScaler().fit(train.features)
    model = LogisticRegression(C=0.5, max_iter=1000)
    model.fit(scaler.transform(train.features[1::2]), hidden[1::2])
    scores = model.decision_function(scaler.transform(test.features[:50]))
    metric = values["probe/auroc_at_100/nodule"]
    assert metric.n == 50
    assert metric.value == pytest.approx(roc_auc_score(masked[:50], scores), abs=2e-3)


def test_a_class_that_no_draw_holds_is_left_out_at_that_share_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One patient has all positives and one all negatives: each alone is more than the share."""
    train, test = images(200, 0), images(100, 1)
    rare = (np.arange(200) < 100).astype(np.int8)
    patients = np.arange(200) // 100
    values, undrawn = probe(
        LabelledFeatures(train.features, patients, {"rare": rare}),
        LabelledFeatures(test.features, test.patients, {"rare": test.labels["nodule"]}),
        CONFIG,
        BOOTSTRAP,
        seed=0,
    )
    assert undrawn == {"10": ["rare"]}
    assert "leaves out rare" in caplog.text
    assert "probe/auroc_at_100/rare" in values
    assert "probe/mean_auroc_at_10" not in values


def test_shares_must_rise() -> None:
    fields = CONFIG.model_dump()
    for wrong in ((1.0, 0.1), (0.1, 0.1), (0.0,), (1.5,)):
        with pytest.raises(ValidationError):
            ProbeConfig.model_validate(fields | {"fractions": wrong})


def test_nine_findings_take_seconds() -> None:
    generator = np.random.default_rng(0)

    def many(count: int) -> LabelledFeatures:
        labels = {f"f{i}": (generator.random(count) < 0.15).astype(np.int8) for i in range(9)}
        return LabelledFeatures(generator.normal(size=(count, 192)), np.arange(count), labels)

    config = ProbeConfig(fractions=(0.01, 0.1, 1.0), repeats=3, regularisation=0.1, min_positives=5)
    start = time.process_time()
    probe(many(4000), many(600), config, BootstrapConfig(samples=1000, confidence=0.95), seed=0)
    assert time.process_time() - start < 20


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> StudyDataset:
    rows = phantom_rows(60)
    for number, one in enumerate(rows):
        one["labels"] = {"nodule": number // 3 % 2, "effusion": int(number == 0)}
    return write_studies(tmp_path_factory.mktemp("data") / "studies", rows, size=32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, studies: StudyDataset) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("models") / "bundle", studies)


def measure(bundle: Bundle, studies: StudyDataset, cache: Path, config: ProbeConfig) -> Metrics:
    training, tested = (PreparedSplit.open(studies, split, cache) for split in ("train", "test"))
    dataset = embed_split(bundle, studies, "test", cache, 8)
    return evaluate(bundle, training, tested, dataset, config, BOOTSTRAP, seed=0)


def test_it_reads_pooled_features_of_the_frozen_encoder(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    pixels = np.array(studies.images(tmp_path)[:5])
    found = bundle.image_features(pixels, batch_size=2)
    assert found.shape == (5, bundle.model.image_encoder.global_width)
    projected = bundle.model.image_projection(found)
    expected = bundle.embed_images(pixels)
    torch.testing.assert_close(torch.nn.functional.normalize(projected), expected)


def test_it_runs_from_raw_pairs(bundle: Bundle, studies: StudyDataset, tmp_path: Path) -> None:
    result = measure(bundle, studies, tmp_path, CONFIG)
    assert {name for name in result.values if name.count("/") == 1} == {
        "probe/mean_auroc_at_10",
        "probe/mean_auroc_at_100",
    }
    assert set(result.provenance["omitted"]) == {"effusion"}
    assert result.provenance["omitted"]["effusion"]["test_positives"] == 0
    assert result.provenance["training_rows"] == len(studies.rows("train"))
    assert str(result.provenance["training_sha256"]) in result.measured_on
    again = measure(bundle, studies, tmp_path, CONFIG)
    assert again == result


def test_without_labels_or_shares_the_task_is_left_out(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    none = CONFIG.model_copy(update={"fractions": ()})
    assert measure(bundle, studies, tmp_path, none).provenance["left_out"] == "no fractions are set"
    rows = [row | {"labels": {}} for row in phantom_rows(20)]
    unlabelled = write_studies(tmp_path / "studies", rows, size=32)
    result = measure(bundle, unlabelled, tmp_path, CONFIG)
    assert result.values == {}
    assert "probe is left out: no finding" in caplog.text
