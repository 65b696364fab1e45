"""Image encoder: places of the patches, strict weights, errors at start."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from aga.encoders.image import ImageEncoder, ImageEncoderConfig
from aga.errors import CheckpointError, ParamsError

CNN = {
    "architecture": "resnet10t",
    "options": {"channels": [8, 16, 24, 32]},
    "weights": None,
    "patch_layer": 2,
}
VIT = {
    "architecture": "vit_tiny_patch16_224",
    "options": {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "reg_tokens": 3},
    "weights": None,
    "patch_layer": 1,
}
CONVNEXT = {
    "architecture": "convnext_atto",
    "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "weights": None,
    "patch_layer": 1,
}
FAMILIES = pytest.mark.parametrize("settings", [CNN, VIT, CONVNEXT], ids=["cnn", "vit", "convnext"])


def build(
    settings: dict[str, object], size: tuple[int, int] = (64, 96), channels: int = 1
) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig(**settings), channels=channels, image_size=size).eval()


@FAMILIES
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64)], ids=["wide", "tall", "square"])
@torch.no_grad()
def test_patch_p_is_place_p(settings: dict[str, object], size: tuple[int, int]) -> None:
    encoder = build(settings, size)
    rows, columns = encoder.grid(*size)
    assert (rows, columns) == (size[0] // 8, size[1] // 8)
    # Image p differs from the first one at the middle of place p only.
    generator = torch.Generator().manual_seed(1)
    blank = 0.1 * torch.randn(1, 1, *size, generator=generator)
    changed = blank.repeat(rows * columns, 1, 1, 1)
    for place in range(rows * columns):
        top, left = 8 * (place // columns), 8 * (place % columns)
        changed[place, 0, top + 2 : top + 6, left + 2 : left + 6] += 1
    response = (encoder(changed)[0] - encoder(blank)[0]).norm(dim=-1)
    assert torch.equal(response.argmax(dim=1), torch.arange(rows * columns))


@pytest.mark.parametrize(("kernel", "padding", "shift"), [(3, 1, -0.5), (2, 0, 0), (4, 1, 0)])
def test_a_patch_lies_around_the_middle_of_what_it_sees(
    kernel: int, padding: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of two pixels: a kernel of three sits on the cell's first, an even one on both."""
    encoder = build(CNN)
    layer = torch.nn.Conv2d(1, 1, kernel, stride=2, padding=padding, bias=False)
    torch.nn.init.ones_(layer.weight)
    monkeypatch.setattr(encoder, "_features", lambda images: (layer(images), None))
    assert encoder.patch_shift() == pytest.approx((shift, shift), abs=1e-6)


def test_the_shift_is_that_of_the_family_and_asks_nothing_of_the_weights() -> None:
    for settings, low, high in ((CNN, -0.5, -0.1), (VIT, 0.0, 0.0), (CONVNEXT, -0.1, 0.1)):
        encoder = build(settings).train()
        first, second = encoder.patch_shift(), encoder.patch_shift()
        assert first == second
        assert all(low <= pixels / 8 <= high for pixels in first)
        assert encoder.training
        assert all(p.grad is None for p in encoder.parameters())


@FAMILIES
def test_widths_and_grid_are_those_of_the_output(settings: dict[str, object]) -> None:
    encoder = build(settings)
    patches, features = encoder(torch.randn(3, 1, 64, 96))
    rows, columns = encoder.grid(64, 96)
    assert patches.shape == (3, rows * columns, encoder.patch_width)
    assert features.shape == (3, encoder.global_width)


def test_grid_of_another_size_leaves_the_encoder_as_it_was() -> None:
    encoder = build(CNN).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert encoder.grid(96, 128) == (12, 16)
    assert encoder.training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize(("layer", "width", "side"), [(0, 32, 48), (1, 8, 24), (-1, 32, 3)])
def test_patch_layer_picks_the_feature_map(layer: int, width: int, side: int) -> None:
    encoder = build({**CNN, "patch_layer": layer}, (96, 96))
    assert encoder.grid(96, 96) == (side, side)
    assert encoder.patch_width in (width, 64)  # resnet10t's stem keeps its own width


def test_every_parameter_gets_a_gradient() -> None:
    for settings in (CNN, VIT, CONVNEXT):
        encoder = build(settings).train()
        patches, features = encoder(torch.randn(2, 1, 64, 96))
        (patches.square().sum() + features.square().sum()).backward()
        assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def weights_file(folder: Path, change: dict[str, Tensor | None], classes: int = 5) -> Path:
    """A file as timm publishes it, classifier included, with some tensors changed or removed."""
    torch.manual_seed(7)
    network = timm.create_model(
        "resnet10t", pretrained=False, in_chans=1, num_classes=classes, channels=(8, 16, 24, 32)
    )
    state = {k: v for k, v in {**network.state_dict(), **change}.items() if v is not None}
    path = folder / "weights.safetensors"
    save_file(state, path)
    return path


def test_weights_are_loaded_and_the_classifier_ignored(tmp_path: Path) -> None:
    path = weights_file(tmp_path, {})
    scratch, loaded = build(CNN), build({**CNN, "weights": str(path)})
    torch.manual_seed(7)
    origin = timm.create_model(
        "resnet10t", pretrained=False, in_chans=1, num_classes=5, channels=(8, 16, 24, 32)
    ).state_dict()
    state = loaded.backbone.state_dict()
    assert all(torch.equal(origin[name], value) for name, value in state.items())
    assert not torch.equal(state["conv1.0.weight"], scratch.backbone.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.conv1.weight": None}, ["missing", "layer1.0.conv1.weight"]),
        ({"layer9.weight": torch.zeros(1)}, ["unexpected", "layer9.weight"]),
        ({"conv1.0.weight": torch.zeros(2, 3)}, ["conv1.0.weight", "[2, 3]", "[24, 1, 3, 3]"]),
        ({"bn1.num_batches_tracked": torch.zeros(())}, ["bn1.num_batches_tracked", "int64"]),
    ],
    ids=["missing", "unexpected", "shape", "type"],
)
def test_other_weights_are_refused_by_name(
    tmp_path: Path, change: dict[str, Tensor | None], words: list[str]
) -> None:
    path = weights_file(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        build({**CNN, "weights": str(path)})
    assert all(word in str(caught.value) for word in [*words, str(path)])


def test_a_damaged_or_absent_file_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    with pytest.raises(CheckpointError, match="missing"):
        build({**CNN, "weights": str(absent)})
    path = weights_file(tmp_path, {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        build({**CNN, "weights": str(path)})


def test_an_unknown_architecture_names_close_ones() -> None:
    with pytest.raises(ValidationError, match=r"resnet10x.*resnet10t"):
        ImageEncoderConfig(**{**CNN, "architecture": "resnet10x"})


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path", "in_chans"])
def test_options_cannot_reach_past_the_library(option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        ImageEncoderConfig(**{**CNN, "options": {option: True}})


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        ({"options": {"chanels": 3}}, (64, 64), ["image_encoder.options", "chanels"]),
        ({"patch_layer": 5}, (64, 64), ["image_encoder.patch_layer", "0 to 4"]),
        ({**VIT, "options": {}}, (8, 8), ["prepare.image.size", "8 x 8"]),
    ],
    ids=["option", "layer", "size"],
)
def test_settings_that_do_not_fit_name_the_key(
    change: dict[str, object], size: tuple[int, int], words: list[str]
) -> None:
    with pytest.raises(ParamsError) as caught:
        build({**CNN, **change}, size)
    assert all(word in str(caught.value) for word in words)


def test_resolved_makes_the_path_absolute(tmp_path: Path) -> None:
    config = ImageEncoderConfig(**{**CNN, "weights": "a/b.safetensors"})
    assert config.resolved(tmp_path).weights == str((tmp_path / "a/b.safetensors").resolve())
    assert ImageEncoderConfig(**CNN).resolved(tmp_path).weights is None


@pytest.mark.slow
def test_the_paper_preset_builds() -> None:
    settings = {
        "architecture": "vit_base_patch16_224",
        "options": {},
        "weights": None,
        "patch_layer": -1,
    }
    encoder = build(settings, (224, 224), channels=3)
    assert encoder.grid(224, 224) == (14, 14)
    assert encoder.patch_width == encoder.global_width == 768
