"""ConVIRT and SigLIP, which look at global embeddings only."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from baselines import EXACT, baseline, block
from builders import embeddings
from pydantic import ValidationError
from reference import alignment, pairwise

from aga.objectives import ConvirtConfig, SiglipConfig

NAMES = ["convirt", "siglip"]
both = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("temperature", "weight"), [(0.1, 0.75), (0.1, 1.0), (0.5, 0.0)])
def test_convirt_equals_the_reference(count: int, temperature: float, weight: float) -> None:
    pairs = embeddings([3] * count)
    module = baseline("convirt", temperature=temperature, image_weight=weight)
    images, texts = pairs.image.tolist(), pairs.text.tolist()
    expected = pairwise.convirt(images, texts, temperature, weight)
    torch.testing.assert_close(module(pairs).total.item(), expected, **EXACT)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_siglip_equals_the_reference(count: int, temperature: float) -> None:
    pairs = embeddings([3] * count)
    module = baseline("siglip", temperature=temperature)
    # The parameter is made in float32, whose rounding of log 1/τ is not the loss's.
    scale = math.exp(torch.tensor(-math.log(temperature)).item())
    expected = alignment.pairwise_sigmoid(pairs.image.tolist(), pairs.text.tolist(), scale, -10.0)
    torch.testing.assert_close(module(pairs).total.item(), expected, **EXACT)


def test_convirt_as_committed_weights_the_images_three_to_one_at_a_tenth() -> None:
    assert block("convirt") == {"temperature": 0.1, "image_weight": 0.75}


def test_convirt_learns_nothing_of_its_own_and_siglip_scale_and_bias() -> None:
    assert [name for name, _ in baseline("convirt").named_parameters()] == []
    siglip = dict(baseline("siglip").named_parameters())
    assert siglip.keys() == {"contrast.log_scale", "contrast.bias"}
    assert siglip["contrast.bias"].item() == -10
    baseline_loss = baseline("siglip")
    baseline_loss(embeddings([3, 2])).total.backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in baseline_loss.parameters())


def test_equal_weights_at_a_fixed_temperature_are_clip() -> None:
    pairs = embeddings([3] * 4)
    convirt, clip = baseline("convirt", image_weight=0.5), baseline("clip", temperature=0.1)
    torch.testing.assert_close(convirt(pairs).total, clip(pairs).total, rtol=1e-6, atol=0)


def test_swapping_images_and_reports_swaps_the_weights_of_convirt() -> None:
    pairs = embeddings([3] * 4)
    swapped = replace(pairs, image=pairs.text, text=pairs.image)
    first, second = baseline("convirt", image_weight=0.9), baseline("convirt", image_weight=0.1)
    torch.testing.assert_close(first(pairs).total, second(swapped).total, **EXACT)
    assert not torch.allclose(first(pairs).total, first(swapped).total)


@both
def test_tokens_patches_and_lengths_do_not_matter(name: str) -> None:
    pairs, module = embeddings([3, 0]), baseline(name)
    other = replace(pairs, patches=pairs.patches + 1, tokens=pairs.tokens - 1)
    assert module(pairs).total.equal(module(other).total)
    longer = replace(pairs, image=3 * pairs.image, text=pairs.text / 2)
    torch.testing.assert_close(module(longer).total, module(pairs).total, **EXACT)
    assert module.inside(pairs) == {}


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ConvirtConfig, {"temperature": 0.0, "image_weight": 0.75}),
        (ConvirtConfig, {"temperature": 0.1, "image_weight": 1.5}),
        (ConvirtConfig, {"temperature": 0.1}),
        (SiglipConfig, {"temperature": 0.005, "bias": -10.0}),
        (SiglipConfig, {"temperature": 0.1, "bias": 1.0}),
    ],
)
def test_a_wrong_value_is_refused(config: type, values: dict) -> None:
    with pytest.raises(ValidationError):
        config.model_validate(values)
