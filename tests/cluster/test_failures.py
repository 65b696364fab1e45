"""Of several workers' failures the cause is told, last, and not what it did to the others."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.small_runs import make_home, small_params, small_recipe
from ray.train import WorkerGroupError

from aga.cluster.distributed import ClusterConfig
from aga.cluster.failures import (
    TrainingFailedError,
    first_failure,
    noting_traceback,
    told,
)
from aga.cluster.job import Job
from aga.cluster.worker import LASTING, lasting_kind
from aga.data.files import DiskFullError
from aga.errors import DataError
from aga.tracking import TrackingConfig

ROOT = Path(__file__).parents[2]
LOST = RuntimeError("[pair.cc:1] Connection closed by peer [127.0.0.1]:1")


def as_sent(error: Exception) -> Exception:
    """An error of a worker as the driver gets it."""
    try:
        with noting_traceback():
            raise error
    except type(error) as raised:
        sent: Exception = pickle.loads(pickle.dumps(raised))
    return sent


def test_the_cause_is_told_whatever_its_rank() -> None:
    boom = ValueError("boom")
    assert first_failure({0: LOST, 1: boom}) == (1, boom)
    assert first_failure({1: LOST, 0: boom}) == (0, boom)
    assert first_failure({0: LOST}) == (0, LOST)
    assert first_failure({}) is None


def test_a_traceback_comes_along_and_is_last() -> None:
    failures = {0: LOST, 1: as_sent(ValueError("boom"))}
    failed = told(WorkerGroupError("cut off", failures), "run-1")
    assert isinstance(failed, TrainingFailedError)
    assert "worker 1: ValueError: boom" in str(failed)
    (note,) = failed.__notes__
    assert note.startswith("Worker 1's Traceback (most recent call last):")
    assert "in as_sent" in note
    assert note.endswith("\nValueError: boom")


def test_an_error_written_for_users_is_told_as_it_is() -> None:
    failures = {0: LOST, 1: as_sent(DataError("No rows", fix="prepare"))}
    lost = told(WorkerGroupError("cut off", failures), "run-1")
    assert type(lost) is DataError
    assert str(lost) == "No rows\n  fix:      prepare"
    assert lost.__notes__ == ["(worker 1 of run run-1)"]


def test_what_is_no_workers_failure_is_told_in_rays_words() -> None:
    assert "  got:      no room" in str(told(RuntimeError("no room"), "run-1"))


def test_a_kind_of_lasting_error_is_told_as_that() -> None:
    assert LASTING[lasting_kind(DiskFullError("No room"))] is DataError


FAILING = """
import shutil, sys
from pathlib import Path
from aga.command import run
from aga.collectives import rank
from aga.cluster import distributed, worker
from aga.cluster.job import Job

def fail_in_the_second(config):  # what goes wrong in a worker, deep inside its training
    if rank() == 1:
        def build_context(recipe, data, home, device):
            job = Job.model_validate_json(config["job"])
            job.spool.unlink(missing_ok=True)
            job.spool.mkdir()  # nor can the run's end be noted
            raise ValueError("boom")
        worker.build_context = build_context
    return worker_life(config)

def main():
    print("printed before")
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    cluster = distributed.ClusterConfig.model_validate_json(sys.argv[2])
    with distributed.ray_session(cluster):
        distributed.launch(job, cluster)

worker_life, distributed.work = distributed.work, fail_in_the_second
run(main)
"""


@pytest.mark.slow
def test_the_second_of_two_real_workers_fails_and_its_traceback_is_the_last_thing_told(
    tmp_path: Path,
) -> None:
    home = make_home(tmp_path / "home")
    settings = small_params({"cluster": {"workers": 2, "max_failures": 0}})
    job = Job.of(small_recipe(), TrackingConfig.model_validate(settings["tracking"]), home, "runs")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    (tmp_path / "failing.py").write_text(FAILING)
    cluster = ClusterConfig.model_validate(settings["cluster"]).model_dump_json()
    done = subprocess.run(
        [sys.executable, tmp_path / "failing.py", tmp_path / "job.json", cluster],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "ValueError: boom", done.stdout
    error = max(n for n, line in enumerate(lines) if line.startswith("error: "))
    assert lines[error] == "error: The workers failed for good"
    assert "worker 1: ValueError: boom" in "\n".join(lines[error:])
    assert "may stay marked as running" in "\n".join(lines[:error])
    assert not [line for line in lines[error:] if re.match(r".*\(.*pid=", line)], "of Ray"
    assert lines.index("printed before") < error
