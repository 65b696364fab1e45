"""Iterative stratification: parts of given shares in which every label is as frequent as in all.

The greedy algorithm of Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label
data", ECML PKDD 2011, over groups of rows in place of single rows. The rarest label is shared out
first, each group going where that label is lacking most; groups come largest first, so that small
ones even out what large ones left. All sums are whole numbers and ties fall by the names' hashes:
the result depends on neither the order of the groups nor the machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

Part = TypeVar("Part", bound=Hashable)
Counts = Sequence[int]
"""Rows of a group, then how many of them have each label."""


def stratified(
    groups: Mapping[str, Counts], shares: Mapping[Part, Fraction], seed: int
) -> dict[str, Part]:
    """The part of each group.

    Args:
        groups: Counts of each group, all of one length.
        shares: Of the rows; they sum to 1.
        seed: Another seed breaks ties in another way.
    """
    labels = range(1, len(next(iter(groups.values()), (0,))))
    lacking = _wanted(groups, shares)
    waiting = dict(sorted(groups.items(), key=lambda group: _rank(group[0], seed)))
    part_of: dict[str, Part] = {}

    def place(chosen: Sequence[str], label: int) -> None:
        for group in sorted(chosen, key=lambda one: -groups[one][label]):  # stable: then by rank
            part = max(shares, key=lambda one: (lacking[one][label], lacking[one][0]))
            counts = waiting.pop(group)
            lacking[part] = [
                lack - count * _scale(shares)
                for lack, count in zip(lacking[part], counts, strict=True)
            ]
            part_of[group] = part

    while True:
        left = {one: sum(counts[one] for counts in waiting.values()) for one in labels}
        rarest = min((one for one in labels if left[one]), key=lambda one: left[one], default=0)
        if not rarest:
            break
        place([group for group, counts in waiting.items() if counts[rarest]], rarest)
    place(list(waiting), 0)
    return part_of


def _wanted(groups: Mapping[str, Counts], shares: Mapping[Part, Fraction]) -> dict[Part, list[int]]:
    totals = [sum(counts) for counts in zip(*groups.values(), strict=True)]
    scale = _scale(shares)
    return {
        part: [int(share * scale) * total for total in totals] for part, share in shares.items()
    }


def _scale(shares: Mapping[Part, Fraction]) -> int:
    """A factor that makes whole numbers of the shares."""
    return math.lcm(*(share.denominator for share in shares.values()))


def _rank(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()
