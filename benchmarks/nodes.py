"""A run over two nodes loses one: does it go on by itself, when, from where, and to what weights?

Two nodes in network namespaces (`benchmarks.namespaces`), one worker on each, a shared folder, and
`workflows/pretrain.py` on the head. At a random step the second node loses all its processes, and
is started anew 10 s later; or its cable is pulled for 20 s. The command is not repeated: the run
must go on by itself. Its final weights are compared with those of an undisturbed run. Needs root.

    python -m benchmarks.nodes --check
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from aga.params import apply_overlay, parse_settings
from aga.training.checkpoint import checkpoints
from benchmarks.faulted_run import RESUMED, ROOT, STEP, Start, copy_home, job_of, prepare_home
from benchmarks.namespaces import Node, ray_nodes
from benchmarks.rows import write_rows

SETTINGS = ("cluster.workers=2", "cluster.cpus_per_worker=1", "training.epochs=40")
ABSENT, UNPLUGGED = 10.0, 20.0  # seconds
PATIENCE = 420.0


def _lose(node: Node) -> None:
    node.kill()


def _return(node: Node) -> None:
    time.sleep(ABSENT)
    node.start_ray()


def _unplug(node: Node) -> None:
    node.set_link("down")


def _plug_in(node: Node) -> None:
    time.sleep(UNPLUGGED)
    node.set_link("up")


FAULTS: Mapping[str, tuple[Callable[[Node], None], Callable[[Node], None]]] = {
    "node killed, back after 10 s": (_lose, _return),
    "node unplugged for 20 s": (_unplug, _plug_in),
}


def main() -> int:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: all")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepared", type=Path, help="keep, or use again, the prepared data here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a run was not survived")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        prepared = options.prepared or Path(scratch) / "prepared"
        if not prepared.exists():
            prepare_home(prepared)
        expected = undisturbed(prepared, Path(scratch) / "undisturbed")
        for number, fault in enumerate((options.fault or list(FAULTS)) * options.times):
            rng = random.Random(f"{options.seed} {number}")
            row = measure(fault, prepared, Path(scratch) / str(number), expected, rng)
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
            rows.append(row)
            write_rows("nodes", rows)
    return int(options.check and not all(row["survived"] and row["identical"] for row in rows))


def undisturbed(prepared: Path, home: Path) -> dict[str, str]:
    """Hashes of the final weights of a run to which nothing happens.

    Raises:
        RuntimeError: It does not end well.
    """
    with ray_nodes(2) as nodes:
        start = _start(nodes[0], prepared, home)
        if start.exit_code(PATIENCE) != 0:
            raise RuntimeError(f"the undisturbed run did not end well: {start.told()[-4000:]}")
    return _hashes(home)


def measure(
    fault: str, prepared: Path, home: Path, expected: Mapping[str, str], rng: random.Random
) -> dict[str, object]:
    """Put one run through a fault at a random step; the row of results."""
    hit, mend = FAULTS[fault]
    with ray_nodes(2) as nodes:
        start = _start(nodes[0], prepared, home)
        total = int(expected["step"])
        if not start.wait_for(rng.randrange(total // 5, total * 3 // 5)):
            raise RuntimeError(f"the run ended by itself: {start.told()[-4000:]}")
        since = time.monotonic()
        hit(nodes[1])
        mend(nodes[1])
        mended, before = time.monotonic() - since, start.told()
        going = _goes_on(start, len(before))
        went_on = time.monotonic() - since
        code = start.exit_code(PATIENCE) if going else None
        ended = time.monotonic() - since
    if code != 0:
        print(start.told()[-6000:], file=sys.stderr)
    reached = max(int(step) for step, _ in STEP.findall(before))
    resumed = [int(step) for step in RESUMED.findall(start.told())]
    return {
        "fault": fault,
        "survived": code == 0,
        "identical": code == 0 and _hashes(home) == expected,
        "steps": total,
        "step_at_fault": reached,
        "steps_lost": reached - resumed[0] if resumed else 0,
        "starts_of_workers": 1 + len(resumed),
        "mended_after_seconds": round(mended, 1),
        "going_on_after_seconds": round(went_on, 1) if going else None,
        "ended_after_seconds": round(ended, 1),
    }


def _start(head: Node, prepared: Path, home: Path) -> Start:
    """Start the command on the head, in a folder of its own."""
    home.mkdir()
    copy_home(prepared, home)
    apply_overlay(home / "params.yaml", parse_settings(list(SETTINGS)))
    log = home / "log.txt"
    command = ["workflows/pretrain.py", "--params", str(home / "params.yaml")]
    return Start(head.run([sys.executable, str(ROOT / command[0]), *command[1:]], log), log, 0)


def _goes_on(start: Start, before: int) -> bool:
    """Wait for a step that was not told of in the first `before` characters; False if none comes.

    Steps after a restart are lower than those before; without one, lines may only have been late.
    """
    reached = start.step()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        resumed, _, after = start.told()[before:].rpartition("resuming at step")
        if (resumed and STEP.search(after)) or start.step() > reached + 1:
            return True
        if start.exit_code() is not None:
            return False
        time.sleep(0.1)
    return False


def _hashes(home: Path) -> dict[str, str]:
    """SHA-256 of a finished run's weights, as its last checkpoint's manifest states them."""
    last = checkpoints(job_of(home).folder)[0]
    files: dict[str, str] = json.loads((last / "manifest.json").read_text())["files"]
    weights = {name: value for name, value in files.items() if name.endswith(".safetensors")}
    return weights | {"step": last.name.partition("-")[0]}


if __name__ == "__main__":
    sys.exit(main())
