"""A small real run that can be killed: its folder, and one start of it, with Ray or without.

Without Ray it is what a worker does (tracking, preflight, `follow`), in a process of its own that
is forked from one in which the imports are done. With Ray it is `workflows/pretrain.py` itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  imported once, before the fork
import torch

from aga.params import apply_overlay, load_params, parse_settings
from aga.tracking.store import open_client
from aga.training.job import Job
from aga.training.recipe import Recipe, RunData
from aga.training.run import Listener, build_context, follow
from aga.training.stopping import TerminatedError, on_sigterm

ROOT = Path(__file__).parent.parent
PREPARED = ("params.yaml", "data/studies", "data/tokens", "data/cache", "mlflow.db")
STEP = re.compile(r"step (\d+)/(\d+)")
RESUMED = re.compile(r"resuming at step (\d+)")
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


def prepare_home(home: Path) -> None:
    """A project folder with prepared data, an empty tracking store, and a minute's settings."""
    home.mkdir(parents=True)
    shutil.copy2(ROOT / "params.yaml", home / "params.yaml")
    apply_overlay(home / "params.yaml", parse_settings(list(SETTINGS)))
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

    def resumed_at(self) -> int:
        """The first step that it went on from; 0 where it began."""
        found = RESUMED.search(self.told())
        return int(found[1]) if found else 0

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
    command = [sys.executable, "workflows/pretrain.py", "--params", str(home / "params.yaml")]
    log = home / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
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
