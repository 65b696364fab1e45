"""Adaptive grouping, as pure functions (docs/method.md, steps 2, 3 and 5).

One set of functions serves both directions. `X` are the queries and `Y` the elements they choose
from: tokens choose patches, or patches choose content tokens. `mask` is True for the combinations
that exist: neither the query nor the element is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from aga.objectives.kernels import FLAT, minmax_groups, row_statistics
from aga.tensors import SHORTEST, masked_softmax, normalize

ROUNDING = 16  # units in the last place that a sum of products may be off by, and more
Scaling = Literal["minmax", "softmax", "sigmoid"]
Relaxation = Literal["straight_through", "soft", "hard"]


@dataclass(frozen=True)
class GroupingRule:
    """How similarities become a group.

    Attributes:
        scaling: See `scale`.
        scaling_temperature: Divides the similarities of `softmax` and `sigmoid` scaling.
        relaxation: See `choose`.
        temperature: Width of the soft step.
    """

    scaling: Scaling
    scaling_temperature: float
    relaxation: Relaxation
    temperature: float


@dataclass(frozen=True)
class Gathered:
    """Groups of one kind: what they gather, and how much of it.

    Sums over `Y` come before or after maps of the elements, whichever is less work: many groups of
    few elements are never made. Rows of `weights` sum to 1, or are 0 for a group that does not
    exist.

    Attributes:
        weights: Of each group.
        elements: What is gathered.
    """

    weights: Float[Tensor, "B X Y"]
    elements: Float[Tensor, "B Y D"]

    @cached_property
    def vectors(self) -> Float[Tensor, "B X D"]:
        """The groups."""
        return torch.bmm(self.weights, self.elements)

    @cached_property
    def unit_weights(self) -> Float[Tensor, "B X Y"]:
        """The weights of the groups at length one, which follows from products of elements.

        Where elements all but cancel, rounding is all that is left of the length: what it cannot
        tell from 0 is divided by the shortest length that it can.
        """
        products = torch.bmm(self.elements, self.elements.transpose(1, 2))
        squares = (torch.bmm(self.weights, products) * self.weights).sum(-1, keepdim=True)
        with torch.no_grad():
            lengths = products.diagonal(dim1=1, dim2=2)[..., None]
            floor = ROUNDING * torch.finfo(products.dtype).eps * (self.weights @ lengths)
        return self.weights / squares.maximum(floor.clamp(min=SHORTEST**2)).sqrt()

    def projected(self, linear: nn.Linear) -> Float[Tensor, "B X E"]:
        """`linear(vectors)`."""
        if self.weights.shape[1] <= self.weights.shape[2]:
            of_vectors: Tensor = linear(self.vectors)
            return of_vectors
        return torch.bmm(self.weights, self.elements @ linear.weight.T) + linear.bias

    def factors(
        self, units: Float[Tensor, "B X D"], products: Float[Tensor, "B X Y"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors whose products are the cosines of vectors with groups.

        `u[p] · unit(G[q]) = Σ_y (u[p]·e[y]) (w[q,y]/|G[q]|)`: with fewer elements than `D` that is
        less work than to make the groups and to compare them.

        Args:
            units: Vectors of length one.
            products: Of `units` and elements, where they are known.

        Returns:
            The factor of the vectors and that of the groups, of the smaller width, `Y` or `D`.
        """
        if self.elements.shape[1] >= self.elements.shape[2]:
            return units, normalize(self.vectors)
        if products is None:
            products = torch.bmm(units, self.elements.transpose(1, 2))
        return products, self.unit_weights


@dataclass(frozen=True)
class Groups:
    """The groups of each pair, in both directions.

    Rows of padding are 0, and so is all of a report without a content token.

    Attributes:
        patches: `V`, from which the visual groups are made.
        tokens: `T`, from which the language groups are made.
        similarity: `S`, the cosines of tokens and patches.
        token_to_patch: Weights `a`; each row sums to 1.
        patch_to_token: Weights `a'`; each row sums to 1.
        token_thresholds: `θᵀ`, of the language-grouped threshold gate.
        patch_thresholds: `θⱽ`, of the vision-grouped threshold gate.
        visual_sizes: Number of patches in the group of each token.
        language_sizes: Number of tokens in the group of each patch.
    """

    patches: Float[Tensor, "B P D"]
    tokens: Float[Tensor, "B L D"]
    similarity: Float[Tensor, "B L P"]
    token_to_patch: Float[Tensor, "B L P"]
    patch_to_token: Float[Tensor, "B P L"]
    token_thresholds: Float[Tensor, "B L"]
    patch_thresholds: Float[Tensor, "B P"]
    visual_sizes: Int64[Tensor, "B L"]
    language_sizes: Int64[Tensor, "B P"]

    @cached_property
    def visual(self) -> Gathered:
        """`Gⱽ`, what each token chose among the patches."""
        return Gathered(self.token_to_patch, self.patches)

    @cached_property
    def language(self) -> Gathered:
        """`Gᴸ`, what each patch chose among the content tokens."""
        return Gathered(self.patch_to_token, self.tokens)


def weigh(
    similarity: Float[Tensor, "B X Y"],
    thresholds: Float[Tensor, "B X"],
    asking: Bool[Tensor, "B X"],
    elements: Bool[Tensor, "B Y"],
    rule: GroupingRule,
) -> tuple[Float[Tensor, "B X Y"], Int64[Tensor, "B X"]]:
    """Steps 3 and 5 of one direction, a few pairs at a time: `scale`, then `choose`.

    Args:
        similarity: `S`, or its transpose.
        thresholds: `θ`.
        asking: Queries that exist.
        elements: Elements that exist.
        rule: Scaling and relaxation.

    Returns:
        As `choose`.
    """
    if rule.scaling == "minmax":
        return minmax_groups(
            similarity, thresholds, asking, elements, rule.relaxation, rule.temperature
        )

    mask = asking[:, :, None] & elements[:, None, :]
    scaled = scale(similarity, mask, rule.scaling, rule.scaling_temperature)
    return choose(scaled, thresholds, mask, rule.relaxation, rule.temperature)


def scale(
    similarity: Float[Tensor, "B X Y"],
    mask: Bool[Tensor, "B X Y"],
    scaling: Scaling,
    temperature: float,
) -> Float[Tensor, "B X Y"]:
    """Similarities of each query as numbers in [0, 1]; 0 for what does not exist.

    `minmax` is `(S − min S + ε)/(max S − min S + ε)`: the best element has exactly 1, and a
    constant row has 1 everywhere, so that it keeps all of its elements with equal weight.

    Args:
        similarity: Cosines `S`, or products of vectors of any length.
        mask: Combinations that exist.
        scaling: The rule.
        temperature: Divides the similarities of `softmax` and `sigmoid`.
    """
    if scaling == "softmax":
        return masked_softmax(similarity / temperature, mask)
    if scaling == "sigmoid":
        return (similarity / temperature).sigmoid().masked_fill(~mask, 0)
    # Never an extreme of a row that has an element; the difference of two of them is finite.
    beyond = torch.finfo(similarity.dtype).max / 4
    low = similarity.masked_fill(~mask, beyond).amin(-1, keepdim=True)
    high = similarity.masked_fill(~mask, -beyond).amax(-1, keepdim=True)
    return ((similarity - low + FLAT) / (high - low + FLAT)).masked_fill(~mask, 0)


def statistics(
    similarity: Float[Tensor, "B X Y"], elements: Bool[Tensor, "B Y"]
) -> Float[Tensor, "B X 3"]:
    """Mean, maximum and standard deviation of each query's similarities to the kept elements.

    All three are near 0 for a pair that keeps none.
    """
    return row_statistics(similarity, elements)


def choose(
    scaled: Float[Tensor, "B X Y"],
    thresholds: Float[Tensor, "B X"],
    mask: Bool[Tensor, "B X Y"],
    relaxation: Relaxation,
    temperature: float,
) -> tuple[Float[Tensor, "B X Y"], Int64[Tensor, "B X"]]:
    """Each query's group: the weights of its elements, and how many reach the threshold.

    Every existing query holds at least its best element, also where that misses the threshold
    (`softmax` and `sigmoid` scaling can end under any threshold).

    Args:
        scaled: `Ŝ`, 0 where `mask` is False.
        thresholds: `θ`.
        mask: Combinations that exist.
        relaxation: How gradients pass the choice.
        temperature: Width of the soft step.

    Returns:
        Weights, which sum to 1 for every existing query and are 0 for the others; and group sizes.
    """
    with torch.no_grad():
        least = torch.minimum(thresholds[..., None], scaled.amax(-1, keepdim=True))
        chosen = (scaled >= least) & mask
    member = chosen.to(scaled.dtype)
    if relaxation != "hard":
        soft = ((scaled - thresholds[..., None]) / temperature).sigmoid()
        member = soft if relaxation == "soft" else member + (soft - soft.detach())
    weights = member * scaled
    total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return weights / total, chosen.sum(-1)
