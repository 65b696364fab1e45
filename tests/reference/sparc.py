"""SPARC as loops: raw products, min-max, fixed threshold 1/P, token against its group."""

from __future__ import annotations

import math

from reference.alignment import FLAT, Matrix, Pair, combine, dot, nce


def weights(pair: Pair) -> Matrix:
    found = []
    for token in pair.tokens:
        row = [dot(token, patch) for patch in pair.patches]
        low, high = min(row), max(row)
        scaled = [(s - low + FLAT) / (high - low + FLAT) for s in row]
        kept = [s if s >= 1 / len(row) else 0.0 for s in scaled]
        found.append([k / math.fsum(kept) for k in kept])
    return found


def fine(pair: Pair, temperature: float) -> float:
    groups = [combine(row, pair.patches) for row in weights(pair)]
    return (nce(pair.tokens, groups, temperature) + nce(groups, pair.tokens, temperature)) / 2


def fine_term(pairs: list[Pair], temperature: float) -> float:
    """The mean over pairs; a report without tokens adds 0 and is counted."""
    return math.fsum(fine(p, temperature) for p in pairs if p.tokens) / len(pairs)
