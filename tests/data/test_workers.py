"""Processes: order, errors that come back, a crash that is survived, and a real Ray."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aga.data.cluster import RayWorkers, open_workers
from aga.data.pixels.dicom import codecs
from aga.data.sources.layouts import require_folder
from aga.data.workers import LocalWorkers, WorkerDied, in_order
from aga.errors import ClusterError, DataError


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # later items finish first
    return number**2


def fail(where: str) -> None:
    raise DataError("It cannot be used", where=where, got="this")


def crash() -> None:
    ctypes.string_at(0)  # a segmentation fault


def chatter() -> str:
    os.write(1, b"what a library prints on file descriptor 1\n")
    print("and by Python")
    return "heard"


def test_results_come_in_the_order_of_the_items(workers: LocalWorkers) -> None:
    found = in_order(lambda number: workers.call(square, number), range(20), workers.count)
    assert list(found) == [number**2 for number in range(20)]


def test_few_items_are_drawn_ahead() -> None:
    drawn = 0

    def items() -> object:
        nonlocal drawn
        for number in range(1000):
            drawn += 1
            yield number

    results = in_order(lambda number: number, items(), 2)
    next(results)
    assert drawn <= 5
    results.close()


def test_an_error_comes_back_as_it_was_raised(workers: LocalWorkers) -> None:
    with pytest.raises(DataError, match=r"(?s)It cannot be used.*a\.csv:7.*this"):
        workers.call(fail, "a.csv:7")
    with pytest.raises(ZeroDivisionError):
        workers.call(divmod, 1, 0)


def test_what_a_library_prints_does_not_disturb_the_answers(workers: LocalWorkers) -> None:
    assert [workers.call(chatter) for _ in range(3)] == ["heard"] * 3


def test_a_crash_is_told_and_another_process_takes_the_place() -> None:
    with LocalWorkers(1) as workers:
        first = workers.call(os.getpid)
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            workers.call(crash)
        assert workers.call(os.getpid) not in (first, os.getpid())


def test_processes_end_with_their_context() -> None:
    with LocalWorkers(2) as workers:
        barrier = threading.Barrier(2)
        found = in_order(lambda _: (barrier.wait(), workers.call(os.getpid))[1], range(2), 2)
        pids = set(found)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody.invalid:6379", "http://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_told_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with (
        pytest.raises(ClusterError, match=f"(?s)RAY_ADDRESS={address}.*unset it"),
        open_workers(tmp_path),
    ):
        pytest.fail("connected to nothing")
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_node_that_is_lost_is_a_killed_worker_and_no_crash(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        node = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level=logging.ERROR)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(RayWorkers([tmp_path]).call, time.sleep, 60)
            while ray.available_resources().get("CPU"):
                assert not call.done()
                time.sleep(0.1)
            time.sleep(1)
            cluster.remove_node(node, allow_graceful=False)
            with pytest.raises(WorkerDied) as caught:
                call.result(120)
        assert caught.value.signal == "SIGKILL"
        assert not caught.value.crashed
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_ray_workers_keep_the_same_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with open_workers(tmp_path) as workers:
        assert workers.count >= 1
        assert workers.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(DataError, match="raw folder of the source is missing"):
            workers.call(require_folder, tmp_path / "nowhere")
        with pytest.raises(WorkerDied):
            workers.call(os._exit, 11)
        assert workers.call(os.getpid) != os.getpid()
        other = RayWorkers([tmp_path], codecs() | {"JPEG Baseline": False, "of another": True})
        with pytest.raises(DataError, match=r"(?s)not decode.*of another.*requirements\.lock"):
            other.call(os.getpid)
        assert RayWorkers([tmp_path], codecs()).call(divmod, 7, 2) == (3, 1)
        tmp_path.rename(tmp_path.with_name("elsewhere"))
        with pytest.raises(DataError, match=r"(?s)does not see a folder.*storage that all nodes"):
            workers.call(os.getpid)
