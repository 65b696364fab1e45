"""What a node reports, and what is made of the reports; the survey of a real cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.small_runs import make_home, small_params, small_recipe, write_params

from aga.cluster import survey as surveying
from aga.cluster.config import ClusterConfig
from aga.cluster.job import Job
from aga.cluster.node import (
    NodeFacts,
    check_data,
    check_exchange,
    check_versions,
    inspect,
    missing_tokens,
    unreachable,
    versions,
    warn_of_shared_memory,
    warn_of_tracking,
    write_token,
)
from aga.errors import ClusterError
from aga.tracking import TrackingConfig

ROOT = Path(__file__).parents[2]
NODE = NodeFacts("one", {"torch": "2.9", "aga": "abc"}, {"/d/x": "12"}, 64 * 2**20, None)


def test_equal_nodes_pass() -> None:
    nodes = [NODE, replace(NODE, name="two")]
    check_versions(nodes)
    check_data(nodes, NODE.data)
    check_exchange(Path("/s"), {"one": None, "two": None}, {"one": [], "two": []})


def test_other_software_is_a_table_of_what_differs() -> None:
    other = replace(NODE, name="two", versions={"torch": "2.8", "aga": "abc"})
    with pytest.raises(ClusterError, match=r"requirements\.lock") as caught:
        check_versions([NODE, other])
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["one", "two"] in rows
    assert ["torch", "2.9", "2.8"] in rows
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(("sha256", "words"), [("13", "differs"), (None, "is not there")])
def test_other_data_name_the_node(sha256: str | None, words: str) -> None:
    with pytest.raises(ClusterError, match=f"two: /d/x {words}"):
        check_data([NODE, replace(NODE, name="two", data={"/d/x": sha256})], NODE.data)


def test_little_shared_memory_names_node_and_option(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_shared_memory([replace(NODE, shared_memory=None), replace(NODE, shared_memory=2**30)])
    assert not caplog.messages
    warn_of_shared_memory([NODE])
    assert "one has 64 MiB free in /dev/shm" in caplog.text
    assert "--shm-size=1g" in caplog.text


def test_storage_of_ones_own_is_told_by_node() -> None:
    with pytest.raises(ClusterError, match=r"(?s)two: cannot write, no.*cluster\.storage"):
        check_exchange(Path("/s"), {"one": None, "two": "no"}, {})
    with pytest.raises(ClusterError, match="one: does not see what was written on two"):
        check_exchange(Path("/s"), {"one": None, "two": None}, {"one": ["two"], "two": []})


def test_tokens_are_written_and_seen(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    assert write_token(tmp_path / "t", "a", 0) is None
    assert missing_tokens(tmp_path / "t", ["a"], 5) == []
    started = time.monotonic()
    assert missing_tokens(tmp_path / "t", ["a", "b"], 0.3) == ["b"]
    assert 0.2 < time.monotonic() - started < 5
    (tmp_path / "file").touch()
    assert write_token(tmp_path / "file", "a", 0), "a file is no folder"


def test_a_storage_that_is_not_mounted_is_waited_for_and_not_made(tmp_path: Path) -> None:
    assert write_token(tmp_path / "mount/t", "a", 0.3) == "No such file or directory"
    assert not (tmp_path / "mount").exists()
    threading.Timer(0.3, (tmp_path / "late").mkdir).start()
    assert write_token(tmp_path / "late", "a", 10) is None


def test_a_server_that_is_away_is_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert unreachable(address) is None
    away = unreachable(address)
    assert away is not None
    assert unreachable("sqlite:///mlflow.db") is None
    with caplog.at_level(logging.WARNING):
        warn_of_tracking([replace(NODE, tracking_error=away)], address)
    assert "tracking.uri" in caplog.text


def test_this_machine_is_inspected_quickly(tmp_path: Path) -> None:
    started = time.monotonic()
    facts = inspect([tmp_path / "lost"], "sqlite:///x")
    assert time.monotonic() - started < 2
    assert facts.data == {str(tmp_path / "lost"): None}
    assert facts.versions == versions()
    assert "missing" not in facts.versions.values()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Two Ray nodes on this machine, of which only this process knows; their address."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_workers_that_find_no_room_are_told_of(two_nodes: str) -> None:
    from ray.util import placement_group, remove_placement_group

    each = {"CPU": 1, "GPU": 0}
    assert surveying.lack_of_room(each) is None
    group = placement_group([{"CPU": 1}] * 3)
    deadline = time.monotonic() + 30
    while (told := surveying.lack_of_room(each)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert told == "waiting for room for 3 worker(s) on the cluster: CPU 1 each, 2 free"
    assert surveying.lack_of_room({"CPU": 2}) is None, "another run's"
    remove_placement_group(group)
    while surveying.lack_of_room(each):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_that_waits_for_room(
    two_nodes: str, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    from ray.util import placement_group, remove_placement_group

    home = make_home(tmp_path / "home")
    params = write_params(home, {"training": {"heartbeat_seconds": 1}})
    group = placement_group([{"CPU": 1}] * 2)
    assert group.wait(30)
    process = subprocess.Popen(
        [sys.executable, "workflows/pretrain.py", "--params", params],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": two_nodes},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert any("waiting for room for 1 worker(s)" in line for line in process.stderr)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == status, told
    finally:
        process.kill()
        remove_placement_group(group)


@pytest.mark.slow
def test_two_real_nodes_are_asked(
    two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path / "home")
    tracking = TrackingConfig.model_validate(small_params()["tracking"])
    job = Job.of(small_recipe(), tracking, home, "runs")
    two = ClusterConfig.model_validate(small_params({"cluster": {"workers": 2}})["cluster"])
    job.folder.mkdir(parents=True)
    started = time.monotonic()
    surveying.survey(job, two)
    assert time.monotonic() - started < 60
    assert list(job.folder.iterdir()) == [], "tokens are taken away"

    lost = job.model_copy(update={"folder": tmp_path / "file/run"})
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"(?s)cannot write.*cluster\.storage"):
        surveying.survey(lost, two)

    monkeypatch.setattr(surveying, "SECONDS", 0.0)
    with pytest.raises(ClusterError, match="do not answer within"):
        surveying.survey(job, two)
