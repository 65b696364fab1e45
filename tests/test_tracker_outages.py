"""A real MLflow server that misbehaves: one of the benchmark's outages, with few runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.outages import Server
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
