"""What a run's history says: which epoch is the best, and whether the run is done."""

from __future__ import annotations

from collections.abc import Sequence

from aga.training.checkpoint import Row
from aga.training.settings import SelectConfig, TrainingConfig


def best_epoch(history: Sequence[Row], select: SelectConfig) -> int:
    """The epoch, counted from 1, with the best value of the chosen metric; the first of equals."""
    values = [row[select.metric] for row in history]
    return 1 + values.index(max(values) if select.mode == "max" else min(values))


def finished(history: Sequence[Row], config: TrainingConfig) -> bool:
    """Whether a run is done: every epoch has its row, or none was better for `patience` epochs."""
    if not history or len(history) >= config.epochs:
        return bool(history)
    stale = len(history) - best_epoch(history, config.select)
    return 0 < config.patience <= stale
