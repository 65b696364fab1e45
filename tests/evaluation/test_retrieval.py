"""Retrieval metrics of known embeddings, their names, chance and intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from aga.evaluation.bootstrap import BootstrapConfig
from aga.evaluation.embedded import EmbeddedSplit
from aga.evaluation.metrics import Metrics
from aga.evaluation.retrieval import RetrievalConfig, chance_median_rank, evaluate
from aga.tensors import normalize

BOOTSTRAP = BootstrapConfig(samples=200, confidence=0.95)
CONFIG = RetrievalConfig(ranks=(1, 5, 10), chunk=7, rerank=None)


def split_of(images: torch.Tensor, texts: torch.Tensor, keys: torch.Tensor) -> EmbeddedSplit:
    return EmbeddedSplit(
        images=normalize(images),
        texts=normalize(texts),
        keys=keys,
        patients=np.arange(len(keys)) // 2,
        labels={},
        provenance={"rows": len(keys)},
    )


def measure(images: torch.Tensor, texts: torch.Tensor, keys: torch.Tensor) -> Metrics:
    return evaluate(split_of(images, texts, keys), CONFIG, BOOTSTRAP, seed=0)


def test_every_metric_is_named_and_measured_beside_chance() -> None:
    vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    values = measure(vectors, vectors, torch.arange(40)).values
    names = ["recall_at_1", "recall_at_5", "recall_at_10", "median_rank"]
    expected = {f"retrieval/mean_recall_at_{k}" for k in (1, 5, 10)} | {
        f"retrieval/{direction}/{name}{suffix}"
        for direction in ("text_to_image", "image_to_text")
        for name in names
        for suffix in ("", "_exact")
    }
    assert set(values) == expected
    for name, metric in values.items():
        assert metric.value == metric.low == metric.high == 1.0, name
        assert metric.n == 40
    assert values["retrieval/mean_recall_at_10"].chance == pytest.approx(0.25)
    assert values["retrieval/image_to_text/median_rank"].chance == 20.0


def test_directions_and_duplicates_are_told_apart() -> None:
    """Two equal texts of each key; the second of its two images lies a little off."""
    keys = torch.arange(10).repeat_interleave(2)
    texts = torch.eye(10).repeat_interleave(2, 0)
    images = texts.clone()
    images[1::2] += 0.1 * texts[1::2].roll(1, 1)
    values = measure(images, texts, keys).values
    assert values["retrieval/text_to_image/recall_at_1"].value == 1.0
    assert values["retrieval/image_to_text/recall_at_1"].value == 1.0
    assert values["retrieval/mean_recall_at_1"].value == 1.0
    # Two texts are equal, and a tie is a miss for the exact metric: no image finds its own. Both
    # texts find the image that does not lie off, which is the first one's.
    assert values["retrieval/image_to_text/recall_at_1_exact"].value == 0.0
    assert values["retrieval/text_to_image/recall_at_1_exact"].value == 0.5
    assert values["retrieval/image_to_text/median_rank_exact"].value == 2.0
    exact, aware = (
        values[f"retrieval/image_to_text/recall_at_1{suffix}"].chance for suffix in ("_exact", "")
    )
    assert aware == pytest.approx(2 * exact)


def test_a_model_that_knows_nothing_scores_chance_within_its_interval() -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(2, 300, 16, generator=generator)
    keys = torch.randint(0, 100, (300,), generator=generator)
    metric = measure(images, texts, keys).values["retrieval/mean_recall_at_10"]
    assert metric.low is not None and metric.high is not None
    assert metric.low < metric.chance < metric.high
    assert 0 < metric.high - metric.low < 0.15


def test_the_median_rank_by_chance_is_that_of_random_orders() -> None:
    keys = torch.tensor([0] * 6 + list(range(1, 25)))
    generator = np.random.default_rng(0)
    ranks = []
    for _ in range(600):
        order = generator.permutation(30)
        ranked = keys.numpy()[order]
        ranks += [int(np.argmax(ranked == key)) + 1 for key in keys.tolist()]
    assert abs(np.median(ranks) - chance_median_rank(keys, duplicate_aware=True)) <= 1
    assert chance_median_rank(keys, duplicate_aware=False) == 15.0


def test_the_settings_refuse_what_cannot_be_measured() -> None:
    for wrong in ({"ranks": []}, {"ranks": [0]}, {"chunk": 0}):
        with pytest.raises(ValidationError):
            RetrievalConfig(**{"ranks": [1], "chunk": 1, "rerank": None, **wrong})
