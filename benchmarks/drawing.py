"""Many images that look nothing alike, and the decoder alone. Imports little: processes do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def draw_images(paths: Sequence[Path], side: int, first: int) -> None:
    """Write images of soft shapes under grain, JPEG or PNG as the names say.

    Args:
        paths: The files.
        side: Height and width in pixels.
        first: Number of the first; an image depends on its number alone.
    """
    grain = np.random.default_rng(0).normal(0, 4, (2 * side, 2 * side)).astype(np.float32)
    for number, path in enumerate(paths, start=first):
        generator = np.random.default_rng([1, number])
        field = Image.fromarray(generator.integers(40, 216, (12, 12), dtype=np.uint8))
        smooth = np.asarray(field.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        down, right = generator.integers(0, side, 2)
        pixels = smooth + grain[down : down + side, right : right + side]
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        if path.suffix == ".jpg":
            picture.save(path, quality=90)
        else:
            picture.save(path, compress_level=6)


def decode_all(paths: Sequence[Path]) -> None:
    """What the decoder alone does: pixels in memory, and nothing else."""
    for path in paths:
        with Image.open(path) as image:
            image.load()
