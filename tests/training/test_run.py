"""A whole run in this process: checkpoints found again, identity, export, and several processes."""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.small_runs import (
    WITHOUT_BATCH_STATISTICS,
    make_home,
    same_state,
    same_tensors,
    small_recipe,
)

from aga.bundle import Bundle, load_bundle
from aga.data.schema import MANIFEST
from aga.data.splitting.leaks import refuse_known
from aga.data.splitting.trained_on import TRAINED_ON
from aga.data.studies import MANIFEST_FILE, StudyDataset
from aga.errors import CheckpointError, DataError
from aga.training.checkpoint import TrainingState, checkpoints, load_checkpoint, only_writer
from aga.training.export import export_bundle, summary, write_curves
from aga.training.history import best_epoch
from aga.training.recipe import Recipe, RunData
from aga.training.run import Listener, build_context, build_network, follow, run_local
from aga.training.validation import validate
from benchmarks.same_numbers import TOLERANCE, curves, largest_difference


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("run") / "home")


def test_goes_on_from_its_folder_and_a_finished_run_does_nothing(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    recipe, folder = small_recipe(), tmp_path / "runs/a"
    undisturbed = run_local(recipe, home)
    saved = run_local(recipe, home, folder=folder)
    assert same_state(saved, undisturbed)
    assert "resuming" not in caplog.text

    # As if it had been killed after step 8: the last checkpoint is gone, a half-written one is not.
    kept = checkpoints(folder)
    assert [load_checkpoint(path).step for path in kept] == [9, 8]
    (kept[0] / "state.json").write_bytes(b"{")
    resumed = run_local(recipe, home, folder=folder)
    assert same_state(resumed, undisturbed)
    assert "resuming at step 8 of 9" in caplog.text

    caplog.clear()
    assert same_state(run_local(recipe, home, folder=folder), undisturbed)
    assert "epoch" not in caplog.text


def test_a_heartbeat_tells_of_training_and_of_validation(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    run_local(small_recipe({"training": {"heartbeat_seconds": 1e-6, "epochs": 1}}), home)
    told = [record.message for record in caplog.records]
    assert [line.split("  loss")[0] for line in told[:3]] == [
        f"epoch 1  step {step}/3" for step in (1, 2, 3)
    ]
    assert all("  ETA 0:" in line for line in told[:3])
    assert "validation batches" in told[3]
    assert "ETA 0:" in told[3]


def test_progress_is_heard_once_each(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    recipe = small_recipe({"training": {"heartbeat_seconds": 1000.0, "epochs": 2}})
    context = build_context(recipe, RunData.open(home), home, torch.device("cpu"))
    logged: list[tuple[int, set[str]]] = []
    epochs: list[float] = []
    listener = Listener(
        log_metrics=lambda metrics, step: logged.append((step, set(metrics))),
        end_epoch=lambda row: epochs.append(row["epoch"]),
    )
    follow(context, recipe.checkpoint, None, listener)
    assert [step for step, _ in logged] == [1, 3, 6]  # one heartbeat, two epochs
    assert {"step/loss/train", "step/learning_rate", "step/data_wait_fraction"} <= logged[0][1]
    assert not logged[0][1] & logged[1][1], "an epoch's mean would hide a step's value"
    assert epochs == [1, 2]
    beats = [record.message for record in caplog.records if "pairs/s" in record.message]
    assert len(beats) == 1
    assert all(word in beats[0] for word in ("step 1/6", "loss", "data wait", "ETA"))


def test_a_folder_in_use_is_refused(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("aga.training.run.WRITER_PATIENCE", 0.0)
    with only_writer(tmp_path), pytest.raises(CheckpointError, match="Another process"):
        run_local(small_recipe(), home, folder=tmp_path)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data/studies"):
        run_local(small_recipe(), tmp_path)


def test_identity_follows_settings_and_data(home: Path, tmp_path: Path) -> None:
    data = RunData.open(home)
    identity = small_recipe().identity(data, home)
    assert identity == small_recipe().identity(RunData.open(home), home)
    for change in (
        {"seed": 5},
        {"training": {"epochs": 4}},
        {"optimizer": {"learning_rate": 2e-3}},
        {"objective": {"aga": {"gate": {"init": 0.4}}}},
    ):
        assert small_recipe(change).identity(data, home) != identity, change
    for idle in (
        {"training": {"loader_workers": 3, "heartbeat_seconds": 1.5}},
        {"checkpoint": {"every_steps": 9}},
    ):
        assert small_recipe(idle).identity(data, home) == identity, idle
    other = RunData.open(make_home(tmp_path / "other", rows=50))
    assert small_recipe().identity(other, home) != identity


@pytest.mark.parametrize("part", ["image_encoder", "text_encoder"])
def test_identity_follows_the_content_of_pretrained_files(
    home: Path, tmp_path: Path, part: str
) -> None:
    key = {"image_encoder": "weights", "text_encoder": "path"}[part]
    data, places = RunData.open(home), [tmp_path / "one", tmp_path / "two"]
    files = [place / "model.safetensors" for place in places]

    def identity(number: int) -> str:
        value = files[number] if key == "weights" else places[number]
        return small_recipe({part: {key: str(value)}}).identity(data, home)

    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"weights")
    first = identity(0)
    assert first != small_recipe().identity(data, home)
    assert identity(1) == first, "the place is no part of a run"
    files[0].write_bytes(b"others")
    assert identity(0) != first
    files[0].unlink()
    places[0].rmdir()
    with pytest.raises(CheckpointError, match=rf"{part}\.{key}"):
        identity(0)


def test_exports_the_best_epoch_and_its_numbers(home: Path, tmp_path: Path) -> None:
    recipe, data = small_recipe(), RunData.open(home)
    state = run_local(recipe, home)
    names = {"run": "small-1"}
    hashes = [
        export_bundle(
            tmp_path / "encoder", recipe=recipe, data=data, home=home, state=state, names=names
        )
        for _ in range(2)
    ]
    bundle = load_bundle(tmp_path / "encoder")
    assert hashes == [bundle.sha256] * 2
    best = {n.removeprefix("model."): t for n, t in state.best.items() if n.startswith("model.")}
    assert same_tensors(bundle.model.state_dict(), best)
    select = recipe.training.select
    row = state.history[best_epoch(state.history, select) - 1]
    assert bundle.metadata["epoch"] == row["epoch"]
    assert bundle.metadata["metrics"][f"validation {select.metric}"] == row[select.metric]
    assert bundle.metadata["studies_sha256"] == data.studies.info.sha256

    numbers = summary(state.history, select)
    assert numbers["best_epoch"] == row["epoch"]
    assert numbers[select.metric] == row[select.metric]
    assert numbers["steps"] == 9
    assert numbers["final/loss/train"] == state.history[-1]["loss/train"]
    write_curves(tmp_path / "plots/training.csv", state.history)
    with (tmp_path / "plots/training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss/train"]) for r in rows] == [r["loss/train"] for r in state.history]
    assert [int(r["epoch"]) for r in rows] == [1, 2, 3]


def test_a_bundle_remembers_what_its_starting_weights_had_seen(home: Path, tmp_path: Path) -> None:
    def exported(name: str, project: Path, weights: Path | None) -> Bundle:
        recipe = small_recipe({"image_encoder": {"weights": weights and str(weights)}})
        data = RunData.open(project)
        network = build_network(recipe, data, project)
        best = dict(network.state_dict())
        row = {"epoch": 1, "step": 3, recipe.training.select.metric: 0.5}
        state = TrainingState(step=3, tensors={}, best=best, history=[row], sums={})
        place = tmp_path / name
        export_bundle(place, recipe=recipe, data=data, home=project, state=state, names={})
        return load_bundle(place)

    other = make_home(tmp_path / "other", rows=50)
    first = exported("first", home, None)
    second = exported("second", other, tmp_path / "first/model.safetensors")
    assert first.trained_on is not None and second.trained_on is not None
    assert first.trained_on.complete and second.trained_on.complete
    kept = second.model.image_encoder.backbone.state_dict()
    assert same_tensors(first.model.image_encoder.backbone.state_dict(), kept)
    for project, rows in ((home, "known by the first"), (other, "its own")):
        studies = RunData.open(project).studies
        row = int(studies.rows("train")[0])
        moved = tamper(studies, row, tmp_path / rows)
        with pytest.raises(
            DataError, match=r"(?s)trained on what the test split holds.*same image"
        ):
            refuse_known(second.trained_on, moved, "test")

    bare = tmp_path / "bare/model.safetensors"
    bare.parent.mkdir()
    bare.write_bytes((tmp_path / "first/model.safetensors").read_bytes())
    unknown = exported("unknown", other, bare)
    assert unknown.trained_on is not None and not unknown.trained_on.complete
    assert "unknown part" in (tmp_path / "unknown/README.md").read_text()
    third = exported("third", home, tmp_path / "unknown/model.safetensors")
    assert third.trained_on is not None and not third.trained_on.complete, "and ever after"
    (bare.parent / TRAINED_ON).write_bytes(b"{")
    with pytest.raises(DataError, match=r"(?s)no list of the images.*bare.*remove it"):
        exported("damaged", other, bare)


def tamper(studies: StudyDataset, row: int, folder: Path) -> StudyDataset:
    """A copy of the studies in which a training row is tested."""
    shutil.copytree(studies.folder, folder)
    table = studies.manifest.to_pylist()
    table[row]["split"] = "test"
    pq.write_table(pa.Table.from_pylist(table, schema=MANIFEST), folder / MANIFEST_FILE)
    return StudyDataset.open(folder)


# Nothing that a process may do otherwise: no batch statistics, no dropout.
SHARED = small_recipe(WITHOUT_BATCH_STATISTICS, {"training": {"epochs": 2}})


# Batch statistics, which each process on a CPU has of its own slice.
NORMALISED = small_recipe({"training": {"epochs": 1}})


def worker(rank: int, world_size: int, home: str, folder: str, port: int, settings: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    recipe = Recipe.model_validate_json(settings)
    context = build_context(recipe, RunData.open(Path(home)), Path(home), torch.device("cpu"))
    state = follow(context, recipe.checkpoint, Path(folder), Listener())
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(state.history))
    torch.distributed.destroy_process_group()


def in_processes(
    world_size: int, home: Path, folder: Path, recipe: Recipe = SHARED
) -> TrainingState:
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    shared = (world_size, str(home), str(folder), port, recipe.model_dump_json())
    arguments = [(rank, *shared) for rank in range(world_size)]
    processes = [spawn.Process(target=worker, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return load_checkpoint(checkpoints(folder)[0])


def test_trains_where_ray_mlflow_and_dvc_are_not_installed() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'dvc']))"
    modules = "aga.training.loop, aga.training.run, aga.cluster.distributed"
    subprocess.run([sys.executable, "-c", f"{absent}; import {modules}"], check=True)


@pytest.mark.slow
def test_two_processes_train_as_one_does(home: Path, tmp_path: Path) -> None:
    one = run_local(SHARED, home)
    two = in_processes(2, home, tmp_path / "two")
    assert two.step == one.step
    for ours, theirs in zip(two.history, one.history, strict=True):
        for name in ("loss/train", "loss/validation", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4), name
        assert ours["retrieval/mean_recall_at_10"] == theirs["retrieval/mean_recall_at_10"]
    for name, tensor in one.best.items():
        torch.testing.assert_close(two.best[name], tensor, rtol=1e-2, atol=2e-4)
    ranks = [json.loads((tmp_path / f"two/rank-{r}.json").read_text()) for r in range(2)]
    for left, right in zip(*ranks, strict=True):
        left.pop("pairs_per_second"), right.pop("pairs_per_second")
        assert left == right, "the processes do not agree on what they measured"

    # Its last checkpoint damaged: both processes go on from the one before.
    (checkpoints(tmp_path / "two")[0] / "manifest.json").unlink()
    again = in_processes(2, home, tmp_path / "two")
    assert same_state(again, two)


@pytest.mark.slow
def test_the_losses_do_not_depend_on_the_number_of_processes(home: Path) -> None:
    """The quick form of benchmarks/same_numbers.py."""
    found = curves(home, SHARED, counts=(1, 2), steps=4)
    assert len(found[1]) == 4
    assert largest_difference(found[2], found[1]) < TOLERANCE
    assert len(set(found[1])) == 4, "nothing is learned"


@pytest.mark.slow
def test_processes_validate_the_model_that_is_saved(home: Path, tmp_path: Path) -> None:
    """Without common batch statistics, each would measure its share with a model of its own."""
    saved = in_processes(2, home, tmp_path / "two", NORMALISED)
    context = build_context(NORMALISED, RunData.open(home), home, torch.device("cpu"))
    context.network.load_state_dict(saved.best)
    model, objective = context.network.model, context.network.objective
    alone = validate(
        model,
        objective,
        context.validation,
        batch_size=NORMALISED.training.batch_size,
        device=context.device,
        micro_batch=None,
        heartbeat_seconds=60.0,
    )
    for name, value in alone.items():
        # A process's neighbours are those of its slice.
        if not name.endswith(("image_dependence", "image_gap")):
            # A term at chance owes a blank image nothing but rounding.
            assert saved.history[-1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_learns_from_a_part_of_the_pairs(home: Path) -> None:
    recipe = small_recipe({"training": {"pairs": 16}})
    data = RunData.open(home)
    context = build_context(recipe, data, home, torch.device("cpu"))
    assert len(context.training) == 16
    assert set(context.training.rows) < set(data.studies.rows("train"))
    assert context.steps_per_epoch == 2
    assert run_local(recipe, home).history[-1]["step"] == 2 * recipe.training.epochs
    whole = build_context(small_recipe(), data, home, torch.device("cpu"))
    assert context.training.transform == whole.training.transform  # of every training pixel
