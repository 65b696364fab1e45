"""Both maps of a pair; its words' places in the report, its patches' places in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, UInt8

from aga.bundle import Bundle
from aga.data.pixels.images import Box
from aga.data.schema import NO_REPORT
from aga.data.studies import StudyDataset
from aga.data.tokenizing.encoding import TokenizedText
from aga.data.tokenizing.tokenizer import encode
from aga.errors import DataError
from aga.objectives.base import Method
from aga.pairs import PairEmbeddings
from aga.places import Word, content_words, patch_boxes, patch_grid, words_in
from aga.tensors import normalize

METHODS: dict[Method, str] = {
    "groups": "groups after the threshold",
    "attention": "attention of the objective's local term",
    "cosine": "cosine of token and patch, negative ones as 0: this objective builds no groups",
}


@dataclass(frozen=True)
class WholeWord:
    """A word as a reader sees it: its characters in the raw report, and its tokens' places."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Thresholds:
    """What a similarity, scaled to [0, 1], has to reach to join a group; docs/method.md, step 4."""

    tokens: Float[np.ndarray, "L"]
    patches: Float[np.ndarray, "P"]


@dataclass(frozen=True)
class Explanation:
    """The maps of one image-report pair; L counts its content tokens only, in the text's order.

    Attributes:
        row: Row of the manifest.
        report: The raw report.
        image: The prepared image.
        original_size: (height, width) of the original image in pixels.
        fit: How the original was made to fit the prepared image.
        words: The L content tokens.
        cut: Tokens beyond the model's longest text, which it has not read.
        grid: Rows and columns of patches; P is their product, row-major.
        patch_boxes: The place of each patch in pixels of the original image. Patches on padding
            reach beyond it.
        token_to_patch: Weight of each patch in each token's group.
        patch_to_token: Weight of each token in each patch's group.
        method: How the weights came about, see `METHODS`. Rows of `groups` sum to 1, or are 0
            for a patch that no word chose.
        thresholds: Of the gates of both directions; None where the objective has none.
        global_score: Cosine of image and report.
        local_score: How well the words are found in the image; see `Objective.local_scores`.
    """

    row: int
    report: str
    image: UInt8[np.ndarray, "H W C"]
    original_size: tuple[int, int]
    fit: str
    words: tuple[Word, ...]
    cut: int
    grid: tuple[int, int]
    patch_boxes: tuple[Box, ...]
    token_to_patch: Float[np.ndarray, "L P"]
    patch_to_token: Float[np.ndarray, "P L"]
    method: Method
    thresholds: Thresholds | None
    global_score: float
    local_score: float

    def words_in(self, start: int, end: int) -> Bool[np.ndarray, "L"]:
        """Which words overlap characters `start` to `end` of the raw report."""
        return words_in(self.words, start, end)

    def heat(self, chosen: Bool[np.ndarray, "L"]) -> Float[np.ndarray, "rows columns"]:
        """Mean patch weights of the chosen words on the patch grid; at least one is chosen."""
        return np.asarray(self.token_to_patch[chosen].mean(0).reshape(self.grid))

    @cached_property
    def whole_words(self) -> tuple[WholeWord, ...]:
        """The W words that the tokens are pieces of, in the raw report's order."""
        pieces: dict[int, list[int]] = {}
        for index, word in enumerate(self.words):
            pieces.setdefault(word.number, []).append(index)
        return tuple(sorted(map(self._whole, pieces.values()), key=lambda word: word.start))

    @cached_property
    def word_to_patch(self) -> Float[np.ndarray, "W P"]:
        """`token_to_patch`, averaged over the pieces of each word."""
        rows = [self.token_to_patch[list(word.tokens)].mean(0) for word in self.whole_words]
        return np.array(rows).reshape(len(rows), len(self.patch_boxes))

    @cached_property
    def patch_to_word(self) -> Float[np.ndarray, "P W"]:
        """`patch_to_token`, added over the pieces of each word; cosines are averaged."""
        together = np.mean if self.method == "cosine" else np.sum
        columns = [
            together(self.patch_to_token[:, list(word.tokens)], axis=1) for word in self.whole_words
        ]
        return np.array(columns).reshape(len(columns), len(self.patch_boxes)).T

    def _whole(self, tokens: list[int]) -> WholeWord:
        start = min(self.words[i].start for i in tokens)
        end = max(self.words[i].end for i in tokens)
        text = self.report[start:end]
        # Some tokenizers count the space before a word to the word.
        start += len(text) - len(text.lstrip())
        return WholeWord(text.strip(), start, start + len(text.strip()), tuple(tokens))


@dataclass(frozen=True)
class _Maps:
    """What the objective makes of some pairs, on the CPU."""

    token_to_patch: Float[np.ndarray, "B L P"]
    patch_to_token: Float[np.ndarray, "B P L"]
    method: Method
    thresholds: tuple[Float[np.ndarray, "B L"], Float[np.ndarray, "B P"]] | None
    global_scores: Float[np.ndarray, "B"]
    local_scores: Float[np.ndarray, "B"]


def explain(
    bundle: Bundle, studies: StudyDataset, cache: Path, rows: Sequence[int]
) -> list[Explanation]:
    """Explain some pairs.

    Args:
        bundle: The encoder, with its objective.
        studies: Prepared pairs.
        cache: Folder of the uncompressed pixel cache.
        rows: Rows of the manifest, few at a time: their patches and tokens are held at once.

    Raises:
        DataError: There is no such row, it has no report, or the images do not fit the bundle's
            transform.
    """
    _check_rows(rows, studies)
    table = studies.manifest.take(pa.array(rows))
    if NO_REPORT in table["section"].to_pylist():
        raise DataError(
            "A row without a report has no words to explain",
            where=studies.folder,
            got="an image with labels alone",
            expected="a row with a report",
        )
    texts = table["text"].to_pylist()
    images = np.array(studies.images(cache)[np.asarray(rows)])
    maps = _maps(bundle, bundle.embed_pairs(images, texts))
    encoded = encode(bundle.tokenizer, texts, bundle.model.architecture.max_tokens)
    return [
        _explanation(bundle, record, images[index], tokens, maps, index)
        for index, (record, tokens) in enumerate(zip(table.to_pylist(), encoded, strict=True))
    ]


def _explanation(
    bundle: Bundle,
    record: dict[str, Any],
    image: UInt8[np.ndarray, "H W C"],
    tokens: TokenizedText,
    maps: _Maps,
    index: int,
) -> Explanation:
    keep = np.flatnonzero(np.asarray(tokens.content))
    size = (record["height"], record["width"])
    thresholds = maps.thresholds
    return Explanation(
        row=record["row"],
        report=record["report"],
        image=image,
        original_size=size,
        fit=bundle.transform.fit,
        words=content_words(record, tokens),
        cut=tokens.truncated,
        grid=patch_grid(bundle),
        patch_boxes=patch_boxes(bundle, size),
        token_to_patch=maps.token_to_patch[index, keep],
        patch_to_token=maps.patch_to_token[index][:, keep],
        method=maps.method,
        thresholds=thresholds and Thresholds(thresholds[0][index, keep], thresholds[1][index]),
        global_score=float(maps.global_scores[index]),
        local_score=float(maps.local_scores[index]),
    )


def _check_rows(rows: Sequence[int], studies: StudyDataset) -> None:
    for row in rows:
        if not 0 <= row < studies.info.rows:
            raise DataError(
                "There is no such row of the prepared studies",
                where=studies.folder,
                got=row,
                expected=f"0 to {studies.info.rows - 1}",
            )


@torch.no_grad()
def _maps(bundle: Bundle, pairs: PairEmbeddings) -> _Maps:
    objective = bundle.objective
    maps = objective.maps(pairs)
    limits = maps.thresholds
    cosines = (normalize(pairs.image) * normalize(pairs.text)).sum(-1)
    return _Maps(
        token_to_patch=maps.token_to_patch.cpu().numpy(),
        patch_to_token=maps.patch_to_token.cpu().numpy(),
        method=maps.method,
        thresholds=limits and (limits[0].cpu().numpy(), limits[1].cpu().numpy()),
        global_scores=cosines.cpu().numpy(),
        local_scores=objective.local_scores(pairs).cpu().numpy(),
    )
