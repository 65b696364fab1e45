"""Checkpoints in the background: a storage that is full, away or slow loses none."""

from __future__ import annotations

import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from fixtures.small_runs import same_state
from test_checkpoint import state

from aga.errors import CheckpointError
from aga.training import saving
from aga.training.checkpoint import TrainingState, checkpoints, load_checkpoint, newest_good
from aga.training.saving import CheckpointWriter


def steps(run: Path) -> list[int]:
    return [load_checkpoint(path).step for path in checkpoints(run)]


def test_writes_what_it_was_given_while_the_tensors_change(tmp_path: Path) -> None:
    live = state(5)
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(live)
        for tensor in live.tensors.values():
            tensor.zero_()
        writer.close(patience=0)
    assert same_state(load_checkpoint(checkpoints(tmp_path)[0]), state(5))


def test_does_not_wait_for_the_disk_and_the_end_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, save_next = threading.Event(), saving.save_next

    def slow(run: Path, given: TrainingState, keep: int) -> Path:
        goes_on.wait(10)
        return save_next(run, given, keep)

    monkeypatch.setattr(saving, "save_next", slow)
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(state(5))
        assert checkpoints(tmp_path) == []
        goes_on.set()
        writer.close(patience=0)
        assert steps(tmp_path) == [5]


def test_a_storage_that_is_away_is_told_once_and_written_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="aga")
    run, away = tmp_path / "mount/run", tmp_path / "away"
    run.mkdir(parents=True)
    with CheckpointWriter(run, keep=2) as writer:
        writer.save(state(1))
        writer.close(patience=0)
        run.parent.rename(away)
        for step in (2, 3):
            writer.save(state(step))
        timer = threading.Timer(1.0, away.rename, [run.parent])
        timer.start()
        writer.close(patience=30)
    assert caplog.text.count("cannot be written; the training goes on") == 1
    assert "written again, from step 3" in caplog.text
    assert steps(run) == [3, 1], "nothing is written below a mount that is not there"


def test_a_last_checkpoint_that_cannot_be_written_fails_the_run_and_removes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2):
            writer.save(state(step))
        writer.close(patience=0)
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(saving.RESERVE))
        writer.save(state(3))
        started = time.monotonic()
        with pytest.raises(CheckpointError, match="No space left on device"):
            writer.close(patience=1.0)
        assert time.monotonic() - started < 5
    assert steps(tmp_path) == [2, 1]


def test_a_checkpoint_that_the_disk_did_not_keep_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit between writing and reading back: the one before stays, and is no worse."""
    from aga.training import checkpoint

    flush = checkpoint._flush

    def flip(path: Path) -> None:
        if path.name == "training.safetensors":
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        flush(path)

    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2):
            writer.save(state(step))
        writer.close(patience=0)
        monkeypatch.setattr(checkpoint, "_flush", flip)
        writer.save(state(3))
        with pytest.raises(CheckpointError, match=r"training\.safetensors"):
            writer.close(patience=0)
    assert steps(tmp_path) == [2, 1]
    assert newest_good(tmp_path) == checkpoints(tmp_path)[0]


def test_an_error_that_is_no_storages_is_seen(tmp_path: Path) -> None:
    sparse = TrainingState(1, {}, {"w": torch.eye(3).to_sparse()}, [], {})
    with CheckpointWriter(tmp_path, keep=2) as writer, pytest.raises(RuntimeError):
        writer.save(sparse)
        writer.close(patience=0)


def test_the_same_state_is_written_once(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(state(5))
        writer.save(state(5))
        writer.close(patience=0)
    assert len(checkpoints(tmp_path)) == 1
