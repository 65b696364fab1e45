"""The CLIP baseline and the losses between pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from builders import embeddings
from reference import alignment
from torch.autograd import gradcheck

from aga.objectives import ClipConfig, ClipObjective
from aga.objectives.contrastive import ContrastConfig, GlobalContrast


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("count", [1, 5])
def test_clip_equals_the_reference(temperature: float, count: int) -> None:
    pairs = embeddings([3] * count)
    found = ClipObjective(ClipConfig(temperature=temperature), 6).double()(pairs)
    # The parameter is made in float32, whose rounding of log 1/τ is not the loss's.
    scale = math.exp(torch.tensor(-math.log(temperature)).item())
    expected = alignment.info_nce(pairs.image.tolist(), pairs.text.tolist(), scale)
    assert list(found.terms) == ["contrast"]
    torch.testing.assert_close(found.total.item(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["infonce", "sigmoid"])
def test_the_gradient_is_that_of_the_loss(form: str) -> None:
    contrast = GlobalContrast(ContrastConfig(form=form, temperature=0.3, bias=-10.0)).double()
    pairs = embeddings([1, 1, 1], width=4)
    inputs = (pairs.image.requires_grad_(), pairs.text.requires_grad_(), *contrast.parameters())
    assert gradcheck(lambda image, text, *_: contrast(image, text), inputs)


def test_tokens_and_patches_do_not_matter() -> None:
    pairs = embeddings([3, 4])
    clip = ClipObjective(ClipConfig(temperature=0.1), 6).double()
    other = replace(pairs, patches=pairs.patches + 1, tokens=pairs.tokens - 1)
    assert clip(pairs).total.equal(clip(other).total)
