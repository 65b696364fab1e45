"""A real search: Ray Tune over Ray Train on two CPUs, tracked in a real MLflow store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fixtures.project import run_in, small_project
from mlflow import MlflowClient

from aga.params import load_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = small_project(tmp_path_factory.mktemp("search"))
    for stage in ("make_phantom", "prepare", "tokenize_reports"):
        run_in(project, "python", f"workflows/{stage}.py")
    return project


@pytest.fixture(scope="module")
def printed(project: Path) -> str:
    return run_in(project, "python", "workflows/tune_gates.py", "--trials", "4", "--apply").stdout


def test_the_table_holds_every_trial_and_the_winner_is_a_diff(project: Path, printed: str) -> None:
    table, _, diff = printed.partition("\n\n")
    assert len(table.splitlines()) == 1 + 4
    changed = [line for line in diff.splitlines() if line.startswith("+ ")]
    tuned = {key.rpartition(".")[2] for key in load_params(project / "params.yaml").tune.space}
    assert {line[1:].partition(":")[0].strip() for line in changed} <= tuned
    assert changed


def test_apply_writes_the_winner(project: Path, printed: str) -> None:
    best = printed.splitlines()[1].split()
    columns = printed.splitlines()[0].split()
    written = load_params(project / "params.yaml").objective.aga
    assert written.weights.iga == pytest.approx(float(best[columns.index("aga.weights.iga")]))
    assert written.gate.init == pytest.approx(float(best[columns.index("aga.gate.init")]))


def test_one_parent_and_four_children_and_none_is_left_running(project: Path, printed: str) -> None:
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
    assert states["FINISHED"] >= 1
