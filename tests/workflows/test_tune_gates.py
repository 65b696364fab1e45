"""A real search, killed and repeated: Ray Tune over Ray Train, tracked in a real MLflow store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fixtures.project import run_in, small_project
from mlflow import MlflowClient

from aga.params import load_params

pytestmark = pytest.mark.slow
COMMAND = ("python", "workflows/tune_gates.py", "--trials", "4")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = small_project(tmp_path_factory.mktemp("search"))
    for stage in ("make_phantom", "prepare", "tokenize_reports"):
        run_in(project, "python", f"workflows/{stage}.py")
    return project


@pytest.fixture(scope="module")
def printed(project: Path) -> list[list[str]]:
    """The table that `tune_gates` prints, cell by cell; Ray's workers may print before it."""
    assert hit_a_search(project, signal.SIGINT) == 130
    assert not list(project.glob("runs/searches/*/trials.json")), "as if it were done"
    hit_a_search(project, signal.SIGKILL)
    done = run_in(project, *COMMAND, "--apply")
    assert "+++ params.yaml" in done.stdout
    return table(done.stdout)


def hit_a_search(project: Path, number: signal.Signals) -> int:
    """Start the search, and send its driver a signal once a trial trains; the exit code."""
    path = project / "hit.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *COMMAND[1:]],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project)},
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 240
        while "epoch 1" not in path.read_text():
            assert process.poll() is None, path.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        return process.wait(timeout=120)


def table(output: str) -> list[list[str]]:
    lines = output.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("retrieval/mean_recall"))
    return [line.split() for line in lines[start : lines.index("", start)]]


def test_the_table_ranks_every_trial(project: Path, printed: list[list[str]]) -> None:
    values = [float(row[0]) for row in printed[1:]]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert {row[1] for row in printed[1:]} <= {"1", "2"}


def test_apply_writes_the_winner_and_nothing_else(project: Path, printed: list[list[str]]) -> None:
    committed = run_in(project, "git", "show", "HEAD:params.yaml").stdout
    before = project / "before.yaml"
    before.write_text(committed)
    old, new = (flat(load_params(p).model_dump()) for p in (before, project / "params.yaml"))
    winner = dict(zip(printed[0], printed[1], strict=True))
    changed = {key for key in new if new[key] != old[key]}
    assert changed
    assert changed <= load_params(before).tune.space.keys()
    for key in changed:
        assert new[key] == pytest.approx(float(winner[key.removeprefix("objective.")])), key


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    dotted: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        dotted |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return dotted


def test_one_parent_and_four_children_and_none_is_left_running(
    project: Path, printed: list[list[str]]
) -> None:
    check_runs(project, printed)


def test_a_finished_search_is_shown_again_and_starts_nothing(
    project: Path, printed: list[list[str]]
) -> None:
    done = run_in(project, *COMMAND)
    assert "has finished before" in done.stderr
    assert table(done.stdout) == printed
    check_runs(project, printed)


def check_runs(project: Path, printed: list[list[str]]) -> None:
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("aga-phantom")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    states = Counter(run.info.status for run in children)
    assert states.total() == 4
    assert states.keys() <= {"FINISHED", "KILLED"}
    complete = sum(row[1] == "2" for row in printed[1:])
    assert states["FINISHED"] == complete
    assert complete >= 1
