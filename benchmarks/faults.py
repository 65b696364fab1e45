"""What kills a run, and what it costs: the same command again, until the run has ended.

Each fault hits a small real run at random moments, drawn by a seed: a random step, and some
milliseconds more; `dvc repro` is also hit before the first step, and after the last one. After
each, the run is started again until it ends, and compared with an undisturbed one: SHA-256 of the
final weights and optimizer; every step tracked in MLflow, once; FINISHED there. Nothing is tidied
up between two starts. Rows of earlier calls are kept, and only runs that are missing are done.
Mounting needs root.

    python -m benchmarks.faults --check
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from aga.tracking import provenance
from aga.training.checkpoint import checkpoints
from benchmarks.faulted_run import (
    PATIENCE,
    ROOT,
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
from benchmarks.rows import rows_before, write_rows, write_table

STARTS, RUNS = 6, 10
AWAY = 20.0  # seconds without storage
LATER = 0.05  # seconds after a step, at most
STARTING, ENDING = 20.0, 10.0  # likewise, from a command to its first step, and after its last one

Inject = Callable[[Start, Path, random.Random], None]
Hashes = Mapping[str, str]
Row = dict[str, Any]


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


def _kill(start: Start, _home: Path, _rng: random.Random) -> None:
    start.process.kill()


def _terminate(start: Start, _home: Path, _rng: random.Random) -> None:
    start.process.terminate()


def _kill_worker(_start: Start, home: Path, _rng: random.Random) -> None:
    lock = job_of(home).folder / "writer.lock"
    while not (writer := lock.read_text().split()):  # of a writer that begins
        time.sleep(0.01)
    os.kill(int(writer[1]), signal.SIGKILL)


def _kill_part(name: str) -> Inject:
    """Kill a process of the Ray that the command started."""

    def inject(start: Start, _home: Path, _rng: random.Random) -> None:
        (part,) = (process for process in start.processes() if process.name().startswith(name))
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
    "Ray: kill -9 of its controller": Fault(
        _kill_part("ray::TrainController"), start_with_ray, at_once=3
    ),
    "Ray: SIGTERM to the command": Fault(_terminate, start_with_ray, at_once=3),
    "dvc repro: Ctrl-C": Fault(_interrupt, start_with_dvc, at_once=3, any_moment=True),
    "dvc repro: kill -9 of all its processes": Fault(
        _kill_all, start_with_dvc, at_once=3, any_moment=True
    ),
}


def main() -> int:
    """Inject, write a row for each run and the table, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: all")
    parser.add_argument("--most", type=int, default=RUNS, help="of a fault, in this call")
    parser.add_argument("--again", action="store_true", help="forget earlier rows of these faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepared", type=Path, help="keep, or use again, the prepared data here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a row is missing or bad")
    options = parser.parse_args()
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = options.fault or list(FAULTS)
    rows = [row for row in rows_before("faults") if not (options.again and row["fault"] in wanted)]
    with tempfile.TemporaryDirectory() as scratch:
        prepared = options.prepared or Path(scratch) / "prepared"
        if not prepared.exists():
            prepare_home(prepared)
        copy_home(prepared, Path(scratch) / "undisturbed")
        whole = start_without_ray(Path(scratch) / "undisturbed")
        if whole.exit_code(PATIENCE) != 0:
            sys.exit(f"the undisturbed run did not end: {whole.told()}")
        for name in wanted:
            done = {row["number"] for row in rows if row["fault"] == name}
            missing = [number for number in range(RUNS) if number not in done][: options.most]
            for row in measure(name, missing, options.seed, prepared, Path(scratch)):
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
                rows.append(row)
                rows.sort(key=lambda row: (list(FAULTS).index(row["fault"]), row["number"]))
                write_rows("faults", rows)
                _write_table(rows)
    return int(options.check and not _holds(rows))


def measure(
    name: str, numbers: Sequence[int], seed: int, prepared: Path, scratch: Path
) -> Iterator[Row]:
    """Put runs of these numbers through a fault; a row of results for each."""
    fault, expected = FAULTS[name], hashes(scratch / "undisturbed")
    commit = provenance(ROOT).get("git_commit", "unknown")

    def one(number: int) -> Row:
        home = scratch / f"{list(FAULTS).index(name)}-{number}"
        rng = random.Random(f"{seed} {name} {number}")
        while True:
            copy_home(prepared, home)
            try:
                with _mounted(home, fault.storage):
                    row = _put_through(fault, home, rng, expected)
            finally:
                shutil.rmtree(home, ignore_errors=True)
            if row:
                named = {"fault": name, "number": number, "seed": seed}
                return {**named, **row, "git_commit": commit}

    with ThreadPoolExecutor(fault.at_once) as pool:
        yield from pool.map(one, numbers)


def _put_through(fault: Fault, home: Path, rng: random.Random, expected: Hashes) -> Row | None:
    """A run from its start to its end; None where it had ended before it was hit."""
    total, job = int(expected["total"]), job_of(home)
    start, starts = fault.start(home), 1
    if not _wait(start, job.spool, total, rng, fault.any_moment):
        return None
    step = tracked_step(job.spool)
    fault.inject(start, home, rng)
    while (code := start.exit_code(PATIENCE)) != 0 and starts < STARTS:
        if code is None:
            start.process.kill()  # it hangs: what a person would do
        if starts > 1:
            print(f"nobody hit this start: {start.told()[-4000:]}", file=sys.stderr)
        start = fault.start(home)
        starts += 1
    survived = code == 0
    if not survived:
        print(start.told(), file=sys.stderr)
    doubled, missing = tracked(home, total) if survived else (0, total)
    return {
        "steps": total,
        "step_at_fault": step,
        "starts": starts,
        "survived": survived,
        "identical": survived and hashes(home) == expected,
        "finished": survived and states(home) == {"FINISHED"},
        "steps_lost": lost_steps(job.spool, (home / "log.txt").read_text()),
        "values_doubled": doubled,
        "steps_not_tracked": missing,
    }


def _wait(start: Start, spool: Path, total: int, rng: random.Random, any_moment: bool) -> bool:
    """Wait for a random moment of a run that was just started; False where it ended before."""
    # At any moment: a third of them before the first step, and a third after the last one.
    step = rng.randrange(-total, 2 * total) if any_moment else rng.randrange(1, total - 1)
    while tracked_step(spool) < min(step, total) and start.exit_code() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, LATER if 0 < step < total else STARTING if step <= 0 else ENDING))
    return start.exit_code() is None


def _holds(rows: Sequence[Row]) -> bool:
    """Whether each fault was survived often enough, and always."""
    runs = Counter(row["fault"] for row in rows)
    good = all(
        row["survived"]
        and row["identical"]
        and row["finished"]
        and row["values_doubled"] == row["steps_not_tracked"] == 0
        for row in rows
    )
    return good and all(runs[name] >= RUNS for name in FAULTS)


def _write_table(rows: Sequence[Row]) -> None:
    """What the rows amount to."""
    columns: dict[str, tuple[str, Callable[[Iterable[int]], int]]] = {
        "survived": ("survived", sum),
        "identical": ("same weights", sum),
        "finished": ("FINISHED", sum),
        "steps_lost": ("steps lost, at most", max),
        "values_doubled": ("logged twice", sum),
        "starts": ("starts, at most", max),
    }
    lines = [["fault", "runs", *(title for title, _ in columns.values())]]
    for name in FAULTS:
        if found := [row for row in rows if row["fault"] == name]:
            cells = [total([row[key] for row in found]) for key, (_, total) in columns.items()]
            lines.append([name, *map(str, (len(found), *cells))])
    write_table("faults", lines)


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
