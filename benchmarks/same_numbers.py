"""One global batch on 1, 2 and 4 processes: how far apart are the loss curves?

    python -m benchmarks.same_numbers            writes benchmarks/results/same_numbers.json
    python -m benchmarks.same_numbers --check    also fails where a curve is beyond TOLERANCE

Trains on a small phantom in float32 with gloo, without Ray. The encoders have no batch statistics,
which on a CPU each process has of its own slice, and no dropout, which each process draws for
itself: what is left is the order in which sums are rounded, and what training makes of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from aga.collectives import rank
from aga.params import Params, overlaid, read_yaml, validate
from aga.training.events import StepEvent
from aga.training.loop import train
from aga.training.recipe import Recipe, RunData
from aga.training.run import build_context
from benchmarks.rows import write_rows

ROOT = Path(__file__).parent.parent
STAGES = ("make_phantom.py", "prepare.py", "tokenize_reports.py")
OBJECTIVES, COUNTS, STEPS = ("aga", "clip"), (1, 2, 4), 50
TOLERANCE = 1e-5
"""Largest relative difference of a step's loss from that of one process, over all steps."""
SMALL: dict[str, Any] = {
    "phantom": {"patients": 150, "size": 96},
    "prepare": {"image": {"size": 64}},
    "image_encoder": {
        "architecture": "vit_tiny_patch16_224",
        "options": {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3},
        "patch_layer": -1,
    },
    "text_encoder": {"width": 48, "layers": 1, "heads": 4, "dropout": 0.0},
    "model": {"width": 48},
    "training": {"epochs": 20, "batch_size": 16, "threads": 1},
}


def curves(home: Path, recipe: Recipe, counts: Sequence[int], steps: int) -> dict[int, list[float]]:
    """The losses of the first steps, by number of processes.

    Args:
        home: Holds `data/studies` and `data/tokens`.
        recipe: What is trained; `training.batch_size` is that of all processes together.
        counts: Numbers of processes.
        steps: How many.
    """
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            arguments = (count, str(home), recipe.model_dump_json(), steps, scratch)
            torch.multiprocessing.spawn(  # type: ignore[attr-defined,no-untyped-call]
                _process, arguments, nprocs=count
            )
            found[count] = json.loads(Path(scratch, "curve.json").read_text())
    return found


def largest_difference(curve: Sequence[float], reference: Sequence[float]) -> float:
    """Relative, over all steps."""
    pairs = zip(curve, reference, strict=True)
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)


def _process(number: int, count: int, home: str, settings: str, steps: int, scratch: str) -> None:
    meeting = f"file://{scratch}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=count)
    recipe = Recipe.model_validate_json(settings)
    context = build_context(recipe, RunData.open(Path(home)), Path(home), torch.device("cpu"))
    curve: list[float] = []
    for event in train(context):
        if isinstance(event, StepEvent):
            curve.append(event.metrics["loss/train"])
        if len(curve) == steps:
            break
    if rank() == 0:
        Path(scratch, "curve.json").write_text(json.dumps(curve))
    dist.destroy_process_group()


def phantom(home: Path) -> Params:
    """A small phantom, prepared and tokenized below `home` as the line does it."""
    values = overlaid(read_yaml(ROOT / "params.yaml"), SMALL)
    path = home / "params.yaml"
    path.write_text(json.dumps(values))  # which is YAML as well
    for stage in STAGES:
        command = [sys.executable, str(ROOT / "workflows" / stage), "--params", str(path)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return validate(values, where=path)


def main() -> int:
    """Measure, print and write; 1 where `--check` finds a curve beyond the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail beyond the tolerance")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        params = phantom(Path(scratch))
        for name in OBJECTIVES:
            objective = params.objective.model_copy(update={"name": name})
            values = {field: getattr(params, field) for field in Recipe.model_fields}
            recipe = Recipe(**values | {"objective": objective})
            found = curves(Path(scratch), recipe, COUNTS, STEPS)
            for count, curve in found.items():
                difference = largest_difference(curve, found[1])
                ends = {"first_loss": curve[0], "last_loss": curve[-1]}
                row = {"objective": name, "processes": count, "steps": STEPS, **ends}
                rows.append({**row, "largest_relative_difference": difference})
                print(f"{name:<6}{count} processes  {difference:.1e}", flush=True)
    print(write_rows("same_numbers", rows))
    beyond = [row for row in rows if float(str(row["largest_relative_difference"])) > TOLERANCE]
    return int(options.check and bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
