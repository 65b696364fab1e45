"""Image encoder: any timm ViT or CNN, giving patch features in reading order and a global one."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from pydantic import JsonValue, field_validator
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from aga.config import Config
from aga.encoders.weights import load_strict
from aga.errors import ParamsError

# Set by the library itself; some of them would also reach for the network or open a pickle.
RESERVED_OPTIONS = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "features_only",
        "img_size",
        "in_chans",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
    }
)
PROBES = 8  # images of noise
CLASSIFIERS = ("fc", "head", "classifier")
IN_BUNDLE = "image_encoder.backbone."  # prefix of the same names in a bundle's model.safetensors


class ImageEncoderConfig(Config):
    """Settings of the image encoder.

    Attributes:
        architecture: A timm model name.
        options: Keyword arguments of that model; lists become tuples.
        weights: A .safetensors file to start from, also a bundle's `model.safetensors`; or None to
            start from scratch.
        patch_layer: Index of the feature map that gives the patches, as timm counts them: stages of
            a CNN (0 is the stem), blocks of a ViT; negative numbers count from the end.
    """

    architecture: str
    options: dict[str, JsonValue]
    weights: str | None
    patch_layer: int

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str) -> str:
        if timm.is_model(name):
            return name
        close = difflib.get_close_matches(name, timm.list_models(), n=4)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise ValueError(f"timm has no model '{name}'{hint}")

    @field_validator("options")
    @classmethod
    def _own(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(RESERVED_OPTIONS & options.keys())
        if taken:
            raise ValueError(f"set by the library, not by options: {', '.join(taken)}")
        return options

    def resolved(self, home: Path) -> ImageEncoderConfig:
        """The same settings with `weights` as an absolute path; relative ones start at `home`."""
        if self.weights is None:
            return self
        return self.model_copy(update={"weights": str((home / self.weights).resolve())})


class ImageEncoder(nn.Module):
    """Patches and a global feature of images of one size.

    Args:
        config: Architecture and weights.
        channels: Channels C of the images.
        image_size: Height H and width W of the images in pixels.

    Attributes:
        patch_width: Features E of a patch.
        global_width: Features F of an image.

    Raises:
        ParamsError: The options, the patch layer or the image size do not fit the architecture.
        CheckpointError: The weights file is missing, damaged, or of another architecture.
    """

    def __init__(
        self, config: ImageEncoderConfig, *, channels: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.image_size = image_size
        # Convolutions on a CPU take two thirds of the time in this order of memory.
        self.backbone = _create(config, channels, image_size).to(memory_format=torch.channels_last)
        if config.weights is not None:
            classifiers = {*CLASSIFIERS, *_names(self.backbone.pretrained_cfg["classifier"])}
            load_strict(self.backbone, Path(config.weights), classifiers, IN_BUNDLE)
        feature_map, features = self._first_probe()
        self.patch_width: int = feature_map.shape[1]
        self.global_width: int = features.shape[1]
        self._grid: tuple[int, int] = (feature_map.shape[2], feature_map.shape[3])

    def forward(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B P E"], Float[Tensor, "B F"]]:
        """Encode normalised images.

        Returns:
            Patch features, row-major: patch p is row p // columns, column p % columns of the grid,
            class and register tokens left out; and the network's own pooled feature.
        """
        feature_map, features = self._features(images)
        # [B E rows columns] -> [B E P] -> [B P E]; a bare view to [B P E] would scramble the places
        return feature_map.flatten(2).transpose(1, 2), features

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels; P = rows * columns."""
        if (height, width) == self.image_size:
            return self._grid
        feature_map, _ = self._probe(height, width)
        return feature_map.shape[2], feature_map.shape[3]

    def patch_shift(self) -> tuple[float, float]:
        """How far the middle of what a patch sees lies off the middle of its cell of the grid.

        Strided convolutions with padding on both sides see around a corner of the cell, half a
        patch away. Measured: the centroid of the gradients that the middle patch of noise sends to
        its pixels, with the weights as they are. 0 where the image is cut into cells first, as by a
        ViT.

        Returns:
            Pixels down and to the right.
        """
        if hasattr(self.backbone, "patch_embed"):
            return 0.0, 0.0
        draw = torch.Generator().manual_seed(0)
        height, width = (2 * side for side in self.image_size)  # no border is near the middle
        noise = torch.randn(PROBES, self.channels, height, width, generator=draw)
        was_training = self.training
        self.eval()
        try:
            with torch.enable_grad():
                images = noise.to(next(self.backbone.parameters()).device).requires_grad_()
                feature_map, _ = self._features(images)
                rows, columns = feature_map.shape[2:]
                seen = feature_map[:, :, rows // 2, columns // 2].square().sum()
                (gradient,) = torch.autograd.grad(seen, images)
        finally:
            self.train(was_training)
        weight = gradient.square().sum((0, 1)).double().cpu()
        weight = weight / weight.sum()
        middle = [
            (torch.arange(n, dtype=torch.float64) + 0.5) @ weight.sum(d)
            for n, d in ((height, 1), (width, 0))
        ]
        cells = [(n // 2 + 0.5) * side / n for n, side in ((rows, height), (columns, width))]
        down, right = (float(seen) - cell for seen, cell in zip(middle, cells, strict=True))
        return down, right

    def _features(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B E rows columns"], Float[Tensor, "B F"]]:
        final, (feature_map,) = self.backbone.forward_intermediates(
            images.contiguous(memory_format=torch.channels_last),
            indices=[self.config.patch_layer],
            norm=True,
            output_fmt="NCHW",
        )
        return feature_map, self.backbone.forward_head(final, pre_logits=True)

    def _first_probe(self) -> tuple[Float[Tensor, "1 E rows columns"], Float[Tensor, "1 F"]]:
        try:
            return self._probe(*self.image_size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ParamsError(
                f"'{self.config.architecture}' cannot read images of this size.",
                where="prepare.image.size",
                got=f"{self.image_size[0]} x {self.image_size[1]} pixels: {error}",
                fix="use larger images, or a multiple of the architecture's patch or window size",
            ) from error

    @torch.no_grad()
    def _probe(
        self, height: int, width: int
    ) -> tuple[Float[Tensor, "1 E rows columns"], Float[Tensor, "1 F"]]:
        # Running a blank image is the one way to the shapes that holds for every family of timm.
        like = next(self.backbone.parameters())
        was_training = self.training
        self.eval()
        try:
            return self._features(like.new_zeros(1, self.channels, height, width))
        finally:
            self.train(was_training)


def _create(config: ImageEncoderConfig, channels: int, image_size: tuple[int, int]) -> Any:
    options = {name: _tuples(value) for name, value in config.options.items()}
    if get_pretrained_cfg(config.architecture).fixed_input_size:
        options["img_size"] = image_size
    try:
        backbone = timm.create_model(
            config.architecture, pretrained=False, in_chans=channels, num_classes=0, **options
        )
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ParamsError(
            f"timm cannot build '{config.architecture}' with these options.",
            where="image_encoder.options",
            got=f"{options}: {error}",
            fix="compare the options with the model's arguments in timm",
        ) from error
    _check_patch_layer(backbone, config)
    return backbone


def _check_patch_layer(backbone: Any, config: ImageEncoderConfig) -> None:
    if not hasattr(backbone, "forward_intermediates"):
        raise ParamsError(
            "The architecture does not give its feature maps.",
            where="image_encoder.architecture",
            got=config.architecture,
            expected="a timm model with forward_intermediates, as nearly all ViTs and CNNs have",
        )
    layers = len(backbone.feature_info)
    if not -layers <= config.patch_layer < layers:
        raise ParamsError(
            "The architecture has no such feature map.",
            where="image_encoder.patch_layer",
            got=config.patch_layer,
            expected=f"0 to {layers - 1}, or -{layers} to -1, for {config.architecture}",
        )


def _tuples(value: JsonValue) -> Any:
    """YAML knows lists only; timm expects tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _names(classifier: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Timm names one classifier, several (distilled models), or none."""
    return (classifier,) if isinstance(classifier, str) else classifier or ()
