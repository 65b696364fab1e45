"""Linear probe: what labels can read from the frozen image encoder.

A logistic regression per finding is fitted on the image encoder's own pooled features, before any
projection, of training images, and tested on the test split. It sees 1 %, 10 % and 100 % of the
labelled training rows: where labels are few it shows what the encoder has learned. Features are
standardised over all training images with labels, whatever share of the labels is used. The
intervals are over test patients; they hold the training rows fixed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int8, Int64
from pydantic import AfterValidator, Field

from aga.bundle import Bundle
from aga.config import Config
from aga.evaluation.bootstrap import BootstrapConfig, replicates, summarise
from aga.evaluation.embedded import UNKNOWN, EmbeddedSplit, PreparedSplit
from aga.evaluation.metrics import Metric, Metrics
from aga.evaluation.zero_shot import CHANCE, class_auroc, label_counts

TASK = "probe"
TRIES = 100  # orders of the patients tried, until the fewest labels hold both kinds of row
ITERATIONS = 1000  # of the regression, at most
IMAGES = 1024  # read at once
logger = logging.getLogger(__name__)


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("the fractions do not rise")
    return values


class ProbeConfig(Config):
    """Settings of the linear probe.

    Attributes:
        fractions: Shares of the labelled training rows, rising; none leaves the task out.
        repeats: Sub-samples drawn for each share below 1; their scores are averaged.
        regularisation: C of the logistic regression, the inverse strength of the L2 penalty.
        min_positives: A class with fewer positive or fewer negative rows, in the test or in the
            training split, is left out, by name.
    """

    fractions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_rising)]
    repeats: int = Field(ge=1)
    regularisation: float = Field(gt=0)
    min_positives: int = Field(ge=1)


@dataclass(frozen=True)
class LabelledFeatures:
    """N images as the probe sees them.

    Attributes:
        features: Pooled features of the frozen image encoder.
        patients: Equal numbers mark images of one patient.
        labels: Per finding: 1 present, 0 absent, -1 unknown.
    """

    features: Float[np.ndarray, "N F"]
    patients: Int64[np.ndarray, "N"]
    labels: Mapping[str, Int8[np.ndarray, "N"]]


def evaluate(
    bundle: Bundle,
    training: PreparedSplit,
    tested: PreparedSplit,
    dataset: EmbeddedSplit,
    config: ProbeConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> Metrics:
    """Probe a bundle on the rows of `tested`, which are those of `dataset`.

    Names: `probe/auroc_at_<percent>/<class>`, `probe/mean_auroc_at_<percent>`. Without labels in
    both splits there is no metric, and a log line says so.
    """
    provenance = {**dataset.provenance, "training_sha256": training.sha256}
    labels = training.labels
    counts = {name: _counts(labels, dataset.labels, name) for name in dataset.labels}
    omitted = {n: c for n, c in counts.items() if min(c.values()) < config.min_positives}
    kept = [name for name in counts if name not in omitted]
    if not kept or not config.fractions:
        reason = "no fractions are set" if kept else "no finding has enough labels in both splits"
        logger.info("the linear probe is left out: %s", reason)
        return Metrics(TASK, {}, provenance | {"left_out": reason, "omitted": omitted})
    rows = np.flatnonzero(np.any([labels[name] != UNKNOWN for name in kept], axis=0))
    train = LabelledFeatures(
        features=_features(bundle, training, rows),
        patients=training.patients[rows],
        labels={name: labels[name][rows] for name in kept},
    )
    everyone = np.arange(len(tested))
    test = LabelledFeatures(_features(bundle, tested, everyone), dataset.patients, dataset.labels)
    values, undrawn = probe(train, test, config, bootstrap, seed)
    return Metrics(
        TASK,
        values,
        provenance | {"training_rows": len(rows), "omitted": omitted, "not_drawn": undrawn},
    )


def probe(
    train: LabelledFeatures,
    test: LabelledFeatures,
    config: ProbeConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> tuple[dict[str, Metric], dict[str, list[str]]]:
    """Fit every class of `train` at every share and test it.

    Returns:
        Metrics by full name; and by percentage the classes of which no sub-sample was found that
        holds a positive and a negative row: they have no metric at that share.
    """
    train, test = _standardised(train, test)
    values: dict[str, Metric] = {}
    undrawn: dict[str, list[str]] = {}
    draws = {
        name: [
            draw_rows(labels, train.patients, config.fractions, np.random.default_rng([seed, r]))
            for r in range(config.repeats)
        ]
        for name, labels in train.labels.items()
    }
    for number, fraction in enumerate(config.fractions):
        percent = f"{100 * fraction:g}"
        repeats = config.repeats if fraction < 1 else 1
        samples = {name: [draw[number] for draw in d[:repeats]] for name, d in draws.items()}
        usable = {n: s for n, s in samples.items() if all(_both(train.labels[n][i]) for i in s)}
        if len(usable) < len(samples):
            undrawn[percent] = [name for name in samples if name not in usable]
            logger.warning(
                "the probe at %s %% leaves out %s: too few of its rows",
                percent,
                ", ".join(undrawn[percent]),
            )
        if usable:
            values |= _metrics(percent, usable, (train, test), config, bootstrap, seed)
    return values, undrawn


def draw_rows(
    labels: Int8[np.ndarray, "N"],
    patients: Int64[np.ndarray, "N"],
    fractions: Sequence[float],
    generator: np.random.Generator,
) -> list[Int64[np.ndarray, " _"]]:
    """Rows of a class to fit on at each share: whole patients, each draw part of the next larger.

    Patients with a known label are put in random order, and the first ones taken until their rows
    are at least the share. Orders whose first rows lack a positive or a negative one are drawn
    anew, at most 100 times; then the last one stands, and the caller has to look.

    Args:
        labels: 1, 0, or -1 for unknown, which is never taken.
        patients: Equal numbers mark rows of one patient.
        fractions: Shares, rising.
        generator: Draws the orders.
    """
    known = np.flatnonzero(labels != UNKNOWN)
    _, patient, counts = np.unique(patients[known], return_inverse=True, return_counts=True)
    drawn: list[Int64[np.ndarray, "_"]] = []
    for _ in range(TRIES):
        order = generator.permutation(len(counts))
        place = np.argsort(order)  # of each patient in the order
        # How many patients, from the first on, have at least the share of the rows.
        needed = [math.ceil(fraction * len(known) - 1e-9) for fraction in fractions]
        taken = np.searchsorted(counts[order].cumsum(), needed) + 1
        drawn = [known[place[patient] < count] for count in taken]
        if _both(labels[drawn[0]]):
            break
    return drawn


def _metrics(
    percent: str,
    samples: Mapping[str, Sequence[Int64[np.ndarray, " _"]]],
    splits: tuple[LabelledFeatures, LabelledFeatures],
    config: ProbeConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> dict[str, Metric]:
    """The metrics of one share; a class's AUROC is the mean over its sub-samples."""
    train, test = splits
    statistics = [
        class_auroc(
            test.labels[name],
            _fitted_scores(train.features[rows], train.labels[name][rows] == 1, test, config),
        )
        for name, drawn in samples.items()
        for rows in drawn
    ]
    drawn = replicates(statistics, test.patients, bootstrap, seed)
    classes = drawn.reshape(len(drawn), len(samples), -1).mean(2)
    known = np.array([test.labels[name] != UNKNOWN for name in samples])
    mean = Metric.of(summarise(classes.mean(1), bootstrap), CHANCE, int(known.any(0).sum()))
    return {f"{TASK}/mean_auroc_at_{percent}": mean} | {
        f"{TASK}/auroc_at_{percent}/{name}": Metric.of(
            summarise(classes[:, column], bootstrap), CHANCE, int(known[column].sum())
        )
        for column, name in enumerate(samples)
    }


def _fitted_scores(
    features: Float[np.ndarray, "n F"],
    positive: Bool[np.ndarray, " n"],
    test: LabelledFeatures,
    config: ProbeConfig,
) -> Float[np.ndarray, "N"]:
    from sklearn.linear_model import LogisticRegression

    # Newton's method: a few steps, where a quasi-Newton one takes hundreds.
    regression = LogisticRegression(
        C=config.regularisation, max_iter=ITERATIONS, solver="newton-cholesky"
    )
    scores: Float[np.ndarray, "N"] = regression.fit(features, positive).decision_function(
        test.features
    )
    return scores


def _features(
    bundle: Bundle, prepared: PreparedSplit, places: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, "n F"]:
    rows = prepared.rows[places]
    parts = [
        bundle.image_features(prepared.pixels[rows[start : start + IMAGES]]).double().cpu().numpy()
        for start in range(0, len(rows), IMAGES)
    ]
    return np.concatenate(parts)


def _standardised(
    train: LabelledFeatures, test: LabelledFeatures
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Both with mean 0 and deviation 1 over the training images; a constant feature becomes 0."""
    mean, deviation = train.features.mean(0), train.features.std(0)
    scale = np.where(deviation > 1e-12, deviation, np.inf)
    first, second = (
        replace(split, features=(split.features - mean) / scale) for split in (train, test)
    )
    return first, second


def _counts(
    train: Mapping[str, Int8[np.ndarray, " _"]],
    test: Mapping[str, Int8[np.ndarray, " _"]],
    name: str,
) -> dict[str, int]:
    """Positive and negative rows of a class in both splits."""
    return {
        f"{split}_{kind}": count
        for split, labels in (("training", train), ("test", test))
        for kind, count in label_counts(labels, name).items()
    }


def _both(labels: Int8[np.ndarray, " _"]) -> bool:
    """Whether there is a positive and a negative row."""
    return bool((labels == 1).any() and (labels == 0).any())
