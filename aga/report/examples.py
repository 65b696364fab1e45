"""Test pairs to look at: what each retrieves, and where its words look.

Images and report texts leave `data/` here, so nothing of this module runs where
`report.show_images` is false, and there is no example of a source that may not be shown.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from aga.bundle import Bundle
from aga.data.pixels.images import prepared_box
from aga.data.studies import StudyDataset
from aga.evaluation import EmbeddedSplit, embed_split
from aga.explain import METHODS, Explanation, explain, heat_map_png, image_config, image_png

TOP = 4
MAPS = 3
BATCH_SIZE = 128
# Heat maps are drawn at about this many screen pixels, so that thin outlines stay visible.
SCREEN = 288


@dataclass(frozen=True)
class Result:
    """One retrieved item: a picture or a text, its cosine, and whether it is a right answer."""

    content: str
    score: float
    right: bool


@dataclass(frozen=True)
class HeatMap:
    """Where some words look.

    Attributes:
        words: The words.
        picture: PNG data URI.
        description: What the picture shows, for those who cannot see it.
        inside: Share of the weight inside the known place; None where no place is known.
        area: Share of the prepared image that the place covers; None likewise.
    """

    words: str
    picture: str
    description: str
    inside: float | None
    area: float | None


@dataclass(frozen=True)
class Example:
    """One test pair: itself, what it retrieves both ways, and its heat maps."""

    row: int
    picture: str
    report: str
    images: Sequence[Result]
    reports: Sequence[Result]
    maps: Sequence[HeatMap]
    method: str


def examples(bundle: Bundle, studies: StudyDataset, cache: Path, count: int) -> list[Example]:
    """Examples of the test split: evenly spaced among pairs that say different things."""
    if count == 0 or not studies.info.may_be_shown:
        return []
    return list(_Gallery(bundle, studies, cache).examples(count))


class _Gallery:
    """The test split, embedded, with its texts and pixels."""

    def __init__(self, bundle: Bundle, studies: StudyDataset, cache: Path) -> None:
        self.bundle = bundle
        self.studies = studies
        self.cache = cache
        self.rows = studies.rows("test")
        self.pixels = studies.images(cache)
        self.table = studies.manifest.take(pa.array(self.rows))

    @cached_property
    def split(self) -> EmbeddedSplit:
        return embed_split(self.bundle, self.studies, "test", self.cache, BATCH_SIZE)

    @cached_property
    def texts(self) -> list[str]:
        return list(self.table["text"].to_pylist())

    def examples(self, count: int) -> Iterator[Example]:
        chosen = self._choose(count)
        explanations = explain(
            self.bundle, self.studies, self.cache, [int(row) for row in self.rows[chosen]]
        )
        for index, explanation in zip(chosen.tolist(), explanations, strict=True):
            record = self.table.slice(index, 1).to_pylist()[0]
            yield Example(
                row=explanation.row,
                picture=self._picture(index),
                report=record["report"],
                images=self._retrieve(index, self.split.texts, self.split.images, pictures=True),
                reports=self._retrieve(index, self.split.images, self.split.texts, pictures=False),
                maps=list(self._maps(record, explanation)),
                method=METHODS[explanation.method],
            )

    def _choose(self, count: int) -> Int64[np.ndarray, " count"]:
        _, first = np.unique(self.split.keys.numpy(), return_index=True)
        first = np.sort(first)
        places = np.linspace(0, len(first) - 1, min(count, len(first))).round()
        return np.asarray(first[places.astype(np.int64)])

    def _retrieve(
        self,
        index: int,
        queries: Float[Tensor, "N D"],
        gallery: Float[Tensor, "N D"],
        *,
        pictures: bool,
    ) -> list[Result]:
        scores = gallery @ queries[index]
        best = torch.topk(scores, min(TOP, len(scores)))
        keys = self.split.keys
        return [
            Result(
                content=self._picture(item) if pictures else self.texts[item],
                score=score,
                right=bool(keys[item] == keys[index]),
            )
            for score, item in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _picture(self, index: int) -> str:
        return png_uri(image_png(self.pixels[self.rows[index]]))

    def _maps(self, record: dict[str, Any], explanation: Explanation) -> Iterator[HeatMap]:
        """One map per known place that the report speaks of, else of the most selective words."""
        regions = {r["finding"]: r for r in reversed(record["regions"] or []) if r["span"]}
        for region in list(regions.values())[:MAPS]:
            chosen = explanation.words_in(*region["span"])
            if chosen.any():
                yield self._map(record, explanation, chosen, region)
        if not regions:
            sizes = (explanation.token_to_patch > 0).sum(1)
            order = np.argsort(sizes, kind="stable").tolist()
            spelled = [i for i in order if any(map(str.isalnum, explanation.words[i].text))]
            for word in sorted(spelled[:MAPS]):
                yield self._map(record, explanation, np.arange(len(sizes)) == word, None)

    def _map(
        self,
        record: dict[str, Any],
        explanation: Explanation,
        chosen: np.ndarray,
        region: dict[str, Any] | None,
    ) -> HeatMap:
        image = self.pixels[record["row"]]
        heat = explanation.heat(chosen)
        box = inside = area = None
        if region is not None:
            size = (record["height"], record["width"])
            box = prepared_box(tuple(region["box"]), size, image_config(self.bundle))
            coverage = _coverage(box, heat.shape, image.shape[:2])
            inside = float((heat * coverage).sum() / max(heat.sum(), 1e-12))
            area = float(coverage.mean())
        places = [explanation.words[i] for i in np.flatnonzero(chosen)]
        words = record["report"][places[0].start : places[-1].end]
        shown = f"{(heat > 0).sum()} of {heat.size} patches coloured by their weight"
        return HeatMap(
            words=words,
            picture=png_uri(heat_map_png(image, heat, box, max(1, SCREEN // image.shape[1]))),
            description=f"The image with {shown} for the words: {words}",
            inside=inside,
            area=area,
        )


def png_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _coverage(
    box: tuple[float, ...], grid: tuple[int, ...], size: tuple[int, ...]
) -> Float[np.ndarray, "rows columns"]:
    """Share of each patch that lies in the box."""
    shares = []
    for cells, pixels, low, high in (
        (grid[0], size[0], box[1], box[3]),
        (grid[1], size[1], box[0], box[2]),
    ):
        edges = np.linspace(0, pixels, cells + 1)
        overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        shares.append(overlap.clip(min=0) / (pixels / cells))
    return np.outer(*shares)
