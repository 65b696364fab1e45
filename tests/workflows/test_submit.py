"""`submit.py` to a real head: log, exit codes, one job per command, an end by signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fixtures.ray_head import ray_head
from fixtures.tunnel import tunnel

from aga.errors import AgaError, ClusterError
from aga.submission import build_package, connect, entrypoint, job_name

ROOT = Path(__file__).parents[2]
SCRIPT = """
import argparse, pathlib, time
parser = argparse.ArgumentParser()
parser.add_argument("--home")
parser.add_argument("--until", type=pathlib.Path)
parser.add_argument("--status", type=int, default=0)
options = parser.parse_args()
print("home", options.home, flush=True)
while options.until and not options.until.exists():
    time.sleep(0.1)
print("awake", flush=True)
raise SystemExit(options.status)
"""


# As a shell starts what stands before `&`.
IN_BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
# The script with shorter times.
IMPATIENT = """
import runpy, sys
import aga.submission
_, script, times, *sys.argv[1:] = sys.argv
vars(aga.submission).update(eval(times))
runpy.run_path(script, run_name="__main__")
"""


def make_project(folder: Path) -> Path:
    (folder / "workflows").mkdir(parents=True)
    (folder / "workflows/nap.py").write_text(SCRIPT)
    (folder / ".gitignore").write_text("/data/\n")
    (folder / ".rayignore").write_text("/models\n")
    for name in ("data", "models"):
        (folder / name).mkdir()
        (folder / name / "large.bin").write_bytes(bytes(2**20))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("submit") / "project")


@pytest.fixture(scope="module")
def head(project: Path) -> Iterator[dict[str, str]]:
    with ray_head(project) as address:
        yield address


def submit(
    project: Path,
    head: dict[str, str],
    *options: str,
    before: Sequence[str] = (),
    times: dict[str, float] | None = None,
) -> subprocess.Popen[str]:
    script = str(ROOT / "workflows/submit.py")
    python = [script] if times is None else ["-c", IMPATIENT, script, str(times)]
    return subprocess.Popen(
        [*before, sys.executable, *python, "nap", *options],
        cwd=project,
        env={**os.environ, **head, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], status: int) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == status, output
    return output


def test_what_is_ignored_does_not_travel(project: Path, tmp_path: Path) -> None:
    package = build_package(project, tmp_path / "package.zip")
    assert set(package.sizes) == {"workflows/nap.py", ".gitignore", ".rayignore"}
    assert "workflows/nap.py" in package.table(1)
    package.check_size(1)
    with pytest.raises(ClusterError, match=r"(?s)nap\.py.*\.rayignore"):
        package.check_size(0.0001)


def test_a_job_is_named_by_command_and_content(project: Path, tmp_path: Path) -> None:
    package = build_package(project, tmp_path / "one.zip")
    os.utime(project / "workflows/nap.py", (1e9, 1e9))
    again = build_package(project, tmp_path / "two.zip")
    command = entrypoint("nap", Path("/shared/a b"), ["--until", "x"], project)
    assert command == "python workflows/nap.py --home '/shared/a b' --until x"
    assert job_name(command, package) == job_name(command, again)
    assert job_name(command + " -v", package) != job_name(command, package)
    edited = make_project(tmp_path / "edited")
    (edited / "workflows/nap.py").write_text(SCRIPT + "\n")
    other = build_package(edited, tmp_path / "three.zip")
    assert job_name(command, package) != job_name(command, other)


def test_mistakes_are_told(project: Path) -> None:
    with pytest.raises(AgaError, match="nap"):
        entrypoint("nup", Path("/h"), [], project)
    with pytest.raises(ClusterError, match="--address"):
        connect("127.0.0.1:6379")
    with pytest.raises(ClusterError, match="does not take jobs"):
        connect("http://127.0.0.1:9")


def told_by_doctor(project: Path, head: dict[str, str]) -> str:
    options = ["--params", ROOT / "params.yaml", "--home", project]
    done = subprocess.run(
        [sys.executable, ROOT / "workflows/doctor.py", *options, "--address", head["RAY_ADDRESS"]],
        env={**os.environ, **head, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "are free where the runs are" in done.stdout, done.stderr
    return done.stdout


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    told = ""
    while words not in told:
        line = process.stdout.readline()
        assert line, told
        told += line


@pytest.mark.slow
def test_exit_codes_logs_attaching_and_stopping(
    project: Path, head: dict[str, str], tmp_path: Path
) -> None:
    refused = ended(submit(project, head, "--limit", "0.0001"), 1)
    assert "nap.py" in refused
    assert "Traceback" not in refused

    stranger = ended(submit(project, {**head, "RAY_AUTH_MODE": "disabled"}), 1)
    assert "wants RAY_AUTH_MODE=token here" in stranger
    assert "Traceback" not in stranger

    morning = tmp_path / "morning"
    options = ("--home", "/shared/x", "--", "--until", str(morning), "--status", "3")
    first = submit(project, head, *options)
    read_until(first, "home /shared/x\n")
    second = submit(project, head, *options)
    read_until(second, "is there already")
    found = told_by_doctor(project, head)
    assert "is RUNNING: python workflows/nap.py --home /shared/x" in found
    assert f"ray job stop --address {head['RAY_ADDRESS']} aga-nap-" in found
    morning.touch()
    followed, own = ended(second, 1), ended(first, 1)
    assert "home /shared/x" in followed, "the log from its beginning"
    for output in (followed, own):
        assert output.count("awake") == 1
        assert "-1 FAILED" in output

    # The same command again is an attempt of its own, now that the first has ended.
    morning.unlink()
    stopped = submit(project, head, *options, before=IN_BACKGROUND)
    read_until(stopped, "home /shared/x\n")
    stopped.send_signal(signal.SIGTERM)
    assert "-2 STOPPED" in ended(stopped, 130)

    assert "SUCCEEDED" in ended(submit(project, head), 0)
    assert "of the cluster" not in told_by_doctor(project, head)


@pytest.mark.slow
def test_a_head_that_is_gone_is_told_of_when_its_job_is_to_stop(
    project: Path, tmp_path: Path
) -> None:
    with ray_head(project) as own:
        process = submit(project, own, "--", "--until", str(tmp_path / "never"))
        read_until(process, "\nhome ")
    process.send_signal(signal.SIGINT)
    told = ended(process, 1)
    assert "was not stopped" in told
    assert f"ray job stop --address {own['RAY_ADDRESS']} aga-nap-" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_head_that_vanishes_is_told_of_and_a_lost_connection_is_made_anew(
    project: Path, head: dict[str, str], tmp_path: Path
) -> None:
    morning = tmp_path / "morning"
    options = ("--", "--until", str(morning))
    times = {"SILENT_SECONDS": 2.0, "ANSWER_SECONDS": 12.0, "AWAY_SECONDS": 5.0}
    with tunnel(head["RAY_ADDRESS"]) as (lost, one), tunnel(head["RAY_ADDRESS"]) as (dead, other):
        follower = submit(
            project, {**head, "RAY_ADDRESS": one}, *options, times={"SILENT_SECONDS": 2.0}
        )
        read_until(follower, "\nhome ")
        left = submit(project, {**head, "RAY_ADDRESS": other}, *options, times=times)
        read_until(left, "\nhome ")
        dead.die()
        told = ended(left, 1)
        assert "does not answer any more" in told
        assert "Traceback" not in told

        lost.lose()  # after a silence in which all was well
        morning.touch()
        told = ended(follower, 0)
        assert "home " not in told, "what was written before"
        assert told.count("awake") == 1


@pytest.mark.slow
def test_an_interrupt_before_the_answer_stops_the_job(
    project: Path, head: dict[str, str], tmp_path: Path
) -> None:
    with tunnel(head["RAY_ADDRESS"], holds=b"POST /api/jobs/ ") as (network, address):
        own = {**head, "RAY_ADDRESS": address}
        process = submit(project, own, "--", "--until", str(tmp_path / "never"))
        assert network.held.wait(60)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        network.release.set()
        assert "-1 STOPPED" in ended(process, 130)
