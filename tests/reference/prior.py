"""PRIOR's local alignment as loops: sentence means, sigmoid attention, InfoNCE and SimSiam."""

from __future__ import annotations

import math

from reference.alignment import (
    Matrix,
    Pair,
    Vector,
    Weights,
    combine,
    dot,
    linear,
    mean,
    nce,
    sigmoid,
    unit,
    within,
)


def sentences(pair: Pair, numbers: list[int]) -> Matrix:
    """Unit mean of each sentence, in the order of their numbers."""
    found = []
    for number in sorted(set(numbers)):
        own = [t for t, n in zip(pair.tokens, numbers, strict=True) if n == number]
        found.append(unit([mean(column) for column in zip(*own, strict=True)]))
    return found


def attend(queries: Matrix, others: Matrix, weights: Weights) -> tuple[Matrix, Matrix]:
    """What each query reads, and how much from each of `others`."""
    width = len(queries[0])
    zero = [0.0] * width
    keys = [linear(o, weights["key.weight"], weights["key.bias"]) for o in others]
    values = [linear(o, weights["value.weight"], zero) for o in others]
    read, shares = [], []
    for query in queries:
        asked = linear(query, weights["query.weight"], weights["query.bias"])
        row = [sigmoid(dot(asked, key) / math.sqrt(width)) for key in keys]
        read.append(linear(combine(row, values), weights["output.weight"], zero))
        shares.append(row)
    return read, shares


def predict(x: Vector, weights: Weights) -> Vector:
    hidden = linear(x, weights["0.weight"], weights["0.bias"])
    middle = mean(hidden)
    spread = math.sqrt(mean([(h - middle) ** 2 for h in hidden]) + 1e-5)
    hidden = [
        (h - middle) / spread * w + b
        for h, w, b in zip(hidden, weights["1.weight"], weights["1.bias"], strict=True)
    ]
    hidden = [0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
    return linear(hidden, weights["3.weight"], weights["3.bias"])


def local(pair: Pair, numbers: list[int], temperature: float, state: Weights) -> float:
    own, patches = sentences(pair, numbers), [unit(v) for v in pair.patches]
    for_sentences, _ = attend(own, patches, within(state, "sentence_attention"))
    for_patches, _ = attend(patches, own, within(state, "patch_attention"))
    sentence = (nce(own, for_sentences, temperature) + nce(for_sentences, own, temperature)) / 2
    predictor, distances = within(state, "predictor"), []
    for patch, read in zip(patches, for_patches, strict=True):
        forth = 1 - dot(unit(predict(patch, predictor)), unit(read))
        back = 1 - dot(unit(predict(unit(read), predictor)), patch)
        distances.append((forth + back) / 2)
    return (sentence + mean(distances)) / 2


def local_term(
    pairs: list[Pair], numbers: list[list[int]], temperature: float, state: Weights
) -> float:
    """The mean over pairs; a report without tokens adds 0 and is counted."""
    found = [
        local(pair, own, temperature, state)
        for pair, own in zip(pairs, numbers, strict=True)
        if pair.tokens
    ]
    return math.fsum(found) / len(pairs)
