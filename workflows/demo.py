"""The whole line in one command: overlay a preset, `dvc repro`, print what came out."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from aga.command import run
from aga.evaluation import format_table, read_metrics
from aga.params import apply_overlay, load_params, parse_settings, read_preset
from aga.tracking import mlflow_ui_command


def main() -> int:
    """Run the line in the current folder; the exit code is that of `dvc repro`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny", help="name of a file in presets/")
    parser.add_argument("--root", type=Path, help="folder of the raw data; default: the preset's")
    arguments = parser.parse_args()

    overlay = read_preset(arguments.preset, Path("presets"))
    print(apply_overlay(Path("params.yaml"), overlay), end="")
    if arguments.root:
        # Relative where it was given relative, so that params.yaml stays free of machine paths.
        setting = f"source.root={Path(os.path.normpath(arguments.root)).as_posix()}"
        print(apply_overlay(Path("params.yaml"), parse_settings([setting])), end="")
    params = load_params(Path("params.yaml"))

    status = subprocess.run([sys.executable, "-m", "dvc", "repro"], check=False).returncode
    if status:
        return status
    print(format_table(read_metrics(Path("metrics"))))
    print(f"\nreport    {Path('reports/report.html').resolve()}")
    print(f"tracking  {mlflow_ui_command(params.tracking, Path.cwd())}")
    return 0


if __name__ == "__main__":
    run(main)
