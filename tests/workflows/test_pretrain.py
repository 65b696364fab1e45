"""The command itself, with real Ray: killed in the middle, repeated, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.small_runs import make_home, same_state, small_recipe, write_params

from aga.bundle import load_bundle
from aga.training.checkpoint import checkpoints, load_checkpoint
from aga.training.run import run_local

ROOT = Path(__file__).parents[2]

# 140 training pairs: 17 steps per epoch, a checkpoint every 5 of them.
LONGER = {"training": {"epochs": 4}, "checkpoint": {"every_steps": 5, "keep": 3}}


def command(home: Path, *options: str) -> subprocess.Popen[bytes]:
    arguments = ["workflows/pretrain.py", "--params", str(home / "params.yaml"), *options]
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes], status: int = 0) -> str:
    """What it has written: to a pipe, so that no bar may have drawn itself again."""
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == status, output
    assert "\r" not in output
    return output


def wait_for_step(runs: Path, step: int) -> Path:
    """The run's folder, once it has a checkpoint of this step or a later one."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for folder in runs.glob("small-*"):
            newest = checkpoints(folder)[:1]
            if newest and int(newest[0].name.partition("-")[0]) >= step:
                return folder
        time.sleep(0.01)
    raise TimeoutError(f"no checkpoint of step {step}")


@pytest.mark.slow
def test_a_killed_worker_changes_no_bit_and_a_repeated_command_trains_nothing(
    tmp_path: Path,
) -> None:
    home = make_home(tmp_path / "home", rows=200)
    write_params(home, LONGER)
    process = command(home)
    folder = wait_for_step(home / "runs", 20)
    worker = int((folder / "writer.lock").read_text().split()[1])
    os.kill(worker, signal.SIGKILL)
    output = finish(process)
    assert "resuming at step" in output, "the worker had ended before it was killed"

    undisturbed = run_local(small_recipe(LONGER), home)
    final = load_checkpoint(checkpoints(folder)[0])
    assert same_state(final, undisturbed)

    metrics = json.loads((home / "metrics/pretrain.json").read_text())
    assert metrics["steps"] == 4 * 17
    with (home / "plots/training.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    bundle = load_bundle(home / "models/encoder")
    assert bundle.metadata["run"] == folder.name
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]
        logged = store.execute("select step from metrics where key = 'loss/validation'").fetchall()
        assert sorted(logged) == [(17,), (34,), (51,), (68,)], "each epoch once"
    pages = sorted(path.parent.name for path in (home / "mlartifacts").rglob("row-*.html"))
    assert pages == [f"epoch-{epoch:03}" for epoch in (1, 1, 2, 2, 3, 3, 4, 4)]

    started = time.monotonic()
    assert "has finished before" in finish(command(home))
    assert time.monotonic() - started < 60
    assert load_bundle(home / "models/encoder").sha256 == bundle.sha256


@pytest.mark.slow
def test_sigterm_to_a_worker_or_to_the_command_loses_no_step(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", rows=200)
    rare = {"training": {"epochs": 8}, "checkpoint": {"every_steps": 1000}}
    write_params(home, rare)
    process = command(home)
    folder = wait_for_step(home / "runs", 17)
    os.kill(int((folder / "writer.lock").read_text().split()[1]), signal.SIGTERM)
    stopped = wait_for_step(home / "runs", 18)
    wait_for_step(home / "runs", load_step(stopped) + 17)
    process.send_signal(signal.SIGTERM)
    output = finish(process, status=143)
    assert "resuming at step" in output
    assert "Traceback" not in output.splitlines()[-1]
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
    assert 0 < load_step(folder) < 8 * 17
    assert not (folder / "stop").exists()

    assert f"resuming at step {load_step(folder)} of" in finish(command(home))
    final = load_checkpoint(checkpoints(folder)[0])
    assert same_state(final, run_local(small_recipe(rare), home))
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]


def load_step(folder: Path) -> int:
    return int(checkpoints(folder)[0].name.partition("-")[0])


def test_mistakes_are_told_in_one_sentence(tmp_path: Path) -> None:
    write_params(tmp_path)
    output = finish(command(tmp_path), status=1)
    assert "error: There are no prepared studies" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_self_test_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """Random pixels: memorised or not, no other pair can profit."""
    home = make_home(tmp_path / "home", rows=80)
    write_params(home)
    output = finish(command(home, "--overfit", "16"), status=1)
    assert "FAILED: the 16 pairs" in output
    assert "Labels shuffled" in output
    assert sorted(path.name for path in home.iterdir()) == ["data", "params.yaml"]
    assert sorted(path.name for path in (home / "data").iterdir()) == ["cache", "studies", "tokens"]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_marks_the_run(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", rows=200)
    write_params(home, LONGER)
    process = command(home)
    wait_for_step(home / "runs", 20)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in finish(process, status=130)
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
    finish(command(home))
    undisturbed = run_local(small_recipe(LONGER), home)
    (folder,) = (home / "runs").glob("small-*")
    assert same_state(load_checkpoint(checkpoints(folder)[0]), undisturbed)
