"""ConVIRT, FILIP and GLoRIA as loops over all images and all reports.

Padding is already removed; pairs without a token are left out before anything is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from reference.alignment import Matrix, Pair, Vector, combine, dot, mean, unit

Score = Callable[[Matrix, Matrix], float]  # patches of an image, tokens of a report


def softmax(row: Vector) -> Vector:
    powers = [math.exp(x) for x in row]
    return [p / math.fsum(powers) for p in powers]


def fine_term(
    pairs: list[Pair], image_to_text: Score, text_to_image: Score, factor: float
) -> float:
    """Both directions' InfoNCE; a pair without tokens adds 0 and is counted."""
    there = [pair for pair in pairs if pair.tokens]
    losses = []
    for number, own in enumerate(there):
        images = [factor * image_to_text(own.patches, other.tokens) for other in there]
        reports = [factor * text_to_image(other.patches, own.tokens) for other in there]
        losses += [-math.log(softmax(row)[number]) for row in (images, reports)]
    return math.fsum(losses) / (2 * len(pairs))


def convirt(images: Matrix, texts: Matrix, temperature: float, image_weight: float) -> float:
    losses = []
    for number in range(len(images)):
        asked = [dot(unit(images[number]), unit(t)) / temperature for t in texts]
        answered = [dot(unit(v), unit(texts[number])) / temperature for v in images]
        losses.append(-image_weight * math.log(softmax(asked)[number]))
        losses.append(-(1 - image_weight) * math.log(softmax(answered)[number]))
    return math.fsum(losses) / len(images)


def best_words(patches: Matrix, tokens: Matrix) -> float:
    return mean([max(dot(unit(v), unit(t)) for t in tokens) for v in patches])


def best_patches(patches: Matrix, tokens: Matrix) -> float:
    return mean([max(dot(unit(t), unit(v)) for v in patches) for t in tokens])


def shares(patches: Matrix, tokens: Matrix) -> Matrix:
    """For each patch, the softmax over words of `V·T/√D`."""
    root = math.sqrt(len(patches[0]))
    return [softmax([dot(v, t) / root for t in tokens]) for v in patches]


def attention(patches: Matrix, tokens: Matrix, factor: float) -> Matrix:
    """For each word, the softmax over patches of its shares."""
    words = zip(*shares(patches, tokens), strict=True)
    return [softmax([factor * share for share in word]) for word in words]


def read_score(patches: Matrix, tokens: Matrix, attention_factor: float, factor: float) -> float:
    contexts = [combine(row, patches) for row in attention(patches, tokens, attention_factor)]
    cosines = [dot(unit(c), unit(t)) for c, t in zip(contexts, tokens, strict=True)]
    return math.log(math.fsum(math.exp(factor * cosine) for cosine in cosines))
