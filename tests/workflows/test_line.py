"""The whole line under real DVC: raw phantom to report, and a second `repro` that does nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fixtures.project import run_in, small_project
from mlflow import MlflowClient

from aga.evaluation.metrics import TASKS
from aga.params import apply_overlay, load_params, parse_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = small_project(tmp_path_factory.mktemp("line"), "phantom.corrupt_fraction=0.05")
    run_in(project, "python", "workflows/demo.py", "--help")
    run_in(project, "dvc", "repro")
    return project


def test_every_stage_leaves_what_it_declares(line: Path) -> None:
    for name in ("prepare", "tokenize", "pretrain", *TASKS, "promotion"):
        assert json.loads((line / f"metrics/{name}.json").read_text()), name
    for task in TASKS:
        assert json.loads((line / f"metrics/{task}.json").read_text())["metrics"], task
    registered = json.loads((line / "models/registered.json").read_text())
    assert registered["version"] == 1
    assert len(registered["bundle_sha256"]) == 64
    assert (line / "reports/report.html").stat().st_size > 10_000


def test_damaged_rows_are_counted_by_reason_and_none_is_lost(line: Path) -> None:
    summary = json.loads((line / "metrics/prepare.json").read_text())
    assert summary["rejects"]
    assert summary["rows"] == summary["used"] + sum(summary["rejects"].values())


def test_a_second_repro_does_nothing_and_is_quick(line: Path) -> None:
    start = time.monotonic()
    done = run_in(line, "dvc", "repro")
    assert "Running stage" not in done.stdout
    assert time.monotonic() - start < 60, "a no-op must not import what it does not need"


def test_metrics_plots_and_dag_are_shown(line: Path) -> None:
    assert "mean_recall_at_10" in run_in(line, "dvc", "metrics", "show").stdout
    assert "evaluate" in run_in(line, "dvc", "dag").stdout
    run_in(line, "dvc", "plots", "show")
    assert "loss/train" in (line / "dvc_plots/index.html").read_text()


def test_a_library_edit_reruns_only_what_depends_on_it(line: Path) -> None:
    module = line / "aga/evaluation/retrieval.py"
    original = module.read_text()
    module.write_text(original + "\n# an edit\n")
    try:
        status = json.loads(run_in(line, "dvc", "status", "--json").stdout)
    finally:
        module.write_text(original)
    assert "evaluate" in status
    assert not {"phantom", "prepare", "tokenize", "pretrain"} & status.keys()


def test_git_stays_clean_of_data_and_models(line: Path) -> None:
    changed = run_in(line, "git", "status", "--porcelain", "-uall").stdout.split()[1::2]
    assert set(changed) <= {"dvc.lock"}, changed


def test_going_back_to_earlier_settings_takes_the_aliases_along(line: Path) -> None:
    """DVC knows the results of A from before; the registry it does not know, so stages must run."""
    settings = line / "params.yaml"
    settings_a = settings.read_text()
    first = json.loads((line / "models/registered.json").read_text())
    apply_overlay(settings, parse_settings(["optimizer.learning_rate=2.0e-3"]))
    try:
        run_in(line, "dvc", "repro", "promote")
        second = json.loads((line / "models/registered.json").read_text())
    finally:
        settings.write_text(settings_a)
    again = run_in(line, "dvc", "repro", "promote").stdout
    assert "Running stage 'pretrain'" not in again
    assert second["bundle_sha256"] != first["bundle_sha256"]
    assert json.loads((line / "models/registered.json").read_text()) == first

    params = load_params(settings)
    store = f"sqlite:///{line / 'mlflow.db'}"
    aliases = MlflowClient(store, store).get_registered_model(params.registry.model).aliases
    decision = json.loads((line / "metrics/promotion.json").read_text())
    assert decision["candidate"] == first["version"] == int(aliases["candidate"])
    champion = decision["candidate"] if decision["promoted"] else decision["champion"]
    assert int(aliases["champion"]) == champion
