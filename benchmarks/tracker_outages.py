"""What an MLflow server's outages cost a training: nothing lost, nothing doubled, no time.

Exactness: for each kind of outage, ten runs at once log numbers, pages and settings through outages
at moments of their own, drawn at random, and are compared with what a real server then holds, entry
by entry. Half of the 500 and of the unanswered requests have been carried out by the server.

Time: a small training on one thread logs twenty numbers each second, ten times as often as a
heartbeat. `tracking_cpu` is the processor time of the tracker's own threads and of the calls to it,
as a share of the training's: what tracking takes where both share one core. It includes the run's
start, and is checked. `slowdown_wall` and `slowdown_cpu` are what a step costs more, by the clock
and in processor time of all threads, than without a tracker: in rounds of one turn for each outage
and one without, in random order, all threads on one core; means over rounds with Student's 95 %
interval. The upper end of the first is checked as well, and holds on a machine with no other work.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from mlflow import MlflowClient
from scipy import stats
from torch import nn

from aga.errors import TrackingError
from aga.tracking import TrackingConfig, replay, start_run
from aga.tracking.spool import spool_id
from benchmarks.outages import Mode, Proxy, Server, free_port
from benchmarks.rows import write_rows

Row: TypeAlias = dict[str, Any]
EXPERIMENT = "outages"
STEP_SECONDS = 0.02
SETTINGS = {f"setting-{n:03d}": n for n in range(130)}  # more than one request takes
LIMIT = 0.02


@dataclass
class Trial:
    """A run and what became of it.

    Attributes:
        name: Of the run.
        spool: Its spool.
        uri: What it takes for the server.
        steps: Steps to log.
        start: Seconds after the trials' common start.
        outage: Seconds after its own start at which its proxy fails, and for how long.
    """

    name: str
    spool: Path
    uri: str
    steps: int
    start: float
    outage: tuple[float, float] = (0.0, 0.0)
    finish_seconds: float = 60.0
    survived: bool = False
    by_itself: bool = False
    longest_call: float = 0.0
    expected: Counter[tuple[str, int, float]] = field(default_factory=Counter)
    pages: set[str] = field(default_factory=set)

    @property
    def config(self) -> TrackingConfig:
        """Where it is tracked."""
        return TrackingConfig(
            uri=self.uri, artifacts="unused", experiment=EXPERIMENT, explain_pairs=0
        )

    def run(self) -> None:
        """Log every step, at its time."""
        time.sleep(self.start)
        home = self.spool.parent
        tracker = start_run(self.config, home, self.name, spool=self.spool, params=SETTINGS)
        for step in range(1, self.steps + 1):
            time.sleep(STEP_SECONDS)
            values = {"loss": step / 7, "rate": 1 / step}
            begin = time.perf_counter()
            tracker.log_metrics(values, step)
            if step % 200 == 0:
                tracker.log_page(f"explain/step-{step}.html", f"<p>{step}</p>")
                self.pages.add(f"explain/step-{step}.html")
            self.longest_call = max(self.longest_call, time.perf_counter() - begin)
            self.expected.update((name, step, value) for name, value in values.items())
        self.survived = True
        self.by_itself = tracker.finish(timeout=self.finish_seconds)

    def fail(self, proxy: Proxy, mode: Mode) -> None:
        """Let its proxy fail for its time."""
        time.sleep(self.start + self.outage[0])
        proxy.mode = mode
        time.sleep(self.outage[1])
        proxy.mode = Mode.PASS


def compare(trial: Trial, server: Server) -> tuple[int, int]:
    """What the server lacks of a trial, and what it has twice."""
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    tag = f"tags.`aga.spool` = '{spool_id(trial.spool)}'"
    runs = client.search_runs([experiment.experiment_id], tag)
    if not runs:
        return trial.expected.total(), 0
    run, found = runs[0], Counter[tuple[str, int, float]]()
    for key in ("loss", "rate"):
        history = client.get_metric_history(run.info.run_id, key)
        found.update((key, m.step, m.value) for m in history)
    settings = {name: str(value) for name, value in SETTINGS.items()}
    pages = {a.path for a in client.list_artifacts(run.info.run_id, "explain")}
    lost = (trial.expected - found).total() + len(settings.items() - run.data.params.items())
    lost += len(trial.pages - pages) + (run.info.status != "FINISHED")
    return lost, (found - trial.expected).total() + len(runs) - 1


def exactness(kind: str, server: Server, folder: Path, repetitions: int, seed: int) -> Row:
    """Run an outage's trials at once; how many survived, and what was lost and doubled."""
    draw = random.Random(f"{kind} {seed}")
    mode = Mode(kind) if kind in list(Mode) else None
    proxies = [Proxy(server.port) for _ in range(repetitions)] if mode else []
    trials = []
    for number in range(repetitions):
        name = f"{kind}-{seed}-{number}"
        uri = proxies[number].uri if proxies else server.uri
        steps = draw.randrange(400, 800)
        trial = Trial(name, folder / name / "metrics.jsonl", uri, steps, draw.uniform(0, 6))
        trial.outage = (draw.uniform(0, 8), draw.uniform(3, 12))
        if kind == "down_throughout":
            trial.finish_seconds = 5.0
        trials.append(trial)
    threads = [threading.Thread(target=trial.run) for trial in trials]
    threads += [
        threading.Thread(target=trial.fail, args=(proxy, mode))
        for trial, proxy in zip(trials, proxies, strict=False)
    ]
    with _server_during(kind, server, draw):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    if kind == "down_throughout":
        server.start()
    for trial in trials:
        _deliver(trial)
    differences = [compare(trial, server) for trial in trials]
    for proxy in proxies:
        proxy.shutdown()
    return {
        "outage": kind,
        "repetitions": repetitions,
        "survived": sum(trial.survived for trial in trials),
        "values": sum(trial.expected.total() for trial in trials),
        "lost": sum(lost for lost, _ in differences),
        "doubled": sum(doubled for _, doubled in differences),
        "delivered_without_repeating": sum(trial.by_itself for trial in trials),
        "longest_call_ms": round(1000 * max(trial.longest_call for trial in trials), 1),
    }


@contextmanager
def _server_during(kind: str, server: Server, draw: random.Random) -> Iterator[None]:
    """Start the trials in the body; what happens to the server itself happens after it."""
    if kind in ("down_at_start", "down_throughout"):
        server.kill()
    yield
    if kind == "dies_and_returns":
        time.sleep(draw.uniform(5, 7))
        server.kill()
    if kind in ("dies_and_returns", "down_at_start"):
        server.start()


def _deliver(trial: Trial) -> None:
    """What repeating the command does."""
    for _ in range(5):
        try:
            replay(trial.spool, trial.config, trial.spool.parent)
        except TrackingError:
            time.sleep(1)
        else:
            return


def tracking_seconds() -> float:
    """Processor time of the tracker's threads that live, so far."""
    ids = [t.native_id for t in threading.enumerate() if t.name in ("spool", "tracking")]
    spent = [Path(f"/proc/self/task/{number}/schedstat").read_text().split()[0] for number in ids]
    return sum(map(int, spent)) / 1e9


class Training:
    """A small training whose steps take tens of milliseconds on one thread."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self._model = nn.TransformerEncoder(layer, 2)
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._batch = torch.randn(16, 48, 64)
        self.step = 0

    def run(self, seconds: float, log: Callable[[dict[str, float], int], None]) -> Row:
        """Train for a time; seconds of the clock and of the processor for a step."""
        begin, cpu, first = time.perf_counter(), time.process_time(), self.step
        own, calls, last_logged = time.thread_time(), 0.0, begin
        threads = tracking_seconds()
        while (now := time.perf_counter()) - begin < seconds:
            self.step += 1
            loss = self._model(self._batch).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            if now - last_logged >= 1.0:
                last_logged, values = now, {f"loss/{n}": loss.item() / (n + 1) for n in range(20)}
                called = time.thread_time()
                log(values, self.step)
                calls += time.thread_time() - called
        steps = self.step - first
        return {
            "wall": (time.perf_counter() - begin) / steps,
            "cpu": (time.process_time() - cpu) / steps,
            "share": (tracking_seconds() - threads + calls) / (time.thread_time() - own - calls),
        }


def slowdowns(
    kinds: list[str], server: Server, folder: Path, rounds: int, seconds: float
) -> dict[str, Row]:
    """Each outage's cost, against a turn without tracking in the same round; on one core."""
    proxy = Proxy(server.port)  # its threads may use any core
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # of this thread, and so of the tracker's
    training = Training()
    training.run(3.0, _nowhere)
    draw = random.Random(rounds)
    measured: dict[str, list[Row]] = {kind: [] for kind in (UNTRACKED, *kinds)}
    for number in range(rounds):
        for kind in draw.sample(list(measured), len(measured)):
            spool = folder / f"time-{kind}-{number}" / "metrics.jsonl"
            measured[kind].append(_turn(kind, training, spool, proxy, seconds))
    proxy.shutdown()
    os.sched_setaffinity(0, cores)
    return {kind: _summary(measured[kind], measured[UNTRACKED]) for kind in kinds}


def _turn(kind: str, training: Training, spool: Path, proxy: Proxy, seconds: float) -> Row:
    """Train for a time while one kind of outage lasts."""
    if kind == UNTRACKED:
        return training.run(seconds, _nowhere)
    proxy.mode = Mode(kind) if kind in list(Mode) else Mode.PASS
    uri = f"http://127.0.0.1:{free_port()}" if kind.startswith("down") else proxy.uri
    trial = Trial(spool.parent.name, spool, uri, 0, 0.0)
    tracker = start_run(trial.config, spool.parent, trial.name, spool=spool)
    found = training.run(seconds, tracker.log_metrics)
    proxy.mode = Mode.PASS
    tracker.finish(timeout=30.0)
    return found


def _nowhere(_values: dict[str, float], _step: int) -> None:
    """Where an untracked training logs to."""


def _summary(tracked: list[Row], untracked: list[Row]) -> Row:
    shares = [row["share"] for row in tracked]
    row: Row = {"rounds": len(shares), "tracking_cpu": round(statistics.median(shares), 4)}
    row["tracking_cpu_largest"] = round(max(shares), 4)
    for clock in ("wall", "cpu"):
        pairs = zip(tracked, untracked, strict=True)
        ratios = [ours[clock] / bare[clock] - 1 for ours, bare in pairs]
        mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
        reach = float(stats.t.ppf(0.975, len(ratios) - 1)) * error
        row[f"slowdown_{clock}"] = round(mean, 4)
        row[f"slowdown_{clock}_interval"] = [round(mean - reach, 4), round(mean + reach, 4)]
    return row


UNTRACKED = "untracked"
EXACT = ("down_at_start", "dies_and_returns", "down_throughout", "slow", "error", "hang")
TIMED = ("pass", "down_throughout", "slow", "error", "hang")


def main() -> int:
    """Measure, print and write the rows; with --check, 1 where the goals are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=8, help="for the slowdown; 0 for none")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn of a round")
    parser.add_argument("--only", nargs="*", choices=EXACT, help="outages of the exactness")
    parser.add_argument("--check", action="store_true", help="exit 1 where something did not hold")
    options = parser.parse_args()
    logging.getLogger("aga").setLevel(logging.CRITICAL)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    torch.set_num_threads(1)
    rows: list[Row] = []
    times: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, Server(Path(scratch)) as server:
        for kind in options.only if options.only is not None else EXACT:
            rows.append(exactness(kind, server, Path(scratch), options.repetitions, options.seed))
            print(rows[-1], flush=True)
        if options.rounds:
            folder = Path(scratch)
            timed = slowdowns(list(TIMED), server, folder, options.rounds, options.seconds)
            times = [{"outage": kind, **row} for kind, row in timed.items()]
            print(*times, sep="\n")
            print(write_rows("tracker_slowdown", times))
    if rows:
        print(write_rows("tracker_outages", rows))
    good = all(_holds(row) for row in [*rows, *times])
    return 1 if options.check and not good else 0


def _holds(row: Row) -> bool:
    if "survived" in row:
        whole = row["survived"] == row["repetitions"] and row["lost"] == row["doubled"] == 0
        return bool(whole)
    return bool(row["tracking_cpu"] <= LIMIT and row["slowdown_wall_interval"][1] <= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
