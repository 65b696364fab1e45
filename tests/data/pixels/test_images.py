"""Decoding, fitting, and the mapping of boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raw_folders import noise_image

from aga.data.pixels.images import (
    ImageConfig,
    ImageError,
    decode_image,
    image_size,
    original_box,
    prepare_image,
    prepared_box,
    read_image,
)

FITS = ("pad", "crop", "stretch")


def config(size: int = 32, mode: str = "grey", fit: str = "pad") -> ImageConfig:
    shape = {"size": size, "mode": mode, "fit": fit}
    return ImageConfig.model_validate({**shape, "window": "voi", "frames": "first"})


def ramp(top: int, dtype: type = np.uint16) -> np.ndarray:
    return np.linspace(0, top, 256).round().astype(dtype).reshape(16, 16)


@pytest.mark.parametrize("top", [1023, 4095, 16383, 65535])
def test_deep_samples_use_the_full_range(tmp_path: Path, top: int) -> None:
    Image.fromarray(ramp(top)).save(tmp_path / "deep.png")
    pixels = decode_image(tmp_path / "deep.png", config())[:, :, 0]
    np.testing.assert_array_equal(pixels.ravel(), np.arange(256))


def test_an_eight_bit_image_stored_in_sixteen_is_kept(tmp_path: Path) -> None:
    Image.fromarray(ramp(255)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        decode_image(tmp_path / "deep.png", config()).ravel(), np.arange(256)
    )


def test_floating_point_tiff(tmp_path: Path) -> None:
    Image.fromarray((ramp(255) / 255).astype(np.float32)).save(tmp_path / "unit.tiff")
    np.testing.assert_array_equal(
        decode_image(tmp_path / "unit.tiff", config()).ravel(), np.arange(256)
    )
    Image.fromarray(ramp(255).astype(np.float32)).save(tmp_path / "wild.tiff")
    with pytest.raises(ImageError):
        decode_image(tmp_path / "wild.tiff", config())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "YCbCr"])
@pytest.mark.parametrize("target", ["grey", "rgb"])
def test_every_mode_becomes_what_is_asked_for(tmp_path: Path, mode: str, target: str) -> None:
    image = Image.fromarray(ramp(255, np.uint8))
    suffix = "tiff" if mode in ("CMYK", "YCbCr", "I") else "png"
    image.convert("I" if mode == "I;16" else mode).convert(mode).save(tmp_path / f"x.{suffix}")
    prepared = prepare_image(decode_image(tmp_path / f"x.{suffix}", config()), config(16, target))
    assert prepared.shape == (16, 16, 1 if target == "grey" else 3)
    if mode != "1":
        expected = ramp(255, np.uint8).astype(int)
        assert abs(prepared.astype(int) - expected[:, :, None]).max() <= 3


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, :4, 3], pixels[:, 4:, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    decoded = decode_image(tmp_path / "x.png", config())
    assert (decoded[:, :4] == 0).all()
    assert (decoded[:, 4:] == 200).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 10), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    assert decode_image(tmp_path / "x.jpg", config()).shape == (10, 20, 1)
    assert image_size(tmp_path / "x.jpg") == (10, 20)


@pytest.mark.parametrize("damage", ["text", "cut", "empty", "missing"])
def test_what_is_no_image_is_refused_without_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "patient-17.png"
    noise_image(path, 0)
    whole = path.read_bytes()
    path.write_bytes({"text": b"not an image", "cut": whole[:400]}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(ImageError) as caught:
        decode_image(path, config())
    assert "patient" not in caught.value.problem
    if damage != "cut":
        assert image_size(path) is None


def test_a_wide_image_is_padded_with_black_in_the_middle() -> None:
    prepared = prepare_image(np.full((10, 20, 1), 255, np.uint8), config(20))
    assert (prepared[5:15] == 255).all()
    assert (prepared[:5] == 0).all()
    assert (prepared[15:] == 0).all()


def test_shrinking_averages() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    prepared = prepare_image(stripes, config(8))
    assert abs(prepared.astype(float) - 127.5).max() < 6  # without antialiasing: 0 or 255


sides = st.integers(20, 200)


@given(height=sides, width=sides, fit=st.sampled_from(FITS), data=st.data())
def test_a_box_maps_to_where_its_pixels_go(
    height: int, width: int, fit: str, data: st.DataObject
) -> None:
    settings = config(64, fit=fit)
    shown = original_box((0.0, 0.0, 64.0, 64.0), (height, width), settings)
    left = data.draw(st.integers(max(0, int(shown[0]) + 1), int(min(width, shown[2])) - 8))
    top = data.draw(st.integers(max(0, int(shown[1]) + 1), int(min(height, shown[3])) - 8))
    image = np.zeros((height, width, 1), np.uint8)
    image[top : top + 7, left : left + 7] = 255
    prepared = prepare_image(image, settings)[:, :, 0].astype(float)
    rows, cols = np.arange(64) + 0.5, np.arange(64) + 0.5
    box = prepared_box((float(left), float(top), left + 7.0, top + 7.0), (height, width), settings)
    centre_x = (prepared.sum(0) * cols).sum() / prepared.sum()
    centre_y = (prepared.sum(1) * rows).sum() / prepared.sum()
    assert centre_x == pytest.approx((box[0] + box[2]) / 2, abs=0.35)
    assert centre_y == pytest.approx((box[1] + box[3]) / 2, abs=0.35)


@given(
    height=sides,
    width=sides,
    fit=st.sampled_from(FITS),
    box=st.tuples(*[st.floats(0, 200, allow_nan=False)] * 4),
)
def test_original_box_undoes_prepared_box(
    height: int, width: int, fit: str, box: tuple[float, float, float, float]
) -> None:
    there = prepared_box(box, (height, width), config(fit=fit))
    assert original_box(there, (height, width), config(fit=fit)) == pytest.approx(box, abs=1e-6)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("height", "width"), [(403, 997), (999, 1000), (1024, 512)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_read_at_a_fraction_of_its_size(
    tmp_path: Path, fit: str, height: int, width: int, orientation: int
) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    drawn = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn.save(tmp_path / "large.jpg", quality=95, exif=exif)
    settings = config(48, fit=fit)
    pixels, size = read_image(tmp_path / "large.jpg", settings)
    whole = decode_image(tmp_path / "large.jpg", settings)
    assert size == whole.shape[:2] == image_size(tmp_path / "large.jpg")
    difference = pixels.astype(int) - prepare_image(whole, settings)
    assert np.abs(difference).max() <= 6
    assert np.abs(difference).mean() < 0.6


def test_an_image_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("L", (600, 600), 7).save(tmp_path / "flat.jpg")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "flat.jpg", config())
    assert caught.value.reason == "image blank"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_single_dot_is_not_nothing(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (600, 600))
    image.putpixel((599, 0), 255 if mode == "L" else (0, 0, 255))
    image.save(tmp_path / "dot.png")
    assert read_image(tmp_path / "dot.png", config(200)).pixels.max() > 0


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("mode", "target"), [("L", "grey"), ("L", "rgb"), ("RGB", "grey")])
def test_a_png_is_fitted_as_its_decoded_pixels_are_and_never_copied_whole(
    tmp_path: Path, fit: str, mode: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_image(tmp_path / "noise.png", 0, (700, 300))
    Image.open(tmp_path / "noise.png").convert(mode).save(tmp_path / "x.png")
    settings = config(48, target, fit)
    expected = prepare_image(decode_image(tmp_path / "x.png", settings), settings)

    def refuse(pixels: object, *_: object) -> None:
        raise AssertionError("pixels of the whole image were copied out of Pillow and back")

    monkeypatch.setattr(Image, "fromarray", refuse)
    assert np.array_equal(read_image(tmp_path / "x.png", settings).pixels, expected)
