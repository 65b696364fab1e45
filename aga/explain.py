"""Which patches a word chose, and which words a patch chose, at their places in image and report.

The maps are the groups after the gates (docs/method.md, step 10): what the objective aligned, not a
gradient or an attention read afterwards. An objective without groups shows its attention, or the
cosine of tokens and patches, and `Explanation.method` says so.

May import `aga.bundle` and what lies below it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from aga.bundle import Bundle
from aga.data.images import Box, ImageConfig, original_box
from aga.data.studies import StudyDataset
from aga.data.tokenizer import encode
from aga.objectives.base import Method
from aga.pairs import PairEmbeddings

METHODS: dict[Method, str] = {
    "groups": "groups after the threshold",
    "attention": "attention of the objective's local term",
    "cosine": "cosine of token and patch, negative ones as 0: this objective builds no groups",
}
# Overlay of the heat maps: orange shows on black, grey and white alike.
_HEAT = np.array([255, 120, 0])
_TRUTH = (0, 200, 255)
_OPACITY = 0.75


@dataclass(frozen=True)
class Word:
    """One content token and where it stands in the raw report: characters `start` to `end`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Explanation:
    """The maps of one image-report pair; L counts its content tokens only, in reading order.

    Attributes:
        row: Row of the manifest.
        words: The L content tokens.
        grid: Rows and columns of patches; P is their product, row-major.
        patch_boxes: The place of each patch in pixels of the original image. Patches on padding
            reach beyond it.
        token_to_patch: Weight of each patch in each token's group.
        patch_to_token: Weight of each token in each patch's group.
        method: How the weights came about, see `METHODS`. Rows of `groups` sum to 1.
    """

    row: int
    words: tuple[Word, ...]
    grid: tuple[int, int]
    patch_boxes: tuple[Box, ...]
    token_to_patch: Float[np.ndarray, "L P"]
    patch_to_token: Float[np.ndarray, "P L"]
    method: Method

    def words_in(self, start: int, end: int) -> Bool[np.ndarray, "L"]:
        """Which words overlap characters `start` to `end` of the raw report."""
        return np.array([word.start < end and start < word.end for word in self.words], dtype=bool)

    def heat(self, chosen: Bool[np.ndarray, "L"]) -> Float[np.ndarray, "rows columns"]:
        """Mean patch weights of the chosen words on the patch grid; at least one is chosen."""
        return np.asarray(self.token_to_patch[chosen].mean(0).reshape(self.grid))


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
        DataError: The images do not fit the bundle's transform.
    """
    table = studies.manifest.take(pa.array(rows))
    texts = table["text"].to_pylist()
    pairs = bundle.embed_pairs(studies.images(cache)[np.asarray(rows)], texts)
    token_to_patch, patch_to_token, method = _maps(bundle, pairs)
    encoded = encode(bundle.tokenizer, texts, bundle.model.architecture.max_tokens)
    transform = bundle.transform
    grid = bundle.model.image_encoder.grid(transform.height, transform.width)
    explanations = []
    for index, (record, tokens) in enumerate(zip(table.to_pylist(), encoded, strict=True)):
        content = np.asarray(tokens.content)
        keep = np.flatnonzero(content)
        spans = [(tokens.starts[i], tokens.ends[i]) for i in keep]
        explanations.append(
            Explanation(
                row=record["row"],
                words=tuple(_word(record, start, end) for start, end in spans),
                grid=grid,
                patch_boxes=_patch_boxes(bundle, grid, (record["height"], record["width"])),
                token_to_patch=token_to_patch[index, keep].cpu().numpy(),
                patch_to_token=patch_to_token[index][:, keep].cpu().numpy(),
                method=method,
            )
        )
    return explanations


def image_config(bundle: Bundle) -> ImageConfig:
    """How the bundle's images were prepared, for mapping boxes."""
    transform = bundle.transform
    return ImageConfig(size=transform.height, mode=transform.mode, fit=transform.fit)


def heat_map_png(
    image: UInt8[np.ndarray, "H W C"],
    heat: Float[np.ndarray, "rows columns"],
    box: Box | None = None,
    zoom: int = 1,
) -> bytes:
    """A PNG of the image under its patch weights, the strongest patch at full colour.

    Patches are drawn as the squares they are: a smooth map would promise a resolution that the
    encoder does not have.

    Args:
        image: A prepared image.
        heat: Weight per patch, none negative.
        box: A known place, outlined, in pixels of the prepared image.
        zoom: Screen pixels per image pixel.
    """
    height, width = image.shape[:2]
    size = (width * zoom, height * zoom)
    base = _rgb(image).resize(size, Image.Resampling.BILINEAR)
    strongest = max(float(heat.max()), np.finfo(np.float32).tiny)
    shade = Image.fromarray(np.asarray(heat / strongest, np.float32))
    opacity = np.asarray(shade.resize(size, Image.Resampling.NEAREST))[..., None] * _OPACITY
    blended = np.asarray(base) * (1 - opacity) + _HEAT * opacity
    picture = Image.fromarray(blended.round().astype(np.uint8))
    if box is not None:
        edges = tuple(edge * zoom for edge in box)
        ImageDraw.Draw(picture).rectangle(edges, outline=_TRUTH, width=max(1, zoom))
    return _png(picture)


def image_png(image: UInt8[np.ndarray, "H W C"]) -> bytes:
    """A PNG of a prepared image."""
    return _png(_rgb(image))


def _maps(
    bundle: Bundle, pairs: PairEmbeddings
) -> tuple[Float[Tensor, "B L P"], Float[Tensor, "B P L"], Method]:
    with torch.no_grad():
        maps = bundle.objective.maps(pairs)
    return maps.token_to_patch, maps.patch_to_token, maps.method


def _word(record: dict[str, Any], start: int, end: int) -> Word:
    """The token at characters `start` to `end` of the cleaned text, placed in the raw report."""
    offsets = record["text_offsets"]
    return Word(record["text"][start:end], offsets[start], offsets[end - 1] + 1)


def _patch_boxes(
    bundle: Bundle, grid: tuple[int, int], original_size: tuple[int, int]
) -> tuple[Box, ...]:
    config = image_config(bundle)
    rows, columns = grid
    height, width = config.size / rows, config.size / columns
    return tuple(
        original_box(
            (column * width, row * height, (column + 1) * width, (row + 1) * height),
            original_size,
            config,
        )
        for row in range(rows)
        for column in range(columns)
    )


def _rgb(image: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
