"""A small real run that can be killed: its folder, and one start of it, with Ray or without.

Without Ray it is what a worker does (tracking, preflight, `follow`), in a process of its own that
is forked from one in which the imports are done. With Ray it is `workflows/pretrain.py` itself,
or `dvc repro` of the stage that calls it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  imported once, before the fork
import psutil  # type: ignore[import-untyped]
import torch

from aga.cluster.job import Job
from aga.params import apply_overlay, load_params, parse_settings
from aga.tracking.spool import read_records
from aga.tracking.store import open_client
from aga.training.checkpoint import checkpoints
from aga.training.recipe import Recipe, RunData
from aga.training.run import Listener, build_context, follow
from aga.training.stopping import TerminatedError, on_sigterm

ROOT = Path(__file__).parent.parent
PATIENCE = 300.0
PREPARED = ("params.yaml", "data/studies", "data/tokens", "data/cache", "mlflow.db")
STEP = re.compile(r"step (\d+)/(\d+)")
RESUMED = re.compile(r"resuming at step (\d+)")
BEGUN = re.compile(r"resuming at step (\d+)|step 1/")
TRACKED = re.compile(rb'"step":(\d+)')
SETTINGS = (
    "phantom.patients=60",
    "phantom.size=64",
    "prepare.image.size=32",
    "tokenizer.vocabulary=200",
    "image_encoder.options={channels: [8, 8, 16, 16]}",
    "text_encoder.width=16",
    "text_encoder.layers=1",
    "text_encoder.heads=2",
    "model.width=16",
    "objective.aga.bcga.heads=2",
    "training.epochs=12",
    "training.batch_size=8",
    "training.threads=1",
    "training.heartbeat_seconds=1.0e-6",  # every step is logged, and told
    "checkpoint.every_steps=5",
    "tracking.explain_pairs=0",
)


def prepare_home(home: Path, settings: Sequence[str] = SETTINGS) -> None:
    """A project folder with prepared data, an empty tracking store, and a minute's settings."""
    home.mkdir(parents=True)
    shutil.copy2(ROOT / "params.yaml", home / "params.yaml")
    apply_overlay(home / "params.yaml", parse_settings(list(settings)))
    for stage in ("make_phantom", "prepare", "tokenize_reports"):
        command = [sys.executable, f"workflows/{stage}.py", "--params", str(home / "params.yaml")]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    open_client(load_params(home / "params.yaml").tracking, home)


def copy_home(prepared: Path, home: Path) -> None:
    """A folder of its own for one run; data and store as prepared."""
    for name in PREPARED:
        place = prepared / name
        if place.is_dir():
            shutil.copytree(place, home / name)
        elif place.exists():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(place, home / name)


def job_of(home: Path) -> Job:
    """The run of a folder's settings and data."""
    params = load_params(home / "params.yaml")
    recipe = Recipe.model_validate({name: getattr(params, name) for name in Recipe.model_fields})
    return Job.of(recipe, params.tracking, home, params.cluster.storage)


def hashes(home: Path) -> dict[str, str]:
    """SHA-256 of a finished run's weights, as its last checkpoint's manifest states them."""
    last = checkpoints(job_of(home).folder)[0]
    files: dict[str, str] = json.loads((last / "manifest.json").read_text())["files"]
    weights = {name: value for name, value in files.items() if name.endswith(".safetensors")}
    return weights | {"total": str(int(last.name.partition("-")[0]))}


def tracked(home: Path, total: int) -> tuple[int, int]:
    """Values that MLflow holds more than once, and steps that it does not hold."""
    with sqlite3.connect(home / "mlflow.db") as store:
        query = "select count(*) from metrics group by run_uuid, key, step having count(*) > 1"
        doubled = len(store.execute(query).fetchall())
        query = "select distinct step from metrics where key = 'step/loss/train'"
        steps = {step for (step,) in store.execute(query)}
        (runs,) = store.execute("select count(*) from runs").fetchone()
    return doubled + runs - 1, total - len(steps)


def states(home: Path) -> set[str]:
    """What MLflow says of the runs: `{"FINISHED"}` after a good end."""
    with sqlite3.connect(home / "mlflow.db") as store:
        return {state for (state,) in store.execute("select status from runs")}


def tracked_step(spool: Path) -> int:
    """The newest step that a run has written of, milliseconds ago; 0 before the first."""
    if not spool.exists():
        return 0
    with spool.open("rb") as file:
        file.seek(max(0, spool.stat().st_size - (1 << 14)))
        return max((int(step) for step in TRACKED.findall(file.read())), default=0)


def lost_steps(spool: Path, log: str) -> int:
    """The most steps that a start of a run had to repeat.

    Args:
        spool: Holds each step once, and a record of each start of a worker.
        log: All that the run has told.
    """
    reached, newest = [0], 0
    for record, _ in read_records(spool, 0):
        if record["kind"] == "start" and newest > reached[-1]:
            reached.append(newest)  # a start that reached nothing repeats nothing
        newest = max(newest, record.get("step", 0))
    begun = [int(step or 0) for step in BEGUN.findall(log)]
    # From the last: a start that was hit before it told of a step is not among those that began.
    pairs = zip(reversed(reached), reversed(begun), strict=False)
    return max((step - begin for step, begin in pairs), default=0)


@dataclass
class Start:
    """A start of a run.

    Attributes:
        process: The process.
        log: File of what it told; a later start appends.
        before: Length of that file when it began.
    """

    process: multiprocessing.process.BaseProcess | subprocess.Popen[bytes]
    log: Path
    before: int

    def told(self) -> str:
        """What it has told so far."""
        return self.log.read_bytes()[self.before :].decode() if self.log.exists() else ""

    def step(self) -> int:
        """The newest step it told of; 0 before the first."""
        return max((int(found[0]) for found in STEP.findall(self.told())), default=0)

    def processes(self) -> list[psutil.Process]:
        """All of its processes that live: its session."""
        return [p for p in psutil.process_iter() if _session(p.pid) == self.process.pid]

    def wait_for(self, step: int) -> bool:
        """Wait until it reaches a step; False where it ended before."""
        while self.step() < step:
            if self.exit_code() is not None:
                return False
            time.sleep(0.002)
        return True

    def exit_code(self, timeout: float = 0.0) -> int | None:
        """How it ended; None where it still runs after so many seconds."""
        if isinstance(self.process, subprocess.Popen):
            try:
                return self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
        self.process.join(timeout)
        return self.process.exitcode


def start_without_ray(home: Path) -> Start:
    """Start, or go on with, a folder's run in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    log = home / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    process = context.Process(target=_run, args=(home, log), daemon=True)
    process.start()
    return Start(process, log, before)


def start_with_ray(home: Path) -> Start:
    """The same by `workflows/pretrain.py`, in a Ray of its own."""
    return _start(home, ROOT, "workflows/pretrain.py", "--params", str(home / "params.yaml"))


def start_with_dvc(home: Path) -> Start:
    """The same by `dvc repro` of the stage that calls `workflows/pretrain.py`, in a copy of it."""
    if not (home / ".dvc").exists():
        for name in ("aga", "workflows"):
            shutil.copytree(ROOT / name, home / name)
        shutil.copy2(ROOT / "dvc.yaml", home)
        _start(home, home, "-m", "dvc", "init", "--no-scm").exit_code(PATIENCE)
    return _start(home, home, "-m", "dvc", "repro", "--single-item", "pretrain")


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _start(home: Path, folder: Path, *arguments: str) -> Start:
    """Start a command of Python as a shell does: in a group, which Ctrl-C reaches as a whole."""
    log = home / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, **variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Start(process, log, before)


def _run(home: Path, log: Path) -> None:
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(message)s")
    job = job_of(home)
    data = RunData.open(home)
    job.check(data, 1)
    stop = threading.Event()
    try:
        with on_sigterm(stop.set), job.track() as tracker:
            context = build_context(job.recipe, data, home, torch.device("cpu"))
            listener = Listener(log_metrics=tracker.log_metrics)
            follow(context, job.recipe.checkpoint, job.folder, listener, stop.is_set)
    except TerminatedError:
        sys.exit(143)
