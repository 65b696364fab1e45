"""Re-ranking: the first candidates of the global ranking in the order of a blend of two scores.

The blend is `(1 - weight) * cosine + weight * local`, the cosine of the global embeddings and the
objective's local score of the pair (docs/method.md, step 10). Neither is standardised over the
candidates, so a pair's score depends on nothing but the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from aga.bundle import Bundle
from aga.config import Config
from aga.evaluation.embedded import EmbeddedSplit, PreparedSplit
from aga.pairs import PairEmbeddings
from aga.ranking import retrieval_positions
from aga.tensors import normalize

BLOCK = 1024  # images, and reports, whose patches and tokens are held at once
PAIRS = 32  # combinations scored at once

# Local scores of image `images[i]` with report `texts[i]`, both places in the split.
LocalScores = Callable[[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]], Float[np.ndarray, " n"]]


class RerankConfig(Config):
    """Settings of re-ranking.

    Attributes:
        top: Candidates of each query that are scored again; the others keep their places.
        weight: Of the local score; the global cosine has the rest to 1.
    """

    top: PositiveInt
    weight: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class _Candidates:
    """The first K of the global ranking of each query."""

    items: Int64[Tensor, "N K"]
    cosines: Float[Tensor, "N K"]


def local_scores(bundle: Bundle, prepared: PreparedSplit) -> LocalScores:
    """Local scores of any combination of a split's images and reports.

    Patches and tokens are embedded when scores are asked for, one block of images against one block
    of reports at a time: memory is bounded whatever the size of the split.
    """

    @torch.no_grad()
    def scores(
        images: Int64[np.ndarray, " n"], texts: Int64[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        found = np.empty(len(images))
        starts = range(0, len(prepared), BLOCK)
        for image_start in starts:
            first = _embedded(bundle, prepared, image_start)
            for text_start in starts:
                chosen = np.flatnonzero(
                    (images // BLOCK * BLOCK == image_start)
                    & (texts // BLOCK * BLOCK == text_start)
                )
                if not len(chosen):
                    continue
                own = text_start == image_start
                second = first if own else _embedded(bundle, prepared, text_start)
                for start in range(0, len(chosen), PAIRS):
                    part = chosen[start : start + PAIRS]
                    pairs = _combined(
                        first, images[part] - image_start, second, texts[part] - text_start
                    )
                    found[part] = bundle.objective.local_scores(pairs).double().cpu().numpy()
        return found

    return scores


def reranked_positions(
    dataset: EmbeddedSplit, config: RerankConfig, local: LocalScores, chunk: int
) -> dict[str, Int64[Tensor, "N"]]:
    """Duplicate-aware positions, as `aga.ranking.retrieval_positions` counts them, by direction.

    Right and wrong compete among the first `config.top` by the blend, a tie counting as a miss; a
    query with nothing right among them keeps its position.

    Args:
        dataset: The embedded split.
        config: How many candidates, and the blend.
        local: Local scores; asked once for each image and report that meet as candidates.
        chunk: Queries ranked at once.
    """
    count = len(dataset)
    sides = {
        "text_to_image": (dataset.texts, dataset.images),
        "image_to_text": (dataset.images, dataset.texts),
    }
    candidates = {
        direction: _candidates(*side, dataset.keys, min(config.top, count), chunk)
        for direction, side in sides.items()
    }
    queries = torch.arange(count)[:, None]
    # Each combination of an image and a report by one number, the same in both directions.
    codes = {
        "text_to_image": candidates["text_to_image"].items * count + queries,
        "image_to_text": queries * count + candidates["image_to_text"].items,
    }
    blended = _blended(candidates, codes, config.weight, local)
    return {
        direction: _positions(
            retrieval_positions(*side, dataset.keys, chunk, duplicate_aware=True),
            blended[direction],
            dataset.keys[candidates[direction].items] == dataset.keys[:, None],
        )
        for direction, side in sides.items()
    }


def _blended(
    candidates: Mapping[str, _Candidates],
    codes: Mapping[str, Int64[Tensor, "N K"]],
    weight: float,
    local: LocalScores,
) -> dict[str, Float[Tensor, "N K"]]:
    count = len(next(iter(codes.values())))
    pairs = np.unique(torch.cat([code.flatten() for code in codes.values()]).numpy())
    scores = local(pairs // count, pairs % count)
    return {
        direction: (1 - weight) * candidates[direction].cosines.double()
        + weight * torch.from_numpy(scores[np.searchsorted(pairs, code.numpy())])
        for direction, code in codes.items()
    }


def _candidates(
    queries: Float[Tensor, "N D"],
    gallery: Float[Tensor, "N D"],
    keys: Int64[Tensor, "N"],
    top: int,
    chunk: int,
) -> _Candidates:
    """The first `top` by cosine; of equal ones those that are wrong come first."""
    queries, gallery = normalize(queries), normalize(gallery)
    items, cosines = [], []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ gallery.T
        right = keys[start : start + chunk, None] == keys
        wrong_first = right.byte().argsort(dim=1, stable=True)
        order = scores.gather(1, wrong_first).argsort(dim=1, descending=True, stable=True)[:, :top]
        items.append(wrong_first.gather(1, order))
        cosines.append(scores.gather(1, items[-1]))
    return _Candidates(torch.cat(items), torch.cat(cosines))


def _positions(
    before: Int64[Tensor, "N"], blended: Float[Tensor, "N K"], right: Bool[Tensor, "N K"]
) -> Int64[Tensor, "N"]:
    best = blended.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    # Written so that a score that is not a number stands before every right one.
    ahead = (~(blended < best) & ~right).sum(1)
    return torch.where(right.any(1), 1 + ahead, before)


def _embedded(bundle: Bundle, prepared: PreparedSplit, start: int) -> PairEmbeddings:
    return prepared.pairs(bundle, np.arange(start, min(start + BLOCK, len(prepared))))


def _combined(
    first: PairEmbeddings,
    images: Int64[np.ndarray, " n"],
    second: PairEmbeddings,
    texts: Int64[np.ndarray, " n"],
) -> PairEmbeddings:
    """Images of `first` beside reports of `second`, as if they were pairs."""
    device = first.image.device
    image, text = (torch.from_numpy(places).to(device) for places in (images, texts))
    return PairEmbeddings(
        patches=first.patches[image],
        image=first.image[image],
        tokens=second.tokens[text],
        text=second.text[text],
        content_mask=second.content_mask[text],
        token_ids=second.token_ids[text],
        sentences=second.sentences[text],
    )
