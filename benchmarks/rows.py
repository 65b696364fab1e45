"""The rows that benchmarks leave: what was measured, with what, on what."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from aga.tracking import provenance

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("torch", "timm", "transformers", "numpy")


def write_rows(name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write `results/<name>.json`: the rows, and the machine, versions and commit they stand on."""
    code = provenance(Path(__file__).parent.parent)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    setting = {
        "device": device or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
        "git_commit": code.get("git_commit", "unknown"),
        "git_dirty": code.get("git_dirty", "unknown"),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"setting": setting, "rows": list(rows)}, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")
    return path
