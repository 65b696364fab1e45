"""Re-ranking: the blend, the order it makes, and scores of combinations made block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.evaluation import rerank
from aga.evaluation.bootstrap import BootstrapConfig
from aga.evaluation.embedded import EmbeddedSplit, PreparedSplit, embed_split
from aga.evaluation.rerank import LocalScores, RerankConfig, local_scores, reranked_positions
from aga.evaluation.retrieval import RetrievalConfig, evaluate
from aga.ranking import retrieval_positions
from aga.tensors import normalize


def split_of(images: torch.Tensor, texts: torch.Tensor, keys: torch.Tensor) -> EmbeddedSplit:
    return EmbeddedSplit(
        images=normalize(images),
        texts=normalize(texts),
        keys=keys,
        patients=np.arange(len(keys)),
        labels={},
        provenance={"gallery_sha256": "ab"},
    )


def table(scores: np.ndarray) -> LocalScores:
    """Local scores from a table of images by texts."""
    return lambda images, texts: scores[images, texts].astype(np.float64)


def random_split(seed: int, count: int, distinct: int) -> tuple[EmbeddedSplit, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    # Cosines of these are quarters and tie, without any rounding.
    directions = torch.cat([torch.eye(4), torch.cartesian_prod(*[torch.tensor([0.5, -0.5])] * 4)])
    images, texts = directions[torch.randint(0, 20, (2, count), generator=generator)]
    keys = torch.randint(0, distinct, (count,), generator=generator)
    local = torch.randint(0, 4, (count, count), generator=generator).numpy() / 4
    return split_of(images, texts, keys), local


def by_hand(
    dataset: EmbeddedSplit, config: RerankConfig, local: np.ndarray, t2i: bool
) -> list[int]:
    """Positions with loops: wrong before right where scores are equal, both times."""
    queries, gallery = (dataset.texts, dataset.images) if t2i else (dataset.images, dataset.texts)
    cosines = (queries @ gallery.T).numpy()
    keys = dataset.keys.tolist()
    found = []
    for query, key in enumerate(keys):
        right = [other == key for other in keys]
        order = sorted(range(len(keys)), key=lambda i: (-cosines[query, i], right[i]))
        first, rest = order[: config.top], order[config.top :]

        def blend(item: int, query: int = query) -> float:
            image, text = (item, query) if t2i else (query, item)
            cosine = float(cosines[query, item])
            return (1 - config.weight) * cosine + config.weight * local[image, text]

        again = sorted(first, key=lambda i: (-blend(i), right[i]))
        found.append(1 + [right[i] for i in [*again, *rest]].index(True))
    return found


@given(
    seed=st.integers(0, 9999),
    count=st.integers(1, 12),
    distinct=st.integers(1, 12),
    top=st.integers(1, 15),
    weight=st.sampled_from([0.0, 0.25, 1.0]),
    chunk=st.integers(1, 13),
)
def test_positions_are_those_of_sorted_lists(
    seed: int, count: int, distinct: int, top: int, weight: float, chunk: int
) -> None:
    dataset, local = random_split(seed, count, distinct)
    config = RerankConfig(top=top, weight=weight)
    found = reranked_positions(dataset, config, table(local), chunk)
    assert found["text_to_image"].tolist() == by_hand(dataset, config, local, True)
    assert found["image_to_text"].tolist() == by_hand(dataset, config, local, False)


@given(seed=st.integers(0, 9999), top=st.integers(1, 15))
def test_no_weight_changes_nothing(seed: int, top: int) -> None:
    dataset, local = random_split(seed, 10, 6)
    found = reranked_positions(dataset, RerankConfig(top=top, weight=0.0), table(local), 4)
    expected = retrieval_positions(
        dataset.texts, dataset.images, dataset.keys, 4, duplicate_aware=True
    )
    assert found["text_to_image"].tolist() == expected.tolist()


def test_a_perfect_local_score_puts_what_is_right_and_near_first() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 40, 4, generator=generator)
    dataset = split_of(images, texts, torch.arange(40))
    config = RetrievalConfig(ranks=(1, 5, 10), chunk=16, rerank=RerankConfig(top=10, weight=1.0))
    bootstrap = BootstrapConfig(samples=20, confidence=0.9)
    result = evaluate(dataset, config, bootstrap, seed=0, local=table(np.eye(40)))
    values = result.values
    for direction in ("text_to_image", "image_to_text"):
        before = values[f"retrieval/{direction}/recall_at_10"]
        after = values[f"retrieval/rerank/{direction}/recall_at_1"]
        assert after.value == before.value, "all that was among the first ten is first now"
        assert after.chance == values[f"retrieval/{direction}/recall_at_1"].chance
    assert values["retrieval/rerank/mean_recall_at_1"].value == pytest.approx(
        values["retrieval/mean_recall_at_10"].value
    )
    assert result.provenance["rerank_top"] == 10
    without = evaluate(
        dataset,
        config.model_copy(update={"rerank": None}),
        bootstrap,
        seed=0,
        local=table(np.eye(40)),
    )
    assert without.values == {n: m for n, m in values.items() if "/rerank/" not in n}
    with pytest.raises(ValueError, match="local scores"):
        evaluate(dataset, config, bootstrap, seed=0)


def test_a_local_score_that_is_no_number_wins_nothing() -> None:
    dataset = split_of(torch.eye(3), torch.eye(3), torch.arange(3))
    config = RerankConfig(top=3, weight=0.5)
    found = reranked_positions(dataset, config, table(np.full((3, 3), np.nan)), 3)
    assert found["text_to_image"].tolist() == [3, 3, 3]


def test_weights_are_shares() -> None:
    for wrong in ({"top": 0}, {"weight": 1.5}, {"weight": -0.1}):
        with pytest.raises(ValidationError):
            RerankConfig.model_validate({"top": 5, "weight": 0.5} | wrong)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> StudyDataset:
    rows = [row | {"split": "test"} for row in phantom_rows(7)]
    return write_studies(tmp_path_factory.mktemp("data") / "studies", rows, size=32)


@pytest.mark.parametrize("objective", ["aga", "clip", "mgca"])
def test_a_combination_scores_as_if_it_were_a_pair(
    studies: StudyDataset,
    tmp_path: Path,
    objective: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of three images and reports, and two combinations at a time, change nothing."""
    bundle: Bundle = write_bundle(tmp_path / "bundle", studies, objective=objective)
    monkeypatch.setattr(rerank, "BLOCK", 3)
    monkeypatch.setattr(rerank, "PAIRS", 2)
    images = np.array([0, 6, 3, 2, 2, 5])
    texts = np.array([0, 1, 3, 6, 4, 0])
    prepared = PreparedSplit.open(studies, "test", tmp_path)
    found = local_scores(bundle, prepared)(images, texts)
    pixels = studies.images(tmp_path)
    words = studies.column("text").to_pylist()
    for image, text, score in zip(images, texts, found, strict=True):
        pair = bundle.embed_pairs(np.array(pixels[image : image + 1]), [words[text]])
        expected = bundle.objective.local_scores(pair).item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_only_candidates_are_scored(studies: StudyDataset, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", studies)
    dataset = embed_split(bundle, studies, "test", tmp_path, 4)
    asked = []

    def counted(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        asked.extend(zip(images.tolist(), texts.tolist(), strict=True))
        return np.zeros(len(images))

    reranked_positions(dataset, RerankConfig(top=2, weight=0.5), counted, 4)
    assert len(asked) == len(set(asked)) <= 2 * 2 * len(dataset)
