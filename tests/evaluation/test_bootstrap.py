"""Intervals: coverage, patients kept whole, the same resamples for every statistic."""

from __future__ import annotations

import numpy as np
import pytest

from aga.evaluation.bootstrap import (
    BootstrapConfig,
    Estimate,
    estimate,
    weighted_mean,
    weighted_median,
)

CONFIG = BootstrapConfig(samples=400, confidence=0.9)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    trials = 200
    for trial in range(trials):
        values = generator.normal(3.0, 1.0, 60)
        found = estimate(weighted_mean(values), np.arange(60), CONFIG, seed=trial)
        covered += found.low <= 3.0 <= found.high
    # 0.9 expected; four binomial standard errors of 200 trials are 0.085.
    assert 0.8 < covered / trials < 0.97


def test_rows_of_one_patient_carry_no_extra_information() -> None:
    """Every patient's rows repeated five times: the interval must not shrink."""
    values = np.random.default_rng(1).normal(size=40)
    once = estimate(weighted_mean(values), np.arange(40), CONFIG, seed=0)
    repeated = estimate(
        weighted_mean(np.repeat(values, 5)), np.repeat(np.arange(40), 5), CONFIG, seed=0
    )
    assert repeated.low == pytest.approx(once.low)
    assert repeated.high == pytest.approx(once.high)
    as_if_alone = estimate(weighted_mean(np.repeat(values, 5)), np.arange(200), CONFIG, seed=0)
    assert as_if_alone.high - as_if_alone.low < 0.7 * (once.high - once.low)


def test_equal_seeds_give_equal_resamples_for_every_statistic() -> None:
    patients = np.random.default_rng(2).integers(0, 20, 50)
    values = np.random.default_rng(3).normal(size=50)
    base = estimate(weighted_mean(values), patients, CONFIG, seed=5)
    shifted = estimate(weighted_mean(values + 1), patients, CONFIG, seed=5)
    assert shifted.low == pytest.approx(base.low + 1)
    assert shifted.high == pytest.approx(base.high + 1)
    assert estimate(weighted_mean(values), patients, CONFIG, seed=6) != base


def test_patient_numbers_need_not_be_contiguous() -> None:
    values = np.arange(6.0)
    patients = np.array([7, 7, 1000, 1000, 3, 3])
    renumbered = np.array([1, 1, 2, 2, 0, 0])
    statistic = weighted_mean(values)
    assert estimate(statistic, patients, CONFIG, 0) == estimate(statistic, renumbered, CONFIG, 0)


def test_a_constant_has_no_width_and_one_patient_neither() -> None:
    assert estimate(weighted_mean(np.ones(9)), np.arange(9), CONFIG, 0) == Estimate(1.0, 1.0, 1.0)
    one = estimate(weighted_mean(np.arange(4.0)), np.zeros(4, int), CONFIG, 0)
    assert one == Estimate(1.5, 1.5, 1.5)


def test_undefined_resamples_are_left_out_and_none_left_is_nan() -> None:
    def sometimes(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] > 0, weights[:, 0], np.nan)

    found = estimate(sometimes, np.arange(5), CONFIG, 0)
    assert found.low >= 1
    never = estimate(lambda weights: np.full(len(weights), np.nan), np.arange(5), CONFIG, 0)
    assert np.isnan([never.value, never.low, never.high]).all()


def test_the_weighted_median_is_the_median_of_repeated_rows() -> None:
    generator = np.random.default_rng(4)
    values = generator.integers(1, 30, 21).astype(float)
    weights = generator.integers(0, 4, (50, 21)).astype(float)
    found = weighted_median(values)(weights)
    for row, median in zip(weights, found, strict=True):
        repeated = np.sort(np.repeat(values, row.astype(int)))
        assert median == repeated[(len(repeated) - 1) // 2]
