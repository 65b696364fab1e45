"""An image and the weights of its patches as PNG."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from aga.data.pixels.images import Box
from aga.explain.maps import METHODS, Explanation

# Overlays: orange and blue show on black, grey and white alike, and to the colour-blind.
HEAT = np.array([255, 120, 0])
BACK = np.array([40, 140, 255])
_TRUTH = (0, 200, 255)
_OPACITY = 0.75
# The sheet, in screen pixels.
_TILE, _GAP, _LINE = 144, 12, 18
_LEAST_COLUMNS, _COLUMNS = 3, 5  # cards of a row; the legend needs three
_PAPER, _INK = (255, 255, 255), (23, 33, 43)


def heat_map_png(
    image: UInt8[np.ndarray, "H W C"],
    heat: Float[np.ndarray, "rows columns"],
    box: Box | None = None,
    zoom: int = 1,
) -> bytes:
    """A PNG of the image under its patch weights, the strongest patch at full colour.

    Patches are drawn as the squares they are: a smooth map would promise a resolution that the
    encoder does not have.

    Args:
        image: A prepared image.
        heat: Weight per patch, none negative.
        box: A known place, outlined, in pixels of the prepared image.
        zoom: Screen pixels per image pixel.
    """
    height, width = image.shape[:2]
    picture = _overlay(image, heat, HEAT, (width * zoom, height * zoom))
    if box is not None:
        edges = tuple(edge * zoom for edge in box)
        ImageDraw.Draw(picture).rectangle(edges, outline=_TRUTH, width=max(1, zoom))
    return _png(picture)


def image_png(image: UInt8[np.ndarray, "H W C"]) -> bytes:
    """A PNG of a prepared image."""
    return _png(_rgb(image))


def sheet_png(found: Explanation) -> bytes:
    """A PNG of both maps of a pair: the image, then two tiles for each word, in reading order.

    The left, orange tile shows the patches that the word chose, the right, blue one the patches
    that chose the word; in each the strongest patch has full colour. Words without a letter or a
    digit are left out.
    """
    shown = [i for i, word in enumerate(found.whole_words) if any(map(str.isalnum, word.text))]
    columns = min(_COLUMNS, max(_LEAST_COLUMNS, len(shown)))
    rows = -(-len(shown) // columns)
    card = (2 * _TILE + 2 + _GAP, _TILE + _LINE + _GAP)
    top = _TILE + 2 * _GAP
    sheet = Image.new("RGB", (columns * card[0] + _GAP, top + rows * card[1]), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    sheet.paste(_rgb(found.image).resize((_TILE, _TILE), Image.Resampling.BILINEAR), (_GAP, _GAP))
    scores = f"global score {found.global_score:.3f}, local {found.local_score:.3f}"
    legend = (
        f"Pair {found.row}: {scores}\n\n"
        "orange: the patches that the word chose\n"
        "blue: the patches that chose the word\n\n" + METHODS[found.method]
    )
    draw.text((2 * _GAP + _TILE, _GAP), legend, _INK, font)
    chosen, back = found.word_to_patch, found.patch_to_word
    for place, index in enumerate(shown):
        left = _GAP + place % columns * card[0]
        upper = top + place // columns * card[1]
        for side, weights, colour in ((0, chosen[index], HEAT), (1, back[:, index], BACK)):
            heat = weights.reshape(found.grid)
            tile = _overlay(found.image, heat, colour, (_TILE, _TILE))
            sheet.paste(tile, (left + side * (_TILE + 2), upper))
        draw.text((left, upper + _TILE + 2), found.whole_words[index].text, _INK, font)
    return _png(sheet)


def _overlay(
    image: UInt8[np.ndarray, "H W C"],
    heat: Float[np.ndarray, "rows columns"],
    colour: np.ndarray,
    size: tuple[int, int],
) -> Image.Image:
    """The image at (width, height) `size` under its patch weights."""
    base = _rgb(image).resize(size, Image.Resampling.BILINEAR)
    strongest = max(float(heat.max()), np.finfo(np.float32).tiny)
    shade = Image.fromarray(np.asarray(heat / strongest, np.float32))
    opacity = np.asarray(shade.resize(size, Image.Resampling.NEAREST))[..., None] * _OPACITY
    blended = np.asarray(base) * (1 - opacity) + colour * opacity
    return Image.fromarray(blended.round().astype(np.uint8))


def _rgb(image: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
