"""Grounding of maps that are known: perfect, flat, transposed, and pointing to sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.bundles import write_bundle
from fixtures.studies import write_studies
from jaxtyping import Float
from torch import Tensor

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.errors import CheckpointError
from aga.evaluation.bootstrap import BootstrapConfig
from aga.evaluation.embedded import PreparedSplit, embed_split
from aga.evaluation.grounding import GroundingConfig, evaluate
from aga.evaluation.metrics import Metrics
from aga.objectives.base import AlignmentMaps, LossTerms, Objective
from aga.pairs import PairEmbeddings
from aga.places import patch_grid

BOOTSTRAP = BootstrapConfig(samples=50, confidence=0.9)
SIZE = 64  # pixels; prepared from originals of twice the size
REPORT = "FINDINGS: There is a nodule in the left zone.  No effusion."
TEXT = "There is a nodule in the left zone. No effusion."
CLAUSE = (REPORT.index("There"), REPORT.index("zone") + 4)
OFFSETS = [*range(CLAUSE[0], CLAUSE[1] + 1), *range(CLAUSE[1] + 2, len(REPORT))]
# The top right quarter, reaching down to the middle, in original pixels.
BOX = (SIZE * 1.5, 0.0, SIZE * 2.0, SIZE * 1.0)


def region(finding: str, box: tuple[float, ...], span: tuple[int, int] | None) -> dict:
    return {"finding": finding, "box": list(box), "span": span and list(span)}


def row(*regions: dict, patient: str = "p", text: str = TEXT) -> dict[str, object]:
    whole = {"report": REPORT, "text_offsets": OFFSETS} if text == TEXT else {}
    return {
        "text": text,
        "split": "test",
        "patient_id": patient,
        "regions": list(regions),
        "height": 2 * SIZE,
        "width": 2 * SIZE,
        **whole,
    }


class Known(Objective):
    """Maps that a function of the pairs gives."""

    crosses_pairs = False

    def __init__(self, heat: Callable[[PairEmbeddings], Tensor]) -> None:
        super().__init__()
        self.heat = heat

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        raise NotImplementedError

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        rows: Float[Tensor, "B L P"] = self.heat(pairs).masked_fill(
            ~pairs.content_mask[..., None], 0
        )
        return AlignmentMaps(rows, rows.transpose(1, 2), "attention")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> StudyDataset:
    assert "".join(REPORT[i] for i in OFFSETS) == TEXT
    rows = [
        row(region("nodule", BOX, CLAUSE), region("nodule", BOX, CLAUSE), patient="a"),
        row(region("nodule", BOX, CLAUSE), patient="b"),
        row(patient="c"),
        row(region("nodule", BOX, None), patient="c"),
    ]
    return write_studies(tmp_path_factory.mktemp("data") / "studies", rows, size=SIZE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, studies: StudyDataset) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("models") / "bundle", studies)


def measure(
    bundle: Bundle,
    studies: StudyDataset,
    cache: Path,
    heat: Callable[[PairEmbeddings], Tensor],
    words: str = "phantom-v1",
) -> Metrics:
    known = replace(bundle, objective=Known(heat))
    prepared = PreparedSplit.open(studies, "test", cache)
    dataset = embed_split(known, studies, "test", cache, 4)
    return evaluate(known, prepared, dataset, GroundingConfig(words=words), BOOTSTRAP, seed=0)


def box_map(bundle: Bundle, box: tuple[float, ...]) -> Tensor:
    """1 at the patches whose centres a box in original pixels holds, row-major."""
    rows, columns = patch_grid(bundle)
    found = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            y, x = (i + 0.5) * 2 * SIZE / rows, (j + 0.5) * 2 * SIZE / columns
            found[i, j] = float(box[0] <= x < box[2] and box[1] <= y < box[3])
    return found.reshape(-1)


def everywhere(heat: Tensor) -> Callable[[PairEmbeddings], Tensor]:
    return lambda pairs: heat.expand(len(pairs), pairs.tokens.shape[1], -1)


def test_a_perfect_map_scores_one_with_chance_beside_it(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    perfect = box_map(bundle, BOX)
    result = measure(bundle, studies, tmp_path, everywhere(perfect))
    share = float(perfect.mean())
    assert share == 0.125
    for name in ("pointing_game", "word_pointing_game", "miou", "word_miou"):
        for suffix in ("", "/nodule"):
            metric = result.values[f"grounding/{name}{suffix}"]
            assert (metric.value, metric.low, metric.high, metric.n) == (1, 1, 1, 3), name
            assert metric.chance < 0.13
    assert result.values["grounding/pointing_game"].chance == pytest.approx(share)
    assert result.values["grounding/cnr"].value == 10
    assert result.values["grounding/cnr"].chance == 0
    assert "grounding/side_accuracy" not in result.values
    assert result.provenance["omitted"] == {}
    assert result.provenance["words_version"] == "phantom-v1"


def test_a_flat_map_scores_chance(bundle: Bundle, studies: StudyDataset, tmp_path: Path) -> None:
    rows, columns = patch_grid(bundle)
    for level in (0.0, 1 / (rows * columns)):
        flat = torch.full((rows * columns,), level)
        for metric in measure(bundle, studies, tmp_path, everywhere(flat)).values.values():
            assert metric.value == pytest.approx(metric.chance)


def test_a_transposed_grid_is_caught(bundle: Bundle, studies: StudyDataset, tmp_path: Path) -> None:
    rows, columns = patch_grid(bundle)
    wrong = box_map(bundle, BOX).reshape(rows, columns).T.reshape(-1)
    values = measure(bundle, studies, tmp_path, everywhere(wrong)).values
    assert values["grounding/pointing_game"].value == 0
    assert values["grounding/miou"].value == 0


def test_the_word_itself_is_told_from_its_clause(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    """Tokens of `nodule` look at the box, all others away from it, padding and the rest too."""
    perfect = box_map(bundle, BOX)
    (nodule,) = (bundle.tokenizer.encode("nodule", add_special_tokens=False),)
    assert len(nodule) == 1, "the fixture's tokenizer knows the word"

    def heat(pairs: PairEmbeddings) -> Tensor:
        named = (pairs.token_ids == nodule[0])[..., None]
        return torch.where(named, perfect, 1 - perfect)

    values = measure(bundle, studies, tmp_path, heat).values
    assert values["grounding/word_pointing_game"].value == 1
    assert values["grounding/word_miou"].value == 1
    assert values["grounding/pointing_game"].value == 0


def test_what_cannot_be_scored_is_counted(bundle: Bundle, tmp_path: Path) -> None:
    long = "clear " * 60 + "nodule here."
    rows = [
        row(region("nodule", (-50, 0, -10, 40), CLAUSE)),
        row(region("effusion", BOX, CLAUSE)),
        row(region("nodule", BOX, (360, 366)), text=long),
    ]
    studies = write_studies(tmp_path / "studies", rows, size=SIZE)
    result = measure(bundle, studies, tmp_path, everywhere(box_map(bundle, BOX)))
    assert result.provenance["omitted"] == {
        "clause_box_outside": 1,
        "clause_words_not_read": 1,
        "word_box_outside": 1,
        "word_words_not_read": 2,
    }
    assert result.values["grounding/pointing_game"].n == 1
    assert "grounding/word_pointing_game" not in result.values


def test_a_source_without_regions_leaves_the_task_out(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studies = write_studies(tmp_path / "studies", [row(), row()], size=SIZE)
    caplog.set_level("INFO")
    result = measure(bundle, studies, tmp_path, everywhere(box_map(bundle, BOX)))
    assert result.values == {}
    assert "no pair" in str(result.provenance["left_out"])
    assert "grounding is left out" in caplog.text
    assert result.measured_on


def test_sides_are_judged_by_the_lungs_boxes(bundle: Bundle, tmp_path: Path) -> None:
    right, left = (0.0, 0.0, SIZE * 1.0, SIZE * 2.0), (SIZE * 1.0, 0.0, SIZE * 2.0, SIZE * 2.0)
    lungs = [region("right lung", right, None), region("left lung", left, None)]
    rows = [
        row(*lungs, patient="a", text="Opacity of the left lung and the right lung."),
        row(*lungs, patient="b", text="Left lower lobe."),
        row(lungs[0], patient="c", text="Left lower lobe."),
        row(*lungs, patient="d", text="She left the ward."),
    ]
    studies = write_studies(tmp_path / "studies", rows, size=SIZE)
    on_the_left = everywhere(box_map(bundle, left))
    values = measure(bundle, studies, tmp_path, on_the_left, words="covid-v1").values
    accuracy, mass = values["grounding/side_accuracy"], values["grounding/side_mass"]
    assert (accuracy.value, accuracy.chance, accuracy.n) == (pytest.approx(2 / 3), 0.5, 3)
    assert (mass.value, mass.chance) == (pytest.approx(2 / 3), 0.5)
    assert values["grounding/side_accuracy/left_lung"].value == 1
    assert values["grounding/side_accuracy/right_lung"].value == 0
    rows_, columns = patch_grid(bundle)
    flat = everywhere(torch.ones(rows_ * columns))
    for metric in measure(bundle, studies, tmp_path, flat, words="covid-v1").values.values():
        assert metric.value == pytest.approx(metric.chance) == 0.5


def test_every_mention_counts_once_and_patients_are_resampled(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    """Patient a has two mentions, b one; the map is right for a's image only."""
    perfect = box_map(bundle, BOX)

    def heat(pairs: PairEmbeddings) -> Tensor:
        right = torch.arange(len(pairs)) == 0
        maps = torch.where(right[:, None], perfect, 1 - perfect)
        return maps[:, None].expand(-1, pairs.tokens.shape[1], -1)

    metric = measure(bundle, studies, tmp_path, heat).values["grounding/pointing_game"]
    assert metric.value == pytest.approx(2 / 3)
    assert (metric.low, metric.high) == (0, 1), "resamples of a alone and of b alone"


def test_maps_that_are_not_finite_are_refused(
    bundle: Bundle, studies: StudyDataset, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        measure(bundle, studies, tmp_path, everywhere(box_map(bundle, BOX) * np.nan))
