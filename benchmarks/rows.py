"""The rows that benchmarks leave: what was measured, with what, on what."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aga.tracking import provenance

RESULTS = Path(__file__).parent / "results"
RELIABILITY = Path(__file__).parent.parent / "docs/reliability.md"
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


def rows_before(name: str) -> list[dict[str, Any]]:
    """The rows that earlier calls have left."""
    path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def write_table(name: str, lines: Sequence[Sequence[str]]) -> None:
    """Put a table, its titles first, between the marks of this name in docs/reliability.md."""
    titles, *cells = lines
    table = "\n".join(f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *cells])
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = RELIABILITY.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    RELIABILITY.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
