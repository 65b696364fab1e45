"""Stored pixels to normalised images, and the augmentation of training images.

The transform travels inside the bundle, so that inference sees what training saw. Augmentation
keeps no state: what happens to an image depends on (seed, epoch, row) alone, so a resumed run, any
number of workers and any batch give the same pixels. Images are never flipped: left and right
carry meaning.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from torch import Tensor

from aga.config import Config
from aga.data.pixels.dicom import FramePolicy
from aga.data.pixels.images import ImageConfig
from aga.data.pixels.windows import WindowMode
from aga.errors import DataError

_BEFORE_DICOM = {"window": "voi", "frames": "first"}  # of bundles older than the two settings
STATISTIC_ROWS = 16384  # enough for a mean to three digits, and bounded in time


class AugmentationConfig(Config):
    """How far a training image may be changed; each draw is uniform in plus or minus the value.

    Attributes:
        rotation: Degrees.
        translation: Share of the image's side, in each direction.
        scale: Relative change of size.
        brightness: Shift, in standard deviations of the training pixels.
        contrast: Relative change of the distance to the training pixels' mean.
        noise: Standard deviation of the Gaussian noise, in that of the training pixels.
    """

    rotation: Annotated[float, Field(ge=0, le=45)]
    translation: Annotated[float, Field(ge=0, lt=0.5)]
    scale: Annotated[float, Field(ge=0, lt=0.5)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]
    noise: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ImageTransform:
    """Prepared 8-bit pixels to the model's input, and all that is needed to prepare a new image.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 or 3.
        mean: Per channel, of the training pixels scaled to [0, 1].
        std: Per channel, likewise.
        fit: How an image of another shape is made to fit.
        mode: What the channels are.
        window: How a DICOM file's grey values become 8 bits.
        frames: Which frame of a DICOM file is taken.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["pad", "crop", "stretch"]
    mode: Literal["grey", "rgb"]
    window: WindowMode
    frames: FramePolicy

    @property
    def image_config(self) -> ImageConfig:
        """How `aga.data.pixels.images` decodes and prepares an image as those of training were."""
        return ImageConfig(
            size=self.height,
            mode=self.mode,
            fit=self.fit,
            window=self.window,
            frames=self.frames,
        )

    def __call__(self, pixels: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B C H W"]:
        """Scale to [0, 1] and normalise each channel.

        Raises:
            DataError: The pixels have another size or number of channels.
        """
        expected = (self.height, self.width, self.channels)
        if tuple(pixels.shape[1:]) != expected:
            raise DataError(
                "The images do not have the size that the model was trained with",
                got=tuple(pixels.shape[1:]),
                expected=f"{expected} (height, width, channels)",
                fix="prepare them with the size, mode and fit of this transform",
            )
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return scaled.div_(255).sub_(mean).div_(std)

    def to_json(self) -> str:
        """The transform as JSON text; `from_json` is the inverse, exactly."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values = _BEFORE_DICOM | values
        return cls(**values | {name: tuple(values[name]) for name in ("mean", "std")})


def pixel_statistics(
    images: UInt8[np.ndarray, "N H W C"], rows: Int64[np.ndarray, "B"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Exact and independent of order: both come from a histogram. Of more than 16,384 rows, evenly
    spaced ones are taken.

    Args:
        images: All images of a dataset.
        rows: Which of them to count, at least one; the training split's.

    Returns:
        Means and standard deviations; the latter at least 1/255, as a constant image has none.
    """
    every = -(-len(rows) // STATISTIC_ROWS)
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for row in rows[::every]:
        for channel in range(channels):
            counts[channel] += np.bincount(images[row, ..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def augment(
    images: Float[Tensor, "B C H W"],
    rows: Int64[Tensor, "B"],
    epoch: int,
    seed: int,
    config: AugmentationConfig,
) -> Float[Tensor, "B C H W"]:
    """Rotate, scale, shift, change contrast and brightness, and add noise.

    Args:
        images: Normalised images.
        rows: Manifest row of each image, from which its draws come.
        epoch: Counted from 0; each epoch draws anew.
        seed: The run's seed.
        config: How far.

    Returns:
        New images; an image's pixels are the same, to the bit, in any batch.
    """
    height, width = images.shape[-2:]
    changes, noises = [], []
    for row in rows.tolist():
        generator = row_generator(seed, epoch, row)
        changes.append(_draw_change(generator, height / width, config))
        if config.noise:
            noises.append(generator.standard_normal((1, height, width), np.float32))
    placement, contrast, brightness = _columns(changes, images)
    augmented = torch.nn.functional.grid_sample(
        images,
        _sampling_grid(placement, height, width),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    augmented = augmented * contrast + brightness
    if config.noise:
        # One field for all channels: a grey image stays grey.
        augmented += config.noise * torch.from_numpy(np.stack(noises)).to(images)
    return augmented


def row_generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """Random numbers that depend on (seed, epoch, row) alone.

    A counter-based generator: (seed, epoch) is its key, and each row has its own 2**192 counts.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, row]))


def _draw_change(
    generator: np.random.Generator, aspect: float, config: AugmentationConfig
) -> tuple[float, ...]:
    """Six numbers of the sampling map, then contrast and brightness, for one image.

    The map sends a place of the new image to the place of the old one whose pixel it shows, both
    in [-1, 1]: `x' = a x + b y + c`, `y' = d x + e y + f`. `aspect` (height over width) keeps a
    rotation of an image that is not square from shearing it.
    """
    turn, zoom, right, down, contrast, brightness = generator.uniform(-1, 1, 6).tolist()
    angle = math.radians(config.rotation * turn)
    size = 1 + config.scale * zoom
    cosine, sine = math.cos(angle) / size, math.sin(angle) / size
    return (
        cosine,
        -sine * aspect,
        2 * config.translation * right,
        sine / aspect,
        cosine,
        2 * config.translation * down,
        1 + config.contrast * contrast,
        config.brightness * brightness,
    )


def _columns(
    changes: list[tuple[float, ...]], images: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "6 B 1 1"], Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
    values = torch.tensor(changes).to(images).reshape(-1, 8, 1, 1, 1)
    return values[:, :6, 0].transpose(0, 1), values[:, 6], values[:, 7]


def _sampling_grid(
    placement: Float[Tensor, "6 B 1 1"], height: int, width: int
) -> Float[Tensor, "B H W 2"]:
    """Element by element, not by matrix product: that may round otherwise in another batch."""
    a, b, c, d, e, f = placement
    y, x = (
        ((2 * torch.arange(side, device=placement.device) + 1) / side - 1).to(placement)
        for side in (height, width)
    )
    y = y[:, None]
    return torch.stack([a * x + b * y + c, d * x + e * y + f], dim=-1)
