"""Near duplicates: copies of one image that are not equal pixel for pixel.

Radiographs of different patients look alike, so a close perceptual hash only makes a pair a
candidate. Whether it is a copy is decided by the pixels: after orientation and a shift of at most a
pixel are undone, the fine structure of a copy correlates, whatever its brightness and contrast,
and that of another patient does not. `docs/data.md`, "Leaks", says what the two limits miss and
what they take wrongly; `benchmarks/near_duplicates.py` measures both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image

from aga.data.files import disk_errors
from aga.data.pixels.perceptual import ORIENTATIONS, close_pair_blocks, hash_words, oriented
from aga.data.shards import image_shards, read_pixels

RADIUS = 32
"""Bits of 256 by which the hashes of a candidate differ at most."""
SIMILARITY = (0.88, 0.95)
"""Correlation of the fine structure from which a candidate is a copy: where its hashes are equal,
and where they are RADIUS apart; in between in proportion."""

_THUMBNAIL = 96  # pixels, each side, in which a shift by one is undone
_BLUR = 3  # half the width, in pixels of half a thumbnail, of what counts as coarse
_SHIFTS = [(down, right) for down in (0, 1, 2) for right in (0, 1, 2)]
_PARTNERS = 256  # images compared at once with one


class NearDuplicate(NamedTuple):
    """A pair of images of which one is a copy of the other.

    Attributes:
        first: Row number of the one.
        second: Row number of the other.
        similarity: Correlation of their fine structure, at most 1.
    """

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class HashedImages:
    """Some rows of a prepared folder, whose pixels are read where they are needed.

    Attributes:
        folder: Holds the image shards.
        shape: (height, width, channels) of the prepared images.
        rows: Row numbers, rising.
        words: Their perceptual hashes, as `hash_words` gives them.
    """

    folder: Path
    shape: tuple[int, int, int]
    rows: Int64[np.ndarray, " rows"]
    words: UInt64[np.ndarray, "rows words"]

    @classmethod
    def of(
        cls, folder: Path, shape: tuple[int, int, int], rows: np.ndarray, hashes: list[str]
    ) -> HashedImages:
        """Take the hashes of `rows` from those of all rows."""
        chosen = [hashes[row] for row in rows]
        return cls(folder, shape, rows.astype(np.int64), hash_words(chosen))


def near_duplicates(
    first: HashedImages, second: HashedImages | None = None, scratch: Path | None = None
) -> Iterator[NearDuplicate]:
    """All pairs of near duplicates, equal images among them.

    Candidates and what is compared of them are kept in files without a name, of which nothing is
    left however the process ends; in memory is a block of candidates.

    Args:
        first: Images.
        second: Those to compare them with; None compares the first with each other.
        scratch: Folder on whose disk the files are; by default that of TMPDIR.

    Yields:
        Pairs, in rising order.

    Raises:
        DataError: That disk is full.
    """
    others = second or first
    folder = scratch or Path(tempfile.gettempdir())
    with ExitStack() as files, disk_errors(folder):
        file = [files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(3)]
        sizes, seen = [], (set[int](), set[int]())
        for pairs in close_pair_blocks(
            first.words, None if second is None else second.words, RADIUS
        ):
            file[0].write(pairs.tobytes())
            sizes.append(len(pairs))
            seen[0].update(pairs[:, 0].tolist())
            seen[1].update(pairs[:, 1].tolist())
        if not sizes:
            return
        ones = _Drawer.fill(first, seen[0], file[1], thumbnail)
        twos = _Drawer.fill(others, seen[1], file[2], _centre)
        file[0].seek(0)
        for size in sizes:
            pairs = np.fromfile(file[0], np.int64, 4 * size).reshape(size, 4)
            yield from _copies(pairs, ones, twos, first.rows, others.rows)


def _copies(
    pairs: np.ndarray, ones: _Drawer, twos: _Drawer, rows: np.ndarray, other_rows: np.ndarray
) -> Iterator[NearDuplicate]:
    """Those candidates that are copies."""
    similar = _similarities(pairs, ones, twos)
    lowest, highest = SIMILARITY
    copies = similar >= lowest + (highest - lowest) * pairs[:, 2] / RADIUS
    for (one, other), correlation in zip(pairs[copies, :2], similar[copies], strict=True):
        yield NearDuplicate(int(rows[one]), int(other_rows[other]), float(correlation))


def similarity(
    first: UInt8[np.ndarray, "H W C"], second: UInt8[np.ndarray, "h w C"], orientation: int = 0
) -> float:
    """Correlation of the fine structure of two prepared images, -1 to 1.

    Args:
        first: An image; `orientation` brings it onto the other.
        second: Another.
        orientation: As of `oriented`.
    """
    return float((_shifted(thumbnail(first), orientation) @ _centre(second)).max())


def thumbnail(pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "S S"]:
    """The grey image at the size at which images are compared."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")
    return np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR))


class _Drawer:
    """What is needed of some images, in a file of its own: it may be more than fits in memory."""

    def __init__(self, numbers: np.ndarray, values: np.ndarray) -> None:
        self._numbers = numbers
        self._values = values

    @classmethod
    def fill(
        cls,
        images: HashedImages,
        chosen: Collection[int],
        file: IO[bytes],
        see: Callable[[np.ndarray], np.ndarray],
    ) -> _Drawer:
        """Read the images of these numbers once, in row order; keep what `see` makes of each."""
        numbers = np.array(sorted(chosen))
        sample = see(np.zeros(images.shape, np.uint8))
        wanted, found = images.rows[numbers], 0
        for shard in image_shards(images.folder):
            for batch in read_pixels(shard):
                first, end = batch["row"][0].as_py(), batch["row"][-1].as_py() + 1
                while found < len(wanted) and wanted[found] < end:
                    raw = batch["pixels"][int(wanted[found]) - first].as_buffer()
                    pixels = np.frombuffer(raw, np.uint8).reshape(images.shape)
                    file.write(see(pixels).tobytes())  # a full disk is an error here, not in a map
                    found += 1
        file.flush()
        shape = (len(numbers), *sample.shape)
        values = np.memmap(file, sample.dtype, mode="r", shape=shape)
        return cls(numbers, values)

    def of(self, numbers: np.ndarray | np.integer) -> np.ndarray:
        """What was kept of the images of these numbers."""
        return np.asarray(self._values[np.searchsorted(self._numbers, numbers)])


def _similarities(pairs: np.ndarray, ones: _Drawer, twos: _Drawer) -> np.ndarray:
    """Of each pair; those of one first image, which are neighbours, are compared together."""
    similar = np.empty(len(pairs), np.float32)
    key = pairs[:, 0] * ORIENTATIONS + pairs[:, 3]
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0])
    for start, end in zip(starts, [*starts[1:], len(pairs)], strict=True):
        one, _, _, orientation = pairs[order[start]]
        shifted = _shifted(ones.of(one), int(orientation))
        for left in range(start, end, _PARTNERS):
            same = order[left : min(left + _PARTNERS, end)]
            partners = twos.of(pairs[same, 1]).astype(np.float32)
            similar[same] = (partners @ shifted.T).max(axis=1)
    return similar


def _shifted(image: np.ndarray, orientation: int) -> np.ndarray:
    """Fine structure of a thumbnail, oriented, at each of the shifts."""
    turned = oriented(image, orientation)
    edge = _THUMBNAIL - 2
    return _fine_structure(np.stack([turned[y : y + edge, x : x + edge] for y, x in _SHIFTS]))


def _centre(pixels: np.ndarray) -> np.ndarray:
    """Fine structure of a prepared image as it is; half precision is ample for a correlation."""
    return np.asarray(_fine_structure(thumbnail(pixels)[None, 1:-1, 1:-1])[0], np.float16)


def _fine_structure(images: np.ndarray) -> Float32[np.ndarray, "n values"]:
    """What is left of halved images when they are less their own blur: vectors of length 1 or 0."""
    count, height, width = images.shape
    halves = images.reshape(count, height // 2, 2, width // 2, 2).mean(
        axis=(2, 4), dtype=np.float32
    )
    fine = halves - _blurred(halves)
    vectors = fine.reshape(count, -1)
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-6), dtype=np.float32)


def _blurred(images: np.ndarray) -> np.ndarray:
    """Means over squares of 2 * _BLUR + 1 pixels, the edges repeated, by sums of sums."""
    wide = 2 * _BLUR + 1
    padded = np.pad(images, [(0, 0), (_BLUR + 1, _BLUR), (_BLUR + 1, _BLUR)], mode="edge")
    padded[:, 0] = padded[:, :, 0] = 0
    sums = padded.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    over_rows = sums[:, wide:] - sums[:, :-wide]
    return np.asarray((over_rows[:, :, wide:] - over_rows[:, :, :-wide]) / wide**2)
