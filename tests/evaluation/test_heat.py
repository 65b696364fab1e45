"""Scores of heat maps: counted by hand, equal to chance on a flat map, 1 on a perfect one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aga.evaluation.heat import (
    MOST_CONTRAST,
    area_matched_iou,
    chance_iou,
    contrast_to_noise,
    mass_inside,
    patches_inside,
    pointing_game,
    stronger_side,
)

SIZE = (30, 80)
CENTRES = (np.array([5.0, 15, 25]), np.array([10.0, 30, 50, 70]))  # patches of 10 x 20 pixels

masks = st.lists(st.booleans(), min_size=2, max_size=12).map(np.array).filter(lambda m: m.any())


def inside_of(left: float, top: float, right: float, bottom: float) -> list[int]:
    return np.flatnonzero(patches_inside((left, top, right, bottom), CENTRES, SIZE)).tolist()


def test_a_box_has_the_patches_whose_centres_it_holds() -> None:
    """Centres: rows at 5, 15, 25; columns at 10, 30, 50, 70."""
    assert inside_of(0, 0, 80, 30) == list(range(12))
    assert inside_of(25, 0, 55, 9) == [1, 2]
    assert inside_of(25, 0, 55, 16) == [1, 2, 5, 6]
    assert inside_of(10, 5, 30, 15) == [0], "left and top belong to the box, right and bottom not"
    assert inside_of(60, 20, 90, 40) == [11], "a box may reach beyond the image"


def test_a_box_between_centres_has_the_patch_around_it() -> None:
    assert inside_of(62, 21, 66, 24) == [11]
    assert inside_of(0, 0, 1, 1) == [0]
    assert inside_of(85, 0, 95, 5) == []


def test_rows_and_columns_are_not_confused() -> None:
    """A tall box at the right of a square grid: the transposed map misses it."""
    centres = np.array([5.0, 15, 25, 35])
    inside = patches_inside((30, 0, 40, 40), (centres, centres), (40, 40))
    heat = inside.astype(float)
    transposed = heat.reshape(4, 4).T.reshape(-1)
    assert (pointing_game(heat, inside), area_matched_iou(heat, inside)) == (1, 1)
    assert pointing_game(transposed, inside) == 0.25
    assert area_matched_iou(transposed, inside) == pytest.approx(1 / 7)


def test_scores_counted_by_hand() -> None:
    heat = np.array([0.5, 0.1, 0.4, 0.3])
    inside = np.array([False, False, True, True])
    assert pointing_game(heat, inside) == 0
    # The two strongest are 0 and 2: one of three patches is in both.
    assert area_matched_iou(heat, inside) == pytest.approx(1 / 3)
    # Means 0.35 and 0.3, variances 0.0025 and 0.04.
    assert contrast_to_noise(heat, inside) == pytest.approx(0.05 / np.sqrt(0.0425))
    assert mass_inside(heat, inside) == pytest.approx(0.7 / 1.3)
    assert stronger_side(heat, inside, ~inside) == 1
    assert stronger_side(heat, ~inside, inside) == 0


def test_ties_are_shared_out() -> None:
    heat = np.array([1.0, 1.0, 1.0, 0.0])
    inside = np.array([True, False, False, True])
    assert pointing_game(heat, inside) == pytest.approx(1 / 3)
    # Two of the three strongest: {0,1} and {0,2} share one patch with the box, {1,2} none.
    assert area_matched_iou(heat, inside) == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)


@given(inside=masks)
def test_a_perfect_map_scores_one(inside: np.ndarray) -> None:
    heat = inside.astype(float)
    assert pointing_game(heat, inside) == area_matched_iou(heat, inside) == 1
    assert mass_inside(heat, inside) == 1
    assert contrast_to_noise(heat, inside) == (0 if inside.all() else MOST_CONTRAST)
    assert contrast_to_noise(1 - heat, inside) == (0 if inside.all() else -MOST_CONTRAST)


@given(inside=masks, level=st.floats(0, 10))
def test_a_flat_map_scores_chance(inside: np.ndarray, level: float) -> None:
    # A tenth of a sixth digit is what sums of equal weights differ by.
    heat = level * (1 + 1e-7 * np.arange(len(inside)) / len(inside))
    assert pointing_game(heat, inside) == pytest.approx(inside.mean())
    assert area_matched_iou(heat, inside) == pytest.approx(chance_iou(inside))
    assert contrast_to_noise(heat, inside) == 0
    assert mass_inside(heat, inside) == pytest.approx(inside.mean(), abs=1e-6)
    assert stronger_side(heat, inside, ~inside if not inside.all() else inside) == 0.5


@given(inside=masks, seed=st.integers(0, 99))
def test_chance_is_the_mean_over_all_orders_of_a_map(inside: np.ndarray, seed: int) -> None:
    inside = inside[:6]
    if not inside.any():
        return
    heat = np.random.default_rng(seed).permutation(len(inside)).astype(float)
    orders = [np.array(order) for order in itertools.permutations(heat)]
    points = np.mean([pointing_game(order, inside) for order in orders])
    assert points == pytest.approx(inside.mean())
    overlaps = np.mean([area_matched_iou(order, inside) for order in orders])
    assert overlaps == pytest.approx(chance_iou(inside))


@given(inside=masks, seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_no_score_depends_on_the_scale_of_a_map(
    inside: np.ndarray, seed: int, factor: float
) -> None:
    heat = np.random.default_rng(seed).random(len(inside))
    for score in (pointing_game, area_matched_iou, contrast_to_noise, mass_inside):
        assert score(heat * factor, inside) == pytest.approx(score(heat, inside))
