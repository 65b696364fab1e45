"""Search of settings with Ray Tune: each trial is a Ray Train run, stopped early where it lags.

A trial is a function of its settings: its run is named by them, so a search that is cut off and
repeated finds its finished trials done and goes on with the others from their checkpoints. Nothing
of Ray Tune's own state is needed for that. The search is likewise one run of MLflow, which
repeating it continues; when it ends without a failed trial its table is kept, and a repetition only
shows it.

Ray is optional and imported inside functions, so that the library works where it is not installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from aga.cluster.config import ClusterConfig
from aga.cluster.distributed import launch, ray_session
from aga.cluster.job import Job, deliver
from aga.cluster.survey import survey
from aga.config import Config
from aga.errors import AgaError, ParamsError, TrackingError
from aga.tracking import Tracker, TrackingConfig, close_children, provenance, start_run
from aga.training.checkpoint import only_writer
from aga.training.run import WRITER_PATIENCE
from aga.training.validation import Metric

logger = logging.getLogger(__name__)

Settings: TypeAlias = Mapping[str, float]
MakeJob: TypeAlias = Callable[[Settings], Job]

# A trial's driver only waits for its workers. It asks for a little memory and no CPU: with a CPU
# each, the drivers could hold all of them and wait for ever for workers that find none.
DRIVER_BYTES = 256 * 2**20
TABLE = "trials.json"


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

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.grace_epochs > self.epochs:
            raise ValueError(
                f"grace_epochs {self.grace_epochs} must not exceed epochs {self.epochs}"
            )
        return self


@dataclass(frozen=True)
class Trial:
    """What came of one choice of settings.

    Attributes:
        settings: Dotted key to value.
        epochs: Epochs trained.
        best: Best value of the metric; NaN where no epoch was finished.
        error: Why the trial failed; None where it did not. Then `best` is worth nothing.
    """

    settings: Settings
    epochs: int
    best: float
    error: str | None

    @property
    def failed(self) -> bool:
        """Whether it has no result to compare."""
        return self.error is not None or math.isnan(self.best)


@dataclass(frozen=True)
class SearchResult:
    """All trials, the best first and those that failed last."""

    trials: Sequence[Trial]

    @property
    def winner(self) -> Trial:
        """The best trial.

        Raises:
            AgaError: Every trial failed.
        """
        if self.trials[0].failed:
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
        cluster: Workers of each trial, which needs room for all of them.
        tracking: Where the search and its trials are tracked, as a parent run and its children.
        home: Folder that relative paths start from.

    Raises:
        ParamsError: There are no trials, or a trial's workers do not fit on the cluster.
        DataError: The data are missing or damaged.
        CheckpointError: Another process is at the same search.
        ClusterError: A node cannot do what the trials need; see `survey`.
    """
    if trials < 1:
        raise ParamsError("A search needs trials", where="trials", got=trials, expected="1 or more")
    # Elastic trials would take each other's room.
    cluster = cluster.model_copy(update={"min_workers": None})
    settings = config.model_dump(mode="json", exclude={"max_concurrent"})
    settings |= {"trials": trials, "seed": seed}
    # A trial's name stands for all that the trials share: other settings, data and code.
    sample = make_job({key: limits.low for key, limits in config.space.items()})
    folder = sample.folder.parent / "searches" / _name(tracking.experiment, settings, sample.name)
    spool = folder / "metrics.jsonl"
    with only_writer(folder):
        if (folder / TABLE).is_file():
            logger.info("the search has finished before; showing its table again")
            ranked = _read_table(folder / TABLE)
            deliver(spool, tracking, home)
            for trial in ranked:
                make_job(trial.settings).deliver()
            return SearchResult(ranked)
        with (
            start_run(
                tracking, home, folder.name, spool=spool, params=settings, tags=provenance(home)
            ) as parent,
            _closed_children(parent, tracking, home),
        ):
            with ray_session(cluster):
                place = sample.model_copy(update={"folder": folder})
                survey(place, cluster)
                ranked = _run_trials(config, make_job, trials, seed, cluster, parent.run_id, folder)
            if not ranked[0].failed:
                best = {f"best/{config.metric}": ranked[0].best}
                parent.log_metrics(best, step=sum(trial.epochs for trial in ranked))
        if len(ranked) == trials and not any(trial.failed for trial in ranked):
            _write_table(folder / TABLE, ranked)
    return SearchResult(ranked)


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
    folder: Path,
) -> list[Trial]:
    # Tune's own progress page would stand in the middle of the table that a script prints.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Its own handler of Ctrl-C ends all trials as if they were done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
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
            metric=config.metric,
            mode=config.mode,
            search_alg=BasicVariantGenerator(
                max_concurrent=min(config.max_concurrent, _places(cluster)), random_state=seed
            ),
            scheduler=ASHAScheduler(max_t=config.epochs, grace_period=config.grace_epochs),
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
    )
    results = tuner.fit()
    ranked = [_trial(results[index], config) for index in range(len(results))]
    return sorted(ranked, key=lambda trial: rank(trial, config.mode))


def _run_trial(job: Job, cluster: ClusterConfig, metric: str) -> None:
    """The driver of one trial: report the epochs that are done, train the others."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    finished = job.final_state() is not None
    if finished:
        # It may be another search's, or its last words did not reach MLflow.
        job.track().finish("FINISHED")
    for row in job.history():
        tune.report({metric: row[metric]})
    if not finished:
        with job.held(WRITER_PATIENCE):  # a trial of a search that was killed may be ending
            launch(job, cluster, callbacks=[TuneReportCallback()])


def _trial(result: Any, config: TuneConfig) -> Trial:
    frame = result.metrics_dataframe
    values = frame[config.metric].dropna() if frame is not None and config.metric in frame else []
    best = float("nan") if not len(values) else float(getattr(values, config.mode)())
    error = _first_line(result.error) if result.error else None
    return Trial(settings=result.config, epochs=len(values), best=best, error=error)


def _first_line(error: Exception) -> str:
    """What a trial's table cell can hold; Ray wraps the error and appends both tracebacks."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"


def rank(trial: Trial, mode: str) -> tuple[bool, float]:
    """A key to sort by: the best first, those that failed last."""
    return trial.failed, trial.best if mode == "min" else -trial.best


def _distribution(limits: RangeConfig) -> Any:
    from ray import tune

    return (tune.loguniform if limits.log else tune.uniform)(limits.low, limits.high)


def _places(cluster: ClusterConfig) -> int:
    """Trials whose workers fit on the cluster side by side."""
    import ray

    have = ray.cluster_resources()
    each = {name: amount for name, amount in cluster.resources_per_worker.items() if amount}
    return max(1, min(int(have.get(k, 0) // (v * cluster.workers)) for k, v in each.items()))


def _name(experiment: str, settings: Mapping[str, Any], sample: str) -> str:
    """Equal for equal searches over equal data."""
    text = json.dumps([settings, sample], sort_keys=True)
    return f"{experiment}-search-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@contextmanager
def _closed_children(parent: Tracker, tracking: TrackingConfig, home: Path) -> Iterator[None]:
    """However the search ends: trials that were stopped early did not come to say so."""
    try:
        yield
    finally:
        if parent.run_id:
            try:
                close_children(tracking, home, parent.run_id, "KILLED")
            except TrackingError as error:
                logger.warning("runs of trials may stay marked as running: %s", error)


def _write_table(path: Path, trials: Sequence[Trial]) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps([asdict(trial) for trial in trials], indent=1), encoding="utf-8")
    scratch.replace(path)


def _read_table(path: Path) -> list[Trial]:
    return [Trial(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
