"""A run over two nodes loses one: does it go on, when, from where, and to what weights?

Two nodes in network namespaces (`benchmarks.namespaces`), one worker on each, a shared folder, and
`workflows/pretrain.py` on the head. At a random step a node loses all its processes, or its cable.
Whatever brings it back starts its Ray again where that has ended. The run is compared with an
undisturbed one: final weights, each epoch's loss, and every step tracked in MLflow once. Rows of
earlier calls are kept; the same fault and seed are measured again. Needs root.

    python -m benchmarks.nodes --check
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aga.cluster.worker import START_TIMEOUT
from aga.params import apply_overlay, parse_settings
from aga.training.checkpoint import checkpoints, load_checkpoint
from benchmarks.faulted_run import (
    RESUMED,
    ROOT,
    STEP,
    Start,
    copy_home,
    hashes,
    job_of,
    prepare_home,
    states,
    tracked,
)
from benchmarks.namespaces import Node, ray_nodes
from benchmarks.rows import rows_before, write_rows, write_table

# Encoders without batch statistics and dropout: then the number of workers changes only rounding.
SETTINGS = (
    "cluster.workers=2",
    "cluster.cpus_per_worker=1",
    "training.epochs=40",
    "image_encoder.architecture=vit_tiny_patch16_224",
    "image_encoder.options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}",
    "image_encoder.patch_layer=-1",
    "text_encoder.dropout=0.0",
    "optimizer.learning_rate=1.0e-4",
)
TOLERANCE = 1e-3
"""Largest relative difference of an epoch's loss where the number of workers changed."""
STARTS = 6
ROOM_SECONDS = 20  # of `RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S`, where the command is to give up
PATIENCE = 900.0


@dataclass(frozen=True)
class Fault:
    """What happens to a node.

    Attributes:
        hit: Does it.
        away: Seconds until it is mended; None never.
        node: Which one; 0 is the head, where the command runs.
        elastic: Whether one worker is enough.
        gives_up: Whether the command must end by itself, and the node comes back only then.
    """

    hit: Callable[[Node], object]
    away: float | None
    node: int = 1
    elastic: bool = False
    gives_up: bool = False

    @property
    def commands(self) -> int:
        """How often the command must be given in all."""
        return 2 if self.gives_up or self.node == 0 else 1


def _unplug(node: Node) -> None:
    node.set_link("down")


FAULTS: Mapping[str, Fault] = {
    "node killed, back after 10 s": Fault(Node.kill, 10.0),
    "node unplugged for 20 s": Fault(_unplug, 20.0),
    "node unplugged for 120 s": Fault(_unplug, 120.0),
    "node killed for good, one worker is enough": Fault(Node.kill, None, elastic=True),
    "node killed, back after the command has given up": Fault(Node.kill, None, gives_up=True),
    "head killed, cluster started again after 10 s": Fault(Node.kill, 10.0, node=0),
}


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run leaves: hashes of its final weights, and each epoch's loss."""

    weights: Mapping[str, str]
    losses: Sequence[float]


def main() -> int:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: all")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first time; then one more each")
    parser.add_argument("--prepared", type=Path, help="keep, or use again, the prepared data here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a run was not survived")
    options = parser.parse_args()
    rows = {(str(row["fault"]), int(str(row["seed"]))): row for row in rows_before("nodes")}
    with tempfile.TemporaryDirectory() as scratch:
        prepared = options.prepared or Path(scratch) / "prepared"
        if not prepared.exists():
            prepare_home(prepared)
        expected = undisturbed(prepared, Path(scratch) / "undisturbed")
        for seed in range(options.seed, options.seed + options.times):
            for name in options.fault or FAULTS:
                home = Path(scratch) / f"{list(FAULTS).index(name)}-{seed}"
                row = {"fault": name, "seed": seed, **measure(name, seed, prepared, home, expected)}
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
                rows[name, seed] = row
                order = sorted(rows, key=lambda key: (list(FAULTS).index(key[0]), key[1]))
                write_rows("nodes", [rows[key] for key in order])
                _write_table([rows[key] for key in order])
    return int(options.check and not all(map(holds, rows.values())))


def undisturbed(prepared: Path, home: Path) -> Expected:
    """What a run leaves to which nothing happens; kept beside the prepared data.

    Raises:
        RuntimeError: It does not end well.
    """
    _make(prepared, home, SETTINGS)
    kept = prepared / f"{job_of(home).name}.json"
    if not kept.exists():
        with ray_nodes(2) as nodes:
            start = _start(nodes[0], home)
            if start.exit_code(PATIENCE) != 0:
                raise RuntimeError(f"the undisturbed run did not end well: {start.told()[-4000:]}")
        kept.write_text(json.dumps([hashes(home), _losses(home)]))
    return Expected(*json.loads(kept.read_text()))


def measure(
    name: str, seed: int, prepared: Path, home: Path, expected: Expected
) -> dict[str, object]:
    """Put one run through a fault at a random step; what became of it."""
    fault, rng = FAULTS[name], random.Random(f"{seed} {name}")
    _make(prepared, home, [*SETTINGS, *(["cluster.min_workers=1"] if fault.elastic else [])])
    total = int(expected.weights["total"])
    with ray_nodes(2) as nodes:
        starts = [_start(nodes[0], home, fault.gives_up)]
        if not starts[0].wait_for(rng.randrange(total // 5, total * 3 // 5)):
            raise RuntimeError(f"the run ended by itself: {starts[0].told()[-4000:]}")
        since = time.monotonic()
        fault.hit(nodes[fault.node])
        reached, told = starts[0].step(), len(starts[0].told())
        code, going_on = _watch(starts[0], nodes, fault.away, since)
        gave_up = time.monotonic() - since if code else None
        while code != 0 and len(starts) < STARTS:
            time.sleep(max(0.0, since + (fault.away or 0.0) - time.monotonic()))
            _mend(nodes)
            starts.append(_start(nodes[0], home))
            code, going_on = _watch(starts[-1], nodes, 0.0, since)
    log = (home / "log.txt").read_text()
    if code != 0:
        print(log[-8000:], file=sys.stderr)
    resumed = [int(step) for step in RESUMED.findall(log[told:])]
    doubled, missing = tracked(home, total) if code == 0 else (0, total)
    return {
        "survived": code == 0,
        "identical": code == 0 and hashes(home) == expected.weights,
        "loss_difference": _difference(_losses(home), expected.losses) if code == 0 else None,
        "steps": total,
        "step_at_fault": reached,
        "steps_lost": reached - resumed[0] if resumed else 0,
        "starts_of_workers": 1 + len(resumed),
        "commands": len(starts),
        "command_ended_after_seconds": _rounded(gave_up),
        "going_on_after_seconds": _rounded(going_on),
        "ended_after_seconds": _rounded(time.monotonic() - since),
        "finished": code == 0 and states(home) == {"FINISHED"},
        "values_doubled": doubled,
        "steps_not_tracked": missing,
    }


def holds(row: Mapping[str, object]) -> bool:
    """Whether a run was survived as it should be."""
    fault, difference = FAULTS[str(row["fault"])], row["loss_difference"]
    same = row["identical"] or (fault.elastic and float(str(difference)) <= TOLERANCE)
    once = row["values_doubled"] == row["steps_not_tracked"] == 0
    told = row["finished"] and row["commands"] == fault.commands
    return bool(row["survived"] and same and once and told)


def _make(prepared: Path, home: Path, settings: Sequence[str]) -> None:
    home.mkdir()
    copy_home(prepared, home)
    apply_overlay(home / "params.yaml", parse_settings(list(settings)))


def _start(head: Node, home: Path, gives_up: bool = False) -> Start:
    """Give the command on the head."""
    log = home / "log.txt"
    command = [sys.executable, str(ROOT / "workflows/pretrain.py")]
    command += ["--params", str(home / "params.yaml")]
    if gives_up:
        command = ["env", f"{START_TIMEOUT}={ROOM_SECONDS}", *command]
    return Start(head.run(command, log), log, log.stat().st_size if log.exists() else 0)


def _watch(
    start: Start, nodes: Sequence[Node], away: float | None, since: float
) -> tuple[int | None, float | None]:
    """Wait until the command ends, and mend the nodes when it is time.

    Returns:
        The exit code, None where it does not end; and the seconds until there was a step more.
    """
    told, reached, going_on = len(start.told()), start.step(), None
    while (code := start.exit_code(0.2)) is None:
        seconds = time.monotonic() - since
        if seconds > PATIENCE:
            start.process.kill()
            return None, going_on
        if going_on is None and _has_gone_on(start, told, reached):
            going_on = seconds
        if away is not None and seconds >= away:
            _mend(nodes)
    return code, going_on


def _has_gone_on(start: Start, told: int, reached: int) -> bool:
    """Steps after a restart are lower; without one, a line may only have been late."""
    resumed, _, after = start.told()[told:].rpartition("resuming at step")
    return bool(resumed and STEP.search(after)) or start.step() > reached + 1


def _mend(nodes: Sequence[Node]) -> None:
    """Plug all cables in, and start Ray where it has ended; everywhere, where the head has."""
    if not nodes[0].runs_ray():
        for node in nodes:
            node.kill()
    for node in nodes:
        node.set_link("up")
        node.revive()


def _losses(home: Path) -> list[float]:
    """Of the epochs of a finished run."""
    history = load_checkpoint(checkpoints(job_of(home).folder)[0]).history
    return [float(row["loss/train"]) for row in history]


def _difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest one, relative."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _write_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """What the rows amount to."""
    titles = "fault, runs, survived, same weights, steps lost, commands, to a new step"
    lines = [titles.split(", ")]
    for name in FAULTS:
        if found := [row for row in rows if row["fault"] == name]:
            good = sum(row["survived"] for row in found), sum(map(holds, found))
            most = max(row["steps_lost"] for row in found), max(row["commands"] for row in found)
            seconds = sorted(row["going_on_after_seconds"] for row in found)
            cells = [len(found), *good, *most, f"{seconds[0]:.0f} to {seconds[-1]:.0f} s"]
            lines.append([name, *map(str, cells)])
    write_table("nodes", lines)


if __name__ == "__main__":
    sys.exit(main())
