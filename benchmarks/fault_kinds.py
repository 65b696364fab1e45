"""What each fault of `benchmarks.faults` does to a run, and where the run lives meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from aga.params import apply_overlay, parse_settings
from aga.training.checkpoint import checkpoints
from benchmarks.faulted_run import (
    PATIENCE,
    Start,
    job_of,
    start_with_dvc,
    start_with_ray,
    start_without_ray,
)
from benchmarks.outages import Mode, Proxy, Server, server_command

AWAY = 20.0  # seconds without storage

Inject = Callable[[Start, Path, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        inject: Does it to a run that has started.
        start: Starts the run.
        storage: How its folder of checkpoints is mounted.
        at_once: How many runs are put through it at the same time.
        any_moment: Whether also what comes before the first step, and after the last, is hit.
        served: Whether it is tracked by a server, `SERVED`; what that has not got at the run's end
            it gets by repeating the command once it is well.
    """

    inject: Inject
    start: Callable[[Path], Start] = start_without_ray
    storage: str | None = None
    at_once: int = 2
    any_moment: bool = False
    served: bool = False


@dataclass(frozen=True)
class Served:
    """The MLflow server of a run, and the proxy before it."""

    server: Server
    proxy: Proxy

    def mend(self) -> None:
        """Make it answer."""
        self.proxy.mode = Mode.PASS
        if not self.server.is_up():
            self.server.start()


SERVED: dict[Path, Served] = {}
"""By the folder of the run."""


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


def _kill_server(_start: Start, home: Path, rng: random.Random) -> None:
    SERVED[home].server.kill()
    time.sleep(rng.uniform(0, 10))
    SERVED[home].mend()


def _kill_server_for_good(_start: Start, home: Path, _rng: random.Random) -> None:
    SERVED[home].server.kill()


def _misbehave(mode: Mode) -> Inject:
    def inject(_start: Start, home: Path, rng: random.Random) -> None:
        SERVED[home].proxy.mode = mode
        time.sleep(rng.uniform(3, 12))
        SERVED[home].proxy.mode = Mode.PASS

    return inject


FAULTS = {
    "kill -9 of the process": Fault(_kill),
    "SIGTERM": Fault(_terminate),
    "newest checkpoint truncated": Fault(_damage(_truncate)),
    "newest checkpoint with a flipped bit": Fault(_damage(_flip)),
    "disk full for some seconds": Fault(_fill, storage="tmpfs"),
    "storage unmounted for 20 s": Fault(_unmount, storage="bind", at_once=5),
    "MLflow killed, started again": Fault(_kill_server, served=True),
    "MLflow down to the end": Fault(_kill_server_for_good, served=True),
    "MLflow answers 5 s late": Fault(_misbehave(Mode.SLOW), served=True),
    "MLflow answers 500": Fault(_misbehave(Mode.ERROR), served=True),
    "MLflow does not answer": Fault(_misbehave(Mode.HANG), served=True),
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


@contextmanager
def mounted(home: Path, kind: str | None) -> Iterator[None]:
    """The folder of a run's checkpoints on a file system of its own: `Fault.storage`."""
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


@contextmanager
def tracked_by_server(home: Path, served: bool) -> Iterator[None]:
    """A server of a run's own, on the store that is in its folder: `Fault.served`."""
    if not served:
        yield
        return
    with Server(home, server_command(home, "mlflow.db")) as server:
        SERVED[home] = Served(server, Proxy(server.port))
        uri = parse_settings([f"tracking.uri={SERVED[home].proxy.uri}"])
        apply_overlay(home / "params.yaml", uri)
        try:
            yield
        finally:
            SERVED.pop(home).proxy.shutdown()


def _mount_command(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
