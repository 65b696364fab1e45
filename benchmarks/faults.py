"""What kills a run, and what it costs: the same command again, until the run has ended.

Each fault hits a small real run at random moments, drawn by a seed: a random step, and some
milliseconds more; `dvc repro` is also hit before the first step, and after the last one. After
each, the run is started again until it ends, and compared with an undisturbed one: SHA-256 of the
final weights and optimizer; every step tracked in MLflow, once; FINISHED there. Nothing is tidied
up between two starts. Rows of earlier calls are kept; `--fault` measures one again. Mounting needs
root.

    python -m benchmarks.faults --check
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from aga.training.checkpoint import checkpoints
from benchmarks.faulted_run import (
    PATIENCE,
    Start,
    copy_home,
    hashes,
    job_of,
    lost_steps,
    prepare_home,
    start_with_dvc,
    start_with_ray,
    start_without_ray,
    states,
    tracked,
    tracked_step,
)
from benchmarks.rows import RESULTS, write_rows

DOCS = Path(__file__).parent.parent / "docs/reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
STARTS, RUNS = 6, 10
AWAY = 20.0  # seconds without storage
LATER = 0.05  # seconds after a step, at most
SETTLING = 10.0  # likewise, from the last step to the end of a command

Inject = Callable[[Start, Path, random.Random], None]
Hashes = Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        inject: Does it to a run that has started.
        start: Starts the run.
        storage: How its folder of checkpoints is mounted.
        at_once: How many runs are put through it at the same time.
        any_moment: Whether also what comes before the first step, and after the last, is hit.
    """

    inject: Inject
    start: Callable[[Path], Start] = start_without_ray
    storage: str | None = None
    at_once: int = 2
    any_moment: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    survived: bool
    starts: int
    lost: int
    identical: bool
    finished: bool
    doubled: int
    missing: int


def _kill(start: Start, _home: Path, _rng: random.Random) -> None:
    start.process.kill()


def _terminate(start: Start, _home: Path, _rng: random.Random) -> None:
    start.process.terminate()


def _kill_worker(_start: Start, home: Path, _rng: random.Random) -> None:
    writer = (job_of(home).folder / "writer.lock").read_text()
    os.kill(int(writer.split()[1]), signal.SIGKILL)


def _kill_part(name: str) -> Inject:
    """Kill a process of the Ray that the command started."""

    def inject(start: Start, _home: Path, _rng: random.Random) -> None:
        (part,) = (process for process in start.processes() if process.name() == name)
        part.kill()

    return inject


def _kill_all(start: Start, _home: Path, _rng: random.Random) -> None:
    for process in start.processes():
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _interrupt(start: Start, _home: Path, _rng: random.Random) -> None:
    """What Ctrl-C in a terminal does."""
    assert start.process.pid is not None
    os.killpg(start.process.pid, signal.SIGINT)


def _damage(change: Callable[[Path, random.Random], None]) -> Inject:
    """Kill, and damage a file of the newest checkpoint."""

    def inject(start: Start, home: Path, rng: random.Random) -> None:
        start.process.kill()
        start.exit_code(PATIENCE)
        newest = checkpoints(job_of(home).folder)[:1]
        if newest:
            change(rng.choice(sorted(newest[0].iterdir())), rng)

    return inject


def _truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(max(1, file.stat().st_size)))


def _flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _fill(_start: Start, home: Path, rng: random.Random) -> None:
    """Leave no byte free, for one to four seconds."""
    filler = home / "runs/filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                pass
        except OSError:
            time.sleep(rng.uniform(1, 4))
    filler.unlink()


def _unmount(_start: Start, home: Path, _rng: random.Random) -> None:
    _mount_command("umount", "--lazy", str(home / "runs"))
    time.sleep(AWAY)
    _mount_command("mount", "--bind", str(home / "backing"), str(home / "runs"))


FAULTS = {
    "kill -9 of the process": Fault(_kill),
    "SIGTERM": Fault(_terminate),
    "newest checkpoint truncated": Fault(_damage(_truncate)),
    "newest checkpoint with a flipped bit": Fault(_damage(_flip)),
    "disk full for some seconds": Fault(_fill, storage="tmpfs"),
    "storage unmounted for 20 s": Fault(_unmount, storage="bind", at_once=5),
    "Ray: kill -9 of the worker": Fault(_kill_worker, start_with_ray, at_once=3),
    "Ray: kill -9 of the driver": Fault(_kill, start_with_ray, at_once=3),
    "Ray: kill -9 of the raylet": Fault(_kill_part("raylet"), start_with_ray, at_once=3),
    "Ray: kill -9 of the head (gcs_server)": Fault(
        _kill_part("gcs_server"), start_with_ray, at_once=3
    ),
    "Ray: SIGTERM to the command": Fault(_terminate, start_with_ray, at_once=3),
    "dvc repro: Ctrl-C": Fault(_interrupt, start_with_dvc, at_once=3, any_moment=True),
    "dvc repro: kill -9 of all its processes": Fault(
        _kill_all, start_with_dvc, at_once=3, any_moment=True
    ),
}


def main() -> int:
    """Inject, write the rows, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: those not done")
    parser.add_argument("--times", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepared", type=Path, help="keep, or use again, the prepared data here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a row is missing or bad")
    options = parser.parse_args()
    rows = {row["fault"]: row for row in _rows_before()}
    wanted = options.fault or [name for name in FAULTS if name not in rows]
    with tempfile.TemporaryDirectory() as scratch:
        prepared = options.prepared or Path(scratch) / "prepared"
        if not prepared.exists():
            prepare_home(prepared)
        copy_home(prepared, Path(scratch) / "undisturbed")
        whole = start_without_ray(Path(scratch) / "undisturbed")
        if whole.exit_code(PATIENCE) != 0:
            sys.exit(f"the undisturbed run did not end: {whole.told()}")
        for name in wanted:
            row = measure(name, options.times, options.seed, prepared, Path(scratch), whole.step())
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
            rows[name] = row
            done = [rows[known] for known in FAULTS if known in rows]
            write_rows("faults", done)
            _write_table(done)
    return int(options.check and not all(_holds(rows.get(name, {})) for name in FAULTS))


def measure(
    name: str, times: int, seed: int, prepared: Path, scratch: Path, total: int
) -> dict[str, object]:
    """Put so many runs through a fault; the row of results."""
    fault = FAULTS[name]
    expected = hashes(scratch / "undisturbed")

    def one(number: int) -> Outcome:
        home = scratch / f"{list(FAULTS).index(name)}-{number}"
        rng = random.Random(f"{seed} {name} {number}")
        while True:
            copy_home(prepared, home)
            try:
                with _mounted(home, fault.storage):
                    outcome = _put_through(fault, home, rng, expected)
            finally:
                shutil.rmtree(home, ignore_errors=True)
            if outcome:
                return outcome

    with ThreadPoolExecutor(fault.at_once) as pool:
        outcomes = list(pool.map(one, range(times)))
    return {
        "fault": name,
        "runs": times,
        "steps": total,
        "survived": sum(outcome.survived for outcome in outcomes),
        "identical": sum(outcome.identical for outcome in outcomes),
        "finished": sum(outcome.finished for outcome in outcomes),
        "lost_steps_max": max(outcome.lost for outcome in outcomes),
        "values_doubled": sum(outcome.doubled for outcome in outcomes),
        "steps_not_tracked": sum(outcome.missing for outcome in outcomes),
        "starts_max": max(outcome.starts for outcome in outcomes),
        "seed": seed,
    }


def _put_through(fault: Fault, home: Path, rng: random.Random, expected: Hashes) -> Outcome | None:
    """A run from its start to its end; None where it had ended before it was hit."""
    total, job = int(expected["total"]), job_of(home)
    start, starts = fault.start(home), 1
    if not _wait(start, job.spool, total, rng, fault.any_moment):
        return None
    fault.inject(start, home, rng)
    while (code := start.exit_code(PATIENCE)) != 0 and starts < STARTS:
        if code is None:
            start.process.kill()  # it hangs: what a person would do
        start = fault.start(home)
        starts += 1
    lost = lost_steps(job.spool, (home / "log.txt").read_text())
    if code != 0:
        print(start.told(), file=sys.stderr)
        return Outcome(False, starts, lost, False, False, 0, total)
    same, finished = hashes(home) == expected, states(home) == {"FINISHED"}
    return Outcome(True, starts, lost, same, finished, *tracked(home, total))


def _wait(start: Start, spool: Path, total: int, rng: random.Random, any_moment: bool) -> bool:
    """Wait for a random moment of a run that was just started; False where it ended before."""
    step = rng.randrange(-total, total) if any_moment else rng.randrange(1, total - 1)
    while tracked_step(spool) < step and start.exit_code() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, SETTLING if any_moment else LATER))
    return start.exit_code() is None


def _holds(row: Mapping[str, Any]) -> bool:
    if not row or row["runs"] < RUNS:
        return False
    whole = row["survived"] == row["identical"] == row["finished"] == row["runs"]
    return bool(whole and row["values_doubled"] == 0)


def _write_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Put the rows between the marks of docs/reliability.md."""
    columns = {
        "fault": "fault",
        "runs": "runs",
        "survived": "survived",
        "identical": "same weights",
        "finished": "FINISHED",
        "lost_steps_max": "steps lost, at most",
        "values_doubled": "logged twice",
        "starts_max": "starts, at most",
    }
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[str(row[name]) for name in columns] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _rows_before() -> list[dict[str, object]]:
    path = RESULTS / "faults.json"
    rows: list[dict[str, object]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


@contextmanager
def _mounted(home: Path, kind: str | None) -> Iterator[None]:
    if kind is None:
        yield
        return
    for name in ("runs", "backing"):
        (home / name).mkdir()
    if kind == "tmpfs":
        _mount_command("mount", "-t", "tmpfs", "-o", "size=48m", "aga-faults", str(home / "runs"))
    else:
        _mount_command("mount", "--bind", str(home / "backing"), str(home / "runs"))
    try:
        yield
    finally:
        _mount_command("umount", "--lazy", str(home / "runs"))


def _mount_command(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
