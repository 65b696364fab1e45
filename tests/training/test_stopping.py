"""SIGTERM: the running step ends, its state is saved, and repeating the command changes no bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.small_runs import WITHOUT_BATCH_STATISTICS, make_home, same_state, small_recipe

from aga.training.checkpoint import checkpoints, load_checkpoint
from aga.training.recipe import Recipe, RunData
from aga.training.run import Listener, build_context, follow, run_local
from aga.training.stopping import EXIT_CODE, TerminatedError, on_sigterm

LONG = {"training": {"epochs": 60}, "checkpoint": {"every_steps": 1000}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("stopping") / "home")


def test_the_second_signal_is_as_it_was_before() -> None:
    heard: list[str] = []
    outer = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        with on_sigterm(lambda: heard.append("action")):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, outer)
    assert heard == ["action", "before", "before"]


LOCAL = """
import logging, sys
from pathlib import Path
from aga.training.recipe import Recipe
from aga.training.run import run_local
logging.basicConfig(level=logging.INFO)
recipe = Recipe.model_validate_json(sys.argv[1])
run_local(recipe, Path(sys.argv[2]), folder=Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_local_run_ends_with_code_143_and_goes_on(home: Path, tmp_path: Path) -> None:
    recipe = small_recipe(LONG, {"training": {"epochs": 12}})
    folder = tmp_path / "run"
    arguments = [recipe.model_dump_json(), str(home), str(folder)]
    with subprocess.Popen(
        [sys.executable, "-c", LOCAL, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2/12" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == EXIT_CODE == 143, rest
    assert "Traceback" not in rest
    saved = load_checkpoint(checkpoints(folder)[0])
    assert 0 < saved.step < 36
    assert same_state(run_local(recipe, home, folder=folder), run_local(recipe, home))


def worker(rank: int, home: str, folder: str, port: int, settings: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    recipe = Recipe.model_validate_json(settings)
    context = build_context(recipe, RunData.open(Path(home)), Path(home), torch.device("cpu"))
    asked: list[int] = []
    with on_sigterm(lambda: asked.append(1)):
        try:
            follow(context, recipe.checkpoint, Path(folder), Listener(), lambda: bool(asked))
        except TerminatedError as error:
            saved = [path.name for path in checkpoints(Path(folder))]
            Path(folder, f"rank-{rank}").write_text(f"{saved[0]} {error}")
            raise
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_workers_stop_at_one_step_and_after_the_state_is_saved(
    home: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(WITHOUT_BATCH_STATISTICS, LONG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    shared = (str(home), str(tmp_path), port, recipe.model_dump_json())
    processes = [spawn.Process(target=worker, args=(rank, *shared)) for rank in range(2)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [EXIT_CODE] * 2
    step = load_checkpoint(checkpoints(tmp_path)[0]).step
    assert 3 < step < 180
    for rank in range(2):
        told = (tmp_path / f"rank-{rank}").read_text()
        assert told.startswith(f"{step:09d}-0 "), "it ended before the checkpoint was there"
        assert told.endswith(f"step {step}")
