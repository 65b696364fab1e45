"""Pages of validation pairs after each epoch: in MLflow, and without a trace in the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_runs import make_home, same_state, small_params, small_recipe
from mlflow import MlflowClient

from aga.bundle import Bundle
from aga.cluster.pages import EpochPages, explained_rows
from aga.data.studies import StudyDataset
from aga.errors import AgaError
from aga.explain import explanation_pages
from aga.tracking import TrackingConfig, start_run
from aga.training.checkpoint import TrainingState
from aga.training.recipe import RunData
from aga.training.run import Listener, build_context, follow, run_local

RECIPE = small_recipe({"training": {"epochs": 2}})
Make = Callable[[Bundle, StudyDataset, Path, Sequence[int]], Mapping[str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("pages") / "home", rows=80)


def artifacts(store: Path, run_id: str, folder: str = "explain") -> list[str]:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    found = []
    for item in client.list_artifacts(run_id, folder):
        found += artifacts(store, run_id, item.path) if item.is_dir else [item.path]
    return sorted(found)


def train(
    home: Path, store: Path, make: Make | None, *, shown: bool = True
) -> tuple[TrainingState, str]:
    """A run that makes its pages; its last state and its MLflow run."""
    data = RunData.open(home)
    data.studies.info = replace(data.studies.info, may_be_shown=shown)
    context = build_context(RECIPE, data, home, torch.device("cpu"))
    tracking = TrackingConfig.model_validate(small_params()["tracking"])
    with start_run(tracking, store, "run", spool=store / "metrics.jsonl") as tracker:
        pages = EpochPages(make, context, data, 2, tracker)
        listener = Listener(
            log_metrics=tracker.log_metrics, end_epoch=lambda row: pages.log(int(row["epoch"]))
        )
        state = follow(context, RECIPE.checkpoint, None, listener)
    return state, str(tracker.run_id)


def test_each_epoch_leaves_its_pages_and_changes_no_bit(home: Path, tmp_path: Path) -> None:
    state, run_id = train(home, tmp_path, explanation_pages)
    rows = explained_rows(build_context(RECIPE, RunData.open(home), home, torch.device("cpu")), 2)
    assert len(rows) == 2
    expected = [f"explain/epoch-{e:03}/row-{row}.html" for e in (1, 2) for row in rows]
    assert artifacts(tmp_path, run_id) == sorted(expected)
    stored = tmp_path / "metrics.jsonl.artifacts"
    first, last = ((stored / expected[i]).read_text() for i in (0, 2))
    assert first != last, "another epoch, other weights"
    assert same_state(state, run_local(RECIPE, home))

    again, same_run = train(home, tmp_path, explanation_pages)
    assert same_run == run_id
    assert same_state(again, state)
    assert artifacts(tmp_path, run_id) == sorted(expected)


def test_what_may_not_be_shown_is_never_explained(home: Path, tmp_path: Path) -> None:
    def make(*_: Any) -> Mapping[str, str]:
        raise AssertionError("it was")

    _, run_id = train(home, tmp_path, make, shown=False)
    assert artifacts(tmp_path, run_id) == []
    assert not (tmp_path / "metrics.jsonl.artifacts").exists()


def test_pages_that_cannot_be_made_cost_one_warning(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="aga")

    def make(*_: Any) -> Mapping[str, str]:
        raise AgaError("there is no jinja2")

    state, run_id = train(home, tmp_path, make)
    assert len(state.history) == 2
    assert sum("no pages" in message for message in caplog.messages) == 1
    assert artifacts(tmp_path, run_id) == []


def test_the_rows_are_fixed_and_say_different_things(home: Path) -> None:
    context = build_context(RECIPE, RunData.open(home), home, torch.device("cpu"))
    everything = explained_rows(context, 32)
    statements = context.validation.statements
    assert len(everything) == len(set(statements)) < len(statements)
    assert explained_rows(context, 2) == [everything[0], everything[-1]]
    assert explained_rows(context, 0) == []
