"""Whether there is a batch for every step, and whether the workers can share it."""

from __future__ import annotations

from collections.abc import Mapping

from aga.errors import DataError, ParamsError
from aga.training.settings import TrainingConfig


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
