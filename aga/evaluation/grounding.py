"""Grounding: do the words of a finding look at the place where the finding is.

For each mention of a finding whose box is known, the heat is the mean of the rows of the
objective's `token_to_patch` that belong to the mention's words: all words of the clause that states
it, or (`word_...`) only those that name the finding. For images with lung boxes the words `left`
and `right` are mentions of that lung. `aga.evaluation.heat` defines the scores.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from aga.bundle import Bundle
from aga.config import Config
from aga.data.pixels.images import prepared_box
from aga.data.schema import NO_REPORT
from aga.data.tokenizing.tokenizer import encode
from aga.errors import CheckpointError
from aga.evaluation import heat as heats
from aga.evaluation.bootstrap import (
    BootstrapConfig,
    Statistic,
    replicates,
    summarise,
    weighted_ratio,
)
from aga.evaluation.embedded import EmbeddedSplit, PreparedSplit
from aga.evaluation.metrics import Metric, Metrics
from aga.evaluation.vocabulary import Vocabulary, load_vocabulary
from aga.places import Word, content_words, image_config, patch_centres, words_in

TASK = "grounding"
PAIRS = 32  # pairs whose maps are held at once
logger = logging.getLogger(__name__)


class GroundingConfig(Config):
    """Settings of grounding.

    Attributes:
        words: Which words name a finding or a side: a file of `aga/evaluation/words`, without
            `.json`.
    """

    words: str


@dataclass(frozen=True)
class Score:
    """One number of one mention, and what chance gives it."""

    place: int
    metric: str
    finding: str
    value: float
    chance: float


@dataclass
class _Image:
    """What is known of one pair: its words, and the patches of each of its boxes."""

    place: int
    report: str
    words: tuple[Word, ...]
    token_to_patch: Float[np.ndarray, "L P"]
    regions: list[dict[str, Any]]
    inside: list[Bool[np.ndarray, "P"]]
    omitted: Counter[str] = field(default_factory=Counter)

    def heat(self, spans: Sequence[tuple[int, int]]) -> Float[np.ndarray, "P"] | None:
        """Mean map of the words in these spans of the raw report; None where there are none."""
        chosen = np.zeros(len(self.words), bool)
        for start, end in spans:
            chosen |= words_in(self.words, start, end)
        return self.token_to_patch[chosen].mean(0) if chosen.any() else None


def evaluate(
    bundle: Bundle,
    prepared: PreparedSplit,
    dataset: EmbeddedSplit,
    config: GroundingConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> Metrics:
    """Score the maps of all mentions.

    Names: `grounding/<score>` is the mean over mentions, `grounding/<score>/<finding>` over those
    of one finding. Scores are `pointing_game`, `miou` and `cnr` of the clause, the same with
    `word_` of the word itself, and `side_accuracy` and `side_mass` of the words left and right.
    What cannot be scored is counted by reason in the provenance; a source without regions has no
    metric, and a log line says so.

    Raises:
        ParamsError: There is no such vocabulary.
        CheckpointError: A map is not finite.
    """
    vocabulary = load_vocabulary(config.words)
    scores: list[Score] = []
    omitted: Counter[str] = Counter()
    for image in _images(bundle, prepared):
        scores += _finding_scores(image, vocabulary)
        scores += _side_scores(image, vocabulary)
        omitted += image.omitted
    provenance = {
        **dataset.provenance,
        "words_version": vocabulary.version,
        "words_sha256": vocabulary.sha256,
        "omitted": dict(sorted(omitted.items())),
    }
    if not scores:
        reason = "no pair of the split has a place that its words name"
        logger.info("grounding is left out: %s", reason)
        return Metrics(TASK, {}, provenance | {"left_out": reason})
    return Metrics(TASK, _metrics(scores, dataset.patients, bootstrap, seed), provenance)


def _images(bundle: Bundle, prepared: PreparedSplit) -> Iterator[_Image]:
    """The pairs of the split that have regions and a report, with their maps."""
    known = zip(*(prepared.table[name].to_pylist() for name in ("regions", "section")), strict=True)
    places = np.array(
        [at for at, (regions, section) in enumerate(known) if regions and section != NO_REPORT],
        np.int64,
    )
    max_tokens = bundle.model.architecture.max_tokens
    config, centres = image_config(bundle), patch_centres(bundle)
    for start in range(0, len(places), PAIRS):
        chunk = places[start : start + PAIRS]
        records = prepared.records(chunk)
        maps = _token_to_patch(bundle, prepared, chunk)
        encoded = encode(bundle.tokenizer, [record["text"] for record in records], max_tokens)
        for place, record, tokens, rows in zip(chunk, records, encoded, maps, strict=True):
            size = (record["height"], record["width"])
            boxes = [prepared_box(tuple(r["box"]), size, config) for r in record["regions"]]
            yield _Image(
                place=int(place),
                report=record["report"],
                words=content_words(record, tokens),
                token_to_patch=rows[: len(tokens.content)][np.array(tokens.content, bool)],
                regions=record["regions"],
                inside=[
                    heats.patches_inside(box, centres, (config.size, config.size)) for box in boxes
                ],
            )


@torch.no_grad()
def _token_to_patch(
    bundle: Bundle, prepared: PreparedSplit, places: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, "n L P"]:
    maps = bundle.objective.maps(prepared.pairs(bundle, places)).token_to_patch
    if not maps.isfinite().all():
        raise CheckpointError(
            "The maps of tokens and patches hold numbers that are not finite",
            where=f"bundle {bundle.sha256}",
            fix="train again with a lower learning rate, or in fp32",
        )
    found: Float[np.ndarray, "n L P"] = maps.double().cpu().numpy()
    return found


def _finding_scores(image: _Image, vocabulary: Vocabulary) -> Iterator[Score]:
    """The scores of every mention: of its clause, and of the word itself."""
    for region, inside in zip(image.regions, image.inside, strict=True):
        if region["span"] is None:
            continue
        finding, (start, end) = region["finding"], region["span"]
        named = vocabulary.finding_spans(finding, image.report[start:end])
        spans = {"": [(start, end)], "word_": [(start + a, start + b) for a, b in named]}
        for prefix, chosen in spans.items():
            heat = image.heat(chosen)
            if heat is None or not inside.any():
                reason = "words_not_read" if heat is None else "box_outside"
                image.omitted[f"{prefix or 'clause_'}{reason}"] += 1
                continue
            share = float(inside.mean())
            for metric, value, chance in (
                ("pointing_game", heats.pointing_game(heat, inside), share),
                ("miou", heats.area_matched_iou(heat, inside), heats.chance_iou(inside)),
                ("cnr", heats.contrast_to_noise(heat, inside), 0.0),
            ):
                yield Score(image.place, prefix + metric, finding, value, chance)


def _side_scores(image: _Image, vocabulary: Vocabulary) -> Iterator[Score]:
    """The scores of each word that names a side, where both lungs have a box."""
    patches = {
        region["finding"]: inside
        for region, inside in zip(image.regions, image.inside, strict=True)
        if region["finding"] in vocabulary.sides and inside.any()
    }
    if len(patches) < 2:
        return
    for name, other in zip(patches, reversed(patches), strict=True):
        own = patches[name]
        for span in vocabulary.side_spans(name, image.report):
            heat = image.heat([span])
            if heat is None:
                image.omitted["side_words_not_read"] += 1
                continue
            accuracy = heats.stronger_side(heat, own, patches[other])
            yield Score(image.place, "side_accuracy", name, accuracy, 0.5)
            mass = heats.mass_inside(heat, own)
            yield Score(image.place, "side_mass", name, mass, float(own.mean()))


def _metrics(
    scores: Sequence[Score],
    patients: Int64[np.ndarray, "N"],
    bootstrap: BootstrapConfig,
    seed: int,
) -> dict[str, Metric]:
    """Every metric with its interval, resampled together."""
    values = np.array([score.value for score in scores])
    chances = np.array([score.chance for score in scores])
    _, patient = np.unique(patients[[score.place for score in scores]], return_inverse=True)
    chosen = _subsets(scores)
    # Resamples weigh patients, so the sums over each one's mentions are all they need.
    statistics: list[Statistic] = [
        weighted_ratio(
            np.bincount(patient, np.where(rows, values, 0.0)).astype(np.float64),
            np.bincount(patient, rows).astype(np.float64),
        )
        for rows in chosen.values()
    ]
    drawn = replicates(statistics, np.arange(patient.max() + 1), bootstrap, seed)
    return {
        f"{TASK}/{name}": Metric.of(
            summarise(drawn[:, column], bootstrap), float(chances[rows].mean()), int(rows.sum())
        )
        for column, (name, rows) in enumerate(chosen.items())
    }


def _subsets(scores: Sequence[Score]) -> Mapping[str, Bool[np.ndarray, " scores"]]:
    """Which scores each metric is the mean of: all of its kind, then those of each finding."""
    metrics = np.array([score.metric for score in scores])
    findings = np.array([score.finding for score in scores])
    chosen = {}
    for metric in dict.fromkeys(metrics.tolist()):
        of_metric = metrics == metric
        chosen[metric] = of_metric
        for finding in sorted(set(findings[of_metric].tolist())):
            chosen[f"{metric}/{finding.replace(' ', '_')}"] = of_metric & (findings == finding)
    return chosen
