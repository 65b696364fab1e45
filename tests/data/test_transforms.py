"""Normalisation and stateless augmentation."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aga.data.transforms import (
    AugmentationConfig,
    ImageTransform,
    augment,
    pixel_statistics,
    row_generator,
)
from aga.errors import DataError

NOTHING = dict.fromkeys(AugmentationConfig.model_fields, 0.0)
STILL = AugmentationConfig(**NOTHING)
FULL = AugmentationConfig(
    rotation=5.0, translation=0.04, scale=0.05, brightness=0.1, contrast=0.1, noise=0.02
)


def only(**values: float) -> AugmentationConfig:
    return AugmentationConfig(**NOTHING | values)


def images_of(rows: Tensor, channels: int = 1, size: int = 16) -> Tensor:
    """Images that are a function of their row."""
    generators = [torch.Generator().manual_seed(int(row)) for row in rows]
    return torch.stack([torch.randn(channels, size, size, generator=g) for g in generators])


# --- normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_the_named_rows(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, channels), np.uint8)
    rows = np.array([1, 4, 7])
    mean, std = pixel_statistics(images, rows)
    scaled = images[rows] / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_statistics_sample_evenly_where_there_are_too_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aga.data.transforms.STATISTIC_ROWS", 4)
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    mean, _ = pixel_statistics(images, np.arange(10))
    assert mean[0] == pytest.approx(np.mean([0, 3, 6, 9]) / 255)


def test_constant_images_have_a_usable_deviation() -> None:
    _, std = pixel_statistics(np.full((2, 4, 4, 1), 7, np.uint8), np.array([0, 1]))
    assert std == (1 / 255,)


def transform_of(images: np.ndarray) -> ImageTransform:
    mean, std = pixel_statistics(images, np.arange(len(images)))
    height, width, channels = images.shape[1:]
    mode = "grey" if channels == 1 else "rgb"
    return ImageTransform(height, width, channels, mean, std, "pad", mode, "voi", "first")


@pytest.mark.parametrize("channels", [1, 3])
def test_transform_standardises_each_channel_and_moves_it_first(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 200, (9, 6, 5, channels), np.uint8)
    pixels = torch.from_numpy(images)
    normalised = transform_of(images)(pixels)
    assert normalised.shape == (9, channels, 6, 5)
    assert normalised.is_contiguous()
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(channels), atol=1e-5, rtol=0)
    std = normalised.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(channels), atol=1e-5, rtol=0)
    brighter = pixels[2, 3, 4, channels - 1] > pixels[2, 0, 0, channels - 1]
    assert brighter == (normalised[2, channels - 1, 3, 4] > normalised[2, channels - 1, 0, 0])
    assert np.array_equal(pixels, images), "the stored pixels must not change"


def test_transform_survives_json_exactly() -> None:
    transform = transform_of(np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8))
    assert ImageTransform.from_json(transform.to_json()) == transform


def test_transform_refuses_another_size() -> None:
    transform = transform_of(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(DataError, match=r"expected: \(4, 4, 1\)"):
        transform(torch.zeros(1, 4, 5, 1, dtype=torch.uint8))


# --- augmentation


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=9, unique=True),
    epoch=st.integers(0, 10_000),
    seed=st.integers(0, 2**31 - 1),
    channels=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_an_image_is_augmented_alike_in_any_batch(
    rows: list[int], epoch: int, seed: int, channels: int, data: st.DataObject
) -> None:
    all_rows = torch.tensor(rows)
    whole = augment(images_of(all_rows, channels), all_rows, epoch, seed, FULL)
    order = data.draw(st.permutations(range(len(rows))))
    some = all_rows[order[: data.draw(st.integers(1, len(rows)))]]
    part = augment(images_of(some, channels), some, epoch, seed, FULL)
    for row, image in zip(some.tolist(), part, strict=True):
        assert torch.equal(image, whole[rows.index(row)])


@pytest.mark.parametrize("threads", [2, 3])
def test_an_image_is_augmented_alike_by_any_number_of_threads(threads: int) -> None:
    rows = torch.arange(8)
    images = images_of(rows, size=96)
    before = torch.get_num_threads()
    one = augment(images, rows, 0, 0, FULL)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(augment(images, rows, 0, 0, FULL), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", AugmentationConfig.model_fields)
def test_each_setting_acts_and_draws_anew_per_row_epoch_and_seed(name: str) -> None:
    rows = torch.tensor([3, 4])
    images = images_of(torch.tensor([3, 3]))
    config = only(**{name: 0.4})
    first = augment(images, rows, 0, 0, config)
    variants = [first[0], first[1]]
    variants += [augment(images, rows, *when, config)[0] for when in ((1, 0), (0, 1), (1, 1))]
    for index, image in enumerate(variants):
        assert not torch.equal(image, images[0])
        assert all(not torch.equal(image, other) for other in variants[:index])


def test_no_change_is_the_identity() -> None:
    rows = torch.arange(4)
    images = images_of(rows)
    torch.testing.assert_close(augment(images, rows, 0, 0, STILL), images, atol=1e-5, rtol=0)


def test_brightness_contrast_and_noise_keep_their_bounds() -> None:
    rows = torch.arange(400)
    flat = torch.full((400, 1, 4, 4), 2.0)
    brightness = augment(flat, rows, 0, 0, only(brightness=0.3))[:, 0, 0, 0] - 2
    assert 0.28 < brightness.abs().max() <= 0.3 + 1e-6
    contrast = augment(flat, rows, 0, 0, only(contrast=0.2))[:, 0, 0, 0] / 2 - 1
    assert 0.18 < contrast.abs().max() <= 0.2 + 1e-6
    noise = augment(flat, rows, 0, 0, only(noise=0.1)) - 2
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert abs(float(noise.mean())) < 0.01


def test_noise_keeps_a_grey_image_grey() -> None:
    grey = images_of(torch.arange(2)).expand(-1, 3, -1, -1)
    augmented = augment(grey, torch.arange(2), 0, 0, FULL)
    assert torch.equal(augmented[:, 0], augmented[:, 1])
    assert torch.equal(augmented[:, 0], augmented[:, 2])


def centre_of_mass(images: Tensor) -> Tensor:
    """(x, y) of each image's brightness, in pixels from its centre."""
    height, width = images.shape[-2:]
    weight = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    x = torch.arange(width) - (width - 1) / 2
    y = torch.arange(height) - (height - 1) / 2
    return torch.stack([(weight * x).sum((1, 2)), (weight * y[:, None]).sum((1, 2))], 1)


def dot(x: int, y: int, height: int, width: int, count: int) -> Tensor:
    images = torch.zeros(count, 1, height, width)
    images[:, :, y - 1 : y + 2, x - 1 : x + 2] = 1
    return images


@pytest.mark.parametrize(("height", "width"), [(65, 65), (41, 81)])
def test_rotation_turns_and_never_flips_or_shears(height: int, width: int) -> None:
    rows = torch.arange(60)
    right = centre_of_mass(
        augment(dot(width // 2 + 12, height // 2, height, width, 60), rows, 0, 0, only(rotation=30))
    )
    down = centre_of_mass(
        augment(dot(width // 2, height // 2 + 12, height, width, 60), rows, 0, 0, only(rotation=30))
    )
    torch.testing.assert_close(right.norm(dim=1), torch.full((60,), 12.0), atol=0.2, rtol=0)
    angles = torch.atan2(right[:, 1], right[:, 0])
    assert 25 < math.degrees(angles.abs().max()) <= 30.5
    assert (angles > 0).any()
    assert (angles < 0).any()
    # `down` is `right` turned by a quarter, the same way round: the map has no reflection.
    turned = torch.stack([-right[:, 1], right[:, 0]], 1)
    torch.testing.assert_close(down, turned, atol=0.2, rtol=0)


def test_translation_is_a_share_of_the_side() -> None:
    shifts = centre_of_mass(
        augment(dot(32, 16, 33, 65, 200), torch.arange(200), 0, 0, only(translation=0.1))
    )
    assert 5.5 < shifts[:, 0].abs().max() <= 6.6
    assert 2.8 < shifts[:, 1].abs().max() <= 3.4


def test_scale_is_a_relative_change_of_size() -> None:
    right = centre_of_mass(
        augment(dot(42, 32, 65, 65, 200), torch.arange(200), 0, 0, only(scale=0.2))
    )
    assert 7.9 < right[:, 0].min() < 8.4
    assert 11.6 < right[:, 0].max() < 12.1


def test_row_streams_do_not_overlap() -> None:
    draws = [row_generator(5, 7, row).integers(0, 2**63, 1000) for row in (0, 1, 2, 2**40)]
    assert len(np.unique(np.concatenate(draws))) == 4000


def test_augmenting_a_batch_is_cheap() -> None:
    rows = torch.arange(64)
    images = images_of(rows, size=96)
    times = []
    for epoch in range(10):
        started = time.thread_time()
        augment(images, rows, epoch, 0, FULL)
        times.append(time.thread_time() - started)
    assert min(times) < 0.030, "seconds of one thread"


def test_a_bundle_from_before_dicom_has_its_defaults() -> None:
    transform = ImageTransform(8, 8, 1, (0.5,), (0.2,), "pad", "grey", "voi", "first")
    settings = json.loads(transform.to_json())
    del settings["window"], settings["frames"]
    assert ImageTransform.from_json(json.dumps(settings)) == transform
