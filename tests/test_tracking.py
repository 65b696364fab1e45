"""Runs in a real MLflow: nothing lost, nothing twice, and no store can hold a training up."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import ValidationError

from aga.errors import TrackingError
from aga.tracking import (
    TrackingConfig,
    attach_artifact,
    close_children,
    mlflow_ui_command,
    provenance,
    replay,
    start_run,
)
from aga.tracking.spool import read_records
from aga.tracking.store import experiment_id, open_client
from benchmarks.outages import Server, free_port

SQLITE = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="tests", explain_pairs=0
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a created store; its name would break a URI that is put together carelessly."""
    folder = tmp_path_factory.mktemp("a home with spaces")
    experiment_id(open_client(SQLITE, folder), SQLITE, folder)
    shutil.copy(folder / "mlflow.db", folder / "fresh.db")
    return folder


@pytest.fixture
def away() -> TrackingConfig:
    """A server that is not there."""
    return SQLITE.model_copy(update={"uri": f"http://127.0.0.1:{free_port()}"})


def client_of(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def wait_for_step(spool: Path, step: int) -> None:
    """Until the spool's thread has written a step, which takes milliseconds."""
    while not any(record.get("step") == step for record, _ in read_records(spool, 0)):
        time.sleep(0.01)


def history(home: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client_of(home).get_metric_history(run_id, key))


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mlruns", "must be sqlite"),
        ("file:///tmp/mlruns", "must be sqlite"),
        ("sqlite://", "must be sqlite"),
        ("sqlite:///:memory:", "must be sqlite"),
        ("https://me:secret@server", "credentials"),
    ],
)
def test_a_store_that_would_lose_runs_or_leak_a_password_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SQLITE.model_validate(SQLITE.model_dump() | {"uri": uri})


def test_a_run_is_logged_with_params_tags_metrics_and_status(home: Path, tmp_path: Path) -> None:
    tags = {"git_commit": "c" * 40, "data_sha256": "d" * 64}
    params = {"optimizer": {"betas": [0.9, 0.98], "learning_rate": 0.001}, "options": {}}
    spool = tmp_path / "metrics.jsonl"
    with start_run(SQLITE, home, "plain", spool=spool, params=params, tags=tags) as tracker:
        assert tracker.run_id
        for step in range(5):
            tracker.log_metrics({"loss/train": 1 / (step + 1), "lr": 0.1}, step)
    run = client_of(home).get_run(tracker.run_id)
    assert run.info.run_name == "plain"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "optimizer.betas": "[0.9, 0.98]",
        "optimizer.learning_rate": "0.001",
        "options": "{}",
    }
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert history(home, tracker.run_id, "loss/train") == [(s, 1 / (s + 1)) for s in range(5)]
    assert run.info.artifact_uri.startswith((home / "mlartifacts").as_uri())


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_that_breaks_off_says_so(
    home: Path, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), start_run(SQLITE, home, "breaks", spool=tmp_path / "m.jsonl") as run:
        run.log_metrics({"loss": 1.0}, 0)
        raise error
    assert client_of(home).get_run(run.run_id).info.status == status
    assert history(home, run.run_id, "loss") == [(0, 1.0)]


def test_a_server_that_is_away_costs_a_training_nothing_and_gets_everything_later(
    home: Path, tmp_path: Path, away: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "metrics.jsonl"
    begin = time.monotonic()
    tracker = start_run(away, tmp_path, "offline", spool=spool, params={"seed": 1})
    started = time.monotonic()
    for step in range(200):
        tracker.log_metrics({"loss": step / 7, "rate": 1.0}, step)
    logged = time.monotonic()
    assert tracker.finish(timeout=20.0) is False
    finished = time.monotonic()
    assert started - begin < 20
    assert logged - started < 0.5
    assert finished - logged < 20.5
    assert tracker.run_id is None
    assert sum(r["kind"] == "metrics" for r, _ in read_records(spool, 0)) == 200
    assert sum("MLflow is away" in message for message in caplog.messages) == 1

    run_id = replay(spool, SQLITE, home)
    assert replay(spool, SQLITE, home) == run_id
    assert history(home, run_id, "loss") == [(s, s / 7) for s in range(200)]
    run = client_of(home).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1"}
    stated = next(read_records(spool, 0))[0]["time"]
    assert run.info.start_time == stated


def test_sending_again_without_the_note_of_what_was_sent_doubles_nothing(
    home: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "metrics.jsonl"
    with start_run(SQLITE, home, "answer lost", spool=spool) as tracker:
        for step in range(30):
            tracker.log_metrics({"loss": float(step)}, step)
    spool.with_name("metrics.jsonl.sent").unlink()
    assert replay(spool, SQLITE, home) == tracker.run_id
    assert history(home, tracker.run_id, "loss") == [(s, float(s)) for s in range(30)]


def test_settings_that_were_lost_with_an_answer_are_sent_again(home: Path, tmp_path: Path) -> None:
    spool = tmp_path / "metrics.jsonl"
    params = {f"p{n}": n for n in range(150)}  # two requests
    with start_run(SQLITE, home, "settings", spool=spool, params=params) as tracker:
        pass
    client = client_of(home)
    with sqlite3.connect(home / "mlflow.db") as store:  # as if only the first request had arrived
        store.execute(
            "delete from params where run_uuid = ? and key >= 'p5'", (str(tracker.run_id),)
        )
    assert len(client.get_run(tracker.run_id).data.params) < 150
    spool.with_name("metrics.jsonl.sent").unlink()
    assert replay(spool, SQLITE, home) == tracker.run_id
    assert client.get_run(tracker.run_id).data.params == {k: str(v) for k, v in params.items()}


def test_a_resumed_run_is_one_run_and_repeated_steps_are_logged_once(
    home: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "metrics.jsonl"
    first = start_run(SQLITE, home, "resumed", spool=spool, params={"workers": 1})
    for step in range(8):  # a checkpoint is at step 5; the process dies after step 7
        first.log_metrics({"loss": float(step)}, step)
    wait_for_step(spool, 7)
    with spool.open("a") as torn:
        torn.write('{"kind":"metrics","st')
    first._sender.stop(20.0)  # as a killed process: no status

    second = start_run(SQLITE, home, "resumed", spool=spool, params={"workers": 2})
    assert second.run_id == first.run_id
    assert client_of(home).get_run(second.run_id).info.status == "RUNNING"
    for step in range(6, 12):
        second.log_metrics({"loss": step + 0.5 * (step < 8)}, step)
    assert second.finish()
    assert history(home, second.run_id, "loss") == [(s, float(s)) for s in range(12)]
    run = client_of(home).get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"workers": "1"}


def test_a_run_goes_on_by_its_id_on_another_machine(home: Path, tmp_path: Path) -> None:
    with start_run(SQLITE, home, "moves", spool=tmp_path / "here.jsonl") as first:
        first.log_metrics({"loss": 1.0}, 1)
    there = tmp_path / "there.jsonl"
    with start_run(SQLITE, home, "moves", spool=there, run_id=first.run_id) as second:
        second.log_metrics({"loss": 2.0}, 2)
    assert second.run_id == first.run_id
    assert history(home, first.run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_store_that_does_not_know_the_run_gets_all_of_it(home: Path, tmp_path: Path) -> None:
    spool = tmp_path / "metrics.jsonl"
    with start_run(SQLITE, home, "moved", spool=spool) as first:
        first.log_metrics({"loss": 1.0}, 1)
    shutil.copy(home / "fresh.db", tmp_path / "mlflow.db")
    with start_run(SQLITE, tmp_path, "moved", spool=spool) as second:
        second.log_metrics({"loss": 2.0}, 2)
    assert second.run_id != first.run_id
    assert history(tmp_path, second.run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_what_the_store_refuses_is_told_and_stops_no_run(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "metrics.jsonl"
    tracker = start_run(SQLITE, home, "refused", spool=spool)
    tracker.log_metrics({"not a key: {}": 1.0}, 0)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.finish() is False
    assert sum("MLflow is wanting, the run goes on" in message for message in caplog.messages) == 1
    with pytest.raises(TrackingError, match="refuses"):
        replay(spool, SQLITE, home)


def test_a_spool_that_cannot_be_written_or_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="spool"):
        start_run(SQLITE, tmp_path, "nowhere", spool=tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(TrackingError, match="no spool"):
        replay(tmp_path / "none.jsonl", SQLITE, tmp_path)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        close_children(SQLITE, tmp_path, "parent", "KILLED")
    tracker = start_run(SQLITE, tmp_path, "damaged", spool=tmp_path / "metrics.jsonl")
    tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.finish(timeout=20.0) is False


def test_a_deleted_experiment_is_named(tmp_path: Path, home: Path) -> None:
    config = SQLITE.model_copy(update={"experiment": "gone"})
    client = client_of(home)
    client.delete_experiment(experiment_id(client, config, home))
    with pytest.raises(TrackingError, match="restore"):
        experiment_id(client, config, home)


def test_children_that_were_killed_are_closed(home: Path, tmp_path: Path) -> None:
    with start_run(SQLITE, home, "parent", spool=tmp_path / "parent.jsonl") as parent:
        pass
    children = [
        start_run(SQLITE, home, f"c{i}", spool=tmp_path / f"{i}.jsonl", parent=parent.run_id)
        for i in range(2)
    ]
    children[0].finish("FINISHED")
    children[1]._sender.stop(20.0)
    assert close_children(SQLITE, home, parent.run_id, "KILLED") == 1
    states = [client_of(home).get_run(child.run_id).info.status for child in children]
    assert states == ["FINISHED", "KILLED"]


def test_an_artifact_is_attached_to_a_run_that_has_ended(home: Path, tmp_path: Path) -> None:
    with start_run(SQLITE, home, "ended", spool=tmp_path / "metrics.jsonl") as tracker:
        pass
    (tmp_path / "report.html").write_text("<p>report</p>")
    attach_artifact(SQLITE, home, tracker.run_id, tmp_path / "report.html", "reports")
    paths = [a.path for a in client_of(home).list_artifacts(tracker.run_id, "reports")]
    assert paths == ["reports/report.html"]
    with pytest.raises(TrackingError):
        attach_artifact(SQLITE, home, "0" * 32, tmp_path / "report.html")


PAGE = "explain/epoch-001/row-3.html"


def pages_of(home: Path, run_id: str) -> list[str]:
    return [a.path for a in client_of(home).list_artifacts(run_id, "explain/epoch-001")]


def test_a_page_is_an_artifact_at_its_path_and_is_kept_once(home: Path, tmp_path: Path) -> None:
    spool = tmp_path / "metrics.jsonl"
    with start_run(SQLITE, home, "pages", spool=spool) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_page(PAGE, "<p>é</p>")
        tracker.log_metrics({"loss": 2.0}, 2)
    assert pages_of(home, tracker.run_id) == [PAGE]
    assert history(home, tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]
    fetched = client_of(home).download_artifacts(tracker.run_id, PAGE, str(tmp_path))
    assert Path(fetched).read_text(encoding="utf-8") == "<p>é</p>"

    with start_run(SQLITE, home, "pages", spool=spool) as again:
        again.log_page(PAGE, "<p>repeated</p>")
    kinds = [record["kind"] for record, _ in read_records(spool, 0)]
    assert kinds.count("artifact") == 1


def test_a_page_of_a_run_without_its_store_is_sent_later(
    home: Path, tmp_path: Path, away: TrackingConfig
) -> None:
    spool = tmp_path / "metrics.jsonl"
    tracker = start_run(away, tmp_path, "offline page", spool=spool)
    tracker.log_page(PAGE, "<p>page</p>")
    assert tracker.finish(timeout=20.0) is False
    run_id = replay(spool, SQLITE, home)
    assert pages_of(home, run_id) == [PAGE]


def test_artifacts_that_cannot_be_stored_hold_no_number_up(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server's own artifact folder, which no client can write, is the common case."""
    (tmp_path / "a file").touch()
    for name in ("mlflow.db", "fresh.db"):
        shutil.copy(home / "fresh.db", tmp_path / name)
    config = SQLITE.model_copy(update={"artifacts": "a file/in/it", "experiment": "elsewhere"})
    tracker = start_run(config, tmp_path, "no artifacts", spool=tmp_path / "metrics.jsonl")
    tracker.log_page(PAGE, "<p>page</p>")
    tracker.log_page(PAGE.replace("row-3", "row-4"), "<p>page</p>")
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.finish()
    assert history(tmp_path, tracker.run_id, "loss") == [(1, 1.0)]
    assert sum("does not take artifacts" in message for message in caplog.messages) == 1


FIRST_USE = """
import sys
from pathlib import Path
from aga.tracking import TrackingConfig, start_run
home, index = Path(sys.argv[1]), sys.argv[2]
config = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="race", explain_pairs=0
)
with start_run(config, home, index, spool=home / f"{index}.jsonl") as tracker:
    for step in range(20):
        tracker.log_metrics({"loss": float(step)}, step)
print(tracker.run_id)
"""


@pytest.mark.slow
def test_four_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, str(tmp_path), str(i)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    run_ids = {output.strip() for output, _ in outputs}
    assert len(run_ids) == 4
    for run_id in run_ids:
        assert history(tmp_path, run_id, "loss") == [(s, float(s)) for s in range(20)]
    experiments = client_of(tmp_path).search_experiments(filter_string="name = 'race'")
    assert len(experiments) == 1


CREATES = """
import sys
from pathlib import Path
from mlflow.store.tracking import sqlalchemy_store
from aga.tracking import TrackingConfig
from aga.tracking.store import open_client
config = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="tests", explain_pairs=0
)
print("begins", flush=True)
open_client(config, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_store_whose_creation_was_killed_is_created_again(tmp_path: Path) -> None:
    """MLflow's own creation, when it is killed, leaves a file that no later start can use."""
    root, unfinished = Path(__file__).parent.parent, tmp_path / "mlflow.db.new"
    command = [sys.executable, "-c", CREATES, str(tmp_path)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    while not unfinished.exists() or unfinished.stat().st_size < 100_000:  # of 700,000 in the end
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    with start_run(SQLITE, tmp_path, "after", spool=tmp_path / "metrics.jsonl") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
    assert history(tmp_path, tracker.run_id, "loss") == [(0, 1.0)]
    assert not list(tmp_path.glob("mlflow.db.new*"))


KILLED = """
import os, signal, sys, time
from pathlib import Path
from aga.tracking import TrackingConfig, start_run
home = Path(sys.argv[1])
config = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="tests", explain_pairs=0
)
tracker = start_run(config, home, "killed", spool=Path(sys.argv[2]))
for step in range(50):
    tracker.log_metrics({"loss": float(step)}, step)
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_process_loses_no_metric(home: Path, tmp_path: Path) -> None:
    spool = tmp_path / "metrics.jsonl"
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", KILLED, str(home), str(spool)]
    assert subprocess.run(command, cwd=root, timeout=120, check=False).returncode == -9  # SIGKILL
    with start_run(SQLITE, home, "killed", spool=spool) as tracker:
        assert client_of(home).get_run(tracker.run_id).info.status == "RUNNING"
        for step in range(45, 60):
            tracker.log_metrics({"loss": float(step)}, step)
    assert client_of(home).get_run(tracker.run_id).info.status == "FINISHED"
    assert history(home, tracker.run_id, "loss") == [(s, float(s)) for s in range(60)]


@pytest.mark.slow
def test_a_server_that_comes_up_during_the_run_gets_everything(tmp_path: Path) -> None:
    server = Server(tmp_path)
    config = SQLITE.model_copy(update={"uri": server.uri})
    tracker = start_run(config, tmp_path, "late server", spool=tmp_path / "metrics.jsonl")
    assert tracker.run_id is None
    tracker.log_metrics({"loss": 0.0}, 0)
    with server:
        tracker.log_metrics({"loss": 1.0}, 1)
        assert tracker.finish(timeout=60.0)
        client = MlflowClient(config.uri)
        steps = [m.step for m in client.get_metric_history(tracker.run_id, "loss")]
        assert steps == [0, 1]
        assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert mlflow_ui_command(config, tmp_path) == config.uri


@pytest.mark.slow
def test_the_printed_command_serves_from_any_folder(home: Path, tmp_path: Path) -> None:
    command = mlflow_ui_command(SQLITE, home)
    assert f"sqlite:///{home}/mlflow.db" in command
    with Server(tmp_path, shlex.split(command)) as server:
        found = MlflowClient(server.uri).get_experiment_by_name("tests")
        assert found.artifact_location == (home / "mlartifacts").as_uri()


def test_provenance_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "start")
    clean = provenance(tmp_path)
    assert len(clean["git_commit"]) == 40
    assert clean["git_dirty"] == "false"
    assert clean.keys() == {"git_commit", "git_dirty", "params_sha256"}

    (tmp_path / "dvc.lock").write_text("")
    assert provenance(tmp_path)["git_dirty"] == "false"  # the line writes it as it runs
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    (tmp_path / "data" / "studies").mkdir(parents=True)
    (tmp_path / "data" / "studies" / "dataset.json").write_text(json.dumps({"sha256": "d" * 64}))
    dirty = provenance(tmp_path)
    assert dirty["git_dirty"] == "true"
    assert dirty["params_sha256"] != clean["params_sha256"]
    assert dirty["data_sha256"] == "d" * 64
    assert "dvc_lock_sha256" in dirty


def test_provenance_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    assert provenance(tmp_path).keys() == {"params_sha256"}
    monkeypatch.setenv("PATH", "")
    assert shutil.which("git") is None
    assert provenance(tmp_path).keys() == {"params_sha256"}
