"""The image-dependence term as slow loops (docs/method.md, step 11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from reference.alignment import Matrix, Pair, Vector, dot, mean, threshold, unit

Weights = Mapping[str, list]


def chosen(
    token: Vector, patches: Matrix, values: Mapping, gate: Weights, *, hard: bool = False
) -> Vector:
    """Weights of the patches that a token chooses in an image; by a hard choice if so asked."""
    row = [dot(unit(token), unit(patch)) for patch in patches]
    settings = values["dependence"]
    scaled = [math.exp((s - max(row)) / settings["patch_temperature"]) for s in row]
    bound = threshold(token, row, values["gate"]["kind"], settings["threshold"], gate)
    if values["gate"]["relaxation"] == "soft" and not hard:
        width = values["gate"]["temperature"]
        kept = [s / (1 + math.exp(-(s - bound) / width)) for s in scaled]
    else:
        kept = [s if s >= min(bound, 1.0) else 0.0 for s in scaled]
    return [k / math.fsum(kept) for k in kept]


def found(report: Matrix, patches: Matrix, values: Mapping, gate: Weights) -> float:
    """How much of a report is found in an image."""
    matches = []
    for token in report:
        weights = chosen(token, patches, values, gate)
        patches = [unit(patch) for patch in patches]
        width = len(patches[0])
        group = [
            math.fsum(w * p[d] for w, p in zip(weights, patches, strict=True)) for d in range(width)
        ]
        matches.append(dot(unit(group), unit(token)))
    return mean(matches)


def left(report: Matrix, patches: Matrix, values: Mapping, gate: Weights) -> float:
    """How much of a report is found among the patches that each of its words did not choose."""
    matches, width = [], len(patches[0])
    for token in report:
        kept = chosen(token, patches, values, gate, hard=True)
        rest = [unit(p) for p, weight in zip(patches, kept, strict=True) if weight == 0]
        temperature = values["dependence"]["patch_temperature"]
        powers = [math.exp(dot(unit(token), unit(p)) / temperature) for p in rest]
        group = [
            math.fsum(w * p[d] for w, p in zip(powers, rest, strict=True)) for d in range(width)
        ]
        matches.append(dot(unit(group), unit(token)) if rest else 0.0)
    return mean(matches)


def nce(scores: Sequence[float], own: int, scale: float) -> float:
    return math.log(math.fsum(math.exp(scale * (s - scores[own])) for s in scores))


def term(pairs: Sequence[Pair], values: Mapping, gate: Weights, scale: float) -> float:
    """The unweighted term of a batch."""
    block, total = values["dependence"]["block"], 0.0
    for start in range(0, len(pairs), block):
        part = [pair for pair in pairs[start : start + block] if pair.tokens]
        for own, pair in enumerate(part):
            reading = [found(pair.tokens, other.patches, values, gate) for other in part]
            read = [found(other.tokens, pair.patches, values, gate) for other in part]
            if values["dependence"]["erased"]:
                reading.append(left(pair.tokens, pair.patches, values, gate))
            total += (nce(reading, own, scale) + nce(read, own, scale)) / 2
    return total / len(pairs)
