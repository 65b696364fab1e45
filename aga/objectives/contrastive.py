"""Contrastive losses: noise-contrastive estimation inside one pair, and between pairs.

Equations: docs/method.md, step 6 (inside one pair) and step 8 (between pairs). All vectors that
enter have length one. Letter `X`: the positions that queries and keys of one pair run over, the
tokens of a report or the patches of an image; `Q`: those of them that ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from aga.collectives import gather_with_gradient, own_rows
from aga.config import Config
from aga.objectives.nce import Excluded, Problem, nce
from aga.tensors import normalize

Duplicates = Literal["negative", "ignore", "positive"]

# More queries than this are compared in several chunks: memory grows with P, and not with P².
CHUNK = 1024
MAX_SCALE = 100.0  # 1/τ of the learned temperature, at most


@dataclass(frozen=True)
class Positions:
    """The positions of each pair between which an in-pair loss discriminates.

    Attributes:
        mask: Positions that take part, as queries and as keys.
        identity: What tells duplicates: equal integers, or unit vectors whose product reaches
            `bound`. Never differentiated. None where nothing is a duplicate.
        duplicates: Whether the duplicates of a query are negatives, left out, or right answers.
        bound: Product of two unit vectors from which on they are duplicates.
    """

    mask: Bool[Tensor, "B X"]
    identity: Int64[Tensor, "B X"] | Float[Tensor, "B X D"] | None = None
    duplicates: Duplicates = "negative"
    bound: float = 1.0

    def other_duplicates(self, index: Int64[Tensor, "B Q"] | None) -> Bool[Tensor, "B Q X"] | None:
        """Which positions are duplicates of the queries at `index`, themselves left out."""
        if self.identity is None or self.duplicates == "negative":
            return None
        keys = self.identity.detach()
        asking = keys if index is None else _take(keys, index)
        if keys.is_floating_point():
            same = torch.bmm(asking, keys.transpose(1, 2)) >= self.bound
        else:
            same = asking[:, :, None] == keys[:, None, :]
        return same & ~self.themselves(index)

    def themselves(self, index: Int64[Tensor, "B Q"] | None) -> Bool[Tensor, "#B Q X"]:
        """Which position is the query at `index` itself."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        return places == (places[None] if index is None else index)[..., None]

    def asking(self, index: Int64[Tensor, "B Q"] | None) -> Bool[Tensor, "B Q"]:
        """Whether the queries at `index` take part."""
        return self.mask if index is None else self.mask.gather(1, index)

    def of(self, rows: slice) -> Positions:
        """The positions of some pairs."""
        identity = None if self.identity is None else self.identity[rows]
        return replace(self, mask=self.mask[rows], identity=identity)

    def excluded(self, index: Int64[Tensor, "B Q"] | None) -> Excluded:
        """What the queries at `index` are not compared with.

        Masked queries drop all of their keys: that changes no result, since their losses are
        dropped, and makes the matrix of all queries symmetric: its columns read like its rows.
        """
        dropped = ~(self.asking(index)[:, :, None] & self.mask[:, None, :])
        others = self.other_duplicates(index)
        if others is None:
            return Excluded(dropped, None)
        if self.duplicates == "ignore":
            return Excluded(dropped | others, None)
        return Excluded(dropped, dropped | ~(others | self.themselves(index)))


def pair_nce(
    queries: Float[Tensor, "B X D"],
    keys: Float[Tensor, "B X D"],
    positions: Positions,
    temperature: float,
    index: Int64[Tensor, "B Q"] | None = None,
) -> Float[Tensor, "B"]:
    """NCE(queries, keys) of each pair: query `i` shall find key `i` among the keys of its own pair.

    Args:
        queries: Unit vectors.
        keys: Unit vectors.
        positions: Which positions count, and what becomes of duplicates.
        temperature: τ.
        index: The queries to average over; all where None. A uniform sample leaves the expectation
            as it is, since each query is compared with every key in any case.

    Returns:
        The mean over the pair's kept queries; 0 for a pair that has none.
    """
    return _in_blocks(queries, keys, positions, temperature, index, both=False)


def symmetric_pair_nce(
    first: Float[Tensor, "B X D"],
    second: Float[Tensor, "B X D"],
    positions: Positions,
    temperature: float,
    index: Int64[Tensor, "B Q"] | None = None,
) -> Float[Tensor, "B"]:
    """½ [NCE(first, second) + NCE(second, first)] of each pair; arguments as in `pair_nce`."""
    return _in_blocks(first, second, positions, temperature, index, both=True)


def _in_blocks(
    first: Float[Tensor, "B X D"],
    second: Float[Tensor, "B X D"],
    positions: Positions,
    temperature: float,
    index: Int64[Tensor, "B Q"] | None,
    *,
    both: bool,
) -> Float[Tensor, "B"]:
    """The loss of each pair, in one direction or the mean of `both`."""
    share = positions.asking(index).to(first.dtype)
    share = share / share.sum(-1, keepdim=True).clamp(min=1)

    def excluded(rows: slice, asking: Tensor | None) -> Excluded:
        return positions.of(rows).excluded(asking)

    return nce(first, second, Problem(share, index, excluded, temperature, both, CHUNK))


def _take(values: Tensor, index: Int64[Tensor, "B Q"]) -> Tensor:
    """`values[b, index[b, q]]` for `values` of shape [B, X] or [B, X, D]."""
    if values.ndim == 3:
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
    return values.gather(1, index)


class ContrastConfig(Config):
    """The loss between pairs.

    Attributes:
        form: `infonce` (symmetric softmax) or `sigmoid` (each combination a yes-no question).
        temperature: τ at the start; learned, and never under 0.01.
        bias: Of `sigmoid`, at the start; learned. SigLIP's −10 is for batches of many thousands;
            about `−log B` makes the chance of a match what it is in a batch of B pairs.
    """

    form: Literal["infonce", "sigmoid"]
    temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    bias: Annotated[float, Field(le=0)]

    @classmethod
    def infonce(cls, temperature: float) -> Self:
        """The softmax form, which has no bias."""
        return cls(form="infonce", temperature=temperature, bias=0.0)


class LearnedScale(nn.Module):
    """A learned temperature τ; what is learned is `log 1/τ`.

    Args:
        temperature: τ at the start.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """τ as it is now, without gradient."""
        return (-self.log_scale.detach()).exp()

    def scale(self) -> Float[Tensor, ""]:
        """1/τ with gradient; puts τ back to 0.01 first where it has fallen under it."""
        with torch.no_grad():  # a projection: a clamp in the graph would stop the gradient for good
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp()


class GlobalContrast(LearnedScale):
    """The global loss `L_global` with its learned temperature (docs/method.md, step 8)."""

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__(config.temperature)
        learned = config.form == "sigmoid"
        self.bias = nn.Parameter(torch.tensor(float(config.bias))) if learned else None

    def forward(self, image: Float[Tensor, "B D"], text: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """This process's share of the loss; the mean over processes is the loss of all `N` pairs.

        Each process compares its own images with the texts of all processes, and its own texts
        with all images, so that no combination is computed twice.
        """
        scale = self.scale()
        if self.bias is None:
            return gathered_info_nce(image, text, scale)
        image, texts = normalize(image), gather_with_gradient(normalize(text))
        return pairwise_sigmoid(image, texts, own_rows(image), scale, self.bias)


def gathered_info_nce(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    scale: Float[Tensor, ""] | float,
    image_weight: float = 0.5,
) -> Float[Tensor, ""]:
    """`info_nce` of this process's pairs among those of all processes; vectors of any length."""
    image, text = normalize(image), normalize(text)
    images, texts = gather_with_gradient(torch.cat((image, text), dim=-1)).chunk(2, dim=-1)
    own = own_rows(image)
    return info_nce(image, text, images, texts, own, scale=scale, image_weight=image_weight)


def info_nce(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    images: Float[Tensor, "N D"],
    texts: Float[Tensor, "N D"],
    own: Int64[Tensor, "B"],
    *,
    scale: Float[Tensor, ""] | float,
    image_weight: float = 0.5,
) -> Float[Tensor, ""]:
    """InfoNCE of unit vectors in both directions.

    Args:
        image: The images that ask, for their own text among `texts`.
        text: The texts that ask, for their own image among `images`.
        images: The candidates of every process.
        texts: The candidates of every process.
        own: Row of each query's own pair among the candidates.
        scale: 1/τ.
        image_weight: Weight of the images that ask; the texts that ask have the rest to 1.
    """
    image_to_text = nn.functional.cross_entropy(scale * image @ texts.T, own)
    text_to_image = nn.functional.cross_entropy(scale * text @ images.T, own)
    return image_weight * image_to_text + (1 - image_weight) * text_to_image


def pairwise_sigmoid(
    image: Float[Tensor, "B D"],
    texts: Float[Tensor, "N D"],
    own: Int64[Tensor, "B"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The sigmoid loss: the sum over all texts of a yes-no cross-entropy, averaged over the images.

    Arguments as in `info_nce`; `bias` is added to every logit.
    """
    logits = scale * image @ texts.T + bias
    matches = torch.zeros_like(logits).scatter_(1, own[:, None], 1.0)
    return nn.functional.binary_cross_entropy_with_logits(logits, matches, reduction="sum") / len(
        image
    )
