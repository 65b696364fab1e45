"""Train a model without Ray and measure the bundle it leaves, as the line would."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from aga.bundle import load_bundle
from aga.data.studies import StudyDataset
from aga.evaluation import Metrics, evaluate
from aga.params import Params
from aga.training.checkpoint import Row
from aga.training.export import export_bundle
from aga.training.history import best_epoch
from aga.training.recipe import Recipe, RunData
from aga.training.run import run_local


@dataclass(frozen=True)
class Measured:
    """One trained model.

    Attributes:
        results: Of every task, on the test split.
        best: The history's row of the exported epoch.
        seconds: That training took.
    """

    results: list[Metrics]
    best: Row
    seconds: float


def train_and_measure(params: Params, home: Path, bundle: Path | None = None) -> Measured:
    """Train what `params` say on the data below `home`, export the best epoch and evaluate it.

    Args:
        params: All settings; the seed is that of training and of the bootstrap.
        home: Holds `data/studies` and `data/tokens`.
        bundle: Where the bundle shall stay; None drops it.
    """
    recipe = Recipe(**{name: getattr(params, name) for name in Recipe.model_fields})
    start = time.perf_counter()
    state = run_local(recipe, home)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as scratch:
        folder = bundle or Path(scratch) / "bundle"
        data = RunData.open(home)
        export_bundle(folder, recipe=recipe, data=data, home=home, state=state, names={})
        results = evaluate(
            load_bundle(folder),
            StudyDataset.open(home / "data/studies"),
            home / "data/cache",
            params.evaluation,
            seed=params.seed,
        )
    best = state.history[best_epoch(state.history, recipe.training.select) - 1]
    return Measured(results, best, seconds)
