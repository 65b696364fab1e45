"""How well a heat map points at a box: pure functions of the heat and of the patches inside.

Every number is one of a map's order or contrast, none of its scale, so that groups, attention and
cosines compare. Ties are shared out: a flat map scores what chance does, never by luck.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from aga.data.pixels.images import Box

TIE = 1e-5  # relative to the strongest patch: what rounding makes of equal weights
MOST_CONTRAST = 10.0


def patches_inside(
    box: Box,
    centres: tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " columns"]],
    size: tuple[int, int],
) -> Bool[np.ndarray, "P"]:
    """Which patches belong to a box: those whose centres lie in it.

    A box between the centres has the patch whose centre is next to its own. None belongs to a box
    whose centre is beyond the image.

    Args:
        box: In pixels of the prepared image.
        centres: Of the rows and of the columns of patches; see `aga.places.patch_centres`.
        size: (height, width) of the prepared image in pixels.

    Returns:
        Row-major, as the patches are.
    """
    left, top, right, bottom = box
    edges = ((top, bottom), (left, right))
    rows, columns = (
        (low <= centre) & (centre < high)
        for centre, (low, high) in zip(centres, edges, strict=True)
    )
    inside: Bool[np.ndarray, "rows columns"] = rows[:, None] & columns
    if not inside.any():
        middle = [(low + high) / 2 for low, high in edges]
        if all(0 <= at < side for at, side in zip(middle, size, strict=True)):
            row, column = (np.abs(c - at).argmin() for c, at in zip(centres, middle, strict=True))
            inside[row, column] = True
    return inside.reshape(-1)


def pointing_game(heat: Float[np.ndarray, "P"], inside: Bool[np.ndarray, "P"]) -> float:
    """1 where the strongest patch is inside, else 0; of several strongest the share inside.

    Chance is the share of patches inside.
    """
    strongest = heat >= heat.max() - _tolerance(heat)
    return float(inside[strongest].mean())


def area_matched_iou(heat: Float[np.ndarray, "P"], inside: Bool[np.ndarray, "P"]) -> float:
    """Intersection over union of the box and as many of the strongest patches as it has.

    No threshold is chosen, so none can be chosen well for one kind of map. Where equal patches
    compete for the last places, the mean over all ways to choose. At least one patch is inside.
    """
    area = int(inside.sum())
    last = np.partition(heat, -area)[-area]
    above = heat > last + _tolerance(heat)
    tied = ~above & (heat >= last - _tolerance(heat))
    return _mean_iou(
        area,
        sure=int((above & inside).sum()),
        drawn=area - int(above.sum()),
        tied=int(tied.sum()),
        tied_inside=int((tied & inside).sum()),
    )


def chance_iou(inside: Bool[np.ndarray, "P"]) -> float:
    """What `area_matched_iou` gives a map in random order on average, and a flat map."""
    area = int(inside.sum())
    return _mean_iou(area, sure=0, drawn=area, tied=inside.size, tied_inside=area)


def contrast_to_noise(heat: Float[np.ndarray, "P"], inside: Bool[np.ndarray, "P"]) -> float:
    """`(mean inside - mean outside) / sqrt(variance inside + variance outside)`; chance is 0.

    Signed: a map that avoids the box is worse than chance. At most 10 either way, which only a map
    of next to no noise reaches; 0 for a flat map, or where nothing is outside.
    """
    if inside.all():
        return 0.0
    within, without = heat[inside], heat[~inside]
    difference = float(within.mean() - without.mean())
    if abs(difference) <= _tolerance(heat):
        return 0.0
    noise = math.sqrt(float(within.var() + without.var()))
    bound = MOST_CONTRAST * noise
    return (
        math.copysign(MOST_CONTRAST, difference) if abs(difference) >= bound else difference / noise
    )


def stronger_side(
    heat: Float[np.ndarray, "P"], own: Bool[np.ndarray, "P"], other: Bool[np.ndarray, "P"]
) -> float:
    """1 where a patch of `own` has more heat on average than one of `other`, 1/2 where as much."""
    difference = float(heat[own].mean() - heat[other].mean())
    return 0.5 if abs(difference) <= _tolerance(heat) else float(difference > 0)


def mass_inside(heat: Float[np.ndarray, "P"], inside: Bool[np.ndarray, "P"]) -> float:
    """Share of the heat that is inside; of no heat at all, the share of patches inside."""
    total = float(heat.sum())
    return float(heat[inside].sum()) / total if total > 0 else float(inside.mean())


def _tolerance(heat: Float[np.ndarray, "P"]) -> float:
    return TIE * float(np.abs(heat).max())


@lru_cache(maxsize=4096)
def _mean_iou(area: int, sure: int, drawn: int, tied: int, tied_inside: int) -> float:
    """Mean IoU of two sets of `area` patches that share `sure` ones and some of the drawn ones.

    `drawn` patches are taken at random from `tied`, of which `tied_inside` are in the box: the
    number of those taken is hypergeometric.
    """
    ways = math.comb(tied, drawn)
    total = 0.0
    for hits in range(max(0, drawn - (tied - tied_inside)), min(drawn, tied_inside) + 1):
        chosen = math.comb(tied_inside, hits) * math.comb(tied - tied_inside, drawn - hits)
        shared = sure + hits
        total += chosen / ways * shared / (2 * area - shared)
    return total
