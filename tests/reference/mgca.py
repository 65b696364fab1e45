"""MGCA as loops: attention both ways inside a pair, Sinkhorn codes, swapped prediction."""

from __future__ import annotations

import math

from reference.alignment import Matrix, Pair, Vector, Weights, attend, dot, nce, unit, within


def attention(queries: Matrix, others: Matrix, weights: Weights) -> Matrix:
    """The share of each of `others` that each query reads; one head."""
    width = len(queries[0])
    keys = [weights["key_value.weight"][:width], weights["key_value.bias"][:width]]
    rows = []
    for query in queries:
        asked = [
            dot(row, query) + b
            for row, b in zip(weights["query.weight"], weights["query.bias"], strict=True)
        ]
        powers = []
        for other in others:
            key = [dot(row, other) + b for row, b in zip(*keys, strict=True)]
            powers.append(math.exp(dot(asked, key) / math.sqrt(width)))
        rows.append([p / math.fsum(powers) for p in powers])
    return rows


def local(pair: Pair, temperature: float, state: Weights) -> tuple[float, float]:
    """The side of the tokens and the side of the patches."""
    tokens, patches = [unit(t) for t in pair.tokens], [unit(v) for v in pair.patches]
    sides = []
    for own, other, name in ((tokens, patches, "token"), (patches, tokens, "patch")):
        read = attend(own, other, 1, within(state, f"{name}_attention"))
        sides.append((nce(own, read, temperature) + nce(read, own, temperature)) / 2)
    return sides[0], sides[1]


def local_term(pairs: list[Pair], temperature: float, state: Weights) -> float:
    """The mean over pairs; a report without tokens adds 0 and is counted."""
    sides = [sum(local(p, temperature, state)) / 2 for p in pairs if p.tokens]
    return math.fsum(sides) / len(pairs)


def codes(scores: Matrix, epsilon: float, iterations: int) -> Matrix:
    """Every prototype has the share 1/K of the pairs, then every pair the share 1/N."""
    table = [[math.exp(s / epsilon) for s in row] for row in scores]
    count, prototypes = len(table), len(table[0])
    for _ in range(iterations):
        for k in range(prototypes):
            total = math.fsum(row[k] for row in table) * prototypes
            for row in table:
                row[k] /= total
        for row in table:
            total = math.fsum(row) * count
            row[:] = [x / total for x in row]
    return [[count * x for x in row] for row in table]


def swapped(scores: Matrix, targets: Matrix, temperature: float) -> float:
    losses: Vector = []
    for row, code in zip(scores, targets, strict=True):
        powers = [math.exp(s / temperature) for s in row]
        total = math.fsum(powers)
        losses.append(
            -math.fsum(c * math.log(p / total) for c, p in zip(code, powers, strict=True))
        )
    return math.fsum(losses) / len(losses)


def prototype_term(images: Matrix, texts: Matrix, prototypes: Matrix, settings: dict) -> float:
    scores = [
        [[dot(unit(x), unit(c)) for c in prototypes] for x in side] for side in (images, texts)
    ]
    image_codes, text_codes = (
        codes(side, settings["epsilon"], settings["iterations"]) for side in scores
    )
    temperature = settings["temperature"]
    return (
        swapped(scores[0], text_codes, temperature) + swapped(scores[1], image_codes, temperature)
    ) / 2
