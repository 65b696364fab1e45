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
from workflows.prepare import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(
    tmp_path: Path, raw_rows: Callable[[int], Rows], save_manifest: Callable[[Rows], Path]
) -> Path:
    save_manifest(raw_rows(40))
    params = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", params)
    apply_overlay(params, {"source": {"name": "manifest", "root": "raw"}})
    return tmp_path


def start(home: Path, *options: str) -> int:
    return main(["--params", str(home / "params.yaml"), *options])


def test_the_stage_writes_studies_and_metrics(home: Path) -> None:
    assert start(home) == 0
    metrics = json.loads((home / "metrics/prepare.json").read_text())
    assert metrics["used"] == 40
    assert (home / "data/studies/dataset.json").is_file()


def test_relative_paths_start_at_home(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(home / "raw", elsewhere / "raw")
    assert start(home, "--home", str(elsewhere)) == 0
    assert (elsewhere / "data/studies/dataset.json").is_file()
    assert not (home / "data").exists()


def test_check_exits_with_one_and_names_line_column_and_reason(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(home, "--check") == 0
    (home / "raw/images/0.png").write_text("text")
    assert start(home, "--check", "--source", "manifest", "--root", str(home / "raw")) == 1
    expected = "pairs.csv:2: image: image unreadable (not an image format)\n"
    assert capsys.readouterr().out == expected
    assert not (home / "data").exists()


def test_another_source_is_only_checked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start(home, "--root", "elsewhere")
    assert "go with --check" in capsys.readouterr().err


def test_an_error_is_told_without_a_traceback(home: Path) -> None:
    shutil.rmtree(home / "raw")
    done = subprocess.run(
        [sys.executable, str(ROOT / "workflows/prepare.py")],
        cwd=home,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: The raw folder of the source is missing")
    assert "Traceback" not in done.stderr
    assert not (home / "data").exists()


def test_a_reader_that_goes_ends_the_list_in_silence(home: Path) -> None:
    table = home / "raw/pairs.csv"
    head, *rows = table.read_text().splitlines()
    bad = [row.replace("images/", "nowhere/") for row in rows]
    repeated = [row.replace("S", f"S{turn}-", 1) for turn in range(30) for row in bad]
    table.write_text("\n".join([head, *rows, *repeated]) + "\n")
    command = [sys.executable, str(ROOT / "workflows/prepare.py"), "--check"]
    process = subprocess.Popen(
        command,
        cwd=home,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert "Error" not in told
    assert "near duplicates are not looked for" in told
