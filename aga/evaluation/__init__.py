"""Downstream tasks: what a shipped encoder is worth on patients it has not seen.

Contract of a task: one module with a `Config` class and `evaluate(...) -> Metrics`. It reads a
bundle, prepared pixels and texts, never training tokens, so it measures what a user of the bundle
would get. Every metric carries its bootstrap interval over patients, what chance reaches, and the
hash of its prompts or gallery. No score may depend on which other rows share its batch.

May import `aga.places` and what lies below it; not `aga.training`, `aga.registry`, `aga.explain`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from aga.bundle import Bundle
from aga.config import Config
from aga.data.schema import Split
from aga.data.splitting.leaks import refuse_known
from aga.data.studies import StudyDataset
from aga.evaluation import grounding, probe, retrieval, zero_shot
from aga.evaluation.bootstrap import BootstrapConfig
from aga.evaluation.embedded import EmbeddedSplit, PreparedSplit, embed_split
from aga.evaluation.grounding import GroundingConfig
from aga.evaluation.metrics import Metric, Metrics, format_table, read_metrics, write_metrics
from aga.evaluation.probe import ProbeConfig
from aga.evaluation.rerank import local_scores
from aga.evaluation.retrieval import RetrievalConfig
from aga.evaluation.zero_shot import ZeroShotConfig

__all__ = [
    "EmbeddedSplit",
    "EvaluationConfig",
    "Metric",
    "Metrics",
    "embed_split",
    "evaluate",
    "format_table",
    "read_metrics",
    "write_metrics",
]


class EvaluationConfig(Config):
    """Settings of all tasks.

    Attributes:
        batch_size: Images or texts embedded at once; no result depends on it.
        retrieval: Image-report retrieval.
        zero_shot: Classification by prompts.
        probe: Linear classification of frozen image features.
        grounding: Whether words look at the place of what they name.
        bootstrap: The intervals of all.
    """

    batch_size: int = Field(gt=0)
    retrieval: RetrievalConfig
    zero_shot: ZeroShotConfig
    probe: ProbeConfig
    grounding: GroundingConfig
    bootstrap: BootstrapConfig


def evaluate(
    bundle: Bundle,
    studies: StudyDataset,
    cache: Path,
    config: EvaluationConfig,
    *,
    seed: int,
    split: Split = "test",
) -> list[Metrics]:
    """Run every task on one split.

    A task that does not apply to the data, for want of labels or regions, has no metric; its
    provenance and a log line say why.

    Args:
        bundle: The encoder to measure.
        studies: Prepared pairs.
        cache: Folder of the uncompressed pixel cache.
        config: Settings of the tasks.
        seed: Seed of the bootstrap.
        split: Which patients.

    Raises:
        DataError: The split is empty, its images do not fit the bundle's transform, or the bundle
            was made from some of its patients or images.
        CheckpointError: The bundle's embeddings are not finite.
        ParamsError: There is no such prompt set or vocabulary.
    """
    refuse_known(bundle.trained_on, studies, split)
    prepared = PreparedSplit.open(studies, split, cache)
    training = PreparedSplit.open(studies, "train", cache)
    dataset = embed_split(bundle, studies, split, cache, config.batch_size)
    common = (config.bootstrap, seed)
    return [
        retrieval.evaluate(
            dataset, config.retrieval, *common, local=local_scores(bundle, prepared)
        ),
        zero_shot.evaluate(bundle, dataset, config.zero_shot, *common),
        probe.evaluate(bundle, training, prepared, dataset, config.probe, *common),
        grounding.evaluate(bundle, prepared, dataset, config.grounding, *common),
    ]
