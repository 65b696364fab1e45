"""Image-report retrieval: recall at K and median rank, both ways, exact and duplicate-aware.

Duplicate-aware is the headline: a report that says the same about another image is a right answer.
The exact numbers (suffix `_exact`) want the pair's own partner. The bootstrap resamples the
patients whose rows are queries; the gallery stays the whole split.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from aga.config import Config
from aga.evaluation.bootstrap import (
    BootstrapConfig,
    Statistic,
    replicates,
    summarise,
    weighted_mean,
    weighted_median,
)
from aga.evaluation.embedded import EmbeddedSplit
from aga.evaluation.metrics import Metric, Metrics
from aga.ranking import chance, retrieval_positions

TASK = "retrieval"


class RetrievalConfig(Config):
    """Settings of retrieval.

    Attributes:
        ranks: The K of recall at K.
        chunk: Queries scored at once; bounds memory at chunk * N scores.
    """

    ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    chunk: PositiveInt


def evaluate(
    dataset: EmbeddedSplit, config: RetrievalConfig, bootstrap: BootstrapConfig, seed: int
) -> Metrics:
    """Retrieve reports by image and images by report, by the cosine of the global embeddings.

    Names: `retrieval/<direction>/recall_at_<K>` and `.../median_rank`, each also with `_exact`, for
    the directions `text_to_image` and `image_to_text`; `retrieval/mean_recall_at_<K>` is the
    duplicate-aware mean of both directions.
    """
    names, measured, by_chance = zip(*_statistics(dataset, config), strict=True)
    drawn = replicates(measured, dataset.patients, bootstrap, seed)
    values = {
        f"{TASK}/{name}": Metric.of(summarise(column, bootstrap), chance_value, len(dataset))
        for name, column, chance_value in zip(names, drawn.T, by_chance, strict=True)
    }
    return Metrics(TASK, values, dataset.provenance)


def chance_median_rank(keys: Int64[Tensor, "N"], duplicate_aware: bool) -> float:
    """The median rank that a random order of the gallery gives: the first K of recall 1/2."""
    ranks = range(1, len(keys) + 1)
    # Recall rises with the rank; the margin is for the rounding of an exact half.
    reached = bisect.bisect_left(
        ranks, 0.5 - 1e-9, key=lambda rank: chance(keys, [rank], duplicate_aware)[0]
    )
    return float(ranks[reached])


def _statistics(
    dataset: EmbeddedSplit, config: RetrievalConfig
) -> Iterator[tuple[str, Statistic, float]]:
    """Every metric's name, its statistic of row weights, and its value by chance."""
    sides = {
        "text_to_image": (dataset.texts, dataset.images),
        "image_to_text": (dataset.images, dataset.texts),
    }
    for duplicate_aware, suffix in ((True, ""), (False, "_exact")):
        recall_by_chance = chance(dataset.keys, config.ranks, duplicate_aware)
        rank_by_chance = chance_median_rank(dataset.keys, duplicate_aware)
        mean_hits: Float[np.ndarray, "N K"] = np.zeros((len(dataset), len(config.ranks)))
        for direction, (queries, gallery) in sides.items():
            positions = retrieval_positions(
                queries,
                gallery,
                dataset.keys,
                chunk=config.chunk,
                duplicate_aware=duplicate_aware,
            ).numpy()
            hits = positions[:, None] <= np.asarray(config.ranks)
            mean_hits += hits / len(sides)
            for column, rank in enumerate(config.ranks):
                recall = weighted_mean(hits[:, column].astype(np.float64))
                name = f"{direction}/recall_at_{rank}{suffix}"
                yield name, recall, recall_by_chance[column]
            median = weighted_median(positions.astype(np.float64))
            yield f"{direction}/median_rank{suffix}", median, rank_by_chance
        if duplicate_aware:
            for column, rank in enumerate(config.ranks):
                both = weighted_mean(mean_hits[:, column])
                yield f"mean_recall_at_{rank}", both, recall_by_chance[column]
