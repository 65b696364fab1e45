"""A mistake is refused before anything starts, by the name of its setting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fixtures.small_runs import small_params, small_recipe

from aga.cluster.config import ClusterConfig
from aga.cluster.preflight import (
    check_resources,
    check_storage,
    even_counts,
    local_node,
)
from aga.errors import CheckpointError, DataError, ParamsError
from aga.training.batches import check_batches
from aga.training.checkpoint import CheckpointConfig

TRAINING = small_recipe({"training": {"batch_size": 8}}).training
KEEP = CheckpointConfig(every_steps=1, keep=2)


def cluster(workers: int, cpus: int = 1, gpus: int = 0, least: int | None = None) -> ClusterConfig:
    sizes = {"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus}
    values = small_params()["cluster"] | sizes | {"min_workers": least}
    return ClusterConfig.model_validate(values)


def test_batches_that_fit() -> None:
    check_batches({"train": 8, "validation": 4}, TRAINING, workers=4)


@pytest.mark.parametrize(
    ("splits", "workers", "error", "words"),
    [
        ({"train": 100, "validation": 9}, 3, ParamsError, "set training.batch_size to 9"),
        ({"train": 7, "validation": 9}, 1, DataError, "The train split is too small"),
        ({"train": 100, "validation": 3}, 4, DataError, "The validation split is too small"),
        ({"train": 100}, 1, DataError, "The validation split is too small"),
    ],
)
def test_batches_that_do_not(
    splits: dict[str, int], workers: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_batches(splits, TRAINING, workers)


def test_a_part_of_the_pairs_must_be_there_and_fill_a_batch() -> None:
    part = TRAINING.model_copy(update={"pairs": 20})
    check_batches({"train": 20, "validation": 4}, part, workers=1)
    with pytest.raises(DataError, match="at least 20"):
        check_batches({"train": 19, "validation": 4}, part, workers=1)
    with pytest.raises(ParamsError, match=r"training\.pairs"):
        check_batches({"train": 99}, TRAINING.model_copy(update={"pairs": 7}), workers=1)


def test_a_workers_pairs_are_whole_blocks() -> None:
    check_batches({"train": 8, "validation": 8}, TRAINING, workers=2, block=4)
    check_batches({"train": 8, "validation": 3}, TRAINING, workers=1, block=4)
    with pytest.raises(ParamsError, match=r"dependence\.block.*\n.*blocks of 3"):
        check_batches({"train": 8, "validation": 8}, TRAINING, workers=1, block=3)
    with pytest.raises(DataError, match="at least 8"):
        check_batches({"train": 8, "validation": 7}, TRAINING, workers=2, block=4)


def test_counts_of_workers_that_share_a_batch() -> None:
    assert even_counts(24, 1, cluster(6, least=1)) == [1, 2, 3, 4, 6]
    assert even_counts(24, 4, cluster(6, least=2)) == [2, 3, 6]
    assert even_counts(24, 1, cluster(4)) == [4]


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([{"CPU": 2.0}], cluster(2)),
        ([{"CPU": 2.0}, {"CPU": 3.0}], cluster(2, cpus=2)),
        ([{"CPU": 16.0, "GPU": 2.0}], cluster(2, cpus=8, gpus=1)),
        ([{"CPU": 2.0}], cluster(9, least=2)),
    ],
)
def test_resources_that_are_there(
    nodes: list[dict[str, float | int]], asked: ClusterConfig
) -> None:
    check_resources(nodes, asked)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([], cluster(1)),
        ([{"CPU": 2.0}], cluster(3)),
        # Enough in all, but no node has two for one worker.
        ([{"CPU": 1.0}, {"CPU": 1.0}], cluster(1, cpus=2)),
        ([{"CPU": 16.0}], cluster(1, gpus=1)),
    ],
)
def test_resources_that_are_not(nodes: list[dict[str, float | int]], asked: ClusterConfig) -> None:
    with pytest.raises(ParamsError, match=r"cluster\.workers") as caught:
        check_resources(nodes, asked)
    assert "need   have" in str(caught.value)


def test_the_table_states_both_sides() -> None:
    with pytest.raises(ParamsError) as caught:
        check_resources([{"CPU": 2.0}, {"CPU": 4.0}], cluster(4, cpus=2, gpus=1))
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["CPU", "8", "6", "4"] in [row[:4] for row in rows]
    assert ["GPU", "4", "0", "0"] in [row[:4] for row in rows]


def test_the_table_states_the_fewest_that_are_needed() -> None:
    with pytest.raises(ParamsError, match=r"cluster\.min_workers x cluster\.cpus") as caught:
        check_resources([{"CPU": 2.0}], cluster(9, least=3))
    assert ["CPU", "3", "2", "2"] in [row.split()[:4] for row in str(caught.value).splitlines()]


def test_storage_is_made_and_left_empty(tmp_path: Path) -> None:
    check_storage(tmp_path / "runs/a", 1000, KEEP)
    assert list((tmp_path / "runs/a").iterdir()) == []


def test_storage_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(CheckpointError, match=r"cluster\.storage"):
        check_storage(tmp_path / "runs/a", 1000, KEEP)


def test_storage_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.keep"):
        check_storage(tmp_path / "runs/a", 10**15, KEEP)


def test_this_machine_is_a_node() -> None:
    check_resources([local_node()], cluster(len(os.sched_getaffinity(0))))
