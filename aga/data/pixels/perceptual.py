"""Perceptual hashes: close for copies of an image, whatever their file, size, grey scale or turn.

The hash is ImageHash's `phash` of 16 x 16: the signs, about their median, of the 256 lowest
frequencies of the image's cosine transform. Mirroring an image turns the signs of the odd
frequencies of an axis, and transposing it swaps the axes. The hashes of the eight orientations
follow from the one that is kept, but for the few frequencies that lie near the median.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from aga.data.workers import cores, in_order
from aga.errors import DataError

SIDE = 16
"""Frequencies of each axis; a hash has SIDE x SIDE bits, of which WORDS words of 64."""
WORDS = SIDE * SIDE // 64
ORIENTATIONS = 8
_ROWS, _COLUMNS = 64, 4096  # compared at once: what stays in a core's cache


def perceptual_hash(pixels: UInt8[np.ndarray, "H W C"]) -> str:
    """The hash of a prepared image, in 64 hexadecimal digits.

    Args:
        pixels: Grey or RGB.

    Raises:
        DataError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise DataError(
            "Near duplicates cannot be told without the package ImageHash",
            got=error,
            fix="pip install 'aga[data]'",
        ) from error
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    bits = imagehash.phash(image, hash_size=SIDE).hash
    return np.packbits(bits).tobytes().hex()


def hash_words(hashes: Sequence[str] | bytes) -> UInt64[np.ndarray, "rows words"]:
    """Hashes as machine words.

    Args:
        hashes: As `perceptual_hash` gives them, or the bytes of their digits, end to end.
    """
    digits = hashes if isinstance(hashes, bytes) else bytes.fromhex("".join(hashes))
    return np.frombuffer(digits, ">u8").astype(np.uint64).reshape(-1, WORDS)


def oriented_words(words: UInt64[np.ndarray, "rows words"]) -> UInt64[np.ndarray, "8 rows words"]:
    """The hashes that the images would have in each orientation of `oriented`."""
    rows = len(words)
    octets = words.astype(">u8").view(np.uint8).reshape(rows, -1)
    bits = np.unpackbits(octets, axis=1).reshape(rows, SIDE, SIDE)
    odd = np.arange(SIDE, dtype=np.uint8) % 2
    turned = []
    for orientation in range(ORIENTATIONS):
        transpose, flip, mirror = _parts(orientation)
        image = bits.transpose(0, 2, 1) if transpose else bits
        image = image ^ (odd[:, None] * flip) ^ (odd[None, :] * mirror)
        turned.append(np.packbits(image.reshape(rows, -1), axis=1).view(">u8").astype(np.uint64))
    return np.stack(turned)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image, or a stack of them, H x W last: transposed, flipped and mirrored, in this order.

    Args:
        pixels: Of shape (..., H, W).
        orientation: 0 to 7; 0 leaves it as it is.
    """
    transpose, flip, mirror = _parts(orientation)
    image = np.swapaxes(pixels, -1, -2) if transpose else pixels
    image = image[..., ::-1, :] if flip else image
    return image[..., ::-1] if mirror else image


def close_pairs(
    first: UInt64[np.ndarray, "m words"],
    second: UInt64[np.ndarray, "n words"] | None,
    radius: int,
) -> Int64[np.ndarray, "pairs 4"]:
    """All pairs whose hashes differ in at most `radius` bits in the best of the orientations.

    Every pair is compared, so none within the radius is missed; 100,000 rows with each other take
    minutes of one core, which all cores share, in bounded memory.

    Args:
        first: Hashes.
        second: Those to compare them with; None compares the first with each other, each pair once.
        radius: In bits.

    Returns:
        Numbers in `first` and `second`, the distance in bits, and the orientation that brings the
        image of the first onto that of the second; in rising order.
    """
    found = list(close_pair_blocks(first, second, radius))
    return np.concatenate(found) if found else np.empty((0, 4), np.int64)


def close_pair_blocks(
    first: UInt64[np.ndarray, "m words"],
    second: UInt64[np.ndarray, "n words"] | None,
    radius: int,
) -> Iterator[Int64[np.ndarray, "pairs 4"]]:
    """The pairs of `close_pairs` in pieces, none of them empty: few are in memory at a time."""
    others = first if second is None else second
    columns = [np.ascontiguousarray(others[:, word]) for word in range(WORDS)]
    blocks = range(0, len(first), _ROWS)

    def compare(start: int) -> np.ndarray:
        block = oriented_words(first[start : start + _ROWS])
        lowest = start if second is None else 0
        found = list(_close_in_block(block, columns, start, lowest, radius, second is None))
        return _closest(np.concatenate(found)) if found else np.empty((0, 4), np.int64)

    for pairs in in_order(compare, blocks, cores()):
        if len(pairs):
            yield pairs


def _closest(pairs: np.ndarray) -> np.ndarray:
    # A pair may be close in several orientations: the closest stands first and is kept.
    pairs = pairs[np.lexsort((pairs[:, 3], pairs[:, 2], pairs[:, 1], pairs[:, 0]))]
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = (pairs[1:, :2] != pairs[:-1, :2]).any(axis=1)
    return pairs[is_first]


def _close_in_block(
    block: np.ndarray,
    columns: Sequence[np.ndarray],
    start: int,
    lowest: int,
    radius: int,
    once: bool,
) -> Iterator[np.ndarray]:
    """Close pairs of a block of rows: (first, second, distance, orientation).

    Two of the four words are compared for all pairs, the others only where these leave it open.
    """
    for orientation, rows in enumerate(block):
        for left in range(lowest, len(columns[0]), _COLUMNS):
            part = slice(left, left + _COLUMNS)
            distance = np.bitwise_count(rows[:, 0, None] ^ columns[0][part])
            distance += np.bitwise_count(rows[:, 2, None] ^ columns[2][part])
            one, other = np.divmod(np.flatnonzero(distance <= radius), distance.shape[1])
            total = distance[one, other].astype(np.int64)
            for word in (1, 3):
                total += np.bitwise_count(rows[one, word] ^ columns[word][part][other])
            keep = total <= radius
            if once:
                keep &= one + start < other + left
            pairs = (one[keep] + start, other[keep] + left, total[keep])
            yield np.stack([*pairs, np.full(keep.sum(), orientation)], axis=1)


def _parts(orientation: int) -> tuple[int, int, int]:
    """Whether an orientation transposes, flips (top to bottom) and mirrors (left to right)."""
    return orientation >> 2 & 1, orientation >> 1 & 1, orientation & 1
