"""Zero-shot classification: is a finding there, judged by prompts that no training has seen.

The score of a class is the mean cosine of an image with the class's positive prompts minus the mean
cosine with its negative prompts. It looks at one image at a time: nothing is normalised over the
test set, so a prediction does not depend on what else is tested.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8
from pydantic import Field

from aga.bundle import Bundle
from aga.config import Config
from aga.errors import ParamsError
from aga.evaluation.bootstrap import BootstrapConfig, Statistic, replicates, summarise
from aga.evaluation.embedded import UNKNOWN, EmbeddedSplit
from aga.evaluation.metrics import Metric, Metrics

TASK = "zero_shot"
CHANCE = 0.5
logger = logging.getLogger(__name__)


class ZeroShotConfig(Config):
    """Settings of zero-shot classification.

    Attributes:
        prompts: Version of the prompts: a file of `aga/evaluation/prompts`, without `.json`.
        min_positives: A class with fewer positive or fewer negative rows is left out, by name.
    """

    prompts: str
    min_positives: int = Field(ge=1)


@dataclass(frozen=True)
class PromptSet:
    """Versioned prompts.

    Attributes:
        version: Name of the set.
        positive: Per class, sentences that state the finding.
        negative: Per class, sentences that deny it.
        sha256: Of the file.
    """

    version: str
    positive: Mapping[str, Sequence[str]]
    negative: Mapping[str, Sequence[str]]
    sha256: str


def load_prompts(version: str) -> PromptSet:
    """Read a prompt set of the library.

    Raises:
        ParamsError: There is no such set, or it does not name both kinds of prompt for a class.
    """
    folder = resources.files("aga.evaluation") / "prompts"
    known = sorted(path.name.removesuffix(".json") for path in folder.iterdir())
    if version not in known:
        raise ParamsError(
            "There is no such set of prompts",
            where="evaluation.zero_shot.prompts",
            got=version,
            expected=", ".join(known),
            fix="name one of them, or add a file to aga/evaluation/prompts",
        )
    content = (folder / f"{version}.json").read_bytes()
    document = json.loads(content)
    classes: dict[str, dict[str, list[str]]] = document["classes"]
    positive, negative = (
        {name: prompts.get(side, []) for name, prompts in classes.items()}
        for side in ("positive", "negative")
    )
    lacking = [name for name in classes if not (positive[name] and negative[name])]
    if lacking:
        raise ParamsError(
            "A class lacks positive or negative prompts",
            where=f"aga/evaluation/prompts/{version}.json",
            got=", ".join(lacking),
        )
    digest = hashlib.sha256(content).hexdigest()
    return PromptSet(document["version"], positive, negative, digest)


def evaluate(
    bundle: Bundle,
    dataset: EmbeddedSplit,
    config: ZeroShotConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> Metrics:
    """Area under the ROC curve per class, `zero_shot/auroc/<class>`, and `zero_shot/mean_auroc`.

    A class counts the rows whose label is known. Classes left out are listed in the provenance with
    their counts; where all are, there is no metric, and a warning says so.

    Raises:
        ParamsError: There is no such prompt set.
    """
    prompts = load_prompts(config.prompts)
    counts = {name: label_counts(dataset.labels, name) for name in prompts.positive}
    kept = [name for name, count in counts.items() if min(count.values()) >= config.min_positives]
    omitted = {name: count for name, count in counts.items() if name not in kept}
    if omitted:
        logger.warning(
            "zero-shot leaves out %s: fewer than %d positive or negative rows",
            ", ".join(omitted),
            config.min_positives,
        )
    statistics = {
        name: class_auroc(dataset.labels[name], class_scores(bundle, dataset, prompts, name))
        for name in kept
    }
    values = {}
    if kept:
        drawn = replicates(list(statistics.values()), dataset.patients, bootstrap, seed)
        # The mean over classes is not defined on a resample that lacks one of them.
        mean = summarise(drawn.mean(1), bootstrap)
        rows = np.any([dataset.labels[name] != UNKNOWN for name in kept], axis=0)
        values[f"{TASK}/mean_auroc"] = Metric.of(mean, CHANCE, int(rows.sum()))
        for column, name in enumerate(kept):
            result = summarise(drawn[:, column], bootstrap)
            values[f"{TASK}/auroc/{name}"] = Metric.of(result, CHANCE, sum(counts[name].values()))
    provenance: dict[str, Any] = {
        **dataset.provenance,
        "prompts_version": prompts.version,
        "prompts_sha256": prompts.sha256,
        "classes": {name: counts[name] for name in kept},
        "omitted": omitted,
    }
    return Metrics(TASK, values, provenance)


def class_scores(
    bundle: Bundle, dataset: EmbeddedSplit, prompts: PromptSet, name: str
) -> Float[np.ndarray, "N"]:
    """Mean cosine with the positive prompts minus mean cosine with the negative ones."""
    positive, negative = (
        bundle.embed_texts(side[name]).double().mean(0).cpu()
        for side in (prompts.positive, prompts.negative)
    )
    scores: Float[np.ndarray, "N"] = (dataset.images.double() @ (positive - negative)).numpy()
    return scores


def weighted_auroc(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> Statistic:
    """Area under the ROC curve as a statistic of row weights: ties count one half.

    It is the weighted share of (positive, negative) pairs in which the positive scores higher. The
    rows are sorted once for all resamples. NaN where a resample holds only one kind of row.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    is_positive = positive[order]

    def statistic(weights: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R"]:
        weights = weights[:, order]
        # Weight of the positives and of the negatives at each distinct score, rising: [R, scores].
        positives = np.add.reduceat(weights * is_positive, starts, axis=1)
        negatives = np.add.reduceat(weights * ~is_positive, starts, axis=1)
        beaten = negatives.cumsum(1) - negatives / 2
        pairs = positives.sum(1) * negatives.sum(1)
        with np.errstate(invalid="ignore"):
            return np.asarray((positives * beaten).sum(1) / pairs)

    return statistic


def class_auroc(labels: Int8[np.ndarray, "N"], scores: Float[np.ndarray, "N"]) -> Statistic:
    """`weighted_auroc` over the rows whose label is known; takes the weights of all rows."""
    known = labels != UNKNOWN
    auroc = weighted_auroc(scores[known], labels[known] == 1)
    return lambda weights: auroc(weights[:, known])


def label_counts(labels: Mapping[str, Int8[np.ndarray, "N"]], name: str) -> dict[str, int]:
    """Positive and negative rows of a class; none where nothing is known of it."""
    known = labels.get(name, np.empty(0, np.int8))
    return {"positives": int((known == 1).sum()), "negatives": int((known == 0).sum())}
