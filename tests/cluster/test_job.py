"""A run as its command sees it: what MLflow is told of its end, and how its workers are asked."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fixtures.small_runs import make_home, small_params, small_recipe

from aga.cluster.job import Job
from aga.cluster.stopping import StopFile
from aga.tracking import Status, TrackingConfig
from aga.training.run import run_local
from aga.training.stopping import EXIT_CODE, TerminatedError

SHORT = {"training": {"epochs": 1}}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run that has been started and has not ended."""
    home = make_home(tmp_path / "home")
    tracking = TrackingConfig.model_validate(small_params(SHORT)["tracking"])
    job = Job.of(small_recipe(SHORT), tracking, home, "runs")
    assert job.track().run_id
    return job


def state(job: Job) -> str:
    with sqlite3.connect(job.home / "mlflow.db") as store:
        ((found,),) = store.execute("select status from runs").fetchall()
    return str(found)


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_is_not_done_ends_as_it_is_told(job: Job, status: Status) -> None:
    assert state(job) == "RUNNING"
    job.end(status)
    assert state(job) == status


def test_a_run_whose_last_step_is_saved_has_finished_however_its_command_ended(job: Job) -> None:
    run_local(job.recipe, job.home, folder=job.folder)
    job.end("KILLED")
    assert state(job) == "FINISHED"
    written = job.spool.read_bytes()
    job.end("FINISHED")
    assert job.spool.read_bytes() == written, "once"


def test_a_storage_that_is_away_is_told_by_the_process_that_was_asked(tmp_path: Path) -> None:
    stop = StopFile(tmp_path / "unmounted")
    with pytest.raises(TerminatedError, match="cannot be written") as ended:
        stop.make()
    assert ended.value.code == EXIT_CODE
