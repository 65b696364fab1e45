"""What kills a run, and what it costs: the same command again, until the run has ended.

Each fault hits a small real run at random moments, drawn by a seed: a random step, and some
milliseconds more. After each, the run is started again until it ends, and compared with an
undisturbed one: SHA-256 of the final weights and optimizer, every step tracked in MLflow once.
Rows of earlier calls are kept; `--fault` measures one again. Mounting needs root.

    python -m benchmarks.faults --check
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from aga.training.checkpoint import checkpoints
from benchmarks.faulted_run import (
    Start,
    copy_home,
    job_of,
    prepare_home,
    start_with_ray,
    start_without_ray,
)
from benchmarks.rows import RESULTS, write_rows

DOCS = Path(__file__).parent.parent / "docs/reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
STARTS, PATIENCE = 6, 300.0
AWAY = 20.0  # seconds without storage

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
    """

    inject: Inject
    start: Callable[[Path], Start] = start_without_ray
    storage: str | None = None
    at_once: int = 2


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    survived: bool
    starts: int
    lost: int
    identical: bool
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
        for process in psutil.Process(start.process.pid).children(recursive=True):
            if process.name().startswith(name):
                process.kill()

    return inject


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
    "Ray: kill -9 of the worker": Fault(_kill_worker, start_with_ray, at_once=1),
    "Ray: kill -9 of the driver": Fault(_kill, start_with_ray, at_once=1),
    "Ray: kill -9 of the raylet": Fault(_kill_part("raylet"), start_with_ray, at_once=1),
    "Ray: kill -9 of the head's store": Fault(_kill_part("gcs_server"), start_with_ray, at_once=1),
    "Ray: SIGTERM to the command": Fault(_terminate, start_with_ray, at_once=1),
}


def main() -> int:
    """Inject, write the rows, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: those not done")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepared", type=Path, help="keep, or use again, the prepared data here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a run was not survived")
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
    return int(options.check and not all(_holds(row) for row in rows.values()))


def measure(
    name: str, times: int, seed: int, prepared: Path, scratch: Path, total: int
) -> dict[str, object]:
    """Put so many runs through a fault; the row of results."""
    fault = FAULTS[name]
    expected = _hashes(scratch / "undisturbed")

    def one(number: int) -> Outcome:
        home = scratch / f"{list(FAULTS).index(name)}-{number}"
        copy_home(prepared, home)
        try:
            with _mounted(home, fault.storage):
                return _put_through(fault, home, random.Random(f"{seed} {name} {number}"), expected)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    with ThreadPoolExecutor(fault.at_once) as pool:
        outcomes = list(pool.map(one, range(times)))
    return {
        "fault": name,
        "runs": times,
        "steps": total,
        "survived": sum(outcome.survived for outcome in outcomes),
        "identical": sum(outcome.identical for outcome in outcomes),
        "lost_steps_max": max(outcome.lost for outcome in outcomes),
        "values_doubled": sum(outcome.doubled for outcome in outcomes),
        "steps_not_tracked": sum(outcome.missing for outcome in outcomes),
        "starts": sum(outcome.starts for outcome in outcomes),
        "seed": seed,
    }


def _put_through(fault: Fault, home: Path, rng: random.Random, expected: Hashes) -> Outcome:
    total = int(expected["total"])
    moment, later = rng.randrange(1, total - 1), rng.uniform(0, 0.05)
    start = fault.start(home)
    if not start.wait_for(moment):
        raise RuntimeError(f"the run ended by itself: {start.told()}")
    time.sleep(later)
    fault.inject(start, home, rng)
    lost, starts = 0, 1
    while (code := start.exit_code(PATIENCE)) != 0 and starts < STARTS:
        if code is None:
            start.process.kill()  # it hangs: what a person would do
        reached = start.step()
        start = fault.start(home)
        starts += 1
        start.wait_for(1)
        lost = max(lost, reached - start.resumed_at())
    if code != 0:
        return Outcome(False, starts, lost, False, 0, total)
    doubled, missing = _tracked(home, total)
    same = _hashes(home) == expected
    return Outcome(True, starts, lost, same, doubled, missing)


def _hashes(home: Path) -> dict[str, str]:
    """SHA-256 of a finished run's weights, as its last checkpoint's manifest states them."""
    last = checkpoints(job_of(home).folder)[0]
    files: dict[str, str] = json.loads((last / "manifest.json").read_text())["files"]
    weights = {name: value for name, value in files.items() if name.endswith(".safetensors")}
    return weights | {"total": str(int(last.name.partition("-")[0]))}


def _tracked(home: Path, total: int) -> tuple[int, int]:
    """Values that MLflow holds more than once, and steps that it does not hold."""
    with sqlite3.connect(home / "mlflow.db") as store:
        query = "select count(*) from metrics group by run_uuid, key, step having count(*) > 1"
        doubled = len(store.execute(query).fetchall())
        query = "select distinct step from metrics where key = 'step/loss/train'"
        steps = {step for (step,) in store.execute(query)}
        (runs,) = store.execute("select count(*) from runs").fetchone()
    return doubled + runs - 1, total - len(steps)


def _holds(row: Mapping[str, object]) -> bool:
    whole = row["survived"] == row["identical"] == row["runs"]
    return whole and row["values_doubled"] == 0


def _write_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Put the rows between the marks of docs/reliability.md."""
    columns = ("runs", "survived", "identical", "lost_steps_max", "values_doubled")
    lines = ["| fault | runs | survived | same weights | steps lost, at most | logged twice |"]
    lines.append("|---|---|---|---|---|---|")
    cells = [[str(row[name]) for name in ("fault", *columns)] for row in rows]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(lines)
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
