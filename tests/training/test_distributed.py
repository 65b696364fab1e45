"""The Ray side: what is refused before Ray starts, and how a run under Ray ends badly."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small_runs import make_home, small_params, small_recipe

from aga.errors import CheckpointError, DataError, ParamsError
from aga.tracking import TrackingConfig
from aga.training.checkpoint import only_writer
from aga.training.distributed import ClusterConfig, pretrain
from aga.training.job import Job
from aga.training.loop import DivergenceError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("distributed") / "home")


def start(home: Path, *overlays: Mapping[str, Any]) -> None:
    values = small_params(*overlays)
    cluster = ClusterConfig.model_validate(values["cluster"])
    tracking = TrackingConfig.model_validate(values["tracking"])
    pretrain(small_recipe(*overlays), cluster, tracking, home)


def test_more_than_the_machine_has_is_refused_at_once(home: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ParamsError, match=r"cluster\.workers") as caught:
        start(home, {"cluster": {"workers": 4, "cpus_per_worker": 128}})
    assert time.monotonic() - started < 15
    assert "512" in str(caught.value), "what is needed in all"


@pytest.mark.parametrize(
    ("overlay", "error", "words"),
    [
        ({"cluster": {"workers": 3}}, ParamsError, r"training\.batch_size"),
        ({"training": {"batch_size": 4000}}, DataError, r"training\.batch_size"),
        ({"cluster": {"storage": "params.yaml"}}, CheckpointError, r"cluster\.storage"),
    ],
)
def test_what_cannot_work_is_refused_before_ray_starts(
    home: Path, overlay: dict[str, Any], error: type[Exception], words: str
) -> None:
    (home / "params.yaml").touch()
    with pytest.raises(error, match=words):
        start(home, overlay)


def test_a_run_that_another_process_writes_is_refused(home: Path) -> None:
    tracking = TrackingConfig.model_validate(small_params()["tracking"])
    job = Job.of(small_recipe(), tracking, home, "runs")
    with only_writer(job.folder), pytest.raises(CheckpointError, match="Another process"):
        start(home)


@pytest.mark.parametrize("change", [{"workers": 0}, {"gpus_per_worker": -1}, {"nodes": 2}])
def test_wrong_cluster_settings_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate(small_params()["cluster"] | change)


@pytest.mark.slow
def test_divergence_ends_the_run_without_trying_again(home: Path) -> None:
    with pytest.raises(DivergenceError, match=r"step \d") as caught:
        start(home, {"optimizer": {"learning_rate": 1e30}})
    assert "optimizer.learning_rate" in str(caught.value)
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]
