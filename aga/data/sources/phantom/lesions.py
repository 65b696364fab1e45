"""Draws each finding as layers over a chest; `drawing` puts the layers together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from aga.data.sources.phantom.anatomy import ABDOMEN, SIDE_SIGN, Body, Map, clouds, smoothstep
from aga.data.sources.phantom.facts import Fact

_BANDS = {"upper": (-0.50, -0.38), "mid": (-0.17, -0.05), "lower": (0.12, 0.24)}
_PROPOSALS = 128

Rng = np.random.Generator


@dataclass(frozen=True)
class Layer:
    """Pulls the picture towards one density.

    Attributes:
        alpha: How strongly at each pixel, 0 to 1; 0 outside a bounded region.
        density: The density pulled towards.
        darkens: A layer only ever darkens or only ever brightens what it covers.
    """

    alpha: Map
    density: float
    darkens: bool = False

    def over(self, picture: Map) -> Map:
        """The picture with this layer laid over it."""
        change = self.density - picture
        bounded = np.minimum(change, 0) if self.darkens else np.maximum(change, 0)
        return np.asarray(picture + self.alpha * bounded)


def _place(body: Body, fact: Fact, need: float, rng: Rng) -> tuple[float, float]:
    """A point of the fact's zone, `need` inside the lung and clear of the heart if any is."""
    x = rng.uniform(0.15, 0.75, _PROPOSALS) * SIDE_SIGN[fact.side]
    y = rng.uniform(*_BANDS[fact.zone], _PROPOSALS)
    lung = body.anatomy.lung_depth(fact.side, x, y)
    clearance = np.minimum(lung, body.anatomy.heart_distance(x, y))
    fits = clearance >= need
    best = int(np.argmax(fits)) if fits.any() else int(np.argmax(clearance))
    return float(x[best]), float(y[best])


def _distance(body: Body, x: float, y: float, stretch: float = 1.0) -> Map:
    return np.asarray(np.sqrt(((body.x - x) / stretch) ** 2 + ((body.y - y) * stretch) ** 2))


def _nodule(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    radius = rng.uniform(0.065, 0.11)
    x, y = _place(body, fact, radius, rng)
    distance = _distance(body, x, y, rng.uniform(0.92, 1.08))
    return [Layer(0.92 * smoothstep(radius + 0.012, radius - 0.012, distance), 0.66)]


def _opacity(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    radius = rng.uniform(0.21, 0.25)
    x, y = _place(body, fact, 0.6 * radius, rng)
    haze = smoothstep(radius, 0.15 * radius, _distance(body, x, y, rng.uniform(0.85, 1.1)))
    mottle = 0.85 + 0.15 * clouds(rng, 14, body.x.shape[0])
    return [Layer(0.75 * haze * mottle * body.lungs[fact.side], 0.58)]


def _consolidation(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    """A dense patch with a ragged border; the airways in it stay open and show as dark branches."""
    radius = rng.uniform(0.16, 0.185)
    x, y = _place(body, fact, 0.75 * radius, rng)
    ragged = radius * (1 + 0.35 * clouds(rng, 24, body.x.shape[0]))
    patch = smoothstep(0.03, -0.02, _distance(body, x, y, rng.uniform(0.9, 1.15)) - ragged)
    away = np.sign(x)
    across = (body.x - x) * away + 0.9 * radius
    along = body.y - y
    airways = np.zeros_like(patch)
    for slope in rng.uniform(-0.08, 0.08) + np.array([-0.55, 0.0, 0.55]):
        offset = np.abs(along - slope * across) / np.sqrt(1 + slope**2)
        airways = np.maximum(airways, smoothstep(0.022, 0.010, offset) * (across > 0))
    return [Layer(patch * (1 - 0.6 * airways) * body.lungs[fact.side], 0.70)]


def _cavity(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    radius = rng.uniform(0.105, 0.13)
    wall = rng.uniform(0.032, 0.04)
    x, y = _place(body, fact, radius, rng)
    distance = _distance(body, x, y, rng.uniform(0.9, 1.1))
    disc = smoothstep(radius + 0.01, radius - 0.01, distance)
    hole = smoothstep(radius - wall + 0.01, radius - wall - 0.01, distance)
    return [Layer(0.95 * (disc - hole), 0.70), Layer(0.9 * hole, 0.04, darkens=True)]


def _calcification(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    """Specks on a jittered ring around one in the middle, so that they never merge into a disc."""
    spread = rng.uniform(0.07, 0.085)
    x, y = _place(body, fact, spread, rng)
    count = int(rng.integers(5, 8))
    angles = rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count
    reach = spread * rng.uniform(0.75, 1.1, count)
    centres = [(0.0, 0.0), *zip(reach * np.cos(angles), reach * np.sin(angles), strict=True)]
    alpha = np.zeros_like(body.x)
    for dx, dy in centres:
        radius = rng.uniform(0.018, 0.025)
        speck = smoothstep(radius + 0.008, radius - 0.008, _distance(body, x + dx, y + dy))
        alpha = np.maximum(alpha, speck)
    return [Layer(alpha, 0.97)]


def _effusion(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    """Fluid above the diaphragm, with a meniscus that climbs the lateral wall."""
    low, high = (0.09, 0.13) if fact.size == "small" else (0.30, 0.38)
    height = rng.uniform(low, high)
    across = body.x * SIDE_SIGN[fact.side]
    lateral = np.clip((across - 0.15) / 0.6, 0, 1)
    surface = body.anatomy.domes[fact.side == "right"] + 0.06 - height - 0.22 * lateral**3
    fluid = smoothstep(-0.015, 0.015, body.y - surface)
    # The fluid lies on the diaphragm, so its lower border is not seen.
    sunk = replace(body, y=body.y - 0.05).lungs[fact.side]
    seen = np.maximum(body.lungs[fact.side], sunk) * (1 - body.heart)
    return [Layer(fluid * seen, ABDOMEN)]


def _pneumothorax(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    """Air without vessels between the wall and the pleural line of the lung that has sunk."""
    low, high = (0.10, 0.13) if fact.size == "small" else (0.22, 0.26)
    gap = rng.uniform(low, high)
    # Air gathers at the top: the gap is full at the apex and closes downwards.
    bottom = -0.1 if fact.size == "small" else 0.45
    closing = gap * smoothstep(bottom, -0.6, body.y)
    depth = body.anatomy.rim_depth(fact.side, body.x, body.y)
    pleura = closing - depth
    lung = body.lungs[fact.side]
    open_gap = smoothstep(0.0, 0.05, closing)
    air = lung * smoothstep(-0.006, 0.006, pleura) * open_gap
    line = lung * smoothstep(0.020, 0.008, np.abs(pleura)) * open_gap
    return [Layer(0.95 * air, 0.02, darkens=True), Layer(0.8 * line, 0.50)]


def _cardiomegaly(body: Body, _fact: Fact, _rng: Rng) -> list[Layer]:
    """Nothing to add: the body is already drawn with the enlarged heart, whose extent this is."""
    return [Layer(body.heart, 0.0)]


def _line(body: Body, fact: Fact, rng: Rng) -> list[Layer]:
    """A catheter under the clavicle, through the right-sided superior vena cava, to its tip."""
    sign = SIDE_SIGN[fact.side]
    cava = -0.6 * body.anatomy.mediastinum
    knots = np.array(
        [
            (sign * rng.uniform(0.66, 0.74), rng.uniform(-0.52, -0.44)),
            (sign * 0.52, -0.62),
            (sign * rng.uniform(0.28, 0.34), rng.uniform(-0.62, -0.57)),
            (cava + 0.06 * sign, -0.46),
            (cava, -0.28),
            (cava + rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.08)),
        ]
    )
    path = _smooth_path(knots)
    distance = _path_distance(body, path)
    tip = _distance(body, *map(float, path[-1]))
    alpha = np.maximum(smoothstep(0.020, 0.010, distance), smoothstep(0.030, 0.020, tip))
    return [Layer(alpha, 0.98)]


def _smooth_path(knots: Float[np.ndarray, "K 2"], rounds: int = 2) -> Float[np.ndarray, "M 2"]:
    """Cut the corners of a polyline (Chaikin), keeping its two ends."""
    for _ in range(rounds):
        first, second = knots[:-1], knots[1:]
        cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1)
        knots = np.concatenate([knots[:1], cut.reshape(-1, 2)[1:-1], knots[-1:]])
    return knots


def _path_distance(body: Body, path: Float[np.ndarray, "M 2"]) -> Map:
    """Distance of every pixel from a polyline; 1 where it is far away."""
    margin = 0.05
    (left, top), (right, bottom) = path.min(0) - margin, path.max(0) + margin
    near = (body.x > left) & (body.x < right) & (body.y > top) & (body.y < bottom)
    pixels = np.stack([body.x[near], body.y[near]], axis=1)
    closest = np.full(len(pixels), np.inf, dtype=np.float32)
    for start, end in pairwise(path):
        step = (end - start).astype(np.float32)
        offset = pixels - start.astype(np.float32)
        share = np.clip(offset @ step / max(float(step @ step), 1e-12), 0, 1)
        away = offset - share[:, None] * step
        closest = np.minimum(closest, (away * away).sum(1))
    distance = np.ones_like(body.x)
    distance[near] = np.sqrt(closest)
    return distance


DRAWN: dict[str, Callable[[Body, Fact, Rng], list[Layer]]] = {
    "pneumothorax": _pneumothorax,
    "effusion": _effusion,
    "opacity": _opacity,
    "consolidation": _consolidation,
    "cavity": _cavity,
    "nodule": _nodule,
    "cardiomegaly": _cardiomegaly,
    "calcification": _calcification,
    "line": _line,
}
OVER_BONES = frozenset({"calcification", "line"})
