"""The doctor sees each kind of remains, repairs those it may, and leaves the living alone."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.small_runs import make_home, small_params, small_recipe

from aga import doctor
from aga.doctor import Finding, examine, repair
from aga.tracking import TrackingConfig, start_run
from aga.training.checkpoint import COMMAND, WRITER, checkpoints, only_writer
from aga.training.run import run_local

TRACKING = TrackingConfig.model_validate(small_params()["tracking"])
ENDLESS = """
import sys; from pathlib import Path; from aga.tracking import TrackingConfig, start_run; import os
home, config = Path(sys.argv[1]), TrackingConfig.model_validate_json(sys.argv[2])
tracker = start_run(config, home, "lost", spool=home / "runs/lost/metrics.jsonl")
assert tracker.run_id
os._exit(9)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = make_home(tmp_path_factory.mktemp("doctor") / "home")
    run_local(small_recipe(), home, folder=home / "runs/small-1")
    return home


def wrong(home: Path) -> list[Finding]:
    return [finding for finding in examine(home, home / "runs", TRACKING) if finding.wrong]


@pytest.fixture(autouse=True)
def much_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 0)
    monkeypatch.setattr(doctor, "QUIET_SECONDS", 0.0)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")


def test_a_good_folder_has_nothing_wrong_and_is_not_touched(home: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in home.rglob("*"))
    assert wrong(home) == []
    assert sorted((path, path.stat().st_mtime_ns) for path in home.rglob("*")) == before


def test_a_writer_is_named_and_its_checkpoints_are_left_to_it(home: Path) -> None:
    with only_writer(home / "runs/small-1"):
        told = "\n".join(map(str, examine(home, home / "runs", TRACKING)))
    assert f"small-1 is held by process {os.getpid()}" in told


def test_a_command_that_waits_is_named_before_its_worker_and_its_run_is_left_to_it(
    home: Path,
) -> None:
    subprocess.run(
        [sys.executable, "-c", ENDLESS, home, TRACKING.model_dump_json()], check=False, timeout=120
    )
    run = home / "runs/lost"
    spool = (run / "metrics.jsonl").read_bytes()
    with only_writer(run, lock=COMMAND):
        (run / WRITER).write_text("process 1 on a node that is lost")
        told = "\n".join(map(str, examine(home, home / "runs", TRACKING)))
        assert f"run lost is held by process {os.getpid()} on" in told
        assert f"lost is RUNNING in MLflow, and held by process {os.getpid()} on" in told
        assert wrong(home) == []
    seen = wrong(home)
    assert any("lost is RUNNING" in finding.what for finding in seen)
    with only_writer(run, lock=COMMAND):  # begun between the look and the repair
        repair(seen)
    assert (run / "metrics.jsonl").read_bytes() == spool
    repair(seen)
    assert b'"KILLED"' in (run / "metrics.jsonl").read_bytes()
    assert wrong(home) == []


def test_a_damaged_checkpoint_is_told_with_what_is_left(home: Path) -> None:
    newest = checkpoints(home / "runs/small-1")[0]
    content = (newest / "state.json").read_bytes()
    (newest / "state.json").write_bytes(content[:-3])
    try:
        (finding,) = wrong(home)
    finally:
        (newest / "state.json").write_bytes(content)
    assert newest.name in finding.what
    assert "1 good one" in finding.advice
    assert finding.repair is None


def test_dvcs_note_of_the_dead_is_deleted_and_of_the_living_kept(home: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    note = home / ".dvc/tmp/rwlock"
    note.parent.mkdir(parents=True)

    def write(pid: int) -> None:
        note.write_text(json.dumps({"/d": {"write": {"pid": pid, "cmd": "dvc repro"}}}))

    write(os.getpid())
    assert wrong(home) == []
    write(gone.pid)
    with (note.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert wrong(home) == []
        assert "DVC is at work" in "\n".join(map(str, examine(home, home / "runs", TRACKING)))
    assert [line[:8] for line in repair(wrong(home))] == ["repaired"]
    assert not note.exists()


def test_unfinished_folders_are_told(home: Path) -> None:
    folders = [home / "data/.studies.partial", home / "runs/small-1/checkpoints/.unfinished-x"]
    for folder in folders:
        folder.mkdir()
    told = "\n".join(map(str, examine(home, home / "runs", TRACKING)))
    assert "data/.studies.partial is half made" in told
    assert "small-1 holds a checkpoint that was never finished" in told
    for folder in folders:
        folder.rmdir()


def test_a_run_that_was_killed_is_ended_and_one_that_is_written_is_not(home: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", ENDLESS, home, TRACKING.model_dump_json()], check=False, timeout=120
    )
    living = start_run(TRACKING, home, "alive", spool=home / "runs/alive/metrics.jsonl")
    try:
        findings = wrong(home)
        assert any("lost is RUNNING" in finding.what for finding in findings)
        assert not any("alive" in finding.what for finding in findings)
        repair(findings)
        with sqlite3.connect(home / "mlflow.db") as store:
            status = dict(store.execute("select name, status from runs").fetchall())
        assert status == {"lost": "KILLED", "alive": "RUNNING"}
    finally:
        living.finish()
    assert wrong(home) == []


def test_what_mlflow_lacks_is_sent(home: Path, tmp_path: Path) -> None:
    (tmp_path / "no").touch()
    away = TRACKING.model_copy(update={"uri": f"sqlite:///{tmp_path / 'no/x.db'}"})
    with start_run(away, home, "late", spool=home / "runs/late/metrics.jsonl") as tracker:
        tracker.log_metrics({"loss": 1.0}, step=1)
    assert any("has not received all of run late" in finding.what for finding in wrong(home))
    assert not [line for line in repair(wrong(home)) if line.startswith("not")]
    assert wrong(home) == []
    with sqlite3.connect(home / "mlflow.db") as store:
        assert ("late", "FINISHED") in store.execute("select name, status from runs").fetchall()


def test_a_server_that_is_away_is_told(home: Path) -> None:
    away = TRACKING.model_copy(update={"uri": "http://127.0.0.1:9"})
    told = [f for f in examine(home, home / "runs", away) if f.wrong]
    assert any("127.0.0.1:9 does not answer" in finding.what for finding in told)
