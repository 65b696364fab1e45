"""Micro-batches against the whole batch: the same loss and gradient, and how much less memory.

    python -m benchmarks.accumulation            writes benchmarks/results/accumulation.json
    python -m benchmarks.accumulation --check    also fails beyond TOLERANCE, or where no memory is
                                                 saved

The gradient is that of the first step of `aga.training.loop.train`, in float32 on a CPU, with gloo
where there are two processes; compared with the undivided step of one process. Memory is the peak
of a process of its own, less what it had before its first step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from aga.collectives import rank
from aga.params import overlaid, read_yaml, validate
from aga.training.events import StepEvent
from aga.training.loop import train
from aga.training.recipe import Recipe, RunData
from aga.training.run import build_context
from benchmarks.rows import write_rows
from benchmarks.same_numbers import ROOT, SMALL, phantom

OBJECTIVES, COUNTS, MICRO = ("aga", "clip", "sparc"), (1, 2), 3
TOLERANCE = 1e-6
"""Of the largest difference; see `largest_difference`."""
LARGE = {
    "image_encoder": {
        "architecture": "vit_tiny_patch16_224",
        "options": {"patch_size": 8, "embed_dim": 192, "depth": 8, "num_heads": 3},
        "patch_layer": -1,
    },
    "training": {"epochs": 1, "batch_size": 64, "threads": 1},
}
Step: TypeAlias = Mapping[str, Tensor]
"""The loss as `loss`, and the gradient of each parameter by name."""


def first_step(home: Path, recipe: Recipe) -> Step:
    """Loss and gradients of a run's first step, in this process and those it runs with."""
    context = build_context(recipe, RunData.open(home), home, torch.device("cpu"))
    event = next(iter(train(context)))
    assert isinstance(event, StepEvent)
    parameters = context.network.named_parameters()
    gradients = {name: p.grad for name, p in parameters if p.grad is not None}
    return {"loss": torch.tensor(event.metrics["loss/train"]), **gradients}


def first_steps(home: Path, recipes: Mapping[str, Recipe], processes: int) -> dict[str, Step]:
    """`first_step` of each recipe in the first of several processes."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = {name: recipe.model_dump_json() for name, recipe in recipes.items()}
        torch.multiprocessing.spawn(  # type: ignore[attr-defined,no-untyped-call]
            _process, (processes, str(home), settings, scratch), nprocs=processes
        )
        found: dict[str, Step] = torch.load(Path(scratch, "steps"), weights_only=True)
    return found


def largest_difference(step: Step, reference: Step) -> float:
    """Of the loss, relative to it, or of any number of the gradient, relative to its length."""
    assert step.keys() == reference.keys()
    length = torch.cat([g.flatten() for name, g in reference.items() if name != "loss"]).norm()
    scales = {name: reference["loss"].abs() if name == "loss" else length for name in reference}
    return max(
        float((step[name] - wanted).abs().max() / scales[name])
        for name, wanted in reference.items()
    )


def divided(recipe: Recipe, size: int | None) -> Recipe:
    """The same run in micro-batches."""
    training = recipe.training.model_copy(update={"micro_batch": size})
    return recipe.model_copy(update={"training": training})


def peak_mib(home: Path, recipe: Recipe) -> tuple[float, float]:
    """MiB that a first step adds to a fresh process at its peak, and seconds of a second step."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(theirs, str(home), recipe.model_dump_json()))
    process.start()
    theirs.close()  # or a child that is killed is waited for
    peak, seconds = ours.recv()
    process.join()
    return peak, seconds


def _process(number: int, count: int, home: str, settings: dict[str, str], scratch: str) -> None:
    meeting = f"file://{scratch}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=count)
    steps = {
        name: first_step(Path(home), Recipe.model_validate_json(text))
        for name, text in settings.items()
    }
    if rank() == 0:
        torch.save(steps, Path(scratch, "steps"))
    dist.destroy_process_group()


def _measured(pipe: Any, home: str, settings: str) -> None:
    recipe = Recipe.model_validate_json(settings)
    context = build_context(recipe, RunData.open(Path(home)), Path(home), torch.device("cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps = iter(train(context))
    next(steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    next(steps)
    pipe.send(((peak - before) / 1024, time.perf_counter() - started))


def main() -> int:
    """Measure, print and write; 1 where `--check` finds a difference or no saving."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail beyond the tolerance")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        params = phantom(home)
        values = {field: getattr(params, field) for field in Recipe.model_fields}
        recipes = {
            name: Recipe(
                **values | {"objective": params.objective.model_copy(update={"name": name})}
            )
            for name in OBJECTIVES
        }
        whole = first_steps(home, recipes, 1)
        parts = {name: divided(recipe, MICRO) for name, recipe in recipes.items()}
        for count in COUNTS:
            for name, step in first_steps(home, parts, count).items():
                difference = largest_difference(step, whole[name])
                good &= difference <= TOLERANCE
                row = {"objective": name, "processes": count, "micro_batch": MICRO}
                rows.append({**row, "largest_relative_difference": difference})
                print(f"{name:<6}{count} processes  {difference:.1e}", flush=True)
        large = validate(overlaid(overlaid(read_yaml(ROOT / "params.yaml"), SMALL), LARGE), "here")
        recipe = Recipe(**{field: getattr(large, field) for field in Recipe.model_fields})
        peaks = []
        for size in (None, 32, 16, 8):
            peak, seconds = peak_mib(home, divided(recipe, size))
            peaks.append(peak)
            rows.append({"batch": 64, "micro_batch": size, "peak_mib": peak, "seconds": seconds})
            print(f"batch 64 in {size or 64}: {peak:.0f} MiB, {seconds:.2f} s a step", flush=True)
    print(write_rows("accumulation", rows))
    good &= peaks == sorted(peaks, reverse=True)
    return int(options.check and not good)


if __name__ == "__main__":
    sys.exit(main())
