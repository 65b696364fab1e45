"""What a project's folder looks like after something went wrong, and what to do about it.

`examine` reads and changes nothing. A finding that can be put right carries the act; `doctor.py
--fix` does it. Nothing that a living process holds is ever touched, and nothing is deleted but
DVC's note of processes that are dead. May import what lies below it: `aga.training`, ...
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aga.cluster.node import unreachable
from aga.config import Config
from aga.data.pixels.dicom import codec_summary
from aga.errors import AgaError, CheckpointError, TrackingError
from aga.tracking import (
    Life,
    RunningRun,
    TrackingConfig,
    close_run,
    is_delivered,
    replay,
    running_runs,
)
from aga.tracking.spool import is_written
from aga.training.checkpoint import COMMAND, FOLDER, WRITER, checkpoints, verify

SPOOL = "metrics.jsonl"
QUIET_SECONDS = 120.0
"""Locks do not reach other machines on every file system: what wrote so lately may be alive."""
LOW_DISK = 5 * 2**30
UNFINISHED = ("data/.*.partial", "data/.*.replaced", "data/.*.work", "models/.*.partial")


class StorageConfig(Config, extra="ignore"):
    """Of the section `cluster`, where runs are kept."""

    storage: str


class KeptConfig(Config):
    """The sections of `params.yaml` that say where runs are kept and tracked."""

    cluster: StorageConfig
    tracking: TrackingConfig


@dataclass(frozen=True)
class Finding:
    """One thing that was seen.

    Attributes:
        what: A plain sentence.
        advice: What to do; empty where nothing need be done.
        wrong: Whether it should not be so.
        repair: Puts it right; None where only a person can.
    """

    what: str
    advice: str = ""
    wrong: bool = False
    repair: Callable[[], object] | None = None

    def __str__(self) -> str:
        mark = "WRONG " if self.wrong else "ok    "
        return mark + self.what + (f"\n       -> {self.advice}" if self.advice else "")


def examine(home: Path, storage: Path, tracking: TrackingConfig) -> list[Finding]:
    """Everything that can be seen in a project's folder and its storage.

    Args:
        home: The project's folder.
        storage: Folder of the runs.
        tracking: Where runs are tracked.
    """
    return [
        *_writers(storage),
        *_checkpoints(storage),
        *_spools(storage, tracking, home),
        *_zombies(storage, tracking, home),
        *_dvc(home),
        *_unfinished(home, storage),
        _disk(storage if storage.is_dir() else home),
        *_versions(home),
        Finding(codec_summary()),
        *_telemetry(home),
    ]


def examine_jobs(address: str) -> list[Finding]:
    """The jobs of a Ray cluster that this library's `submit.py` has started and that still run.

    Raises:
        ClusterError: Nobody answers at the address.
    """
    from aga.submission import ENDS, connect  # noqa: PLC0415 - Ray is optional

    return [
        Finding(
            f"job {job.submission_id} of the cluster is {job.status}: {job.entrypoint}",
            "repeat its submit.py command to follow it, or end it: ray job stop "
            f"--address {address} {job.submission_id}",
        )
        for job in connect(address).list_jobs()
        if str(job.submission_id).startswith("aga-") and str(job.status) not in ENDS
    ]


def _runs(storage: Path) -> list[Path]:
    """Folders of runs and searches: those that anybody ever held."""
    return sorted({path.parent for lock in (COMMAND, WRITER) for path in storage.rglob(lock)})


def _holder(run: Path) -> str:
    """Who holds a run's folder; empty where nobody does.

    A command holds it from end to end, also while it waits for room or puts a worker in a lost
    one's place. So it is named before the worker that writes.
    """
    for lock in (COMMAND, WRITER):
        if _is_locked(run / lock):
            who = (run / lock).read_text(encoding="utf-8")
            return who or "a process of another machine"
    return ""


def _writers(storage: Path) -> Iterator[Finding]:
    for run in _runs(storage):
        if who := _holder(run):
            yield Finding(
                f"run {run.name} is held by {who}",
                "let it finish, or stop that process, before you start the run again",
            )


def _checkpoints(storage: Path) -> Iterator[Finding]:
    for run in _runs(storage):
        if _holder(run):
            continue
        found = checkpoints(run)
        damaged = [(folder, error) for folder in found if (error := _damage(folder))]
        for folder, error in damaged:
            left = len(found) - len(damaged)
            advice = (
                f"nothing is lost: the run resumes from one of the {left} good ones"
                if left
                else f"restore one from a backup, or delete {run} to train from the start"
            )
            yield Finding(f"checkpoint {run.name}/{folder.name}: {error.what}", advice, True)


def _damage(folder: Path) -> CheckpointError | None:
    try:
        verify(folder)
    except CheckpointError as error:
        return error
    return None


def _spools(storage: Path, tracking: TrackingConfig, home: Path) -> Iterator[Finding]:
    for spool in sorted(storage.rglob(SPOOL)):
        if is_delivered(spool) or _is_written(spool) or _holder(spool.parent):
            continue

        def send(spool: Path = spool) -> str:
            return replay(spool, tracking, home)

        yield Finding(
            f"MLflow has not received all of run {spool.parent.name}",
            "--fix sends the rest, each value once",
            True,
            send,
        )


def _zombies(storage: Path, tracking: TrackingConfig, home: Path) -> Iterator[Finding]:
    if why := unreachable(tracking.uri):
        yield Finding(
            f"the MLflow server {tracking.uri} does not answer: {why}",
            "start it; trainings go on without it, and --fix sends what they kept",
            True,
        )
        return
    try:
        running = running_runs(tracking, home, sorted(storage.rglob(SPOOL)))
    except TrackingError as error:
        yield Finding(str(error), "see tracking.uri in params.yaml", True)
        return
    for run in running:
        if run.life is Life.WRITTEN:
            yield Finding(f"run {run.name} is RUNNING in MLflow, and a process writes it")
        elif run.spool and (who := _holder(run.spool.parent)):
            yield Finding(f"run {run.name} is RUNNING in MLflow, and held by {who}")
        elif run.life is Life.STALE and run.silent_seconds > QUIET_SECONDS:

            def close(run: RunningRun = run) -> bool:
                # Somebody may have begun to go on with it since it was looked at.
                held = run.spool is not None and bool(_holder(run.spool.parent))
                return not held and close_run(tracking, home, run)

            yield Finding(
                f"run {run.name} is RUNNING in MLflow, but nobody writes it",
                "repeat its command to go on with it, or let --fix end it as KILLED",
                True,
                close,
            )
        else:
            yield Finding(
                f"run {run.name} is RUNNING in MLflow; whether anybody writes it is not known here",
                "look again in two minutes, on the machine that trains",
            )


def _dvc(home: Path) -> Iterator[Finding]:
    temporary = home / ".dvc/tmp"
    busy = any(_is_locked(temporary / name) for name in ("lock", "rwlock.lock"))
    if busy:
        yield Finding(
            "DVC is at work in this folder and holds its lock",
            "let it finish; `dvc` commands wait for it or refuse",
        )
    note = temporary / "rwlock"
    pids = _noted_processes(note)
    alive = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
    if pids - alive and not alive and not busy:
        dead = ", ".join(map(str, sorted(pids - alive)))
        yield Finding(
            f"DVC's note of used paths names processes that are dead: {dead}",
            "--fix deletes the note .dvc/tmp/rwlock, as DVC's own message advises",
            True,
            note.unlink,
        )


def _noted_processes(note: Path) -> set[int]:
    """Process ids in DVC's rwlock: `{path: {"read": [{"pid"}], "write": {"pid"}}}`."""
    try:
        values = json.loads(note.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError):
        return set()
    users = [
        user
        for uses in values.values()
        for use in uses.values()
        for user in (use if isinstance(use, list) else [use])
    ]
    return {int(user["pid"]) for user in users if "pid" in user}


def _unfinished(home: Path, storage: Path) -> Iterator[Finding]:
    for pattern in UNFINISHED:
        for folder in sorted(home.glob(pattern)):
            yield Finding(
                f"{folder.relative_to(home)} is half made",
                "the next run of its stage goes on from it or removes it",
            )
    for folder in sorted(storage.rglob(f"{FOLDER}/.unfinished-*")):
        if not _holder(folder.parents[1]):
            yield Finding(
                f"{folder.parents[1].name} holds a checkpoint that was never finished",
                "the run's next checkpoint removes it",
            )


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    return Finding(
        f"{free / 2**30:.1f} GiB are free where the runs are",
        "free some, lower checkpoint.keep, or move cluster.storage" if free < LOW_DISK else "",
        free < LOW_DISK,
    )


def _versions(home: Path) -> Iterator[Finding]:
    lock = home / "requirements.lock"
    if not lock.is_file():
        return
    pins = dict(
        line.split("==", 1)
        for line in lock.read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    other = []
    for name, pinned in pins.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != pinned.split()[0]:
            other.append(f"{name} {found}, not {pinned}")
    if other:
        yield Finding(f"packages differ from requirements.lock: {'; '.join(other)}", "make", True)
    else:
        yield Finding(f"all {len(pins)} packages are those of requirements.lock")


def _telemetry(home: Path) -> Iterator[Finding]:
    config = home / ".dvc/config"
    silent = config.is_file() and "analytics = false" in config.read_text(encoding="utf-8")
    if not (silent or "DVC_NO_ANALYTICS" in os.environ):
        yield Finding("DVC may send statistics of use", "dvc config core.analytics false", True)
    yield Finding("Ray's and MLflow's telemetry is off in every process that trains")


def _is_written(spool: Path) -> bool:
    try:
        return is_written(spool)
    except OSError:  # its file system knows no locks: it may be
        return True


def _is_locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def repair(findings: list[Finding]) -> list[str]:
    """Put right what can be; what was done, or why it could not be, in a line each."""
    done = []
    for finding in findings:
        if finding.repair is not None:
            try:
                finding.repair()
            except (AgaError, OSError) as error:
                done.append(f"not repaired: {finding.what}: {error}")
            else:
                done.append(f"repaired: {finding.what}")
    return done
