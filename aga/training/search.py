"""Search of settings with Ray Tune: each trial is a Ray Train run, stopped early where it lags.

A trial is a function of its settings: its run is named by them, so a search that is cut off and
repeated finds its finished trials done and goes on with the others from their checkpoints. Nothing
of Ray Tune's own state is needed for that.

Ray is optional and imported inside functions, so that the library works where it is not installed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from aga.config import Config
from aga.errors import AgaError
from aga.tracking import TrackingConfig, close_children, provenance, start_run
from aga.training.distributed import ClusterConfig, launch, ray_session
from aga.training.job import Job
from aga.training.validation import Metric

logger = logging.getLogger(__name__)

Settings: TypeAlias = Mapping[str, float]
MakeJob: TypeAlias = Callable[[Settings], Job]

# A trial's driver only waits for its workers. It asks for a little memory and no CPU: with a CPU
# each, the drivers could hold all of them and wait for ever for workers that find none.
DRIVER_BYTES = 256 * 2**20


class RangeConfig(Config):
    """The values that a setting is drawn from, evenly on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start over 0, not at {self.low}")
        return self


class TuneConfig(Config):
    """Settings of the search.

    Attributes:
        epochs: Epochs of a trial that is not stopped early.
        grace_epochs: Epochs that every trial gets.
        max_concurrent: Trials at a time, at most; fewer where the resources end.
        metric: What is compared, on the validation split.
        mode: Whether a higher or a lower value is better.
        space: Dotted key of params.yaml to its range.
    """

    epochs: Annotated[int, Field(gt=0)]
    grace_epochs: Annotated[int, Field(gt=0)]
    max_concurrent: Annotated[int, Field(gt=0)]
    metric: Metric
    mode: Literal["min", "max"]
    space: Annotated[dict[str, RangeConfig], Field(min_length=1)]


@dataclass(frozen=True)
class Trial:
    """What came of one choice of settings.

    Attributes:
        settings: Dotted key to value.
        epochs: Epochs trained.
        best: Best value of the metric; NaN where no epoch was finished.
        error: Why the trial failed; None where it did not.
    """

    settings: Settings
    epochs: int
    best: float
    error: str | None


@dataclass(frozen=True)
class SearchResult:
    """All trials, the best first, and the MLflow run that holds theirs."""

    trials: Sequence[Trial]
    run_id: str | None

    @property
    def winner(self) -> Trial:
        """The best trial.

        Raises:
            AgaError: Every trial failed.
        """
        if math.isnan(self.trials[0].best):
            raise AgaError(
                "Every trial failed", got=self.trials[0].error, fix="see the log of the first one"
            )
        return self.trials[0]


def search(
    config: TuneConfig,
    make_job: MakeJob,
    *,
    trials: int,
    seed: int,
    cluster: ClusterConfig,
    tracking: TrackingConfig,
    home: Path,
) -> SearchResult:
    """Draw settings, train each, stop those that lag (ASHA), and rank them.

    Args:
        config: What is searched, and how long.
        make_job: Makes the training job of a choice of settings; called in Ray's workers.
        trials: How many choices.
        seed: Of the choices; equal seeds, equal choices.
        cluster: Workers of each trial.
        tracking: Where the search and its trials are tracked, as a parent run and its children.
        home: Folder that relative paths start from.

    Raises:
        ParamsError: A trial's workers do not fit on the cluster.
    """
    storage = (home / cluster.storage).resolve() / "searches"
    name = f"{tracking.experiment}-search-{seed}-{trials}"
    parent = start_run(
        tracking,
        home,
        name,
        spool=_fresh_spool(storage, name),
        params=config.model_dump(mode="json") | {"trials": trials, "seed": seed},
        tags=provenance(home),
    )
    with parent:
        with ray_session(cluster):
            ranked = _run_trials(config, make_job, trials, seed, cluster, parent.run_id, storage)
        if parent.run_id:
            # Trials that were stopped early did not come to say so.
            close_children(tracking, home, parent.run_id, "KILLED")
        if not math.isnan(ranked[0].best):
            parent.log_metrics({f"best/{config.metric}": ranked[0].best}, step=0)
    return SearchResult(ranked, parent.run_id)


def format_trials(result: SearchResult, metric: str) -> str:
    """The trials as a table, the best first."""
    keys = sorted(result.trials[0].settings)
    header = [metric, "epochs", *(key.removeprefix("objective.") for key in keys), ""]
    rows = [
        [f"{t.best:.4f}", str(t.epochs), *(f"{t.settings[k]:.4g}" for k in keys), t.error or ""]
        for t in result.trials
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in [header, *rows]]
    return "\n".join(lines)


def _run_trials(
    config: TuneConfig,
    make_job: MakeJob,
    trials: int,
    seed: int,
    cluster: ClusterConfig,
    parent: str | None,
    storage: Path,
) -> list[Trial]:
    # Tune's own progress page would stand in the middle of the table that a script prints.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    def run(settings: Settings) -> None:
        job = make_job(settings).model_copy(update={"parent": parent})
        _run_trial(job, cluster, config.metric)

    tuner = tune.Tuner(
        tune.with_resources(run, tune.PlacementGroupFactory([{"memory": DRIVER_BYTES}])),
        param_space={key: _distribution(limits) for key, limits in config.space.items()},
        tune_config=tune.TuneConfig(
            num_samples=trials,
            max_concurrent_trials=min(config.max_concurrent, _places(cluster)),
            metric=config.metric,
            mode=config.mode,
            search_alg=BasicVariantGenerator(random_state=seed),
            scheduler=ASHAScheduler(max_t=config.epochs, grace_period=config.grace_epochs),
        ),
        run_config=tune.RunConfig(storage_path=str(storage), name="tune", verbose=0),
    )
    results = tuner.fit()
    ranked = [_trial(results[index], config) for index in range(len(results))]
    return sorted(ranked, key=lambda trial: _rank(trial, config.mode))


def _run_trial(job: Job, cluster: ClusterConfig, metric: str) -> None:
    """The driver of one trial: report the epochs that are done, train the others."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    for row in job.history():
        tune.report({metric: row[metric]})
    if job.final_state() is None:
        launch(job, cluster, callbacks=[TuneReportCallback()])


def _trial(result: Any, config: TuneConfig) -> Trial:
    frame = result.metrics_dataframe
    values = frame[config.metric].dropna() if frame is not None and config.metric in frame else []
    best = float("nan") if not len(values) else float(getattr(values, config.mode)())
    error = f"{type(result.error).__name__}: {result.error}" if result.error else None
    return Trial(settings=result.config, epochs=len(values), best=best, error=error)


def _rank(trial: Trial, mode: str) -> tuple[bool, float]:
    """A key to sort by: the best first, those without a value last."""
    return math.isnan(trial.best), trial.best if mode == "min" else -trial.best


def _distribution(limits: RangeConfig) -> Any:
    from ray import tune

    return (tune.loguniform if limits.log else tune.uniform)(limits.low, limits.high)


def _places(cluster: ClusterConfig) -> int:
    """Trials whose workers fit on the cluster side by side."""
    import ray

    have = ray.cluster_resources()
    each = {name: amount for name, amount in cluster.resources_per_worker.items() if amount}
    return max(1, min(int(have.get(k, 0) // (v * cluster.workers)) for k, v in each.items()))


def _fresh_spool(storage: Path, name: str) -> Path:
    """Each search is a run of its own in MLflow, also when it repeats one."""
    number = 1 + len(list(storage.glob(f"{name}-*.jsonl")))
    return storage / f"{name}-{number}.jsonl"
