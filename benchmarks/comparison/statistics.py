"""Means, intervals and ranks over seeds: pure functions of the rows that cells leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

Row: TypeAlias = Mapping[str, Any]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval (Student's t); half-width NaN for a single seed."""

    mean: float
    half: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of the mean of `values`, at least one."""
        count = len(values)
        if count == 1:
            return cls(float(values[0]), float("nan"), 1)
        spread = np.std(values, ddof=1) / count**0.5
        student = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        return cls(float(np.mean(values)), float(student * spread), count)

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def text(self, signed: bool = False) -> str:
        """`.831 ±.012`, as in tables."""
        mean = f"{self.mean:{'+' if signed else ''}.3f}"
        return mean if np.isnan(self.half) else f"{mean} ±{self.half:.3f}"


def values(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """The metric by seed, of the rows that have it."""
    return {row["seed"]: row["metrics"][metric] for row in rows if metric in row["metrics"]}


def difference(first: Iterable[Row], second: Iterable[Row], metric: str) -> Interval | None:
    """Mean over common seeds of first minus second: equal seeds have equal pairs and weights."""
    one, other = values(first, metric), values(second, metric)
    seeds = sorted(one.keys() & other.keys())
    return Interval.of([one[seed] - other[seed] for seed in seeds]) if seeds else None


def mean_ranks(cells: Mapping[str, Sequence[Row]], metrics: Sequence[str]) -> dict[str, float]:
    """Mean over metrics of each variant's place (1 is best, ties share) by its mean over seeds.

    A metric that one of the variants lacks is left out.
    """
    table = {name: [values(rows, metric) for metric in metrics] for name, rows in cells.items()}
    kept = [i for i in range(len(metrics)) if all(found[i] for found in table.values())]
    if not kept:
        return {}
    scores = [[-np.mean(list(found[i].values())) for i in kept] for found in table.values()]
    ranks = stats.rankdata(scores, axis=0).mean(1)
    return dict(zip(cells, ranks.tolist(), strict=True))
