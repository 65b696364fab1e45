"""Copies of an image are found whatever was done to them, images that only look alike are not."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.studies import write_pixels
from PIL import Image

from aga.data.pixels.images import ImageConfig, decode_image, prepare_image
from aga.data.pixels.perceptual import (
    ORIENTATIONS,
    close_pairs,
    hash_words,
    oriented,
    oriented_words,
    perceptual_hash,
)
from aga.data.sources.phantom import PhantomConfig, generate
from aga.data.splitting.near_duplicates import (
    HashedImages,
    NearDuplicate,
    near_duplicates,
    similarity,
)

SIZE = 64
CONFIG = ImageConfig(size=SIZE, mode="grey", fit="pad", window="voi", frames="first")


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Of 40 patients, drawn alike: what real ones would have in common."""
    folder = tmp_path_factory.mktemp("phantom") / "raw"
    config = PhantomConfig(
        patients=40,
        studies_per_patient=(1.0, 0.0, 0.0),
        size=128,
        findings_per_study=(0.15, 0.45, 0.3, 0.1),
        noise=0.03,
        corrupt_fraction=0.0,
    )
    generate(folder, config, 0)
    return [Image.open(path).convert("L") for path in sorted(folder.rglob("*.png"))]


def prepared(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(prepare_image(np.array(image)[:, :, None], CONFIG))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("L")


def stored(folder: Path, images: list[np.ndarray]) -> HashedImages:
    folder.mkdir()
    write_pixels(folder, images, shard_rows=7)
    hashes = hash_words([perceptual_hash(image) for image in images])
    return HashedImages(folder, images[0].shape, np.arange(len(images)), hashes)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned by 90 degrees": lambda one: one.transpose(Image.Transpose.ROTATE_90),
    "turned by 180 degrees": lambda one: one.transpose(Image.Transpose.ROTATE_180),
    "turned by 270 degrees": lambda one: one.transpose(Image.Transpose.ROTATE_270),
    "mirrored": lambda one: one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned and mirrored": lambda one: one.transpose(Image.Transpose.TRANSVERSE),
    "JPEG 30": lambda one: jpeg(one, 30),
    "brighter": lambda one: one.point(lambda value: min(255, value + 25)),
    "less contrast": lambda one: one.point(lambda value: 128 + 0.7 * (value - 128)),
    "gamma 1.4": lambda one: one.point(lambda value: 255 * (value / 255) ** 1.4),
    "half the size": lambda one: one.resize((one.width // 2, one.height // 2)),
    "a degree askew": lambda one: one.rotate(1, Image.Resampling.BICUBIC),
    "mirrored, JPEG 50, darker": lambda one: jpeg(
        one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda value: 0.8 * value), 50
    ),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_and_nothing_else(
    how: str, radiographs: list[Image.Image], tmp_path: Path
) -> None:
    originals = stored(tmp_path / "a", [prepared(one) for one in radiographs])
    copies = stored(tmp_path / "b", [prepared(COPIES[how](one)) for one in radiographs[::2]])
    found = [(one, other) for one, other, _ in near_duplicates(originals, copies)]
    assert found == [(2 * number, number) for number in range(20)]


def test_within_a_folder_every_pair_is_found_once(
    radiographs: list[Image.Image], tmp_path: Path
) -> None:
    images = [prepared(one) for one in radiographs]
    images += [prepared(jpeg(one, 60)) for one in radiographs[:3]] + [images[5]]
    found = list(near_duplicates(stored(tmp_path / "a", images)))
    assert [pair[:2] for pair in found] == [(0, 40), (1, 41), (2, 42), (5, 43)]
    assert found[-1] == NearDuplicate(5, 43, pytest.approx(1, abs=2e-3))


def test_many_images_of_one_hash_are_compared_in_little_memory(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (16, 16, 1), dtype=np.uint8) for _ in range(1000)]
    alike = stored(tmp_path / "a", images)
    alike = replace(alike, words=np.repeat(alike.words[:1], len(images), axis=0))
    tracemalloc.start()
    found = sum(1 for _ in near_duplicates(alike, scratch=tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 0
    assert peak < 40 * 2**20  # half a million candidates of 32 bytes, sorted, took 150 MiB
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_some_rows_of_a_folder(radiographs: list[Image.Image], tmp_path: Path) -> None:
    images = [prepared(one) for one in (*radiographs[:12], radiographs[3])]
    everything = stored(tmp_path / "a", images)
    rows = np.array([3, 9, 11])
    some = HashedImages(everything.folder, everything.shape, rows, everything.words[rows])
    last = HashedImages(everything.folder, everything.shape, rows[:0] + 12, everything.words[:0])
    assert list(near_duplicates(some, last)) == []
    last = HashedImages(everything.folder, everything.shape, np.array([12]), everything.words[12:])
    assert [pair[:2] for pair in near_duplicates(some, last)] == [(3, 12)]


def test_the_hashes_of_the_orientations_follow_from_one(radiographs: list[Image.Image]) -> None:
    images = [prepared(one)[:, :, 0] for one in radiographs]
    expected = oriented_words(hash_words([perceptual_hash(one[:, :, None]) for one in images]))
    for orientation in range(ORIENTATIONS):
        turned = [np.ascontiguousarray(oriented(one, orientation)) for one in images]
        words = hash_words([perceptual_hash(one[:, :, None]) for one in turned])
        # Frequencies about the median may fall on its other side.
        assert np.bitwise_count(words ^ expected[orientation]).sum(axis=1, dtype=int).max() <= 24
        assert oriented(turned[0], orientation).shape == turned[0].shape
    assert np.array_equal(expected[0], hash_words([perceptual_hash(i[:, :, None]) for i in images]))


@pytest.mark.parametrize("radius", [0, 16, 60])
def test_close_pairs_are_those_of_a_comparison_bit_by_bit(radius: int) -> None:
    generator = np.random.default_rng(radius)
    words = generator.integers(0, 2**63, (150, 4), dtype=np.uint64)
    words[100:] = oriented_words(words[:50])[generator.integers(0, 8, 50), np.arange(50)]
    words[100:] ^= np.uint64(1) << generator.integers(0, 64, (50, 4)).astype(np.uint64)
    turned = oriented_words(words)
    expected = []
    for one in range(150):
        for other in range(one + 1, 150):
            distances = [
                sum(int(a ^ b).bit_count() for a, b in zip(words_one, words[other], strict=True))
                for words_one in turned[:, one].tolist()
            ]
            if min(distances) <= radius:
                least = min(distances)
                expected.append([one, other, least, distances.index(least)])
    assert close_pairs(words, None, radius).tolist() == expected
    everything = close_pairs(words, words, radius).tolist()
    assert [pair for pair in everything if pair[0] < pair[1]] == expected


def test_similarity_is_of_the_fine_structure(radiographs: list[Image.Image]) -> None:
    one, other = prepared(radiographs[0]), prepared(radiographs[1])
    assert similarity(one, one) == pytest.approx(1, abs=2e-3)
    assert similarity(one, np.ascontiguousarray(one[:, ::-1]), 1) == pytest.approx(1, abs=2e-3)
    assert similarity(one, other) < 0.88
    assert similarity(one, np.zeros_like(one)) == 0


@pytest.mark.realdata
def test_copies_among_real_radiographs_of_other_patients() -> None:
    folder = Path(os.environ["AGA_REALDATA"]) / "covid-chestxray/images"
    paths = sorted(folder.iterdir())
    images = [
        prepare_image(decode_image(path, CONFIG), CONFIG)
        for path in paths[150:154] + paths[510:514]
    ]
    hashes = hash_words([perceptual_hash(np.ascontiguousarray(image)) for image in images])
    assert close_pairs(hashes, None, 32)[:, :2].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
