"""What a DICOM file's elements say about its samples: their bits, and how they are to be shown.

All numbers are checked here. A window that the standard does not allow counts as none, as in
viewers; a table or rescaling that makes no sense is damage. Sections are those of the standard's
part 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from aga.data.pixels.windows import Display, Stored, Table, Window, WindowShape

ELEMENTS = [
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
]
_SHAPES: dict[str, WindowShape] = {
    "LINEAR": "LINEAR",
    "LINEAR_EXACT": "LINEAR_EXACT",
    "SIGMOID": "SIGMOID",
}


def stored_values(
    samples: Shaped[np.ndarray, "H W *C"], bits: int, high: int, signed: bool
) -> Int64[np.ndarray, "H W *C"]:
    """The values in the `bits` bits up to bit `high`; other bits may hold anything (C.7.6.3.1.1).

    Args:
        samples: Integers of the bits allocated.
        bits: Bits stored.
        high: Number of the highest of them, counted from 0.
        signed: Whether that one is the sign.
    """
    values = (samples.astype(np.int64) >> max(high + 1 - bits, 0)) & (2**bits - 1)
    sign = (values >> (bits - 1)) << bits if signed else 0
    return np.asarray(values - sign, dtype=np.int64)


def display_of(dataset: Any, frame: int) -> Display:
    """How a frame's values are shown.

    Raises:
        ValueError: A rescaling or a table makes no sense.
        AttributeError, TypeError, LookupError: An element that must be there is not.
    """
    places = [dataset, *_functional_groups(dataset, frame)]
    slope, intercept = _number(places, "RescaleSlope", 1), _number(places, "RescaleIntercept", 0)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise ValueError("a rescaling that is not finite")
    signed = bool(dataset.PixelRepresentation)
    modality = _table(dataset.get("ModalityLUTSequence"), signed)
    # A value of the modality's table is never negative, a rescaled one may be.
    below_zero = modality is None and (signed or intercept < 0 or slope < 0)
    return Display(
        inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
        slope=slope,
        intercept=intercept,
        modality=modality,
        voi=_table(_element(places, "VOILUTSequence"), below_zero),
        window=_window(places),
        padding=_padding(dataset, signed),
    )


def palette_colours(indices: Stored, dataset: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The colours that a palette gives to indices (C.7.6.3.1.5), in 8 bits.

    Raises:
        ValueError: The palette is incomplete.
    """
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(indices.astype(np.uint16), dataset)
    bits = dataset.RedPaletteColorLookupTableDescriptor[2]
    if bits == 8:
        return np.asarray(colours, dtype=np.uint8)
    return np.asarray(colours >> 8, dtype=np.uint8)


def _functional_groups(dataset: Any, frame: int) -> Iterator[Any]:
    """Where an enhanced multi-frame file keeps a frame's rescaling and window (C.7.6.16)."""
    groups = [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]]
    groups += [*(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]
    for group in groups:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            yield from (group.get(macro) or [])[:1]


def _element(places: list[Any], name: str) -> Any:
    """The first value of an element, in the first place that has it."""
    values = (place.get(name) for place in places)
    return next((value for value in values if value not in (None, "")), None)


def _number(places: list[Any], name: str, default: float) -> float:
    value = _first(_element(places, name))
    return float(default if value is None else value)


def _first(value: Any) -> Any:
    """The first of several values: a file may offer a choice."""
    if value is None or isinstance(value, str | int | float):
        return value
    return value[0] if len(value) else None


def _window(places: list[Any]) -> Window | None:
    centre, width = _number(places, "WindowCenter", math.nan), _number(places, "WindowWidth", 0)
    shape = _SHAPES.get(_element(places, "VOILUTFunction") or "LINEAR", "LINEAR")
    window = Window(centre, width, shape)
    return window if window.is_usable else None


def _padding(dataset: Any, signed: bool) -> tuple[int, int] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    bits = int(dataset.BitsAllocated)
    ends = [_as_sample(end, bits, signed) for end in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_sample(number: Any, bits: int, signed: bool) -> int:
    """A number with the sign of the samples: files mix up the two."""
    value: int = int(number) & ((1 << bits) - 1)
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _table(sequence: Any, signed: bool) -> Table | None:
    """The first table of a sequence (C.11.1.1.1); None where there is none."""
    if not sequence:
        return None
    item = sequence[0]
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count & 0xFFFF or 2**16  # 0 stands for 65,536, which does not fit
    entries = _entries(item["LUTData"].value, count)
    if len(entries) < count or not 8 <= bits <= 16:
        raise ValueError("a table that is shorter than it says")
    largest = 2**bits - 1
    return Table(_as_sample(first, 16, signed), np.minimum(entries[:count], largest), largest)


def _entries(data: Any, count: int) -> Int64[np.ndarray, "N"]:
    if isinstance(data, bytes):
        size = 2 if len(data) >= 2 * count else 1  # 8-bit entries may lie two in a word
        return np.frombuffer(data, f"<u{size}", len(data) // size).astype(np.int64)
    return np.atleast_1d(np.asarray(data, dtype=np.int64) & 0xFFFF)
