"""The Ray side: what is refused before Ray starts, and how a run under Ray ends badly."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from fixtures.small_runs import make_home, small_params, small_recipe
from pydantic import ValidationError
from ray.dashboard.utils import get_address_for_submission_client

from aga.cluster.config import ClusterConfig
from aga.cluster.distributed import START_ATTEMPTS, launch, pretrain, ray_session
from aga.cluster.job import Job
from aga.errors import CheckpointError, ClusterError, DataError, ParamsError
from aga.tracking import TrackingConfig, start_run
from aga.training.checkpoint import COMMAND, WRITER, only_writer
from aga.training.run import run_local
from aga.training.step_metrics import DivergenceError


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
        ({"cluster": {"workers": 4, "min_workers": 3}}, ParamsError, r"8 pairs for 3 workers"),
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


@pytest.mark.parametrize("lock", [COMMAND, WRITER])
def test_a_run_that_another_process_has_is_refused_before_ray_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr("aga.cluster.job.WRITER_PATIENCE", 0.0)
    tracking = TrackingConfig.model_validate(small_params()["tracking"])
    job = Job.of(small_recipe(), tracking, home, "runs")
    with (
        only_writer(job.folder, lock=lock),
        pytest.raises(CheckpointError, match=f"(?s)Another process.*process {os.getpid()} on"),
    ):
        start(home)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    "change",
    [{"workers": 0}, {"min_workers": 0}, {"min_workers": 2}, {"gpus_per_worker": -1}, {"nodes": 2}],
)
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


@pytest.mark.slow
def test_an_error_that_trying_again_would_repeat_keeps_its_class(
    home: Path, tmp_path: Path
) -> None:
    values = small_params()
    tracking = TrackingConfig.model_validate(values["tracking"])
    cluster = ClusterConfig.model_validate(values["cluster"])
    job = Job.of(small_recipe(), tracking, home, str(tmp_path / "runs"))
    lost = job.model_copy(update={"home": tmp_path})
    with another_ray(), ray_session(cluster):
        with pytest.raises(DataError, match="no prepared studies"):
            launch(lost, cluster)
        where = ray.remote(num_cpus=0)(get_address_for_submission_client).remote(None)
        assert ray.get(where) == os.environ["RAY_API_SERVER_ADDRESS"]


@pytest.mark.slow
@pytest.mark.parametrize("slow", [1, 3])
def test_a_ray_that_is_not_up_in_time_is_started_again(
    slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = ClusterConfig.model_validate(small_params()["cluster"])
    ports: list[int] = []
    left: list[subprocess.Popen[bytes]] = []  # what Ray starts and forgets
    start_ray = ray.init

    def init(**options: Any) -> None:
        ports.append(options["dashboard_port"])
        if len(ports) <= slow:
            left.append(subprocess.Popen(["sleep", "600"]))
            raise Exception("The current node timed out during startup")
        start_ray(**options)

    monkeypatch.setattr(ray, "init", init)
    if slow < START_ATTEMPTS:
        with ray_session(cluster):
            assert ray.is_initialized()
        assert len(set(ports)) == 2
    else:
        with pytest.raises(ClusterError, match="timed out"), ray_session(cluster):
            pass
        assert len(ports) == START_ATTEMPTS
    assert [process.wait(10) for process in left] == [-signal.SIGKILL] * slow


@contextmanager
def another_ray() -> Iterator[None]:
    """What Ray sees of one that somebody else runs on this machine: a process, and its address."""
    address, folder = "192.0.2.9:1", Path(tempfile.mkdtemp(prefix="r"))
    program = ["-c", "import time; time.sleep(600)", f"--gcs-address={address}"]
    process = subprocess.Popen(["raylet", *program], executable=sys.executable)
    (folder / "ray").mkdir()
    (folder / "ray/ray_current_cluster").write_text(address)
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["RAY_TMPDIR"]
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_finished_run_that_mlflow_has_not_received_is_sent_by_repeating_it(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    values = small_params({"training": {"epochs": 1}})
    recipe = small_recipe({"training": {"epochs": 1}})
    cluster = ClusterConfig.model_validate(values["cluster"])
    store = {"uri": "sqlite:///late.db", "experiment": "late"}
    tracking = TrackingConfig.model_validate(values["tracking"] | store)
    job = Job.of(recipe, tracking, home, cluster.storage)
    run_local(recipe, home, folder=job.folder)
    away = tracking.model_copy(update={"uri": f"sqlite:///{tmp_path / 'no/folder/x.db'}"})
    (tmp_path / "no").touch()  # no folder can be made there
    with start_run(away, home, job.name, spool=job.spool) as tracker:
        tracker.log_metrics({"loss/train": 1.0}, step=3)
    assert "repeat the command" in caplog.text

    caplog.clear()
    pretrain(recipe, cluster, tracking, home)
    with sqlite3.connect(home / "late.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        assert database.execute("select key, step from metrics").fetchall() == [("loss/train", 3)]
    assert "has received" in caplog.text
    caplog.clear()
    pretrain(recipe, cluster, tracking, home)
    assert "has received" not in caplog.text
