"""A real run loses a node, goes on with fewer workers, and grows again when one comes."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fixtures.slow_pages import slow_pages
from fixtures.small_runs import WITHOUT_BATCH_STATISTICS, make_home, small_params, small_recipe
from ray.train import ScalingConfig

from aga.cluster import distributed
from aga.cluster.config import ClusterConfig
from aga.cluster.distributed import pretrain
from aga.cluster.elastic import ElasticPolicy
from aga.cluster.job import Job
from aga.errors import ClusterError
from aga.tracking import TrackingConfig
from aga.training.checkpoint import TrainingState, checkpoints
from aga.training.run import run_local

# 28 training pairs: 3 steps an epoch, which lasts as long as `slow_pages` wants.
RUN: Mapping[str, Any] = {
    "training": {"epochs": 40, "heartbeat_seconds": 1e-6},
    "optimizer": {"learning_rate": 1e-4},
    "checkpoint": {"every_steps": 2},
    "cluster": {"workers": 2, "min_workers": 1, "max_failures": 1},
    "tracking": {"explain_pairs": 1},
}
TOLERANCE = 1e-3
"""Largest relative difference of an epoch's loss: rounding, and what 120 steps make of it."""


def policy(counts: list[int], patience: float) -> ElasticPolicy:
    scaling = ScalingConfig(num_workers=(counts[0], counts[-1]), resources_per_worker={"CPU": 2})
    return ElasticPolicy(scaling, counts, patience)


def test_only_counts_that_share_a_batch_are_taken() -> None:
    taken = [
        policy([2, 4, 8], 1.0)._count_possible_workers({"a": {"CPU": cpus}, "b": {"CPU": 3.0}})
        for cpus in (1.0, 2.0, 8.0, 12.0, 40.0)
    ]
    assert taken == [0, 2, 4, 4, 8]


def test_waiting_for_room_has_an_end() -> None:
    with pytest.raises(ClusterError, match=r"(?s)cluster\.min_workers.*room for 2"):
        policy([2, 4], -1.0).make_decision_for_non_running_worker_group()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of this process, whose head has one CPU; nodes are added to it."""
    import ray
    from ray.cluster_utils import Cluster

    there = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(there))  # for the workers: `slow_pages`
    monkeypatch.setattr(distributed, "RESIZE_SECONDS", 2.0)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def start(home: Path, *overlays: Mapping[str, Any]) -> TrainingState:
    values = small_params(*overlays)
    cluster = ClusterConfig.model_validate(values["cluster"])
    tracking = TrackingConfig.model_validate(values["tracking"])
    return pretrain(small_recipe(*overlays), cluster, tracking, home, slow_pages).state


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_shrinks_with_its_nodes_and_grows_again_to_the_same_curve(
    nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    second = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, logging_level=logging.ERROR)
    home = make_home(tmp_path / "home")
    tracking = TrackingConfig.model_validate(small_params(RUN)["tracking"])
    folder = Job.of(small_recipe(WITHOUT_BATCH_STATISTICS, RUN), tracking, home, "runs").folder

    def saved() -> int:
        return max((int(place.name.partition("-")[0]) for place in checkpoints(folder)), default=0)

    with ThreadPoolExecutor(1) as pool:  # nodes are added by the main thread
        ended = pool.submit(start, home, WITHOUT_BATCH_STATISTICS, RUN)
        wait_until(lambda: ended.done() or saved() >= 10)
        nodes.remove_node(second, allow_graceful=False)
        lost_at = saved()
        wait_until(lambda: ended.done() or saved() > lost_at + 2)
        nodes.add_node(num_cpus=1)
        state = ended.result()
    told = capfd.readouterr().err
    resumed = re.findall(r"resuming at step (\d+) of \d+, workers: (\d)", told)
    assert [workers for _, workers in resumed] == ["1", "2"], told
    before, _, _ = told.partition("workers: 2")
    steps = [int(step) for step in re.findall(r" step (\d+)/", before)]
    assert max(steps) == int(resumed[1][0]), "to grow costs no step"
    undisturbed = run_local(small_recipe(WITHOUT_BATCH_STATISTICS, RUN), home)
    assert state.step == undisturbed.step == 120
    for ours, theirs in zip(state.history, undisturbed.history, strict=True):
        assert ours["loss/train"] == pytest.approx(theirs["loss/train"], rel=TOLERANCE)
