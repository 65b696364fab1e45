"""A real MLflow server that misbehaves: one of the benchmark's outages, with few runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aga.tracking import TrackingConfig, replay, start_run
from benchmarks.outages import DELAY_SECONDS, Mode, Proxy, Server
from benchmarks.tracker_outages import exactness


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.slow
def test_errors_lose_and_double_nothing(server: Server, tmp_path: Path) -> None:
    row = exactness("error", server, tmp_path, repetitions=3, seed=1)
    assert row["survived"] == 3
    assert row["values"] > 2000
    assert row["lost"] == row["doubled"] == 0
    assert row["longest_call_ms"] < 200


@pytest.mark.slow
def test_an_answer_that_is_too_late_creates_no_second_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(DELAY_SECONDS) - 3))
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    proxy = Proxy(server.port, only="runs/create")
    proxy.mode = Mode.SLOW
    config = TrackingConfig(uri=proxy.uri, artifacts="unused", experiment="late", explain_pairs=0)
    tracker = start_run(config, tmp_path, "late", spool=tmp_path / "metrics.jsonl")
    assert tracker.run_id is None, "the server's answer was in time"
    tracker.finish()
    proxy.mode = Mode.PASS
    run_id = replay(tmp_path / "metrics.jsonl", config, tmp_path)
    proxy.shutdown()
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("late")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [run_id]
