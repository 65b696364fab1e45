"""Percentile intervals from a bootstrap that resamples patients, not images.

Two images of one patient are not independent, so whole patients are drawn with replacement. A
resample is a vector of integer weights over the rows (how often each row's patient was drawn), and
a statistic takes many of them at once: thousands of resamples are a few array operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from aga.config import Config

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[[FloatArray], FloatArray]

# Resamples evaluated at once: bounds memory at BLOCK * rows numbers.
BLOCK = 250


class BootstrapConfig(Config):
    """Settings of the intervals.

    Attributes:
        samples: Number of resamples.
        confidence: Coverage of the interval, between 0 and 1.
    """

    samples: int = Field(ge=10)
    confidence: float = Field(gt=0, lt=1)


@dataclass(frozen=True)
class Estimate:
    """A statistic on the rows as they are, and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def estimate(
    statistic: Statistic, patients: IntArray, config: BootstrapConfig, seed: int
) -> Estimate:
    """Value and percentile interval of a statistic.

    The resamples depend on `patients`, `config.samples` and `seed` only, so two statistics of the
    same rows see the same resamples.

    Args:
        statistic: Maps row weights `[R, N]` to R values. A resample on which it is not defined
            (NaN: no positive row was drawn) is left out of the interval.
        patients: Number of the patient of each of the N rows; rows of one patient share it.
        config: Number of resamples and coverage.
        seed: Seed of the resamples.

    Returns:
        The estimate; its ends are NaN where the statistic is defined on no resample.
    """
    return summarise(replicates([statistic], patients, config, seed)[:, 0], config)


def replicates(
    statistics: Sequence[Statistic], patients: IntArray, config: BootstrapConfig, seed: int
) -> FloatArray:
    """Every statistic on the rows as they are and on each resample; see `estimate`.

    Returns:
        `[1 + samples, statistics]`; the first row is the rows as they are.
    """
    blocks = itertools.chain(
        [np.ones((1, len(patients)))], _resamples(patients, config.samples, seed)
    )
    return np.concatenate(
        [np.stack([statistic(weights) for statistic in statistics], 1) for weights in blocks]
    )


def summarise(values: FloatArray, config: BootstrapConfig) -> Estimate:
    """The estimate of a column of `replicates`, or of a function of its columns."""
    value, resampled = float(values[0]), values[1:]
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        return Estimate(value, float("nan"), float("nan"))
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def weighted_mean(values: FloatArray) -> Statistic:
    """The mean of one value per row, as a statistic of row weights."""
    return lambda weights: np.asarray(weights @ values / weights.sum(1))


def weighted_ratio(sums: FloatArray, counts: FloatArray) -> Statistic:
    """The sum of one column over the sum of another; NaN on a resample without any counts.

    With a row for each patient and the sum and count of its values it is the mean of the values.
    """

    def statistic(weights: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ sums) / (weights @ counts))

    return statistic


def weighted_median(values: FloatArray) -> Statistic:
    """The lower median of one value per row, as a statistic of row weights."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def statistic(weights: FloatArray) -> FloatArray:
        mass = weights[:, order].cumsum(1)
        return np.asarray(ordered[(mass >= mass[:, -1:] / 2).argmax(1)])

    return statistic


def _resamples(patients: IntArray, samples: int, seed: int) -> Iterator[FloatArray]:
    """Row weights of every resample, in blocks `[at most BLOCK, N]`."""
    generator = np.random.default_rng(seed)
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1
    for start in range(0, samples, BLOCK):
        size = min(BLOCK, samples - start)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=size)
        yield drawn[:, patient].astype(np.float64)
