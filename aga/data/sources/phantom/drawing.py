"""Draws one phantom radiograph from what is true of it, with the box of every finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from aga.data.sources.phantom.anatomy import (
    Anatomy,
    Body,
    Look,
    Map,
    clouds,
    draw_bones,
    draw_tissue,
)
from aga.data.sources.phantom.facts import FINDINGS, Fact
from aga.data.sources.phantom.lesions import DRAWN, OVER_BONES, Layer

Box: TypeAlias = tuple[int, int, int, int]

_VISIBLE = 0.2  # share of a finding's strongest effect from which a pixel belongs to its box


@dataclass(frozen=True)
class Picture:
    """A drawn radiograph.

    Attributes:
        pixels: Grey values, dense tissue bright.
        boxes: Finding to (left, top, right, bottom) in pixels, right and bottom exclusive.
    """

    pixels: UInt8[np.ndarray, "H W"]
    boxes: dict[str, Box]


def draw_picture(
    anatomy: Anatomy, look: Look, facts: Sequence[Fact], *, size: int, noise: float
) -> Picture:
    """Draw a patient's chest with the given findings.

    Nothing drawn for one finding depends on the others, except that lesions keep clear of an
    enlarged heart: the same patient and look without a fact give the same picture without it.

    Args:
        anatomy: The patient.
        look: Pose, exposure and seed of the picture.
        facts: The findings to draw, at most one of each kind.
        size: Height and width in pixels.
        noise: Standard deviation of the noise; the grey scale is 0 to 1.
    """
    by_finding = {fact.finding: fact for fact in facts}
    patient = anatomy.enlarged() if "cardiomegaly" in by_finding else anatomy
    body = Body.pose(patient, look, size)
    layers = {
        finding: draw(body, by_finding[finding], _generator(look, FINDINGS.index(finding) + 1))
        for finding, draw in DRAWN.items()  # in the order in which they are laid over each other
        if finding in by_finding
    }
    under = [layer for finding in layers if finding not in OVER_BONES for layer in layers[finding]]
    over = [layer for finding in layers if finding in OVER_BONES for layer in layers[finding]]
    picture = _lay(over, _lay(under, draw_tissue(body)) + draw_bones(body))
    boxes = {finding: _box(parts) for finding, parts in layers.items()}
    return Picture(_expose(picture, look, noise), boxes)


def _generator(look: Look, part: int) -> np.random.Generator:
    return np.random.default_rng([look.seed, part])


def _lay(layers: Sequence[Layer], picture: Map) -> Map:
    for layer in layers:
        picture = layer.over(picture)
    return picture


def _box(layers: Sequence[Layer]) -> Box:
    """The smallest box around the pixels that the layers visibly change."""
    alpha = np.max([layer.alpha for layer in layers], axis=0)
    visible = alpha > _VISIBLE * alpha.max()
    columns, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _expose(picture: Map, look: Look, noise: float) -> UInt8[np.ndarray, "H W"]:
    """Soft shadows, exposure and noise, none of which depends on what the picture shows."""
    rng = _generator(look, 0)
    size = picture.shape[0]
    shadows = 0.02 * clouds(rng, 9, size) + 0.012 * clouds(rng, 40, size)
    density = np.clip(picture + shadows, 0, 1)
    exposed = look.offset + look.gain * density**look.gamma
    grain = noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(np.clip((exposed + grain) * 255 + 0.5, 0, 255).astype(np.uint8))
