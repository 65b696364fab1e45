"""What is checked before anything is started: a mistake costs seconds and names its setting.

Pure checks of numbers and folders; the cluster's resources come in as plain mappings.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from aga.cluster.config import ClusterConfig
from aga.errors import CheckpointError, ParamsError
from aga.training.checkpoint import CheckpointConfig

BYTES_PER_PARAMETER = 16  # weights, two moments and the best epoch's weights, in float32

Resources: TypeAlias = Mapping[str, float | int]


def even_counts(batch_size: int, block: int, cluster: ClusterConfig) -> list[int]:
    """The numbers of workers, from the fewest to the most, that share a batch evenly."""
    counts = range(cluster.fewest, cluster.workers + 1)
    return [n for n in counts if batch_size % n == 0 and batch_size // n % block == 0]


def check_resources(nodes: Sequence[Resources], cluster: ClusterConfig) -> None:
    """Check that the fewest workers fit on the nodes; asking for more would wait for ever.

    Args:
        nodes: What each node has in all: `{"CPU": 8, "GPU": 1}`.
        cluster: The workers.

    Raises:
        ParamsError: They do not fit; the message holds a table of what is needed and there.
    """
    each = cluster.resources_per_worker
    if sum(workers_that_fit(node, each) for node in nodes) >= cluster.fewest:
        return
    count = "cluster.workers" if cluster.min_workers is None else "cluster.min_workers"
    lines = ["            need   have   largest node   settings"]
    for name, amount in each.items():
        have = [node.get(name, 0) for node in nodes]
        setting = f"{count} x cluster.{name.lower()}s_per_worker"
        needed = f"{amount * cluster.fewest:g}"
        lines.append(
            f"    {name:<5}{needed:>7}{sum(have):>7g}{max(have, default=0):>15g}   {setting}"
        )
    raise ParamsError(
        "The cluster does not have the resources that the workers ask for\n" + "\n".join(lines),
        where=f"{count}, cluster.cpus_per_worker, cluster.gpus_per_worker",
        got=f"{len(nodes)} node(s)",
        fix="lower these settings, or start more nodes",
    )


def check_storage(run: Path, parameters: int, checkpoint: CheckpointConfig) -> None:
    """Check that a run's folder can be written, and that its checkpoints fit on the disk.

    Args:
        run: The folder; created where it does not exist.
        parameters: Numbers in the network's weights.
        checkpoint: How many checkpoints there will be; one more exists for a moment.

    Raises:
        CheckpointError: It cannot be written, or the disk is too full.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise CheckpointError(
            "The storage folder cannot be written",
            where=run,
            got=error.strerror,
            fix="set cluster.storage to a folder that every node can write",
        ) from error
    there = sum(path.stat().st_size for path in run.rglob("*.safetensors"))
    needed = (checkpoint.keep + 1) * BYTES_PER_PARAMETER * parameters - there
    free = shutil.disk_usage(run).free
    if free < needed:
        raise CheckpointError(
            "The disk has no room for the checkpoints",
            where=run,
            got=f"{free / 2**20:.0f} MiB free",
            expected=f"{needed / 2**20:.0f} MiB",
            fix="free some, lower checkpoint.keep, or set cluster.storage to another disk",
        )


def check_machine(cluster: ClusterConfig) -> None:
    """Check that the fewest workers fit on this machine, unless RAY_ADDRESS names a cluster.

    Raises:
        ParamsError: As `check_resources`.
    """
    if "RAY_ADDRESS" not in os.environ:
        check_resources([local_node()], cluster)


def local_node() -> dict[str, int]:
    """What this process may use of this machine, as a node."""
    return {"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}


def workers_that_fit(node: Resources, each: Resources) -> int:
    """How many workers a node has room for when it is empty."""
    counts = [int(node.get(name, 0) // amount) for name, amount in each.items() if amount]
    return min(counts)
