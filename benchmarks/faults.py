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
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aga.tracking import provenance
from benchmarks.fault_kinds import FAULTS, SERVED, Fault, mounted, tracked_by_server
from benchmarks.faulted_run import (
    PATIENCE,
    ROOT,
    Start,
    copy_home,
    hashes,
    job_of,
    lost_steps,
    prepare_home,
    start_without_ray,
    states,
    tracked,
    tracked_step,
)
from benchmarks.rows import rows_before, write_rows, write_table

STARTS, RUNS = 6, 10
LATER = 0.05  # seconds after a step, at most
STARTING, ENDING = 20.0, 10.0  # likewise, from a command to its first step, and after its last one

Hashes = Mapping[str, str]
Row = dict[str, Any]


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
                with mounted(home, fault.storage), tracked_by_server(home, fault.served):
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
    lost = lost_steps(job.spool, (home / "log.txt").read_text())
    if fault.served and code == 0 and states(home) != {"FINISHED"}:
        SERVED[home].mend()
        code = fault.start(home).exit_code(PATIENCE)
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
        "steps_lost": lost,
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


if __name__ == "__main__":
    sys.exit(main())
