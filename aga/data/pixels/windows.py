"""Grey values of a detector to 8 bits: windows, look-up tables and three named ways to use them.

Pure functions of numbers, after part 3 of the DICOM standard (C.7.6.3, C.11.1 and C.11.2). What a
pixel becomes depends on its value and on how often each value occurs, so all is computed once per
value (V of them, at most 65,536), not once per pixel. Where small values are shown bright
(MONOCHROME1) the scale is turned inside each function, not after it: a picture and its negative
then give equal bytes, ties of rounding included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int64, UInt8

WindowMode: TypeAlias = Literal["voi", "percentile", "mimic_jpg"]
WindowShape: TypeAlias = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Stored: TypeAlias = Int64[np.ndarray, "H W"]
Values: TypeAlias = Float[np.ndarray, "V"]
Counts: TypeAlias = Int64[np.ndarray, "V"]
Grey: TypeAlias = UInt8[np.ndarray, "V"]

PERCENTILE = 0.5  # shares of the pixels, in percent, that `percentile` lets go black and white


@dataclass(frozen=True)
class Table:
    """A look-up table: `entries[0]` stands for the value `first` and all below it.

    Attributes:
        first: The first value mapped.
        entries: What `first`, `first + 1`, … become; the last one is for all above, too.
        largest: What the entries could reach, by their bits.
    """

    first: int
    entries: Int64[np.ndarray, "N"]
    largest: int

    def __call__(self, values: Values) -> Values:
        """The entry of each value."""
        place = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[place.astype(np.int64)], dtype=np.float64)


@dataclass(frozen=True)
class Window:
    """Centre and width of the values shown, and the shape of the curve between black and white."""

    centre: float
    width: float
    shape: WindowShape

    @property
    def is_usable(self) -> bool:
        """Whether the standard allows the width; files with 0 are common."""
        least = 1.0 if self.shape == "LINEAR" else math.ulp(0.0)
        return math.isfinite(self.centre) and math.isfinite(self.width) and self.width >= least


@dataclass(frozen=True)
class Display:
    """What a file says about how its stored values are shown.

    Attributes:
        inverted: Small values are bright: MONOCHROME1.
        slope: Of the modality's rescaling.
        intercept: Likewise.
        modality: The modality's table, which stands in place of the rescaling.
        voi: The table of values of interest; it goes before `window`.
        window: None where the file has none that can be used.
        padding: Smallest and largest stored value that is no measurement.
    """

    inverted: bool
    slope: float = 1.0
    intercept: float = 0.0
    modality: Table | None = None
    voi: Table | None = None
    window: Window | None = None
    padding: tuple[int, int] | None = None


def shown(stored: Stored, display: Display, mode: WindowMode) -> UInt8[np.ndarray, "H W"]:
    """The picture as a viewer would show it, 0 black and 255 white.

    Args:
        stored: Values of at most 16 bits, as the file holds them.
        display: How the file says they are shown.
        mode: `voi` takes the file's table or window, and where there is none all values, from the
            smallest to the largest. `percentile` spreads the values from the 0.5th to the 99.5th
            percentile, whatever window the file has. `mimic_jpg` does what made MIMIC-CXR-JPG.

    Returns:
        8-bit pixels. Padding is black and has no part in the range; `mimic_jpg` knows no padding.
    """
    smallest = int(stored.min())
    counts = np.bincount((stored - smallest).ravel())
    levels = np.arange(smallest, smallest + len(counts))
    return np.asarray(_grey_of(levels, counts, display, mode)[stored - smallest])


def _grey_of(levels: Counts, counts: Counts, display: Display, mode: WindowMode) -> Grey:
    """What each stored value becomes; `counts` says how often it occurs."""
    if mode == "mimic_jpg":
        return _mimic_jpg(levels, counts, display.inverted)
    padding = np.zeros(len(levels), bool)
    if display.padding is not None:
        padding = (levels >= display.padding[0]) & (levels <= display.padding[1])
    values = levels.astype(np.float64)
    if display.modality is not None:
        values = display.modality(values)
    else:
        values = values * display.slope + display.intercept
    measured = np.where(padding, 0, counts)
    if mode == "percentile":
        grey = _spread(values, measured, PERCENTILE / 100, display.inverted)
    elif display.voi is not None:
        grey = ramp(display.voi(values), 0.0, float(display.voi.largest), display.inverted)
    elif display.window is not None:
        grey = _windowed(values, display.window, display.inverted)
    else:
        grey = _spread(values, measured, 0.0, display.inverted)
    grey[padding] = 0
    return grey


def ramp(values: Values, low: float, high: float, inverted: bool) -> Grey:
    """Values from `low` (black) to `high` (white) spread evenly; what lies outside is clipped.

    Where `high` is not above `low`, it is a step.
    """
    span = high - low
    above = high - values if inverted else values - low
    if span <= 0:
        return np.where(above > 0, 255, 0).astype(np.uint8)
    return _rounded(np.clip(above, 0, span) * 255 / span)


def _windowed(values: Values, window: Window, inverted: bool) -> Grey:
    if window.shape == "SIGMOID":
        steps = np.clip(4 * (values - window.centre) / window.width, -700, 700)  # exp stays finite
        return _rounded(255 / (1 + np.exp(steps if inverted else -steps)))
    # C.11.2.1.2.1: LINEAR spans from the middle of its first value to the middle of its last.
    shift = 0.5 if window.shape == "LINEAR" else 0.0
    centre, half = window.centre - shift, window.width / 2 - shift
    return ramp(values, centre - half, centre + half, inverted)


def _spread(values: Values, counts: Counts, share: float, inverted: bool) -> Grey:
    """From the value that `share` of the pixels lie below to the one that as many lie above."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    pixels = int(below[-1])
    if pixels == 0:
        return np.zeros(len(values), np.uint8)
    left_out = int(pixels * share)
    low, high = np.searchsorted(below, (left_out, pixels - left_out - 1), side="right")
    return ramp(values, float(values[order[low]]), float(values[order[high]]), inverted)


def _mimic_jpg(levels: Counts, counts: Counts, inverted: bool) -> Grey:
    """Shift the smallest to 0, scale the largest to 255, cut off, invert, equalise."""
    shifted = levels - levels[0]
    scaled = (shifted / max(int(shifted[-1]), 1) * 255).astype(np.uint8)
    grey = 255 - scaled if inverted else scaled
    return np.asarray(_equalising(np.bincount(grey, counts, 256).astype(np.int64))[grey])


def _equalising(counts: Int64[np.ndarray, "256"]) -> UInt8[np.ndarray, "256"]:
    """What histogram equalisation, as OpenCV defines it, makes of each of 256 levels.

    The darkest level that occurs becomes 0. Single precision and rounding to even are OpenCV's, so
    that the bytes are.
    """
    darkest = int(np.flatnonzero(counts)[0])
    others = int(counts[darkest + 1 :].sum())
    if others == 0:
        return np.arange(256, dtype=np.uint8)
    reached = np.cumsum(counts) - counts[darkest]
    scale = np.float32(255) / np.float32(others)
    return np.asarray(np.rint(reached.astype(np.float32) * scale).clip(0, 255), dtype=np.uint8)


def _rounded(levels: Values) -> Grey:
    return np.asarray(np.floor(levels + 0.5), dtype=np.uint8)
