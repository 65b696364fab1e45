"""Two models on the same rows: is the difference more than the choice of patients.

The bootstrap is paired: each resample of patients is measured with both models, so what makes a
patient hard for both cancels. The interval says nothing about other seeds of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aga.errors import DataError
from aga.evaluation.bootstrap import (
    BootstrapConfig,
    Estimate,
    FloatArray,
    IntArray,
    Statistic,
    replicates,
    summarise,
)
from aga.evaluation.embedded import EmbeddedSplit


@dataclass(frozen=True)
class Difference:
    """A statistic of one model minus that of another, on the same rows.

    Attributes:
        value: On the rows as they are.
        low: Lower end of its interval; NaN where no resample defines it.
        high: Upper end.
        first_better: Share of resamples on which the first is larger, ties counted one half.
    """

    value: float
    low: float
    high: float
    first_better: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    patients: IntArray,
    config: BootstrapConfig,
    seed: int,
) -> dict[str, Difference]:
    """First minus second for every name that both have, from one set of resamples.

    Args:
        first: Statistics of the weights of N rows, by name, of one model: see
            `aga.evaluation.bootstrap`.
        second: The same of another model, on the same rows in the same order.
        patients: Number of the patient of each row.
        config: Number of resamples and coverage.
        seed: Seed of the resamples.
    """
    names = [name for name in first if name in second]
    if not names:
        return {}
    both = [model[name] for model in (first, second) for name in names]
    drawn = replicates(both, patients, config, seed)
    found = drawn[:, : len(names)] - drawn[:, len(names) :]
    return {
        name: _difference(column, summarise(column, config))
        for name, column in zip(names, found.T, strict=True)
    }


def same_rows(first: EmbeddedSplit, second: EmbeddedSplit) -> IntArray:
    """The patients of two splits, which hold the same pairs in the same order.

    Raises:
        DataError: They do not.
    """
    galleries = [split.provenance["gallery_sha256"] for split in (first, second)]
    if galleries[0] != galleries[1] or not np.array_equal(first.patients, second.patients):
        raise DataError(
            "The two models were measured on different pairs",
            where="a paired comparison",
            got=f"galleries {galleries[0]} and {galleries[1]}",
            expected="equal galleries and patients",
            fix="embed the same split of the same prepared studies with both",
        )
    return first.patients


def _difference(column: FloatArray, estimate: Estimate) -> Difference:
    resampled = column[1:][~np.isnan(column[1:])]
    better = (resampled > 0).mean() + (resampled == 0).mean() / 2 if len(resampled) else np.nan
    return Difference(estimate.value, estimate.low, estimate.high, float(better))
