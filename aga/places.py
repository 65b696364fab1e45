"""Where a bundle's tokens stand in the raw report, and where its patches lie in the image.

Two layers read maps of tokens and patches: `aga.explain` shows them, `aga.evaluation` measures
them. Both take the places from here, so that what is shown is what is measured. May import
`aga.bundle` and what lies below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from aga.bundle import Bundle
from aga.data.pixels.images import Box, ImageConfig, original_box
from aga.data.tokenizing.encoding import TokenizedText

PatchCentres: TypeAlias = tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " columns"]]


@dataclass(frozen=True)
class Word:
    """One content token and where it stands in the raw report: characters `start` to `end`.

    `number` counts the words of the text; the pieces of one word share it.
    """

    text: str
    start: int
    end: int
    number: int


def content_words(record: Mapping[str, Any], tokens: TokenizedText) -> tuple[Word, ...]:
    """The content tokens of a row, in the text's order, placed in its raw report.

    Args:
        record: The manifest's row: `text` and `text_offsets`.
        tokens: Its text as `aga.data.tokenizing.tokenizer.encode` gives it.
    """
    text, offsets = record["text"], record["text_offsets"]
    placed = zip(tokens.starts, tokens.ends, tokens.words, tokens.content, strict=True)
    return tuple(
        Word(text[start:end], offsets[start], offsets[end - 1] + 1, number)
        for start, end, number, is_content in placed
        if is_content
    )


def words_in(words: Sequence[Word], start: int, end: int) -> Bool[np.ndarray, "L"]:
    """Which words overlap characters `start` to `end` of the raw report."""
    return np.array([word.start < end and start < word.end for word in words], dtype=bool)


def image_config(bundle: Bundle) -> ImageConfig:
    """How the bundle's images were prepared, for mapping boxes."""
    return bundle.transform.image_config


def patch_grid(bundle: Bundle) -> tuple[int, int]:
    """Rows and columns of the bundle's patches; P is their product, row-major."""
    return bundle.model.image_encoder.grid(bundle.transform.height, bundle.transform.width)


def patch_centres(bundle: Bundle) -> PatchCentres:
    """The middles of what the bundle's patches see, in pixels of the prepared image."""
    encoder = bundle.model.image_encoder
    sides = (bundle.transform.height, bundle.transform.width)
    rows, columns = (
        (np.arange(count) + 0.5) * side / count + shift
        for count, side, shift in zip(patch_grid(bundle), sides, encoder.patch_shift(), strict=True)
    )
    return rows, columns


def patch_boxes(bundle: Bundle, original_size: tuple[int, int]) -> tuple[Box, ...]:
    """The place of each patch in pixels of an original image of (height, width).

    As large as a cell of the grid, around the middle of what the patch sees. Patches on padding
    reach beyond the image, those at a border may.
    """
    config = image_config(bundle)
    rows, columns = patch_centres(bundle)
    height, width = config.size / len(rows), config.size / len(columns)
    return tuple(
        original_box(
            (x - width / 2, y - height / 2, x + width / 2, y + height / 2), original_size, config
        )
        for y in rows.tolist()
        for x in columns.tolist()
    )
