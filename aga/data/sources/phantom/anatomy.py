"""A phantom patient's chest and how one picture shows it: tissue and bones before any finding.

Body coordinates: `x` runs to the image's right, which is the patient's left, and `y` down; both are
-1 to 1 over an image that is neither shifted nor turned nor scaled. "Across" is the distance from
the midline towards one side. Densities are 0 (air) to 1 (metal).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image

Map: TypeAlias = Float[np.ndarray, "H W"]
Points: TypeAlias = Float[np.ndarray, "*axes"]

SIDE_SIGN = {"left": 1.0, "right": -1.0}
LUNG, WALL, HEART, MEDIASTINUM, ABDOMEN = 0.20, 0.46, 0.61, 0.57, 0.62
_ENLARGED = 1.45
_ROUNDNESS = 2.5
_EDGE = 0.025


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest, the same in each of the patient's studies; lengths in body coordinates.

    Attributes:
        lung_across: Distance of a lung's centre from the midline.
        lung_width: Half a lung's width.
        lung_height: Half the height of the ellipse that the diaphragm cuts.
        domes: `y` of the diaphragm's top under the (left, right) lung.
        mediastinum: Half its width.
        heart: Size relative to the average heart.
        heart_across: How far the heart's centre lies to the patient's left.
        heart_tilt: Angle of its long axis in radians.
        rib_spacing: From rib to rib along the body.
        rib_phase: Offset of the first rib, in spacings.
        rib_density: Density that a rib adds.
        clavicle: Slope of the clavicles.
        torso: Half the body's width.
        vessels: Seed of the lungs' vessels.
    """

    lung_across: float
    lung_width: float
    lung_height: float
    domes: tuple[float, float]
    mediastinum: float
    heart: float
    heart_across: float
    heart_tilt: float
    rib_spacing: float
    rib_phase: float
    rib_density: float
    clavicle: float
    torso: float
    vessels: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Anatomy:
        """Draw a patient."""
        dome = rng.uniform(0.38, 0.46)
        return cls(
            lung_across=rng.uniform(0.40, 0.43),
            lung_width=rng.uniform(0.34, 0.37),
            lung_height=rng.uniform(0.76, 0.84),
            domes=(dome + rng.uniform(0.03, 0.07), dome),
            mediastinum=rng.uniform(0.11, 0.14),
            heart=rng.uniform(0.90, 1.05),
            heart_across=rng.uniform(0.09, 0.12),
            heart_tilt=rng.uniform(0.35, 0.6),
            rib_spacing=rng.uniform(0.135, 0.16),
            rib_phase=rng.uniform(0.0, 1.0),
            rib_density=rng.uniform(0.05, 0.09),
            clavicle=rng.uniform(0.10, 0.22),
            torso=rng.uniform(0.92, 1.0),
            vessels=int(rng.integers(2**31)),
        )

    def enlarged(self) -> Anatomy:
        """The same patient with cardiomegaly."""
        return replace(self, heart=self.heart * _ENLARGED, heart_across=self.heart_across + 0.03)

    def rim_depth(self, side: str, x: Points, y: Points) -> Points:
        """Distance into the chest cavity from its outer wall; negative outside."""
        across = np.abs(x * SIDE_SIGN[side] - self.lung_across) / self.lung_width
        along = np.abs(y - 0.05) / self.lung_height
        radius = (across**_ROUNDNESS + along**_ROUNDNESS) ** (1 / _ROUNDNESS)
        return np.asarray((1 - radius) * self.lung_width)

    def diaphragm(self, side: str, x: Points) -> Points:
        """`y` of the diaphragm under one lung; lowest at the costophrenic angle."""
        across = x * SIDE_SIGN[side]
        return np.asarray(self.domes[side == "right"] + 0.85 * (across - 0.36) ** 2)

    def lung_depth(self, side: str, x: Points, y: Points) -> Points:
        """Distance into a lung from its nearest border; negative outside."""
        above = self.diaphragm(side, x) - y
        lateral = x * SIDE_SIGN[side] - self.mediastinum
        return np.asarray(np.minimum(self.rim_depth(side, x, y), np.minimum(above, lateral)))

    def heart_distance(self, x: Points, y: Points) -> Points:
        """Distance from the heart's border; negative inside."""
        across, along = x - self.heart_across, y - 0.25
        cosine, sine = np.cos(self.heart_tilt), np.sin(self.heart_tilt)
        long = (across * cosine + along * sine) / (0.35 * self.heart)
        short = (along * cosine - across * sine) / (0.25 * self.heart)
        return np.asarray((np.sqrt(long**2 + short**2) - 1) * 0.25 * self.heart)


@dataclass(frozen=True)
class Look:
    """How one picture was taken: pose, exposure, and the seed of everything else in it.

    Attributes:
        rotation: Radians, clockwise.
        scale: Magnification.
        shift: (x, y) of the body's centre in the image, whose sides are 2.
        gain: Contrast of the exposure.
        offset: Brightness of the exposure.
        gamma: Exponent of the exposure.
        seed: Seed of noise, soft shadows and the findings' shapes.
    """

    rotation: float
    scale: float
    shift: tuple[float, float]
    gain: float
    offset: float
    gamma: float
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        """Draw a pose and an exposure."""
        return cls(
            rotation=rng.uniform(-0.07, 0.07),
            scale=rng.uniform(0.93, 1.05),
            shift=(rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)),
            gain=rng.uniform(0.85, 1.05),
            offset=rng.uniform(-0.02, 0.06),
            gamma=rng.uniform(0.85, 1.2),
            seed=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Body:
    """A posed chest on the pixel grid; what drawings of findings look at.

    Attributes:
        anatomy: The patient.
        x: Body coordinate of every pixel's centre, to the image's right.
        y: Body coordinate of every pixel's centre, down.
    """

    anatomy: Anatomy
    x: Map
    y: Map

    @classmethod
    def pose(cls, anatomy: Anatomy, look: Look, size: int) -> Body:
        """Lay a patient under the pixels of a `size` x `size` picture."""
        ticks = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        across = (ticks[None, :] - look.shift[0]) / look.scale
        along = (ticks[:, None] - look.shift[1]) / look.scale
        cosine, sine = np.cos(look.rotation), np.sin(look.rotation)
        x = (across * cosine + along * sine).astype(np.float32)
        y = (along * cosine - across * sine).astype(np.float32)
        return cls(anatomy, x, y)

    @cached_property
    def lungs(self) -> dict[str, Map]:
        """Each side's lung: 1 inside, 0 outside, soft between."""
        depth = self.anatomy.lung_depth
        return {s: smoothstep(-_EDGE, _EDGE, depth(s, self.x, self.y)) for s in SIDE_SIGN}

    @cached_property
    def heart(self) -> Map:
        """The heart above the diaphragm: 1 inside, 0 outside."""
        inside = smoothstep(_EDGE, -_EDGE, self.anatomy.heart_distance(self.x, self.y))
        return np.asarray(inside * smoothstep(0.08, 0.0, self.y - max(self.anatomy.domes)))


def smoothstep(low: float, high: float, values: Points) -> Points:
    """0 up to `low`, 1 from `high` on, a smooth rise between; falls where `low` > `high`."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def clouds(rng: np.random.Generator, cells: int, size: int) -> Map:
    """Soft random shadows: about -1 to 1, `cells` of them along each side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def draw_tissue(body: Body) -> Map:
    """Density of everything but the bones: chest wall, lungs with vessels, heart, abdomen."""
    anatomy, x, y = body.anatomy, body.x, body.y
    across = np.abs(x)
    torso = 0.30 + (anatomy.torso - 0.30) * smoothstep(-0.98, -0.68, y)
    tissue = WALL * smoothstep(0.0, 0.12, torso - across)
    for side, lung in body.lungs.items():
        half = smoothstep(-0.01, 0.01, x * SIDE_SIGN[side])
        below = smoothstep(-_EDGE, _EDGE, y - anatomy.diaphragm(side, x))
        cavity = smoothstep(-0.06, 0.02, anatomy.rim_depth(side, x, y))
        tissue += half * below * np.maximum(cavity, 0.4) * (ABDOMEN - tissue)
        tissue += lung * (LUNG + _vessels(body, side) - tissue)
    arch = np.sqrt((x - anatomy.mediastinum + 0.02) ** 2 + (y + 0.27) ** 2)
    middle = anatomy.mediastinum * (1 + 0.25 * smoothstep(-0.45, -0.65, y))
    tissue += smoothstep(0.03, -0.03, across - middle) * (MEDIASTINUM - tissue)
    tissue += 0.8 * smoothstep(0.09, 0.03, arch) * np.maximum(MEDIASTINUM - tissue, 0)
    tissue += body.heart * np.maximum(HEART - tissue, 0)
    trachea = smoothstep(0.045, 0.02, across) * smoothstep(-0.25, -0.4, y)
    return np.asarray(tissue - 0.12 * trachea)


def _vessels(body: Body, side: str) -> Map:
    """Streaks that leave the hilum in all directions, and fade towards the wall."""
    rng = np.random.default_rng([body.anatomy.vessels, int(SIDE_SIGN[side]) + 1])
    across = body.x * SIDE_SIGN[side] - body.anatomy.mediastinum - 0.02
    along = body.y - 0.02
    radius = np.sqrt(across**2 + along**2)
    angle = np.arctan2(along, across + 1e-6) + 0.5 * radius * rng.uniform(-1, 1)
    table = np.maximum(rng.uniform(-1.2, 1, 96), 0)
    streaks = np.interp(angle, np.linspace(-np.pi, np.pi, 96), table)
    hilum = smoothstep(0.16, 0.0, radius)
    return np.asarray(0.13 * streaks * smoothstep(0.62, 0.05, radius) + 0.16 * hilum)


def draw_bones(body: Body) -> Map:
    """Density that ribs, clavicles and spine add."""
    anatomy, x, y = body.anatomy, body.x, body.y
    across = np.abs(x)
    left, right = (anatomy.rim_depth(side, x, y) for side in SIDE_SIGN)
    cage = smoothstep(-0.07, -0.02, np.maximum(left, right))
    posterior = _stripes(y - 0.5 * (across - 0.22) ** 2, anatomy, 0.26)
    anterior = _stripes(y + 0.55 * across + 0.05, anatomy, 0.2)
    ribs = posterior + 0.55 * anterior * smoothstep(0.25, 0.45, across)
    ribs *= cage * smoothstep(0.62, 0.5, y)
    clavicle_y = -0.56 - anatomy.clavicle * (across - 0.06) - 0.06 * np.sin(7 * across)
    clavicle = smoothstep(0.042, 0.022, np.abs(y - clavicle_y))
    clavicle *= smoothstep(0.04, 0.08, across) * smoothstep(0.80, 0.74, across)
    spine = smoothstep(0.085, 0.06, across) * (0.6 + 0.4 * np.sin(y * 2 * np.pi / 0.13))
    return np.asarray(anatomy.rib_density * (ribs + 1.5 * clavicle) + 0.05 * spine)


def _stripes(height: Map, anatomy: Anatomy, thickness: float) -> Map:
    """One stripe per rib spacing, brighter at its two edges as a hollow bone is."""
    phase = height / anatomy.rib_spacing + anatomy.rib_phase
    offset = np.abs(phase - np.round(phase))
    rib = smoothstep(thickness, thickness - 0.07, offset)
    return np.asarray(rib * (0.65 + 0.35 * smoothstep(0.0, thickness, offset)))
