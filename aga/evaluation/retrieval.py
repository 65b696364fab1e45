"""Image-report retrieval: recall at K and median rank, both ways, exact and duplicate-aware.

Duplicate-aware is the headline: a report that says the same about another image is a right answer.
The exact numbers (suffix `_exact`) want the pair's own partner. With `rerank` set, recall after
re-ranking stands beside that of the global embeddings. The bootstrap resamples the patients whose
rows are queries; the gallery stays the whole split.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

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
from aga.evaluation.rerank import LocalScores, RerankConfig, reranked_positions
from aga.ranking import chance, retrieval_positions

TASK = "retrieval"
logger = logging.getLogger(__name__)


class RetrievalConfig(Config):
    """Settings of retrieval.

    Attributes:
        ranks: The K of recall at K.
        chunk: Queries scored at once; bounds memory at chunk * N scores.
        rerank: Scores the first candidates again with the objective's local score; None does not.
    """

    ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    chunk: PositiveInt
    rerank: RerankConfig | None


def evaluate(
    dataset: EmbeddedSplit,
    config: RetrievalConfig,
    bootstrap: BootstrapConfig,
    seed: int,
    local: LocalScores | None = None,
) -> Metrics:
    """Retrieve reports by image and images by report, by the cosine of the global embeddings.

    Names: `retrieval/<direction>/recall_at_<K>` and `.../median_rank`, each also with `_exact`, for
    the directions `text_to_image` and `image_to_text`; `retrieval/mean_recall_at_<K>` is the
    duplicate-aware mean of both directions. `retrieval/rerank/...`, where `config.rerank` is set,
    are the same, duplicate-aware, after re-ranking by `local`. Where rows have no report there is
    no metric, and a log line says so.

    Raises:
        ValueError: `config.rerank` is set and `local` is not given.
    """
    if not dataset.has_reports:
        reason = "the split has rows without a report"
        logger.info("retrieval is left out: %s", reason)
        return Metrics(TASK, {}, {**dataset.provenance, "left_out": reason})
    measured = list(_global_statistics(dataset, config))
    provenance = dict(dataset.provenance)
    if config.rerank is not None:
        if local is None:
            raise ValueError("re-ranking needs the local scores")
        again = reranked_positions(dataset, config.rerank, local, config.chunk)
        measured += [
            (f"rerank/{name}", statistic, by_chance)
            for name, statistic, by_chance in _statistics(dataset, config, again)
        ]
        provenance |= {"rerank_top": config.rerank.top, "rerank_weight": config.rerank.weight}
    drawn = replicates(
        [statistic for _, statistic, _ in measured], dataset.patients, bootstrap, seed
    )
    values = {
        f"{TASK}/{name}": Metric.of(summarise(column, bootstrap), by_chance, len(dataset))
        for (name, _, by_chance), column in zip(measured, drawn.T, strict=True)
    }
    return Metrics(TASK, values, provenance)


def statistics(dataset: EmbeddedSplit, config: RetrievalConfig) -> dict[str, Statistic]:
    """Every metric of the global embeddings as a statistic of row weights, by full name."""
    found = _global_statistics(dataset, config)
    return {f"{TASK}/{name}": statistic for name, statistic, _ in found}


def chance_median_rank(keys: Int64[Tensor, "N"], duplicate_aware: bool) -> float:
    """The median rank that a random order of the gallery gives: the first K of recall 1/2."""
    ranks = range(1, len(keys) + 1)
    # Recall rises with the rank; the margin is for the rounding of an exact half.
    reached = bisect.bisect_left(
        ranks, 0.5 - 1e-9, key=lambda rank: chance(keys, [rank], duplicate_aware)[0]
    )
    return float(ranks[reached])


def _global_statistics(
    dataset: EmbeddedSplit, config: RetrievalConfig
) -> Iterator[tuple[str, Statistic, float]]:
    yield from _statistics(dataset, config, _positions(dataset, config, True))
    yield from _statistics(dataset, config, _positions(dataset, config, False), "_exact")


def _positions(
    dataset: EmbeddedSplit, config: RetrievalConfig, duplicate_aware: bool
) -> dict[str, Int64[Tensor, "N"]]:
    sides = {
        "text_to_image": (dataset.texts, dataset.images),
        "image_to_text": (dataset.images, dataset.texts),
    }
    return {
        direction: retrieval_positions(
            *side, dataset.keys, chunk=config.chunk, duplicate_aware=duplicate_aware
        )
        for direction, side in sides.items()
    }


def _statistics(
    dataset: EmbeddedSplit,
    config: RetrievalConfig,
    positions: Mapping[str, Int64[Tensor, "N"]],
    suffix: Literal["", "_exact"] = "",
) -> Iterator[tuple[str, Statistic, float]]:
    """Every metric's name, its statistic of row weights, and its value by chance."""
    duplicate_aware = not suffix
    recall_by_chance = chance(dataset.keys, config.ranks, duplicate_aware)
    rank_by_chance = chance_median_rank(dataset.keys, duplicate_aware)
    mean_hits: Float[np.ndarray, "N K"] = np.zeros((len(dataset), len(config.ranks)))
    for direction, found in positions.items():
        hits = found.numpy()[:, None] <= np.asarray(config.ranks)
        mean_hits += hits / len(positions)
        for column, rank in enumerate(config.ranks):
            recall = weighted_mean(hits[:, column].astype(np.float64))
            yield f"{direction}/recall_at_{rank}{suffix}", recall, recall_by_chance[column]
        median = weighted_median(found.double().numpy())
        yield f"{direction}/median_rank{suffix}", median, rank_by_chance
    if duplicate_aware:
        for column, rank in enumerate(config.ranks):
            both = weighted_mean(mean_hits[:, column])
            yield f"mean_recall_at_{rank}", both, recall_by_chance[column]
