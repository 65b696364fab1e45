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

from aga.errors import CheckpointError, DataError, ParamsError
from aga.training.checkpoint import CheckpointConfig
from aga.training.cluster import ClusterConfig
from aga.training.settings import TrainingConfig

BYTES_PER_PARAMETER = 16  # weights, two moments and the best epoch's weights, in float32

Resources: TypeAlias = Mapping[str, float | int]


def check_batches(
    splits: Mapping[str, int], config: TrainingConfig, workers: int, block: int = 1
) -> None:
    """Check that every epoch has a step, and that the workers can share it.

    Args:
        splits: Pairs of each split.
        config: Settings of the loop.
        workers: Number of processes.
        block: Pairs that the objective compares with each other; see `Objective.block`.

    Raises:
        ParamsError: The batch size does not fit the workers, or a worker's pairs are not whole
            blocks.
        DataError: The training or the validation split is too small.
    """
    if config.pairs is not None and config.pairs < config.batch_size:
        raise ParamsError(
            "There is less to learn from than a batch holds",
            where="training.pairs",
            got=config.pairs,
            expected=f"at least training.batch_size, {config.batch_size}",
        )
    if config.batch_size % workers:
        raise ParamsError(
            "The workers cannot share a batch evenly",
            where="training.batch_size, cluster.workers",
            got=f"{config.batch_size} pairs for {workers} workers",
            expected=f"a multiple of {workers}",
            fix=f"set training.batch_size to {-(-config.batch_size // workers) * workers}",
        )
    if config.batch_size // workers % block:
        raise ParamsError(
            "The pairs of a worker are not whole blocks",
            where="objective.aga.dependence.block, training.batch_size, cluster.workers",
            got=f"{config.batch_size} pairs for {workers} workers, in blocks of {block}",
            expected=f"a multiple of {workers * block} pairs",
            fix="change one of the three",
        )
    train = max(config.batch_size, config.pairs or 0)
    for split, least in {
        "train": train,
        "validation": workers * (block if workers > 1 else 1),
    }.items():
        if splits.get(split, 0) < least:
            raise DataError(
                f"The {split} split is too small",
                where="data/studies",
                got=f"{splits.get(split, 0)} pairs",
                expected=f"at least {least}",
                fix="lower training.pairs or training.batch_size, or change prepare.split",
            )


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
