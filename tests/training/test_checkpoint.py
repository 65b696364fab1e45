"""Checkpoints are whole or refused by the name of the file; the newest good one is found."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.small_runs import same_state

from aga.errors import CheckpointError
from aga.training.checkpoint import (
    FOLDER,
    TrainingState,
    checkpoints,
    load_checkpoint,
    newest_good,
    only_writer,
    save_checkpoint,
    save_next,
)

FILES = ("training.safetensors", "best.safetensors", "state.json", "manifest.json")


def state(step: int = 7) -> TrainingState:
    generator = torch.Generator().manual_seed(step)
    return TrainingState(
        step=step,
        tensors={
            "network/w": torch.randn(3, 4, generator=generator),
            "network/half": torch.randn(5, generator=generator).bfloat16(),
            "network/count": torch.tensor(3),
            "optimizer/w/step": torch.tensor(7.0),
            "network/transposed": torch.randn(2, 3, generator=generator).T,
        },
        best={"w": torch.randn(3, 4, generator=generator)},
        history=[{"epoch": 1, "loss/train": 0.1 + 0.2}],
        sums={"loss/train": 1e-17 + step},
    )


def test_reads_back_to_the_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", state())
    assert same_state(load_checkpoint(tmp_path / "c"), state())
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == sorted(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut off", "one bit", "gone"])
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = save_next(tmp_path, state(5), keep=3)
    bad = save_next(tmp_path, state(10), keep=3)
    harm(bad / name, damage)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(bad)
    assert newest_good(tmp_path) == good
    assert name in caplog.text
    # The run reaches step 10 again: the damaged checkpoint is not in the way of a good one.
    again = save_next(tmp_path, state(10), keep=3)
    assert newest_good(tmp_path) == again != bad


def harm(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_no_good_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    harm(save_next(tmp_path, state(), keep=2) / "state.json", "one bit")
    with pytest.raises(CheckpointError, match="No checkpoint of this run is usable"):
        newest_good(tmp_path)


def test_keeps_the_newest_in_numerical_order(tmp_path: Path) -> None:
    saved = [save_next(tmp_path, state(step), keep=2) for step in (9, 10, 99, 100)]
    assert checkpoints(tmp_path) == [saved[3], saved[2]]


def test_damaged_ones_of_later_steps_do_not_push_a_new_one_out(tmp_path: Path) -> None:
    good, *damaged = [save_next(tmp_path, state(step), keep=3) for step in (9, 10, 11)]
    for folder in damaged:
        harm(folder / "state.json", "one bit")
    assert newest_good(tmp_path) == good
    new = save_next(tmp_path, state(10), keep=2)
    assert newest_good(tmp_path) == new


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    unfinished = tmp_path / FOLDER / ".unfinished-abc"
    unfinished.mkdir(parents=True)
    (unfinished / "training.safetensors").write_bytes(b"half")
    assert newest_good(tmp_path) is None
    save_next(tmp_path, state(), keep=2)
    assert not unfinished.exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    sparse = TrainingState(1, {}, {"w": torch.eye(3).to_sparse()}, [], {})
    with pytest.raises(RuntimeError, match="format"):
        save_next(tmp_path, sparse, keep=2)
    assert list((tmp_path / FOLDER).iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from aga.training.checkpoint import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(CheckpointError, match=f"process {holder.pid} on"),
            only_writer(tmp_path),
        ):
            pytest.fail("two writers")
        holder.kill()
        started = time.monotonic()
        with only_writer(tmp_path, patience=10.0):
            assert time.monotonic() - started < 10


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CheckpointError, match=r"cluster\.storage"), only_writer(tmp_path):
        pytest.fail("two could write")
