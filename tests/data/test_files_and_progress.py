"""Folders that appear whole or not at all, and progress off a terminal."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from aga.data.files import disk_errors, replaced_folder
from aga.data.progress import progress
from aga.errors import DataError


def test_a_folder_is_replaced_only_by_a_finished_one(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with replaced_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    with pytest.raises(RuntimeError), replaced_folder(out) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["a"]
    with replaced_folder(out) as folder:
        (folder / "c").write_text("3")
    assert [path.name for path in out.iterdir()] == ["c"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    with replaced_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_a_full_disk_is_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(DataError, match="disk is full"), disk_errors(tmp_path / "not" / "there"):
        raise OSError(errno.EDQUOT, "quota")


def test_progress_off_a_terminal_is_one_line_per_interval(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert list(progress(range(3), "rows", total=3, interval=0.0)) == [0, 1, 2]
        assert [record.message.split(" rows")[0] for record in caplog.records] == [
            *("1 of 3", "2 of 3", "3 of 3"),
        ]
        assert caplog.records[-1].message.endswith(", ETA 0:00:00")
        caplog.clear()
        list(progress(range(3), "rows", interval=60.0))
        assert caplog.records == []
