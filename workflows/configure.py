"""Overlay a preset, or single settings, onto params.yaml, and print what changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from aga.command import run
from aga.params import apply_overlay, parse_settings, read_preset


def main() -> None:
    """Apply `--preset` first, then each `--set`; the change stays visible in `git diff`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--preset", help="name of a file in presets/, without .yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    arguments = parser.parse_args()
    if arguments.preset:
        preset = read_preset(arguments.preset, arguments.params.parent / "presets")
        print(apply_overlay(arguments.params, preset), end="")
    if arguments.settings:
        print(apply_overlay(arguments.params, parse_settings(arguments.settings)), end="")


if __name__ == "__main__":
    run(main)
