"""Runs that were killed are told from those that live, and closed; a living one never is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aga.tracking import (
    Life,
    RunningRun,
    TrackingConfig,
    close_run,
    replay,
    running_runs,
    start_run,
)
from aga.tracking.store import experiment_id, open_client

CONFIG = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="stale", explain_pairs=0
)
WRITES = """
import sys, time
from pathlib import Path
from aga.tracking import TrackingConfig, start_run
config = TrackingConfig.model_validate_json(sys.argv[1])
tracker = start_run(config, Path(sys.argv[2]), sys.argv[4], spool=Path(sys.argv[3]))
tracker.log_metrics({"loss": 1.0}, 1)
print(tracker.run_id, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store is created, which takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    experiment_id(open_client(CONFIG, folder), CONFIG, folder)
    return folder / "mlflow.db"


@pytest.fixture
def home(store: Path, tmp_path: Path) -> Path:
    shutil.copy(store, tmp_path / "mlflow.db")
    return tmp_path


def state(home: Path, run_id: str) -> str:
    return str(MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_run(run_id).info.status)


def spools(home: Path) -> list[Path]:
    return sorted(home.glob("runs/**/metrics.jsonl"))


def lives(home: Path) -> dict[str, Life]:
    return {run.name: run.life for run in running_runs(CONFIG, home, spools(home))}


def test_a_killed_run_is_stale_until_it_is_closed_and_a_living_one_is_left(home: Path) -> None:
    spool = home / "runs" / "killed" / "metrics.jsonl"
    command = [sys.executable, "-c", WRITES, CONFIG.model_dump_json(), str(home), str(spool)]
    process = subprocess.Popen([*command, "killed"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    assert lives(home) == {"killed": Life.WRITTEN}
    alive = running_runs(CONFIG, home, spools(home))[0]
    assert close_run(CONFIG, home, alive) is False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    with start_run(CONFIG, home, "alive", spool=home / "runs" / "alive" / "metrics.jsonl") as run:
        assert run.run_id
        assert lives(home) == {"killed": Life.STALE, "alive": Life.WRITTEN}
        found = {r.name: r for r in running_runs(CONFIG, home, spools(home))}
        assert found["killed"].run_id == run_id
        assert found["killed"].silent_seconds < 600
        assert close_run(CONFIG, home, found["killed"]) is True
        assert lives(home) == {"alive": Life.WRITTEN}
        assert state(home, run_id) == "KILLED"
    spool.with_name("metrics.jsonl.sent").unlink()
    replay(spool, CONFIG, home)
    assert state(home, run_id) == "KILLED"

    with start_run(CONFIG, home, "killed", spool=spool) as again:  # it may still be resumed
        assert again.run_id == run_id
        assert state(home, run_id) == "RUNNING"
    assert state(home, run_id) == "FINISHED"


def test_a_run_without_its_spool_is_unknown_and_closed_only_on_demand(home: Path) -> None:
    tracker = start_run(CONFIG, home, "elsewhere", spool=home / "gone" / "metrics.jsonl")
    assert tracker.run_id
    tracker._sender.stop(20.0)
    (run,) = running_runs(CONFIG, home, spools(home))
    assert run.life is Life.UNKNOWN
    assert run == RunningRun(tracker.run_id, "elsewhere", Life.UNKNOWN, None, run.silent_seconds)
    assert close_run(CONFIG, home, run) is True
    assert state(home, tracker.run_id) == "KILLED"


def test_looking_creates_no_store_and_no_experiment(home: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert running_runs(CONFIG, nowhere, []) == []
    assert not nowhere.exists()
    other = CONFIG.model_copy(update={"experiment": "never used"})
    assert running_runs(other, home, []) == []
    assert open_client(CONFIG, home).get_experiment_by_name("never used") is None
