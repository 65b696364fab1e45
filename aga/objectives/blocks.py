"""How many pairs an inner loop takes at a time.

What an in-pair equation writes down is larger than what goes in and what comes out: a dozen
matrices of `L·P` or `P·P` numbers for each pair. For a few pairs at a time they stay in the
processor's cache, their memory is used again, and the peak of a step does not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Numbers in the largest matrix of a block: a cache's worth on a CPU, where touching fresh memory
# costs more than arithmetic; on other devices, enough to keep them busy.
BLOCK = {"cpu": 2**18}
BLOCK_ELSEWHERE = 2**25


def blocks(pairs: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """The rows of each block.

    Args:
        pairs: How many there are.
        numbers: Numbers in the largest matrix of each pair.
        device: Where it is computed.
    """
    size = max(1, BLOCK.get(device.type, BLOCK_ELSEWHERE) // max(1, numbers))
    return (slice(at, min(at + size, pairs)) for at in range(0, pairs, size))
