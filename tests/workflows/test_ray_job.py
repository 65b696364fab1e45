"""`ray job submit` to a real head: the job's code comes from a package, its data from `--home`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.project import run_in, small_project
from fixtures.ray_head import ray_head
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

WHERE = "import aga, aga.data.loader as loader; print(aga.__file__, loader.__file__)"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = small_project(tmp_path_factory.mktemp("job"))
    for stage in ("make_phantom", "prepare", "tokenize_reports"):
        run_in(project, "python", f"workflows/{stage}.py")
    return project


@pytest.fixture(scope="module")
def head(project: Path) -> Iterator[dict[str, str]]:
    with ray_head(project) as address:
        yield address


def submitted(
    project: Path, command: list[str], head: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Submit; the head's agent, which takes jobs, may start after its dashboard answers."""
    for _ in range(20):
        done = run_in(project, *command, environment=head, check=False)
        if "No available agent" not in done.stderr:
            break
        time.sleep(3)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_submitted_job_succeeds_and_is_tracked(project: Path, head: dict[str, str]) -> None:
    command = [
        "ray",
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        "python",
        "workflows/pretrain.py",
        "--home",
        str(project),
    ]
    done = submitted(project, command, head)
    assert "succeeded" in done.stdout
    listed = run_in(project, "ray", "job", "list", environment=head)
    assert "SUCCEEDED" in listed.stdout + listed.stderr

    package = run_in(project, *command[:6], "python", "-c", WHERE, environment=head).stdout
    assert str(project) not in package
    assert package.count("working_dir_files") == 2, package

    assert (project / "models/encoder/model.safetensors").is_file()
    assert json.loads((project / "metrics/pretrain.json").read_text())
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("aga-phantom").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert "loss/train" in runs[0].data.metrics
