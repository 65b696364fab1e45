"""Paired differences: exact values, narrower than unpaired ones, and honest about nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from aga.errors import DataError
from aga.evaluation.bootstrap import BootstrapConfig, Statistic, estimate, weighted_mean
from aga.evaluation.compare import paired_differences, same_rows
from aga.evaluation.embedded import EmbeddedSplit
from aga.evaluation.retrieval import RetrievalConfig, statistics
from aga.evaluation.zero_shot import weighted_auroc

CONFIG = BootstrapConfig(samples=400, confidence=0.9)


def compared(first: Statistic, second: Statistic, patients: np.ndarray):
    return paired_differences({"a": first}, {"a": second}, patients, CONFIG, seed=0)["a"]


def test_what_patients_share_cancels() -> None:
    """The second model is worse by the same amount on every row: there is no doubt left."""
    hard = np.random.default_rng(0).normal(size=80)
    found = compared(weighted_mean(hard + 0.1), weighted_mean(hard), np.arange(80))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.clear
    assert found.first_better == 1
    alone = estimate(weighted_mean(hard), np.arange(80), CONFIG, 0)
    assert alone.high - alone.low > 0.2


def test_it_is_the_interval_of_the_difference_of_rows() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(2, 60))
    patients = generator.integers(0, 25, 60)
    found = compared(weighted_mean(first), weighted_mean(second), patients)
    expected = estimate(weighted_mean(first - second), patients, CONFIG, 0)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    back = compared(weighted_mean(second), weighted_mean(first), patients)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )
    assert back.first_better == pytest.approx(1 - found.first_better)


def test_a_model_is_no_better_than_itself() -> None:
    generator = np.random.default_rng(2)
    auroc = weighted_auroc(generator.normal(size=50), np.arange(50) % 3 == 0)
    found = compared(auroc, auroc, np.arange(50))
    assert (found.value, found.low, found.high, found.first_better) == (0, 0, 0, 0.5)
    assert not found.clear


def test_equal_models_are_rarely_told_apart() -> None:
    generator = np.random.default_rng(3)
    clear = 0
    for _ in range(100):
        first, second = generator.normal(size=(2, 50))
        clear += compared(weighted_mean(first), weighted_mean(second), np.arange(50)).clear
    # 10 expected; four binomial standard errors are 12.
    assert clear < 23


def test_names_that_one_lacks_and_undefined_resamples_are_left_out() -> None:
    never: Statistic = lambda weights: np.full(len(weights), np.nan)  # noqa: E731
    mean = weighted_mean(np.arange(4.0))
    found = paired_differences({"a": mean, "b": never}, {"b": never}, np.arange(4), CONFIG, 0)
    assert set(found) == {"b"}
    assert np.isnan([found["b"].low, found["b"].first_better]).all()
    assert not found["b"].clear
    assert paired_differences({"a": mean}, {}, np.arange(4), CONFIG, 0) == {}


def test_two_embedded_splits_are_compared_on_their_common_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator))
    noise = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator))
    good = EmbeddedSplit(
        images=vectors,
        texts=vectors,
        keys=torch.arange(30),
        patients=np.arange(30),
        labels={},
        provenance={"gallery_sha256": "ab"},
    )
    poor = replace(good, images=noise)
    config = RetrievalConfig(ranks=(1, 5), chunk=8, rerank=None)
    patients = same_rows(good, poor)
    found = paired_differences(
        statistics(good, config), statistics(poor, config), patients, CONFIG, seed=0
    )
    assert found["retrieval/mean_recall_at_5"].clear
    assert found["retrieval/text_to_image/recall_at_1"].value > 0.8
    for other in (
        replace(poor, provenance={"gallery_sha256": "cd"}),
        replace(poor, patients=np.arange(30) // 2),
    ):
        with pytest.raises(DataError, match="different pairs"):
            same_rows(good, other)
