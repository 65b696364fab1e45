"""Checkpoints that are whole or not there: safetensors and JSON, hashed, renamed into place.

    training.safetensors   weights and optimizer state
    best.safetensors       weights of the best epoch so far
    state.json             step, history, sums over the running epoch
    manifest.json          SHA-256 of the above, and of itself

A run's folder holds `checkpoints/<step>-<n>/`. The newest that verifies is the one to resume from,
whatever damaged a later one. One process at a time writes to a run's folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field
from safetensors import SafetensorError

from aga.config import Config
from aga.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Row: TypeAlias = Mapping[str, float | int]

logger = logging.getLogger(__name__)

FOLDER, WRITER, COMMAND = "checkpoints", "writer.lock", "command.lock"
TRAINING, BEST, STATE = "training.safetensors", "best.safetensors", "state.json"
CONTENT, MANIFEST = (TRAINING, BEST, STATE), "manifest.json"


class CheckpointConfig(Config):
    """When checkpoints are made and how many stay.

    Attributes:
        every_steps: Steps between two checkpoints inside an epoch; one more at each epoch's end.
        keep: How many stay; the newest ones. The best epoch's weights are in each of them.
    """

    every_steps: Annotated[int, Field(gt=0)]
    keep: Annotated[int, Field(ge=2)]


@dataclass(frozen=True)
class TrainingState:
    """All that a run is, between two steps.

    Attributes:
        step: Optimizer steps done.
        tensors: Everything that the next step depends on, by name.
        best: Weights of the best epoch so far; empty before the first epoch's end.
        history: One row of metrics per finished epoch.
        sums: Sums of the running epoch's step metrics; empty at an epoch's end.
    """

    step: int
    tensors: dict[str, Tensor]
    best: dict[str, Tensor]
    history: list[Row]
    sums: dict[str, float]


def save_checkpoint(folder: Path, state: TrainingState) -> None:
    """Write a checkpoint; `folder`, which must not exist, appears whole and verified or not at all.

    Raises:
        OSError, SafetensorError: The storage is full or away.
        CheckpointError: It did not keep what was written.
    """
    from safetensors.torch import save_file

    from aga.encoders.weights import on_cpu

    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    try:
        save_file(on_cpu(state.tensors), scratch / TRAINING)
        save_file(on_cpu(state.best), scratch / BEST)
        values = {"step": state.step, "history": state.history, "sums": state.sums}
        (scratch / STATE).write_text(json.dumps(values, indent=1), encoding="utf-8")
        hashes = {name: _sha256(scratch / name) for name in CONTENT}
        (scratch / MANIFEST).write_text(_manifest(hashes), encoding="utf-8")
        for path in [*scratch.iterdir(), scratch]:
            _flush(path)
        verify(scratch)
        scratch.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_checkpoint(folder: Path) -> TrainingState:
    """Read a checkpoint, its tensors on the CPU, after checking every file.

    Raises:
        CheckpointError: A file is missing, cut off or changed; the message names it.
    """
    from safetensors.torch import load_file

    verify(folder)
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return TrainingState(
            step=values["step"],
            tensors=load_file(folder / TRAINING),
            best=load_file(folder / BEST),
            history=values["history"],
            sums=values["sums"],
        )
    except (ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            "The checkpoint is of another version of this library", where=folder, got=error
        ) from error


def save_next(run: Path, state: TrainingState, keep: int) -> Path:
    """Add a checkpoint to a run's folder; once it is there, delete all but the newest `keep`.

    The run's folder must exist: making it anew while its storage is not mounted would hide the
    checkpoint below the mount.

    Raises:
        OSError, SafetensorError, CheckpointError: As `save_checkpoint`; none was deleted.
    """
    if not (run / FOLDER).is_dir():
        (run / FOLDER).mkdir()
        for place in (run, run.parent):  # a power cut must not take the folder itself
            _flush(place)
    for unfinished in (run / FOLDER).glob(".unfinished-*"):
        shutil.rmtree(unfinished)  # of a writer that was killed: a run has one writer at a time
    attempt = 0
    # A damaged checkpoint of the same step may be there: it was passed over, and stays evidence.
    while (folder := run / FOLDER / f"{state.step:09d}-{attempt}").exists():
        attempt += 1
    save_checkpoint(folder, state)
    # Damaged ones of later steps, which were passed over, must not push this one out.
    for old in [other for other in checkpoints(run) if other != folder][keep - 1 :]:
        shutil.rmtree(old)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, the newest first."""
    return sorted((run / FOLDER).glob("[0-9]*"), reverse=True)


def newest_good(run: Path) -> Path | None:
    """The newest checkpoint that verifies, or None where none was ever written.

    Raises:
        CheckpointError: There are checkpoints, but none of them is good.
    """
    damaged: list[CheckpointError] = []
    for folder in checkpoints(run):
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("Passing over a damaged checkpoint, for the one before it. %s", error)
            damaged.append(error)
        else:
            return folder
    if damaged:
        raise CheckpointError(
            "No checkpoint of this run is usable",
            where=run,
            got="; ".join(error.what for error in damaged),
            fix=f"restore one from a backup, or delete {run} to train from the start",
        )
    return None


@contextmanager
def only_writer(run: Path, patience: float = 0.0, lock: str = WRITER) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when the process dies, however it dies.

    Args:
        run: The folder; created where it does not exist.
        patience: Seconds to wait for a writer that is ending.
        lock: The file that is held: `WRITER` by who writes checkpoints, `COMMAND` by who started
            that one.

    Raises:
        CheckpointError: Another process is writing this run.
    """
    run.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (run / lock).open("a+", encoding="utf-8") as file:
        while not _locked(file):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise CheckpointError(
                    "Another process is writing this run",
                    where=run,
                    got=file.read(),
                    fix="let it finish, or stop it; then repeat the command",
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise CheckpointError(
            "Files cannot be locked there, so two processes could write one run",
            where=file.name,
            got=error,
            expected="a file system with flock: a local disk, NFS 4, Lustre mounted with flock",
            fix="set cluster.storage to a folder on one",
        ) from error
    return True


def verify(folder: Path) -> None:
    """Check that a checkpoint's files are there and as they were written; reads no tensor.

    Raises:
        CheckpointError: One is not; the message names it.
    """
    manifest = folder / MANIFEST
    try:
        text = manifest.read_text(encoding="utf-8")
        hashes: Mapping[str, str] = json.loads(text)["files"]
        if _manifest(hashes) != text:
            raise ValueError("its own hash does not fit")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{MANIFEST} of a checkpoint is damaged", where=manifest, got=error
        ) from error
    for name in CONTENT:
        path = folder / name
        found = _sha256(path) if path.is_file() else "no such file"
        if found != hashes[name]:
            raise CheckpointError(
                f"{name} of a checkpoint is damaged", where=path, got=found, expected=hashes[name]
            )


def _manifest(hashes: Mapping[str, str]) -> str:
    """The manifest's text; it vouches for itself as well."""
    own = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return json.dumps({"files": hashes, "sha256": own}, indent=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Push a file, or a folder's entries, to the disk: a rename must not outlive its content.

    Who reads it next reads the disk, not the memory of this machine.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
