"""One image: decoding DICOM or a Pillow format to 8 bits, fitting it to a square, mapping boxes."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from aga.config import Config
from aga.data.pixels.dicom import (
    UNREADABLE,
    DicomError,
    FramePolicy,
    decode_dicom,
    dicom_size,
    is_dicom,
)
from aga.data.pixels.windows import WindowMode
from aga.errors import DataError

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, RuntimeError, struct.error),
    Image.DecompressionBombError,
)
BLANK = "image blank"
# Boxes of pixels are averaged first, to no less than twice the final size: a third of the time, and
# at most two grey levels from antialiasing all pixels at once.
_REDUCING_GAP = 2.0
_BIT_DEPTHS = (8, 10, 12, 14, 16)


class ImageError(DataError):
    """An image file is missing, damaged, or not an image.

    Args:
        path: The file.
        problem: What is wrong with it, without its name.
        reason: Under which it is counted among the rejects.
    """

    def __init__(self, path: Path, problem: str, reason: str = UNREADABLE) -> None:
        self.problem = problem
        self.reason = reason
        super().__init__(
            "The image cannot be decoded",
            where=path,
            got=problem,
            expected="DICOM, PNG, JPEG, TIFF or another image that Pillow reads",
        )


class PreparedImage(NamedTuple):
    """A file's image as the encoders see it.

    Attributes:
        pixels: Of height and width `config.size` and `config.channels` channels, contiguous.
        original_size: (height, width) of the file's image in pixels.
    """

    pixels: UInt8[np.ndarray, "S S K"]
    original_size: tuple[int, int]


class ImageConfig(Config):
    """What prepared images look like.

    Attributes:
        size: Height and width in pixels.
        mode: `grey` (one channel) or `rgb` (three).
        fit: How an image that is not square becomes so: `pad` adds black, `crop` keeps the centre,
            `stretch` changes the aspect ratio.
        window: How the grey values of a DICOM file become 8 bits: `voi` as the file says,
            `percentile` by the values that occur, `mimic_jpg` as MIMIC-CXR-JPG was made.
        frames: Which frame of a DICOM file with several is taken; `reject` refuses it.
    """

    size: int = Field(gt=0)
    mode: Literal["grey", "rgb"]
    fit: Literal["pad", "crop", "stretch"]
    window: WindowMode
    frames: FramePolicy

    @property
    def channels(self) -> int:
        """1 for grey, 3 for rgb."""
        return 1 if self.mode == "grey" else 3

    @property
    def row_bytes(self) -> int:
        """Bytes of the pixels of one image."""
        return self.size**2 * self.channels


def image_size(path: Path) -> tuple[int, int] | None:
    """(height, width) in pixels as `decode_image` would give it, from the file's header alone.

    Returns:
        None where the file is not an image.
    """
    try:
        if is_dicom(path):
            return dicom_size(path)
        with Image.open(path) as image:
            turned = _orientation(image) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except _UNREADABLE:
        return None


def decode_image(path: Path, config: ImageConfig) -> UInt8[np.ndarray, "H W C"]:
    """Decode an image file, upright, to 8 bits a channel. Its content says whether it is DICOM.

    DICOM is shown as `config.window` and `config.frames` say. In other formats, samples of more
    than 8 bits are scaled from the smallest depth of 8, 10, 12, 14 and 16 bits that holds the
    image's largest: 12-bit detectors are usually stored in 16-bit files. Transparent pixels are
    black. Of several frames the first is read.

    Args:
        path: A DICOM file, or one in any format that Pillow reads.
        config: Only what it says about DICOM is used.

    Returns:
        Pixels with one channel (grey) or three (colour).

    Raises:
        ImageError: The file is missing or is not an image.
    """
    pixels = np.array(_decoded(path, config, whole=True)[0])
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def read_image(path: Path, config: ImageConfig) -> PreparedImage:
    """Decode an image file and fit it to a square, as `decode_image` and `prepare_image` do.

    A large JPEG is read at a half, a quarter or an eighth of its size, which its encoding gives at
    a fraction of the time, where that is no less than twice the prepared size.

    Args:
        path: A DICOM file, or one in any format that Pillow reads.
        config: How images are prepared.

    Raises:
        ImageError: The file is missing, is not an image, or shows nothing.
    """
    image, size = _decoded(path, config, whole=False)
    if _is_blank(image):
        raise ImageError(path, "all pixels are equal", BLANK)
    return PreparedImage(np.ascontiguousarray(_fitted(image, config, size)), size)


def prepare_image(
    pixels: UInt8[np.ndarray, "H W C"], config: ImageConfig
) -> UInt8[np.ndarray, "S S K"]:
    """Convert to grey or RGB and fit to a square of `config.size`, antialiased.

    Args:
        pixels: A decoded image of one or three channels.
        config: Shape of the result.

    Returns:
        Pixels of height and width `config.size` and `config.channels` channels.
    """
    height, width = pixels.shape[:2]
    return _fitted(_as_image(pixels), config, (height, width))


def _fitted(
    image: Image.Image, config: ImageConfig, original_size: tuple[int, int]
) -> UInt8[np.ndarray, "S S K"]:
    """Fit an image that may have been decoded at a half, a quarter or an eighth, rounded up."""
    mode = "L" if config.mode == "grey" else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    height, width = original_size
    place = _placement(height, width, config)
    part = 2 ** round(math.log2(height / image.height))  # 1, 2, 4 or 8: the last pixel may be cut
    shown = tuple(edge / part for edge in place.source)
    left, top, right, bottom = (int(edge) for edge in place.target)
    fitted = image.resize(
        (right - left, bottom - top),
        Image.Resampling.BICUBIC,
        box=shown,
        reducing_gap=_REDUCING_GAP,
    )
    canvas = Image.new(image.mode, (config.size, config.size))
    canvas.paste(fitted, (left, top))
    return np.asarray(canvas).reshape(config.size, config.size, config.channels)


def prepared_box(box: Box, original_size: tuple[int, int], config: ImageConfig) -> Box:
    """Where a box of the original image lies in the prepared one.

    Args:
        box: In pixels of the original image.
        original_size: (height, width) of the original image in pixels.
        config: How the image was prepared.

    Returns:
        The box in prepared pixels. It reaches beyond the image where `crop` cut it off.
    """
    place = _placement(*original_size, config)
    return _map_box(box, place.source, place.target)


def original_box(box: Box, original_size: tuple[int, int], config: ImageConfig) -> Box:
    """Where a box of the prepared image lies in the original one: inverse of `prepared_box`."""
    place = _placement(*original_size, config)
    return _map_box(box, place.target, place.source)


@dataclass(frozen=True)
class _Placement:
    """The part of the original that is shown (`source`), and where in the prepared (`target`)."""

    source: Box
    target: Box


def _placement(height: int, width: int, config: ImageConfig) -> _Placement:
    size = config.size
    full = (0.0, 0.0, float(width), float(height))
    canvas = (0.0, 0.0, float(size), float(size))
    if config.fit == "stretch":
        return _Placement(full, canvas)
    if config.fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return _Placement((left, top, left + side, top + side), canvas)
    scale = size / max(height, width)
    shown_width, shown_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = float((size - shown_width) // 2), float((size - shown_height) // 2)
    return _Placement(full, (left, top, left + shown_width, top + shown_height))


def _decoded(path: Path, config: ImageConfig, whole: bool) -> tuple[Image.Image, tuple[int, int]]:
    """A file's image as L or RGB, maybe at a fraction of its size, and its (height, width)."""
    try:
        if is_dicom(path):
            pixels = decode_dicom(path, config.window, config.frames)
            return _as_image(pixels), (pixels.shape[0], pixels.shape[1])
        with Image.open(path) as image:
            width, height = image.size
            if not whole and _orientation(image) == 1:  # the last pixel, maybe cut, stays the last
                image.draft(None, _large_enough(width, height, config))
            image.load()
            turned = _orientation(image) >= 5
            ImageOps.exif_transpose(image, in_place=True)
            shown = _eight_bit(image)
    except DicomError as error:
        raise ImageError(path, error.problem, error.reason) from error
    except _UNREADABLE as error:
        raise ImageError(path, _problem(error)) from error
    return shown, (width, height) if turned else (height, width)


def _as_image(pixels: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _is_blank(image: Image.Image) -> bool:
    """Whether all samples are equal; of nearly all images a few of them say that they are not."""
    few = np.asarray(image.resize((16, 16), Image.Resampling.NEAREST))
    if few.min() < few.max():
        return False
    extremes = np.asarray(image.getextrema())
    return bool(extremes.min() == extremes.max())


def _orientation(image: Image.Image) -> int:
    """How EXIF says the image is turned; 1 is upright, 5 to 8 swap the axes."""
    return int(image.getexif().get(0x0112, 1))


def _large_enough(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """(width, height) of the smallest copy of an image that can be prepared in its place."""
    place = _placement(height, width, config)
    (left, top, right, bottom), target = place.source, place.target
    across = _REDUCING_GAP * (target[2] - target[0]) / (right - left)
    down = _REDUCING_GAP * (target[3] - target[1]) / (bottom - top)
    return math.ceil(width * across), math.ceil(height * down)


def _map_box(box: Box, source: Box, target: Box) -> Box:
    x_scale = (target[2] - target[0]) / (source[2] - source[0])
    y_scale = (target[3] - target[1]) / (source[3] - source[1])
    left, right = (target[0] + (x - source[0]) * x_scale for x in (box[0], box[2]))
    top, bottom = (target[1] + (y - source[1]) * y_scale for y in (box[1], box[3]))
    return left, top, right, bottom


def _eight_bit(image: Image.Image) -> Image.Image:
    """As L or RGB; where it is that already, not a byte is copied."""
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image).astype(np.int64)))
    if image.mode == "F":
        samples = np.asarray(image)
        if not (samples.min() >= 0 and samples.max() <= 1):
            raise ValueError("floating-point samples outside 0 to 1")
        return Image.fromarray(np.rint(samples * 255).astype(np.uint8))
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image if image.mode == "L" else image.convert("L")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), colour)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(samples: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    largest = int(samples.max())
    if samples.min() < 0 or largest >= 2**16:
        raise ValueError("samples outside 0 to 65535")
    full = 2 ** next(depth for depth in _BIT_DEPTHS if largest < 2**depth) - 1
    return np.asarray(np.rint(samples * (255 / full)), dtype=np.uint8)


def _problem(error: Exception) -> str:
    """The kind of failure; Pillow's own messages quote the path, which may name a patient."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image format"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
    return "damaged or cut off"
