"""Jobs of a real head: their code comes from a package, their data from `--home`.

Submitted by `dvc repro` through submit.py, and as Ray's own documentation does.
"""

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

from aga.params import apply_overlay, parse_settings

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


def test_dvc_repro_trains_on_the_cluster_and_fails_where_the_job_fails(
    project: Path, head: dict[str, str]
) -> None:
    stages = project / "dvc.yaml"
    command = "python workflows/pretrain.py\n"
    there = f"python workflows/submit.py pretrain --address {head['RAY_ADDRESS']}\n"
    assert stages.read_text().count(f"cmd: {command}") == 1
    stages.write_text(stages.read_text().replace(command, there))
    token = {name: value for name, value in head.items() if name != "RAY_ADDRESS"}

    apply_overlay(project / "params.yaml", parse_settings(["training.batch_size=4000"]))
    failed = run_in(project, "dvc", "repro", "-s", "pretrain", environment=token, check=False)
    assert failed.returncode != 0
    assert "training.batch_size" in failed.stdout + failed.stderr
    assert "-1 FAILED" in failed.stdout + failed.stderr
    assert not (project / "dvc.lock").exists()

    apply_overlay(project / "params.yaml", parse_settings(["training.batch_size=16"]))
    done = run_in(project, "dvc", "repro", "-s", "pretrain", environment=token)
    assert "-1 SUCCEEDED" in done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout, "the job's log"
    assert "pretrain" in (project / "dvc.lock").read_text()
    again = run_in(project, "dvc", "repro", "-s", "pretrain", environment=token)
    assert "didn't change, skipping" in again.stdout


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
