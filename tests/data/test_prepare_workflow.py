"""The stage as it is started: `workflows/prepare.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_folders import Rows

from aga.params import apply_overlay

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(
    tmp_path: Path, raw_rows: Callable[[int], Rows], save_manifest: Callable[[Rows], Path]
) -> Path:
    save_manifest(raw_rows(40))
    params = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", params)
    apply_overlay(params, {"source": {"name": "manifest", "root": "raw"}})
    return tmp_path


def run(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "workflows/prepare.py"), *options]
    return subprocess.run(
        command,
        cwd=home,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_stage_writes_studies_and_metrics(home: Path) -> None:
    done = run(home)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((home / "metrics/prepare.json").read_text())
    assert metrics["used"] == 40
    assert (home / "data/studies/dataset.json").is_file()


def test_check_exits_with_one_and_names_line_column_and_reason(home: Path) -> None:
    assert run(home, "--check").returncode == 0
    (home / "raw/images/0.png").write_text("text")
    done = run(home, "--check", "--source", "manifest", "--root", "raw")
    assert done.returncode == 1
    assert done.stdout == "pairs.csv:2: image: image unreadable (not an image format)\n"
    assert not (home / "data").exists()


def test_an_error_is_told_without_a_traceback(home: Path) -> None:
    shutil.rmtree(home / "raw")
    done = run(home)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The raw folder of the source is missing")
    assert "Traceback" not in done.stderr
    assert not (home / "data").exists()


def test_another_source_is_only_checked(home: Path) -> None:
    done = run(home, "--root", "elsewhere")
    assert done.returncode == 2
    assert "go with --check" in done.stderr
