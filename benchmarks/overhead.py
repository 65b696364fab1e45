"""What Ray costs a run: its speed, the wait for its first step, the wait for a refusal.

    python -m benchmarks.overhead --check              everything
    python -m benchmarks.overhead --only speed         a part; rows of the others are kept

Speed: `workflows/pretrain.py` with one worker, against the same loop in one process without Ray, in
turns, each in a folder of its own, with the same data, tracking and checkpoints. `step_seconds` is
the median over the heartbeats that a run logged, one a second: its own clock, in which neither
validation nor the checkpoints of epochs count. `whole` has all of that in it, from the first step
to the last epoch's end. Ratios are speeds with Ray by speeds without, geometric means over pairs
with Student's 95 % interval.

Start: from the command to its first step, in parts, by the times of the lines it logs: with a Ray
that it starts, and on a head that runs. Refusal: from the command that asks for eight GPUs to its
end, with the table of what is needed and there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import psutil  # type: ignore[import-untyped]
from scipy import stats

from aga.params import apply_overlay, load_params, parse_settings
from benchmarks.faulted_run import (
    ROOT,
    Start,
    copy_home,
    job_of,
    prepare_home,
    start_with_ray,
    start_without_ray,
)
from benchmarks.outages import free_port
from benchmarks.rows import rows_before, write_rows

Row: TypeAlias = dict[str, Any]
PARTS = ("speed", "start", "refusal")
LEAST_SPEED, MOST_START, MOST_REFUSAL = 0.97, 20.0, 15.0
PATIENCE = 600.0
WARM_UP = 5  # heartbeats left out
SETTINGS = (
    "phantom.patients=800",
    "training.batch_size=8",
    "training.epochs=3",
    "training.heartbeat_seconds=1.0",
    "tracking.explain_pairs=0",
)
SHORT = ("training.pairs=32", "training.epochs=1")
REFUSED = ("cluster.workers=8", "cluster.gpus_per_worker=1")
TOLD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)")
WORKER = re.compile(r"pid=(\d+)\).*worker\(s\) are there")
MARKS: Mapping[str, str] = {
    "imports_settings_data": "run ",
    "checks_and_ray": "Ray is up",
    "preflight": "the nodes are fit",
    "controller": "",  # the worker's process begins: no line tells
    "worker_imports": "worker(s) are there",
    "data_and_model": " pairs, ",
    "first_step": "  step 1/",
}
"""What each part of a start ends with."""


@dataclass(frozen=True)
class Speed:
    """Of one run: its steps, seconds of one, and steps a second with everything that a run does."""

    steps: int
    step_seconds: float
    whole: float


def main() -> int:
    """Measure, print and write; 1 where `--check` finds a goal missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--pairs", type=int, default=6, help="of runs, for the speed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of torch")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--refusals", type=int, default=10)
    parser.add_argument("--prepared", type=Path, help="keep, or use again, the prepared data here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    options = parser.parse_args()
    rows = {row["what"]: row for row in rows_before("overhead")}
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch), options.prepared or Path(scratch) / "prepared")
        measured: dict[str, Callable[[], Iterator[Row]]] = {
            "speed": lambda: chain(*(speed(home, options.pairs, n) for n in options.threads)),
            "start": lambda: (start(home, options.starts, running) for running in (False, True)),
            "refusal": lambda: iter([refusal(home, options.refusals)]),
        }
        for part in options.only or PARTS:
            for row in measured[part]():
                print(json.dumps(row), flush=True)
                rows[row["what"]] = row
                path = write_rows("overhead", list(rows.values()))
    print(path)
    return int(options.check and not all(map(holds, rows.values())))


class Home:
    """Makes project folders with the same data and no run.

    Args:
        scratch: Where they go.
        prepared: The data; prepared where it is not there.
    """

    def __init__(self, scratch: Path, prepared: Path) -> None:
        self._scratch, self._prepared, self._count = scratch, prepared, 0
        if not prepared.exists():
            prepare_home(prepared, SETTINGS)

    def new(self, *settings: str) -> Path:
        """One more, with these settings changed."""
        self._count += 1
        home = self._scratch / str(self._count)
        home.mkdir()
        copy_home(self._prepared, home)
        shutil.copy2(ROOT / "params.yaml", home)  # data that were prepared before lack new settings
        apply_overlay(home / "params.yaml", parse_settings([*SETTINGS, *settings]))
        return home


def speed(home: Home, pairs: int, threads: int) -> Iterator[Row]:
    """Runs with and without Ray in turns; the row of their speeds, from the second pair on."""
    settings = (f"training.threads={threads}", f"cluster.cpus_per_worker={threads}")
    found: dict[bool, list[Speed]] = {True: [], False: []}
    for pair in range(pairs):
        for ray in (True, False) if pair % 2 else (False, True):
            folder = home.new(*settings)
            _to_the_end((start_with_ray if ray else start_without_ray)(folder))
            found[ray].append(_speed_of(folder))
            print(f"pair {pair}  Ray {ray}  {found[ray][-1]}", file=sys.stderr, flush=True)
        if pair:
            yield {"what": f"speed, {threads} thread(s)", **_row_of(found[True], found[False])}


def start(home: Home, times: int, running: bool) -> Row:
    """Starts with a Ray of their own, or on one head that runs; the row of their parts."""
    found: list[dict[str, float]] = []
    with ExitStack() as held:
        environment = held.enter_context(running_head()) if running else {}
        for _ in range(times):
            folder = home.new(*SHORT, "training.threads=1")
            found.append(_parts(folder, environment))
            print(found[-1], file=sys.stderr, flush=True)
    after = [sum(list(parts.values())[2:]) for parts in found]
    return {
        "what": "start, on a running head" if running else "start, with a Ray of its own",
        "starts": times,
        "cores": os.cpu_count(),
        "first_step_after_ray_is_up": round(statistics.median(after), 2),
        "first_step_after_ray_is_up_largest": round(max(after), 2),
        "first_step_after_command": round(statistics.median(sum(p.values()) for p in found), 2),
        "parts": {
            name: round(statistics.median(parts[name] for parts in found), 2) for name in MARKS
        },
    }


def refusal(home: Home, times: int) -> Row:
    """Ask for more than there is; the row of seconds until the command has ended.

    Raises:
        RuntimeError: It did not refuse with the table.
    """
    folder = home.new(*REFUSED)
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        done = subprocess.run(
            _command(folder), check=False, cwd=ROOT, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - begin)
        if done.returncode != 1 or "need   have   largest node" not in done.stderr:
            raise RuntimeError(f"eight GPUs were not refused: {done.stderr[-2000:]}")
    return {
        "what": "refusal of 8 GPUs",
        "times": times,
        "seconds": round(statistics.median(seconds), 2),
        "seconds_largest": round(max(seconds), 2),
    }


def holds(row: Row) -> bool:
    """Whether a row reaches its goal; one of two threads on two cores has none."""
    what = str(row["what"])
    if what.startswith("speed"):
        return "1 thread" not in what or row["step_ratio_interval"][0] >= LEAST_SPEED
    if what.startswith("start"):
        return bool(row["first_step_after_ray_is_up_largest"] <= MOST_START)
    return bool(row["seconds_largest"] <= MOST_REFUSAL)


def _command(folder: Path) -> list[str]:
    return [sys.executable, "workflows/pretrain.py", "--params", str(folder / "params.yaml")]


def _row_of(with_ray: Sequence[Speed], without: Sequence[Speed]) -> Row:
    row: Row = {"pairs": len(with_ray), "steps": with_ray[0].steps, "cores": os.cpu_count()}
    for name, runs in (("bare", without), ("ray", with_ray)):
        seconds = statistics.median(run.step_seconds for run in runs)
        row[f"step_seconds_{name}"] = round(seconds, 4)
    both = list(zip(with_ray, without, strict=True))
    row |= _ratio("step", [bare.step_seconds / ray.step_seconds for ray, bare in both])
    return row | _ratio("whole", [ray.whole / bare.whole for ray, bare in both])


def _to_the_end(run: Start) -> None:
    if run.exit_code(PATIENCE) != 0:
        raise RuntimeError(f"a run did not end well: {run.told()[-4000:]}")


def _speed_of(folder: Path) -> Speed:
    """What a run's spool says of it."""
    batch = load_params(folder / "params.yaml").training.batch_size
    lines = job_of(folder).spool.read_text(encoding="utf-8").splitlines()
    records = [record for line in lines if (record := json.loads(line))["kind"] == "metrics"]
    name = "step/pairs_per_second"
    beats = [record for record in records if name in record["values"]]
    # Seconds that the steps so far took by the run's clock.
    clock = [(beat["step"], beat["step"] * batch / beat["values"][name]) for beat in beats]
    between = [
        (after - before) / (step - earlier) for (earlier, before), (step, after) in pairwise(clock)
    ]
    first, last = records[0], records[-1]
    steps = last["step"] - first["step"]
    return Speed(
        steps=last["step"],
        step_seconds=statistics.median(between[WARM_UP:]),
        whole=1000 * steps / (last["time"] - first["time"]),
    )


def _ratio(name: str, ratios: Sequence[float]) -> Row:
    logs = [math.log(ratio) for ratio in ratios]
    mean, spread = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    reach = float(stats.t.ppf(0.975, len(logs) - 1)) * spread
    interval = [round(math.exp(mean - reach), 4), round(math.exp(mean + reach), 4)]
    return {f"{name}_ratio": round(math.exp(mean), 4), f"{name}_ratio_interval": interval}


def _parts(folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each part of a start, in order."""
    begin = time.time()
    process = subprocess.Popen(
        _command(folder),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told, times = "", dict.fromkeys(MARKS, 0.0)
    for line in process.stdout:
        told += line
        if worker := WORKER.search(line):
            times["controller"] = psutil.Process(int(worker[1])).create_time()
        for name, mark in MARKS.items():
            if mark and not times[name] and mark in line and (found := TOLD.search(line)):
                when = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")
                times[name] = when.timestamp()
    if process.wait() != 0 or not all(times.values()):
        raise RuntimeError(f"a run did not end well: {told[-4000:]}")
    ends = [begin, *times.values()]
    return {name: ends[n + 1] - ends[n] for n, name in enumerate(MARKS)}


@contextmanager
def running_head() -> Iterator[dict[str, str]]:
    """A Ray head of this machine's cores; its address as an environment variable."""
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        command = [
            "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temporary}",
        ]  # fmt: skip
        tools = Path(sys.executable).parent
        own = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        environment = {**os.environ, **own, "PATH": f"{tools}:{os.environ['PATH']}"}
        head = subprocess.Popen(
            [str(tools / command[0]), *command[1:]],
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"127.0.0.1:{port}"
        ask = [str(tools / "ray"), "health-check", "--address", address]
        try:
            while subprocess.run(ask, check=False, env=environment, capture_output=True).returncode:
                if head.poll() is not None:
                    raise RuntimeError("the head did not start")
            time.sleep(10)  # its agents
            yield {**own, "RAY_ADDRESS": address}
        finally:
            head.terminate()
            head.wait(60)


if __name__ == "__main__":
    sys.exit(main())
