"""`ray job submit` to a real head: the job's code comes from a package, its data from `--home`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.project import run_in, small_project
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

# A head asks for the token of ~/.ray/auth_token; its clients must be told to send it.
TOKEN = {"RAY_AUTH_MODE": "token"}
WHERE = "import aga, aga.data.loader as loader; print(aga.__file__, loader.__file__)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = small_project(tmp_path_factory.mktemp("job"))
    for stage in ("make_phantom", "prepare", "tokenize_reports"):
        run_in(project, "python", f"workflows/{stage}.py")
    return project


@pytest.fixture(scope="module")
def head(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head on the loopback address, of which only this test's processes know."""
    dashboard, port = free_port(), free_port()
    # Ray's sockets have a length limit that pytest's folders exceed.
    temporary = f"/tmp/ray-test-{os.getpid()}"
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--temp-dir={temporary}", "--disable-usage-stats",
    ]  # fmt: skip
    bin_folder = Path(sys.executable).parent
    # `ray stop` would end every Ray of this machine; a head that blocks takes its own down.
    process = subprocess.Popen(
        [bin_folder / command[0], *command[1:]],
        cwd=project,
        env={**os.environ, **TOKEN, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = {**TOKEN, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        wait_until_listening(dashboard, process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        assert process.poll() is None, "the head did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("the head's dashboard does not answer")


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
