"""The spool: whole lines whatever the disk does, and a training that never waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import threading
import time
from pathlib import Path

import pytest

from aga.tracking import writer as writer_module
from aga.tracking.spool import Sent, SpoolFile, read_records, status_record
from aga.tracking.writer import SpoolWriter

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def steps(path: Path) -> list[int]:
    return [r["step"] for r, _ in read_records(path, 0) if r["kind"] == "metrics"]


def close(writer: SpoolWriter, timeout: float = 20.0) -> bool:
    return writer.close(status_record("FINISHED"), timeout)


def break_disk(writer: SpoolWriter) -> None:
    """Every write fails as on a full disk, and the spool cannot be opened anew."""
    file = writer._file
    assert file._descriptor is not None
    file._path.parent.rename(file._path.parent.with_name("away"))
    device = os.open(FULL, os.O_WRONLY)
    os.dup2(device, file._descriptor)
    os.close(device)


def mend_disk(writer: SpoolWriter) -> None:
    folder = writer._file._path.parent
    folder.with_name("away").rename(folder)


def test_each_metric_is_kept_once_per_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = SpoolWriter(path)
    first.append_metrics({"a": 1.0, "b": 1.0}, 0)
    first.append_metrics({"a": 9.0}, 0)
    first.append_metrics({"a": 2.0}, 3)
    assert close(first)
    again = SpoolWriter(path)
    again.append_metrics({"a": 9.0, "b": 2.0}, 2)
    assert close(again)
    kept = [(r["step"], r["values"]) for r, _ in read_records(path, 0) if r["kind"] == "metrics"]
    assert kept == [(0, {"a": 1.0, "b": 1.0}), (3, {"a": 2.0}), (2, {"b": 2.0})]


@needs_full
def test_a_disk_that_comes_back_gets_all_that_waited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    writer = SpoolWriter(path)
    writer.append_metrics({"loss": 1.0}, 0)
    while not steps(path):
        time.sleep(0.01)
    break_disk(writer)
    for step in range(1, 500):
        writer.append_metrics({"loss": 1.0}, step)
    time.sleep(1.5 * writer_module.RETRY_SECONDS)
    mend_disk(writer)
    assert close(writer)
    assert steps(path) == list(range(500))
    assert sum("cannot be written now" in message for message in caplog.messages) <= 2


@needs_full
def test_a_disk_that_stays_full_costs_metrics_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "QUEUE_BYTES", 2000)
    path = tmp_path / "run" / "metrics.jsonl"
    writer = SpoolWriter(path)
    break_disk(writer)
    for step in range(1000):
        writer.append_metrics({"loss": 1.0}, step)
    writer.append_artifact("page.html", b"x" * 100)
    assert writer._queue.qsize() < 2200
    dropped = writer.dropped
    assert 900 < dropped < 1000
    assert close(writer, timeout=0.5) is False
    assert writer.dropped == 1000 + 1 + 1  # the page and the status
    assert sum("are dropped" in message for message in caplog.messages) == 2
    mend_disk(writer)
    again = SpoolWriter(path)  # as the resumed run does
    again.append_metrics({"loss": 1.0}, 0)
    assert close(again)
    assert steps(path) == [0]


@needs_full
def test_a_page_that_finds_no_room_keeps_no_number_waiting(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = SpoolWriter(path)
    (tmp_path / "metrics.jsonl.artifacts").mkdir()
    (tmp_path / "metrics.jsonl.artifacts" / "page.html").symlink_to(FULL)
    writer.append_artifact("page.html", b"page")
    writer.append_metrics({"loss": 1.0}, 0)
    assert close(writer) is False
    assert writer.dropped == 1
    assert [r["kind"] for r, _ in read_records(path, 0)] == ["metrics", "status"]


def test_a_disk_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "metrics.jsonl")
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writes, True)
    descriptor = writer._file._descriptor
    assert descriptor is not None
    os.dup2(writes, descriptor)  # from now on a write waits until somebody reads
    begin = time.perf_counter()
    for step in range(1000):
        writer.append_metrics({"loss": 1.0}, step)
    assert time.perf_counter() - begin < 1.0
    assert close(writer, timeout=0.5) is False
    assert time.perf_counter() - begin < 1.5 + writer_module.RETRY_SECONDS + 1.0
    assert any(thread.name == "spool" for thread in threading.enumerate())
    os.close(reads)
    os.close(writes)


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")


def test_a_file_system_that_is_full_and_then_freed_loses_no_metric(tmp_path: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path))
    try:
        path = tmp_path / "metrics.jsonl"
        writer = SpoolWriter(path)
        writer.append_metrics({"loss": 1.0}, 0)
        while not steps(path):
            time.sleep(0.01)
        with contextlib.suppress(OSError), (tmp_path / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(b"x" * 1024)
        for step in range(1, 400):  # more than the page that the file has
            writer.append_metrics({"loss": 1.0}, step)
        time.sleep(0.3)
        assert path.read_bytes().endswith(b"\n")
        assert 0 < len(steps(path)) < 400
        (tmp_path / "ballast").unlink()
        assert close(writer)
        assert steps(path) == list(range(400))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_storage_that_is_unmounted_for_a_time_loses_no_metric(tmp_path: Path) -> None:
    real, storage = tmp_path / "real", tmp_path / "storage"
    real.mkdir()
    storage.mkdir()
    bind = ("--bind", str(real), str(storage))
    mount(*bind)
    try:
        path = storage / "run" / "metrics.jsonl"
        writer = SpoolWriter(path)
        writer.append_metrics({"loss": 1.0}, 0)
        subprocess.run(["umount", "-l", str(storage)], check=True)
        for step in range(1, 100):
            writer.append_metrics({"loss": 1.0}, step)
        writer.append_artifact("page.html", b"page")
        time.sleep(1.5 * writer_module.RETRY_SECONDS)
        assert not list(storage.iterdir())
        mount(*bind)
        assert close(writer)
        assert steps(path) == list(range(100))
        assert (path.parent / "metrics.jsonl.artifacts" / "page.html").read_bytes() == b"page"
    finally:
        subprocess.run(["umount", "-l", str(storage)], check=True)


def test_a_spool_has_a_limit_and_its_end_still_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SPOOL_BYTES", 300)
    path = tmp_path / "metrics.jsonl"
    writer = SpoolWriter(path)
    for step in range(100):
        writer.append_metrics({"loss": 1.0}, step)
    assert close(writer) is False
    assert path.stat().st_size < 500
    assert writer.dropped + len(steps(path)) == 100
    assert list(read_records(path, 0))[-1][0]["kind"] == "status"


def test_a_line_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = SpoolFile(path)
    file.append(b'{"n":1}\n')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))  # four bytes more
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            file.append(b'{"n":2}\n')
        size = path.stat().st_size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert size == 8
    file.append(b'{"n":3}\n')
    file.close()
    assert [record["n"] for record, _ in read_records(path, 0)] == [1, 3]


def test_torn_and_damaged_lines_and_notes_are_survived(tmp_path: Path) -> None:
    path, note = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.sent"
    long = json.dumps({"kind": "metrics", "step": 1, "values": {"a" * 70_000: 1.0}})
    path.write_text('{"kind":"start","id":"i"}\n\0\0\0\n' + long)  # the last line is torn
    assert [record["kind"] for record, _ in read_records(path, 0)] == ["start"]
    writer = SpoolWriter(path)
    assert writer.id == "i"
    writer.append_metrics({"loss": 1.0}, 5)
    assert close(writer)
    assert steps(path) == [5]
    for damaged in ("", '{"offset"', '{"other": 1}'):
        note.write_text(damaged)
        assert Sent.load(path) == Sent()
    note.write_text('{"run_id": "r", "offset": 100000}')
    assert Sent.load(path) == Sent("r", 0)
