"""Retrieval recall, and what chance would reach: pure functions used in training and evaluation.

Queries and gallery are the two sides of the same N pairs: query `i` belongs to gallery item `i`.
Two ways to count a hit are offered. *Exact* wants item `i` itself. *Duplicate-aware* also takes any
item with the same key, because a report that says the same about another image is no error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from aga.tensors import normalize


def retrieval_positions(
    queries: Float[Tensor, "N D"],
    gallery: Float[Tensor, "N D"],
    keys: Int64[Tensor, "N"],
    chunk: int,
    *,
    duplicate_aware: bool,
) -> Int64[Tensor, "N"]:
    """Position (1 is first) of the best right item in each query's list by cosine similarity.

    A wrong item that ties with the best right one is placed before it, and so is one whose score
    is not a number: a model whose embeddings collapse or overflow scores nothing.

    Args:
        queries: One embedding per query; normalised here.
        gallery: One embedding per gallery item, aligned with `queries`; normalised here.
        keys: Equal numbers mark pairs that say the same.
        chunk: Queries scored at once; memory is `chunk * N` scores, the result does not depend on
            it but for the last bits of the products.
        duplicate_aware: Whether every item with the query's key is right, or only its own.

    Returns:
        Positions from 1 to N.
    """
    queries, gallery = normalize(queries), normalize(gallery)
    positions = []
    everyone = torch.arange(len(gallery), device=gallery.device)
    for start in range(0, len(queries), chunk):
        rows = everyone[start : start + chunk]
        scores = queries[rows] @ gallery.T
        own = scores.gather(1, rows[:, None])
        if duplicate_aware:
            right = keys[rows, None] == keys
            own = own.maximum(scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True))
        else:
            right = rows[:, None] == everyone
        before = ~(scores < own) & ~right
        positions.append(1 + before.sum(1))
    return torch.cat(positions) if positions else keys.new_empty(0)


def retrieval_hits(
    queries: Float[Tensor, "N D"],
    gallery: Float[Tensor, "N D"],
    keys: Int64[Tensor, "N"],
    ranks: Sequence[int],
    chunk: int,
    *,
    duplicate_aware: bool,
) -> Bool[Tensor, "N K"]:
    """Whether query `i` finds a right item among its first `ranks[k]`; see `retrieval_positions`.

    The mean over queries is recall at each rank.
    """
    positions = retrieval_positions(
        queries, gallery, keys, chunk=chunk, duplicate_aware=duplicate_aware
    )
    return positions[:, None] <= torch.tensor(list(ranks), device=positions.device)


def chance(keys: Int64[Tensor, "N"], ranks: Sequence[int], duplicate_aware: bool) -> list[float]:
    """Recall at each rank that a random order of the gallery reaches on average, exactly.

    With `m` right items among `N`, the first `k` hold none with the hypergeometric probability
    `C(N - m, k) / C(N, k)`; the mean over queries of its complement is returned.

    Args:
        keys: Equal numbers mark pairs that say the same; at least one.
        ranks: Ranks `k`; one above N is treated as N.
        duplicate_aware: Whether a query's `m` is the count of its key, or 1.
    """
    total = len(keys)
    if duplicate_aware:
        _, inverse, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        right = counts[inverse].double()
    else:
        right = torch.ones(total, dtype=torch.float64, device=keys.device)
    wrong = total - right
    misses = []
    for rank in ranks:
        drawn = min(rank, total)
        # log C(wrong, drawn) - log C(total, drawn). lgamma(0) = inf makes it exp(-inf) = 0 where
        # fewer than `drawn` items are wrong: then a right one is always among the first.
        log_miss = (
            torch.lgamma(wrong + 1)
            - torch.lgamma((wrong - drawn + 1).clamp(min=0))
            + torch.lgamma(wrong.new_tensor(total - drawn + 1))
            - torch.lgamma(wrong.new_tensor(total + 1))
        )
        misses.append(log_miss.exp().mean().item())
    return [1 - miss for miss in misses]
