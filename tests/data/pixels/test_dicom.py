"""DICOM to pixels, against the standard's equations written out pixel by pixel."""

from __future__ import annotations

import io
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aga.data.pixels.dicom import (
    CODEC_MISSING,
    SEVERAL_FRAMES,
    UNREADABLE,
    DicomError,
    codecs,
    decode_dicom,
    dicom_size,
    is_dicom,
)
from aga.data.pixels.images import ImageConfig, ImageError, decode_image, image_size
from aga.data.pixels.windows import Display, Table, Window, shown
from benchmarks.dicom_files import COMPRESSED, NATIVE, table, transcode, write_dicom

HEIGHT, WIDTH = 12, 17


def pattern(bits: int, signed: bool, seed: int = 0) -> np.ndarray:
    """Stored values over the whole range of `bits`, the two ends among them."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.random.default_rng(seed).integers(low, high + 1, (HEIGHT, WIDTH))
    values[0, :2] = low, high
    return values


def words(values: np.ndarray, bits: int, signed: bool, garbage: bool = False) -> np.ndarray:
    """As they lie in a file; with noise in the bits that are not stored."""
    allocated = 8 if bits <= 8 else 16
    raw = values & (2**bits - 1)
    if garbage:
        noise = np.random.default_rng(1).integers(0, 2 ** (allocated - bits), values.shape)
        raw = raw | (noise << bits)
    elif signed:
        raw = values & (2**allocated - 1)
    kind = ("i" if signed else "u") + str(allocated // 8)
    return raw.astype(f"u{allocated // 8}").view(kind)


Share = Callable[[Fraction], Fraction]


def linear(centre: int, width: int) -> Share:
    def share(x: Fraction) -> Fraction:  # C.11.2.1.2.1
        half = Fraction(1, 2)
        if x <= centre - half - Fraction(width - 1, 2):
            return Fraction(0)
        if x > centre - half + Fraction(width - 1, 2):
            return Fraction(1)
        return (x - (centre - half)) / (width - 1) + half

    return share


def linear_exact(centre: int, width: int) -> Share:
    def share(x: Fraction) -> Fraction:  # C.11.2.1.3.2
        if x <= centre - Fraction(width, 2):
            return Fraction(0)
        if x > centre + Fraction(width, 2):
            return Fraction(1)
        return (x - centre) / width + Fraction(1, 2)

    return share


def sigmoid(centre: int, width: int) -> Share:
    def share(x: Fraction) -> Fraction:  # C.11.2.1.3.1
        return Fraction(1 / (1 + math.exp(-4 * float(x - centre) / width)))

    return share


def whole_range(values: np.ndarray) -> Share:
    low, high = Fraction(values.min()), Fraction(values.max())
    return lambda x: (x - low) / (high - low)


def looked_up(first: int, entries: Sequence[int], bits: int) -> Share:
    def share(x: Fraction) -> Fraction:  # C.11.2.1.1
        place = min(max(int(x) - first, 0), len(entries) - 1)
        return Fraction(entries[place], 2**bits - 1)

    return share


def picture(values: np.ndarray, share: Share, inverted: bool = False) -> np.ndarray:
    """Shares of white as the nearest of 256 levels, in exact arithmetic; a half goes up."""
    out = np.zeros((*values.shape, 1), np.uint8)
    for place in np.ndindex(values.shape):
        bright = share(Fraction(float(values[place])))
        shown = 1 - bright if inverted else bright
        out[place] = math.floor(shown * 255 + Fraction(1, 2))
    return out


SAMPLES = [(8, False), (8, True), (10, False), (12, False), (12, True), (16, False), (16, True)]


def windows_of(values: np.ndarray) -> dict[str, tuple[dict[str, Any], Share]]:
    """Each way a file may say how values are shown: its elements, and the standard's equation."""
    span = float(values.max() - values.min())
    centre, width = round(float(values.mean())), max(round(span / 2), 2)
    both = {"WindowCenter": centre, "WindowWidth": width}
    first = max(int(values.min()), -30000) + 3
    entries = [(7 * n) % 4096 for n in range(200)]
    return {
        "none": ({}, whole_range(values)),
        "linear": (both, linear(centre, width)),
        "choice": (
            {"WindowCenter": [centre, 1], "WindowWidth": [width, 2]},
            linear(centre, width),
        ),
        "linear_exact": (both | {"VOILUTFunction": "LINEAR_EXACT"}, linear_exact(centre, width)),
        "sigmoid": (both | {"VOILUTFunction": "SIGMOID"}, sigmoid(centre, width)),
        "no width": (both | {"WindowWidth": 0}, whole_range(values)),
        "table": (
            both | {"VOILUTSequence": [table(first, np.array(entries), 12)]},
            looked_up(first, entries, 12),
        ),
    }


@pytest.mark.parametrize(("bits", "signed"), SAMPLES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_every_window_of_every_kind_of_sample(
    tmp_path: Path, bits: int, signed: bool, photometric: str
) -> None:
    stored = pattern(bits, signed)
    for garbage, rescaled in itertools.product((False, True), (False, True)):
        slope, intercept = (2.0, -100.0) if rescaled else (1.0, 0.0)
        values = stored * slope + intercept
        for way, (elements, share) in windows_of(values).items():
            extra = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescaled else {}
            write_dicom(
                tmp_path / "x.dcm",
                words(stored, bits, signed, garbage),
                BitsStored=bits,
                PhotometricInterpretation=photometric,
                **elements,
                **extra,
            )
            found = decode_dicom(tmp_path / "x.dcm", "voi", "reject")
            expected = picture(values, share, photometric == "MONOCHROME1")
            np.testing.assert_array_equal(found, expected, f"{way}, {garbage=}, {rescaled=}")


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_modality_table_stands_in_place_of_the_rescaling(tmp_path: Path, bits: int) -> None:
    stored = pattern(bits, False)
    entries = [int(1000 * math.sqrt(n)) % 60000 for n in range(150)]
    values = np.vectorize(lambda x: entries[min(max(x - 20, 0), 149)])(stored)
    write_dicom(
        tmp_path / "x.dcm",
        words(stored, bits, False),
        BitsStored=bits,
        ModalityLUTSequence=[table(20, np.array(entries), 16)],
        WindowCenter=6000,
        WindowWidth=9000,
    )
    found = decode_dicom(tmp_path / "x.dcm", "voi", "reject")
    np.testing.assert_array_equal(found, picture(values, linear(6000, 9000)))


@pytest.mark.parametrize(("bits", "signed"), SAMPLES)
@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
def test_transfer_syntaxes_give_the_same_pixels(
    tmp_path: Path, syntax: str, bits: int, signed: bool
) -> None:
    path, stored = tmp_path / "x.dcm", pattern(bits, signed)
    smooth = syntax in ("jpeg", "jpeg_extended")
    if smooth:
        stored = np.sort(stored.ravel()).reshape(stored.shape)
    write_dicom(
        path,
        words(stored, bits, signed),
        BitsStored=bits,
        syntax=syntax if syntax in NATIVE else "explicit",
    )
    expected = picture(stored, whole_range(stored))
    if syntax in COMPRESSED and not transcode(path, syntax):
        assert smooth, "the encoder holds 8 bits alone"
        return
    if syntax == "jpeg_extended" and bits > 8:
        with pytest.raises(DicomError) as caught:
            decode_dicom(path, "voi", "reject")
        assert caught.value.reason == CODEC_MISSING
        return
    found = decode_dicom(path, "voi", "reject")
    if smooth:
        assert abs(found.astype(int) - expected.astype(int)).mean() < 12
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["voi", "percentile"])
@given(
    bits=st.sampled_from([8, 10, 12, 16]),
    seed=st.integers(0, 2**32),
    window=st.sampled_from(["none", "linear", "exact", "sigmoid", "table"]),
    padded=st.booleans(),
)
def test_a_picture_and_its_negative_are_shown_alike(
    mode: Any, bits: int, seed: int, window: str, padded: bool
) -> None:
    largest = 2**bits - 1
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, largest + 1, (20, 30))
    centre, width = int(rng.integers(0, largest)), int(rng.integers(2, largest))
    entries = rng.integers(0, 4096, largest + 1)
    shapes: dict[str, tuple[Any, Any]] = {
        "none": (None, None),
        # LINEAR has its centre half a value lower than where its middle is shown: it mirrors + 1.
        "linear": (Window(centre, width, "LINEAR"), Window(largest - centre + 1, width, "LINEAR")),
        "exact": (
            Window(centre, width, "LINEAR_EXACT"),
            Window(largest - centre, width, "LINEAR_EXACT"),
        ),
        "sigmoid": (Window(centre, width, "SIGMOID"), Window(largest - centre, width, "SIGMOID")),
        "table": (Table(0, entries, 4095), Table(0, 4095 - entries[::-1], 4095)),
    }
    name = "voi" if window == "table" else "window"
    positive, negative = shapes[window]
    gap = int(rng.integers(0, largest)) if padded else None
    bright = Display(False, padding=gap if gap is None else (gap, gap), **{name: positive})
    mirrored = None if gap is None else (largest - gap, largest - gap)
    dark = Display(True, padding=mirrored, **{name: negative})
    np.testing.assert_array_equal(shown(stored, bright, mode), shown(largest - stored, dark, mode))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle", "jpeg_lossless_1", "jpeg_2000"])
@pytest.mark.parametrize("mode", ["voi", "percentile"])
def test_twin_files_give_equal_arrays(tmp_path: Path, syntax: str, mode: Any) -> None:
    stored = pattern(12, False)
    for name, values in (("MONOCHROME2", stored), ("MONOCHROME1", 4095 - stored)):
        path = tmp_path / f"{name}.dcm"
        native = syntax if syntax in NATIVE else "explicit"
        write_dicom(
            path,
            words(values, 12, False),
            BitsStored=12,
            PhotometricInterpretation=name,
            syntax=native,
        )
        assert syntax in NATIVE or transcode(path, syntax)
    first, second = (decode_dicom(path, mode, "reject") for path in sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) > 100


def test_bits_that_lie_high_are_taken_from_there(tmp_path: Path) -> None:
    stored = pattern(12, False)
    write_dicom(tmp_path / "x.dcm", (stored << 4).astype(np.uint16), BitsStored=12, HighBit=15)
    found = decode_dicom(tmp_path / "x.dcm", "voi", "reject")
    np.testing.assert_array_equal(found, picture(stored, whole_range(stored)))


@pytest.mark.parametrize("mode", ["voi", "percentile"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 2010])
def test_padding_is_black_and_has_no_part_in_the_range(
    tmp_path: Path, mode: Any, photometric: str, limit: int | None
) -> None:
    stored = np.random.default_rng(0).integers(100, 900, (20, 20)).astype(np.int16)
    stored[:, :4] = -2000 if limit is None else np.arange(2000, 2004)
    extra = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    value = -2000 if limit is None else 2000
    write_dicom(
        tmp_path / "x.dcm",
        stored,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=value,
        **extra,
    )
    found = decode_dicom(tmp_path / "x.dcm", mode, "reject")
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] > 0).mean() > 0.98
    assert found[:, 4:].max() == 255
    measured = found[:, 4:, 0].astype(int)
    order = np.corrcoef(stored[:, 4:].ravel(), measured.ravel())[0, 1]
    assert order == pytest.approx(1 if photometric == "MONOCHROME2" else -1, abs=0.01)


def test_percentile_leaves_out_the_outer_half_percents(tmp_path: Path) -> None:
    stored = np.arange(1000, 2000).reshape(25, 40).astype(np.uint16)
    stored[0, 0], stored[-1, -1] = 0, 65535
    write_dicom(tmp_path / "x.dcm", stored, WindowCenter=5, WindowWidth=2)
    found = decode_dicom(tmp_path / "x.dcm", "percentile", "reject").astype(int).ravel()
    low, high = np.sort(stored.ravel())[[5, 994]]  # 5 of 1,000 below, 5 above
    values = stored.ravel().astype(float)
    expected = np.floor(np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_mimic_jpg_is_what_its_paper_says(tmp_path: Path, photometric: str) -> None:
    stored = (np.random.default_rng(3).beta(2, 5, (30, 40)) * 3000 + 200).astype(np.uint16)
    write_dicom(
        tmp_path / "x.dcm",
        stored,
        BitsStored=12,
        PhotometricInterpretation=photometric,
        WindowCenter=700,
        WindowWidth=10,
    )
    # Subtract the lowest, divide by the then highest, truncate, invert, equalise.
    shifted = stored.astype(float) - stored.min()
    grey = (shifted / shifted.max() * 255).astype(np.uint8)
    grey = 255 - grey if photometric == "MONOCHROME1" else grey
    rank = np.array([(grey <= value).sum() for value in range(256)])
    darkest = rank[grey.min()]
    expected = np.rint((rank[grey] - darkest) / (grey.size - darkest) * 255)
    found = decode_dicom(tmp_path / "x.dcm", "mimic_jpg", "reject")[:, :, 0]
    np.testing.assert_array_equal(found, expected)
    assert found.mean() == pytest.approx(127, abs=4)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", ["explicit", "rle"])
def test_palettes_give_their_colours(tmp_path: Path, bits: int, syntax: str) -> None:
    indices = pattern(8, False).astype(np.uint8)
    rng, names = np.random.default_rng(2), ("Red", "Green", "Blue")
    palettes = rng.integers(0, 2**bits, (3, 256))
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, palette in zip(names, palettes, strict=True):
        kind = "<u2" if bits == 16 else "u1"
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = palette.astype(kind).tobytes()
    write_dicom(tmp_path / "x.dcm", indices, **elements)
    assert syntax == "explicit" or transcode(tmp_path / "x.dcm", syntax)
    found = decode_dicom(tmp_path / "x.dcm", "voi", "reject")
    np.testing.assert_array_equal(found, (palettes >> (bits - 8)).T[indices])


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_colours_are_kept(tmp_path: Path, planar: int, kind: str) -> None:
    colours = np.random.default_rng(4).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    samples = colours
    if kind == "YBR_FULL":  # C.7.6.3.1.2, with Pillow's arithmetic as the second opinion
        samples = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    planes = samples.transpose(2, 0, 1).reshape(samples.shape) if planar else samples
    write_dicom(
        tmp_path / "x.dcm", planes, PhotometricInterpretation=kind, PlanarConfiguration=planar
    )
    found = decode_dicom(tmp_path / "x.dcm", "percentile", "reject")
    assert abs(found.astype(int) - colours).max() <= (0 if kind == "RGB" else 2)


def smooth_colours() -> np.ndarray:
    y, x = np.mgrid[:32, :48]
    return np.stack([x * 5, y * 7, 255 - x * 2 - y], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    "syntax", ["rle", "jpeg_lossless", "jpeg_ls", "jpeg_2000", "jpeg_2000_lossy"]
)
def test_compressed_colours_are_kept(tmp_path: Path, syntax: str) -> None:
    colours = smooth_colours()
    write_dicom(tmp_path / "x.dcm", colours)
    assert transcode(tmp_path / "x.dcm", syntax)
    found = decode_dicom(tmp_path / "x.dcm", "voi", "reject")
    np.testing.assert_array_equal(found, colours)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_colours_are_turned_back(tmp_path: Path, subsampling: int) -> None:
    path, jpeg, colours = tmp_path / "x.dcm", io.BytesIO(), smooth_colours()
    Image.fromarray(colours).save(jpeg, "JPEG", quality=100, subsampling=subsampling)
    write_dicom(path, colours, PhotometricInterpretation="YBR_FULL_422")
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.save_as(path)
    found = decode_dicom(path, "voi", "reject")
    assert abs(found.astype(int) - colours).max() <= 12


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg_ls"])
def test_frames_by_policy(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "x.dcm"
    frames = np.stack([pattern(8, False, seed) for seed in range(5)]).astype(np.uint8)
    write_dicom(path, frames, NumberOfFrames=5)
    assert syntax == "explicit" or transcode(path, syntax)
    for policy, index in (("first", 0), ("middle", 2)):
        found = decode_dicom(path, "voi", policy)
        np.testing.assert_array_equal(found[:, :, 0], frames[index])
    with pytest.raises(DicomError) as caught:
        decode_dicom(path, "voi", "reject")
    assert caught.value.reason == SEVERAL_FRAMES


def test_an_enhanced_file_has_a_window_for_each_frame(tmp_path: Path) -> None:
    frames = np.stack([pattern(8, False, seed) for seed in range(3)]).astype(np.uint8)
    groups = []
    for centre in (50, 100, 150):
        group, window = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = centre, 60
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    shared, rescaling = pydicom.Dataset(), pydicom.Dataset()
    rescaling.RescaleSlope, rescaling.RescaleIntercept = 2, -30
    shared.PixelValueTransformationSequence = [rescaling]
    write_dicom(
        tmp_path / "x.dcm",
        frames,
        NumberOfFrames=3,
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
    )
    found = decode_dicom(tmp_path / "x.dcm", "voi", "middle")
    np.testing.assert_array_equal(found, picture(frames[1] * 2.0 - 30, linear(100, 60)))


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
def test_a_file_without_preamble_is_read(tmp_path: Path, syntax: str) -> None:
    path, stored = tmp_path / "x", pattern(8, False).astype(np.uint8)
    write_dicom(path, stored, syntax=syntax)
    dataset = pydicom.dcmread(path)
    bare = pydicom.Dataset()
    bare.update(dataset)
    pydicom.dcmwrite(
        path, bare, implicit_vr=syntax == "implicit", little_endian=True, enforce_file_format=False
    )
    assert path.read_bytes()[:2] == b"\x08\0"
    assert is_dicom(path)
    np.testing.assert_array_equal(decode_dicom(path, "voi", "reject")[:, :, 0], stored)


def test_other_images_are_no_dicom(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif", "bmp", "gif", "webp", "tga", "ico", "ppm"):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / f"x.{suffix}")
        assert not is_dicom(tmp_path / f"x.{suffix}")


SETTINGS = ImageConfig(size=16, mode="grey", fit="pad", window="voi", frames="reject")


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    stored = pattern(8, False).astype(np.uint8)
    write_dicom(tmp_path / "named.png", stored)
    np.testing.assert_array_equal(decode_image(tmp_path / "named.png", SETTINGS)[:, :, 0], stored)
    assert image_size(tmp_path / "named.png") == dicom_size(tmp_path / "named.png") == stored.shape


def reason_of(path: Path) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decode_image(path, SETTINGS)
    return caught.value.reason, caught.value.problem


def test_a_missing_codec_is_named_and_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "JOHN-DOE.dcm"
    write_dicom(path, pattern(8, False).astype(np.uint8))
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    dataset.save_as(path)
    assert reason_of(path) == (CODEC_MISSING, "MPEG2 Main Profile / Main Level")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.save_as(path)
    assert reason_of(path) == reason_of(path) == (UNREADABLE, "damaged or cut off")
    dataset.file_meta.TransferSyntaxUID = "1.2.3.4"
    dataset.save_as(path)
    assert reason_of(path) == (CODEC_MISSING, "an unknown transfer syntax")


def test_codecs_are_known_before_any_file_is_read() -> None:
    found = codecs()
    assert found["JPEG 2000 Image Compression (Lossless Only)"]
    assert found["JPEG-LS Lossless Image Compression"]
    assert len(found) == 16


@pytest.mark.parametrize(
    "elements",
    [
        {"Rows": 0},
        {"Rows": 60000, "Columns": 60000},
        {"SamplesPerPixel": 4},
        {"BitsStored": 0},
        {"BitsStored": 12},
        {"PhotometricInterpretation": "HSV"},
        {"RescaleSlope": "1e999"},
        {"NumberOfFrames": 0x7FFFFFFF},
        {"PixelRepresentation": 7},
    ],
)
def test_nonsense_in_a_header_is_damage(tmp_path: Path, elements: dict[str, Any]) -> None:
    write_dicom(tmp_path / "x.dcm", pattern(8, False).astype(np.uint8))
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(tmp_path / "x.dcm")
    reason, problem = reason_of(tmp_path / "x.dcm")
    assert reason == UNREADABLE or (reason == SEVERAL_FRAMES and "NumberOfFrames" in elements)
    assert problem


def test_a_deflated_file_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aga.data.pixels.dicom.MAX_PIXELS", 2**22)
    path = tmp_path / "x.dcm"
    write_dicom(path, pattern(8, False).astype(np.uint8), syntax="deflated")
    whole = path.read_bytes()
    length = 144 + int.from_bytes(whole[140:144], "little")
    squeezed = zlib.compressobj(9, wbits=-15)
    zeros = b"".join(squeezed.compress(bytes(2**24)) for _ in range(3)) + squeezed.flush()
    path.write_bytes(whole[:length] + zeros)
    assert reason_of(path) == (UNREADABLE, f"more than {2**24} bytes when inflated")


@pytest.mark.parametrize("syntax", ["jpeg_ls", "jpeg_lossless", "jpeg_lossless_1"])
@pytest.mark.parametrize("field", range(6), ids=["bits", "h", "h", "w", "w", "components"])
def test_a_stream_that_differs_from_the_header_never_reaches_the_decoder(
    tmp_path: Path, syntax: str, field: int
) -> None:
    path = tmp_path / "x.dcm"
    write_dicom(path, smooth_colours())
    assert transcode(path, syntax)
    data = bytearray(path.read_bytes())
    marker = b"\xff\xf7" if syntax == "jpeg_ls" else b"\xff\xc3"
    data[data.index(marker) + 4 + field] ^= 0x93
    path.write_bytes(data)
    assert reason_of(path) == (UNREADABLE, "a compressed frame that differs from the header")
