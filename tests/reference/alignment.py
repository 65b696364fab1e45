"""AGA as loops over Python floats: every equation of docs/method.md, steps 2 to 10.

One pair is lists of vectors, padding already removed: there are no masks here, so that a mistake in
the masks of the library cannot be repeated. Weights of the gates and of the attention come in as
lists, from `state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Vector = list[float]
Matrix = list[Vector]
Weights = dict[str, list]
FLAT, VARIANCE_FLOOR, LOGIT_EPS = 1e-4, 1e-6, 1e-4


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Vector) -> Vector:
    length = max(math.sqrt(dot(a, a)), 1e-8)
    return [x / length for x in a]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def linear(x: Vector, weight: Matrix, bias: Vector) -> Vector:
    return [dot(row, x) + b for row, b in zip(weight, bias, strict=True)]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def combine(weights: Vector, vectors: Matrix) -> Vector:
    return [
        math.fsum(w * v[d] for w, v in zip(weights, vectors, strict=True))
        for d in range(len(vectors[0]))
    ]


# Step 2
def similarity(tokens: Matrix, patches: Matrix) -> Matrix:
    return [[dot(unit(t), unit(v)) for v in patches] for t in tokens]


# Step 3
def scale(row: Vector, scaling: str, temperature: float) -> Vector:
    if scaling == "softmax":
        powers = [math.exp(s / temperature) for s in row]
        return [p / math.fsum(powers) for p in powers]
    if scaling == "sigmoid":
        return [sigmoid(s / temperature) for s in row]
    low, high = min(row), max(row)
    return [(s - low + FLAT) / (high - low + FLAT) for s in row]


# Step 4
def statistics(row: Vector) -> Vector:
    middle = mean(row)
    variance = mean([(s - middle) ** 2 for s in row])
    return [middle, max(row), math.sqrt(variance + VARIANCE_FLOOR)]


def threshold(query: Vector, row: Vector, kind: str, init: float | str, gate: Weights) -> float:
    start = 1 / len(row) if init == "uniform" else float(init)
    if kind == "fixed":
        return start
    start = min(max(start, LOGIT_EPS), 1 - LOGIT_EPS)
    logit = math.log(start / (1 - start))
    if kind == "scalar":
        return sigmoid(logit + gate["offset"])
    features = unit(query) + statistics(row)
    hidden = linear(features, gate["offset.0.weight"], gate["offset.0.bias"])
    hidden = [0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
    return sigmoid(logit + linear(hidden, gate["offset.2.weight"], gate["offset.2.bias"])[0])


# Step 5
def choose(scaled: Vector, theta: float, relaxation: str, temperature: float) -> Vector:
    best = max(scaled)
    raw = []
    for value in scaled:
        if relaxation == "soft":
            member = sigmoid((value - theta) / temperature)
        else:
            member = 1.0 if value >= theta or value == best else 0.0
        raw.append(member * value)
    return [r / math.fsum(raw) for r in raw]


# Step 6
def nce(
    queries: Matrix,
    keys: Matrix,
    temperature: float,
    alike: Callable[[int, int], bool] = lambda i, j: False,
    duplicates: str = "negative",
) -> float:
    losses = []
    for i, query in enumerate(queries):
        powers = [math.exp(dot(unit(query), unit(key)) / temperature) for key in keys]
        right, all_keys = 0.0, 0.0
        for j, power in enumerate(powers):
            same = j != i and alike(i, j)
            if not (same and duplicates == "ignore"):
                all_keys += power
            if j == i or (same and duplicates == "positive"):
                right += power
        losses.append(-math.log(right / all_keys))
    return mean(losses)


# Step 7
def attend(queries: Matrix, others: Matrix, heads: int, weights: Weights) -> Matrix:
    width = len(weights["query.weight"])
    size = width // heads
    asked = [linear(q, weights["query.weight"], weights["query.bias"]) for q in queries]
    both = [linear(o, weights["key_value.weight"], weights["key_value.bias"]) for o in others]
    results = []
    for a in asked:
        merged: Vector = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = [dot(a[part], b[:width][part]) / math.sqrt(size) for b in both]
            powers = [math.exp(s) for s in scores]
            shares = [p / math.fsum(powers) for p in powers]
            merged += combine(shares, [b[width:][part] for b in both])
        results.append(linear(merged, weights["output.weight"], weights["output.bias"]))
    return results


def layer_norm(x: Vector, weight: Vector, bias: Vector) -> Vector:
    middle = mean(x)
    spread = math.sqrt(mean([(v - middle) ** 2 for v in x]) + 1e-5)
    return [(v - middle) / spread * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def bcga(visual: Matrix, language: Matrix, settings: dict, state: Weights) -> float:
    form, temperature = settings["form"], settings["temperature"]
    crosses = []
    for side, own, other in (("visual", visual, language), ("language", language, visual)):
        read = attend(own, other, settings["heads"], within(state, f"{side}_attention"))
        if form != "plain":
            read = [[g + r for g, r in zip(*rows, strict=True)] for rows in zip(own, read)]  # noqa: B905
        norm = within(state, f"{side}_norm")
        crosses.append([layer_norm(row, norm["weight"], norm["bias"]) for row in read])
    if form == "pooled":
        pooled = [unit(combine([1 / len(c)] * len(c), c)) for c in crosses]
        return 1 - dot(*pooled)
    return (nce(visual, crosses[0], temperature) + nce(language, crosses[1], temperature)) / 2


# Step 8
def info_nce(images: Matrix, texts: Matrix, inverse_temperature: float) -> float:
    return (
        nce(images, texts, 1 / inverse_temperature) + nce(texts, images, 1 / inverse_temperature)
    ) / 2


def pairwise_sigmoid(images: Matrix, texts: Matrix, scale: float, bias: float) -> float:
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = scale * dot(unit(image), unit(text)) + bias
            total -= math.log(sigmoid(logit if i == j else -logit))
    return total / len(images)


@dataclass
class Pair:
    """One pair without padding; `ids` are the word numbers of `tokens`."""

    patches: Matrix
    tokens: Matrix
    ids: list[int]


@dataclass
class PairGroups:
    token_to_patch: Matrix
    patch_to_token: Matrix
    visual: Matrix
    language: Matrix
    token_thresholds: Vector
    patch_thresholds: Vector


def groups(pair: Pair, settings: dict, state: Weights) -> PairGroups:
    gate = settings["gate"]
    rows = similarity(pair.tokens, pair.patches)
    columns = [list(column) for column in zip(*rows, strict=True)]
    found: list[tuple[Matrix, Vector]] = []
    for name, queries, table in (("token", pair.tokens, rows), ("patch", pair.patches, columns)):
        weights, thetas = [], []
        for query, row in zip(queries, table, strict=True):
            own = within(state, f"{name}_gate")
            theta = threshold(query, row, gate["kind"], gate["init"], own)
            scaled = scale(row, settings["scaling"], settings["scaling_temperature"])
            weights.append(choose(scaled, theta, gate["relaxation"], gate["temperature"]))
            thetas.append(theta)
        found.append((weights, thetas))
    (to_patch, token_thetas), (to_token, patch_thetas) = found
    return PairGroups(
        to_patch,
        to_token,
        [combine(a, pair.patches) for a in to_patch],
        [combine(a, pair.tokens) for a in to_token],
        token_thetas,
        patch_thetas,
    )


def iga(pair: Pair, made: PairGroups, settings: dict) -> float:
    s = settings["iga"]
    patches = [unit(v) for v in pair.patches]
    same_word = lambda i, j: pair.ids[i] == pair.ids[j]  # noqa: E731
    same_place = lambda i, j: dot(patches[i], patches[j]) >= s["patch_similarity"]  # noqa: E731
    sides = []
    for own, group, alike in (
        (pair.tokens, made.visual, same_word),
        (pair.patches, made.language, same_place),
    ):
        forth = nce(own, group, s["temperature"], alike, s["duplicates"])
        back = nce(group, own, s["temperature"], alike, s["duplicates"])
        sides.append((forth + back) / 2)
    return sides[0] + s["patch_weight"] * sides[1]


# Step 9
def objective(
    pairs: list[Pair], images: Matrix, texts: Matrix, settings: dict, state: Weights
) -> dict[str, float]:
    """The weighted terms; a pair without tokens adds 0 to the in-pair sums and 1 to their count."""
    weights, terms = settings["weights"], {}
    if weights["contrast"]:
        inverse = math.exp(min(state["contrast.log_scale"], math.log(100)))
        if settings["contrast"]["form"] == "sigmoid":
            value = pairwise_sigmoid(images, texts, inverse, state["contrast.bias"])
        else:
            value = info_nce(images, texts, inverse)
        terms["contrast"] = weights["contrast"] * value
    inside = {"iga": 0.0, "bcga": 0.0}
    for pair in pairs:
        if not pair.tokens:
            continue
        made = groups(pair, settings, state)
        inside["iga"] += iga(pair, made, settings) / len(pairs)
        if weights["bcga"]:
            value = bcga(made.visual, made.language, settings["bcga"], within(state, "bcga"))
            inside["bcga"] += value / len(pairs)
    terms |= {name: weights[name] * value for name, value in inside.items() if weights[name]}
    return terms


# Step 10
def group_score(pair: Pair, made: PairGroups) -> float:
    cosines = [dot(unit(t), unit(g)) for t, g in zip(pair.tokens, made.visual, strict=True)]
    return mean(cosines)


def within(state: Weights, prefix: str) -> Weights:
    """The entries under `prefix.`, without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
