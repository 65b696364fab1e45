"""Maps of words and patches: their places in the raw report and the original image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.bundles import write_bundle
from fixtures.studies import write_studies
from PIL import Image

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.errors import DataError
from aga.explain import Explanation, Word, explain, heat_map_png, image_config, sheet_png
from aga.objectives import AgaObjective
from aga.objectives.base import Method

RAW = "FINDINGS:\n  A nodule  in the left upper zone."
TEXT = "A nodule in the left upper zone."
OFFSETS = [RAW.index("A nodule") + i for i in range(8)]
OFFSETS += list(range(RAW.index(" in the"), len(RAW)))
ROWS = [
    {
        "text": TEXT,
        "report": RAW,
        "text_offsets": OFFSETS,
        "split": "test",
        "height": 200,
        "width": 100,
    },
    {"text": "No effusion.", "split": "test"},
]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> StudyDataset:
    assert "".join(RAW[i] for i in OFFSETS) == TEXT
    return write_studies(tmp_path_factory.mktemp("data") / "studies", ROWS, size=32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, studies: StudyDataset) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("models") / "bundle", studies)


@pytest.fixture(scope="module")
def found(
    bundle: Bundle, studies: StudyDataset, tmp_path_factory: pytest.TempPathFactory
) -> list[Explanation]:
    return explain(bundle, studies, tmp_path_factory.mktemp("cache"), [0, 1])


def explanation(
    report: str,
    words: tuple[Word, ...],
    token_to_patch: np.ndarray,
    patch_to_token: np.ndarray,
    method: Method = "groups",
) -> Explanation:
    """Of made-up weights on four patches."""
    return Explanation(
        row=0,
        report=report,
        image=np.zeros((4, 4, 1), np.uint8),
        original_size=(8, 8),
        fit="stretch",
        words=words,
        cut=0,
        grid=(2, 2),
        patch_boxes=((0.0, 0.0, 1.0, 1.0),) * 4,
        token_to_patch=token_to_patch,
        patch_to_token=patch_to_token,
        method=method,
        thresholds=None,
        global_score=0.5,
        local_score=0.25,
    )


def test_words_stand_where_the_raw_report_has_them(found: list[Explanation]) -> None:
    words = found[0].words
    assert "".join(RAW[word.start : word.end] for word in words).lower() == "".join(
        TEXT.lower().split()
    )
    assert all(word.text == RAW[word.start : word.end] for word in words)


def test_the_maps_are_the_groups_of_the_objective(
    bundle: Bundle, studies: StudyDataset, found: list[Explanation], tmp_path: Path
) -> None:
    objective = bundle.objective
    assert isinstance(objective, AgaObjective)
    for row, explanation in enumerate(found):
        text = studies.column("text").to_pylist()[row]
        pairs = bundle.embed_pairs(np.array(studies.images(tmp_path)[row : row + 1]), [text])
        groups = objective.groups(pairs)
        content = pairs.content_mask[0]
        expected = groups.token_to_patch[0, content].detach().numpy()
        np.testing.assert_allclose(explanation.token_to_patch, expected, atol=1e-5)
        back = groups.patch_to_token[0][:, content].detach().numpy()
        np.testing.assert_allclose(explanation.patch_to_token, back, atol=1e-5)
        np.testing.assert_allclose(explanation.token_to_patch.sum(1), 1, atol=1e-5)
        assert len(explanation.words) == int(content.sum())
        assert explanation.method == "groups"


def test_patches_lie_where_the_original_image_has_them(
    bundle: Bundle, found: list[Explanation]
) -> None:
    """A 200 x 100 image padded to a square of 32: it fills columns 8 to 24, at 6.25 a pixel.

    Each lies around the middle of what it sees.
    """
    explanation = found[0]
    down, across = (6.25 * shift for shift in bundle.model.image_encoder.patch_shift())
    assert down < 0
    assert across < 0
    rows, columns = explanation.grid
    assert len(explanation.patch_boxes) == rows * columns == explanation.token_to_patch.shape[1]
    assert explanation.patch_boxes[0] == pytest.approx(
        (-50.0 + across, down, -50.0 + across + 200 / columns, down + 200 / rows)
    )
    assert explanation.patch_boxes[-1][2:] == pytest.approx((150.0 + across, 200.0 + down))
    left, top, right, bottom = explanation.patch_boxes[columns + 1]
    assert (left, top) == pytest.approx((-50 + across + 200 / columns, down + 200 / rows))
    assert (right - left, bottom - top) == pytest.approx((200 / columns, 200 / rows))


def test_words_of_a_span_and_their_mean_map() -> None:
    words = tuple(Word(t, i, i + 3, i) for t, i in (("one", 0), ("two", 4), ("six", 8)))
    weights = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    found = explanation("one two six", words, weights, weights.T)
    assert found.words_in(3, 8).tolist() == [False, True, False]
    assert found.words_in(2, 5).tolist() == [True, True, False]
    heat = found.heat(found.words_in(0, 8))
    assert heat.tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize(("method", "back"), [("groups", 0.6), ("cosine", 0.3)])
def test_pieces_of_a_word_act_together_in_the_order_of_the_raw_report(
    method: Method, back: float
) -> None:
    """The text has the second line first, as where the impression comes before the findings."""
    words = (Word("six", 10, 13, 0), Word(" no", 0, 3, 1), Word("dule", 3, 7, 1))
    weights = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1.0]])
    patch_to_token = np.array([[0.2, 0.4, 0.2]] * 4)
    found = explanation(" nodule.\n\nsix", words, weights, patch_to_token, method)
    assert [(w.text, w.start, w.end, w.tokens) for w in found.whole_words] == [
        ("nodule", 1, 7, (1, 2)),
        ("six", 10, 13, (0,)),
    ]
    np.testing.assert_allclose(found.word_to_patch, [[0.25, 0.25, 0, 0.5], [1, 0, 0, 0]])
    np.testing.assert_allclose(found.patch_to_word[0], [back, 0.2])


def test_a_word_of_several_tokens_is_one_word(found: list[Explanation]) -> None:
    spelled = [word.text for word in found[0].whole_words]
    assert spelled == ["A", "nodule", "in", "the", "left", "upper", "zone", "."]
    assert len(found[0].words) > len(spelled), "no word has pieces: this proves nothing"
    tokens = [i for word in found[0].whole_words for i in word.tokens]
    assert sorted(tokens) == list(range(len(found[0].words)))
    np.testing.assert_allclose(found[0].word_to_patch.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found[0].patch_to_word.sum(1), 1, atol=1e-5)


def test_scores_and_thresholds_are_the_objectives(
    bundle: Bundle, studies: StudyDataset, found: list[Explanation], tmp_path: Path
) -> None:
    pairs = bundle.embed_pairs(np.array(studies.images(tmp_path)[:1]), [TEXT])
    groups = bundle.objective.groups(pairs)
    thresholds = found[0].thresholds
    assert thresholds is not None
    content = pairs.content_mask[0]
    expected = groups.token_thresholds[0, content].detach().numpy()
    np.testing.assert_allclose(thresholds.tokens, expected, atol=1e-5)
    np.testing.assert_allclose(thresholds.patches, groups.patch_thresholds[0].detach(), atol=1e-5)
    cosine = torch.cosine_similarity(pairs.image, pairs.text).item()
    assert found[0].global_score == pytest.approx(cosine, abs=1e-5)
    local = bundle.objective.local_scores(pairs).item()
    assert found[0].local_score == pytest.approx(local, abs=1e-5)


def test_tokens_that_the_model_did_not_read_are_counted(
    studies: StudyDataset, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", studies, max_tokens=4)
    (found,) = explain(bundle, studies, tmp_path, [0])
    assert len(found.words) == 2
    assert found.cut > 0


def test_a_row_that_is_not_there_is_named(bundle: Bundle, studies: StudyDataset) -> None:
    with pytest.raises(DataError, match=r"no such row(.|\n)*got: +2(.|\n)*0 to 1"):
        explain(bundle, studies, studies.folder, [2])


def test_an_objective_without_groups_gives_cosines_and_says_so(
    studies: StudyDataset, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", studies, objective="clip")
    found = explain(bundle, studies, tmp_path, [1])[0]
    assert found.method == "cosine"
    pixels = np.array(studies.images(tmp_path)[1:2])
    pairs = bundle.embed_pairs(pixels, ["No effusion."])
    token, patch = pairs.tokens[0, 1], pairs.patches[0, 2]
    cosine = torch.cosine_similarity(token, patch, dim=0).item()
    assert found.token_to_patch[0, 2] == pytest.approx(max(cosine, 0.0), abs=1e-5)
    assert found.patch_to_token[2, 0] == found.token_to_patch[0, 2]
    assert found.thresholds is None


def test_heat_maps_colour_the_chosen_patches_only() -> None:
    image = np.full((8, 8, 1), 100, np.uint8)
    heat = np.array([[0.0, 0.2], [0.0, 0.8]])
    picture = np.array(Image.open(io.BytesIO(heat_map_png(image, heat, zoom=3))))
    assert picture.shape == (24, 24, 3)
    assert (picture[:, :12] == 100).all(), "no weight, no colour"
    faint, strong = picture[2, 20], picture[20, 20]
    assert strong[0] > faint[0] > 100 > faint[2] > strong[2]
    blank = np.array(Image.open(io.BytesIO(heat_map_png(image, 0 * heat))))
    assert (blank == 100).all()


def test_a_known_place_is_outlined_at_its_pixels() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    png = heat_map_png(image, np.zeros((2, 2)), (2.0, 3.0, 6.0, 7.0), zoom=2)
    coloured = np.array(Image.open(io.BytesIO(png))).any(2)
    rows, columns = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    assert (columns.min(), columns.max()) == (4, 12)
    assert (rows.min(), rows.max()) == (6, 14)
    assert not coloured[10, 8]


def test_the_image_settings_are_those_of_the_transform(bundle: Bundle) -> None:
    config = image_config(bundle)
    assert (config.size, config.mode, config.fit) == (32, "grey", "pad")


def test_a_sheet_has_two_tiles_for_each_word_with_letters() -> None:
    words = tuple(Word(t, i, i + 1, i) for t, i in (("a", 0), ("b", 2), (".", 4)))
    weights = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0.0]])
    picture = Image.open(io.BytesIO(sheet_png(explanation("a b .", words, weights, weights.T))))
    pixels = np.array(picture.convert("RGB")).reshape(-1, 3).astype(int)
    orange = (pixels[:, 0] > pixels[:, 2] + 100).sum()
    blue = (pixels[:, 2] > pixels[:, 0] + 100).sum()
    assert orange == blue == 2 * 72 * 72, "a quarter of a tile for each of two words"
