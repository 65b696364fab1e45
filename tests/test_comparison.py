"""The comparison of the objectives: its settings are valid, its statistics are right."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy import stats

from benchmarks import comparison
from benchmarks.comparison import cell_params, data_settings, merged, settings
from benchmarks.comparison.statistics import Interval, difference, mean_ranks
from benchmarks.comparison.table import page

STAGES = YAML(typ="safe").load((comparison.FOLDER / "dvc.yaml").read_text())["stages"]
SETTINGS = settings()
CANDIDATES = [
    (name, number)
    for name, entry in SETTINGS["variants"].items()
    for number in range(len(entry.get("candidates", [])))
]


def row(variant: str, seed: int, value: float, pairs: int = 500) -> dict:
    metrics = {"retrieval/mean_recall_at_10": value, "zero_shot/mean_auroc": value / 2}
    return {
        "data": "phantom",
        "variant": variant,
        "pairs": pairs,
        "seed": seed,
        "metrics": metrics,
        "chance": {"zero_shot/mean_auroc": 0.5},
    }


@pytest.mark.parametrize(("variant", "number"), CANDIDATES)
def test_every_candidate_is_valid(variant: str, number: int) -> None:
    entry = SETTINGS["variants"][variant]
    overlay = merged(entry["overlay"], entry["candidates"][number])
    assert cell_params(overlay, "phantom", 500, 0).objective.name == overlay["objective"]["name"]


def test_every_objective_has_the_same_budget() -> None:
    counts = {
        len(entry["candidates"]) for entry in SETTINGS["variants"].values() if "like" not in entry
    }
    assert len(counts) == 1


@pytest.mark.parametrize("name", [n for n, e in SETTINGS["variants"].items() if "like" in e])
def test_every_ablation_is_valid_and_changes_something(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "TUNED", tmp_path)
    like = SETTINGS["variants"][name]["like"]
    (tmp_path / f"{like}.json").write_text(
        json.dumps({"best": {"optimizer": {"weight_decay": 0.3}}})
    )
    changed, whole = (cell_params(comparison.chosen(n), "phantom", 500, 0) for n in (name, like))
    assert changed.objective != whole.objective
    assert changed.optimizer == whole.optimizer


@pytest.mark.parametrize("data", [*STAGES["data"]["matrix"]["data"]])
def test_every_data_set_is_valid(data: str) -> None:
    params = cell_params({}, data, None, 3)
    assert params.seed == 3
    assert params.training.pairs is None
    steps_per_epoch = data_settings(data)["pairs"] // params.training.batch_size
    steps = params.training.epochs * steps_per_epoch
    assert abs(steps - data_settings(data)["steps"]) <= steps_per_epoch / 2
    if data.startswith("covid-"):
        assert params.prepare.split.fold == int(data[-1])


def test_the_grids_name_what_the_settings_hold() -> None:
    objectives = [n for n, e in SETTINGS["variants"].items() if "candidates" in e]
    for name, stage in STAGES.items():
        variants = stage.get("matrix", {}).get("variant", [])
        known = objectives if variants == "${objectives}" else variants
        assert set(known) <= set(SETTINGS["variants"]), name
    shown = {n for names in SETTINGS["table"]["sections"].values() for n in names}
    assert shown == set(SETTINGS["variants"])


def test_an_interval_is_students() -> None:
    values = [0.1, 0.4, 0.3]
    found = Interval.of(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert math.isnan(Interval.of([0.5]).half)
    assert Interval.of([0.5]).text() == "0.500"


def test_differences_are_paired_by_seed() -> None:
    """A common shift of the seeds, however large, leaves no spread in the difference."""
    one = [row("a", seed, 0.5 + seed) for seed in range(4)]
    other = [row("b", seed, 0.2 + seed) for seed in (3, 1, 0)]
    found = difference(one, other, "retrieval/mean_recall_at_10")
    assert found is not None
    assert (found.mean, found.half, found.seeds) == pytest.approx((0.3, 0.0, 3))


def test_mean_ranks_share_ties() -> None:
    cells = {name: [row(name, 0, value)] for name, value in (("a", 0.9), ("b", 0.5), ("c", 0.5))}
    metrics = ["retrieval/mean_recall_at_10", "zero_shot/mean_auroc", "lacking"]
    assert mean_ranks(cells, metrics) == {"a": 1.0, "b": 2.5, "c": 2.5}


def test_the_page_shows_every_cell_and_marks_what_is_certain() -> None:
    rows = [
        row(name, seed, value + seed / 100, pairs)
        for name, value in (("clip", 0.5), ("aga", 0.7))
        for seed, pairs in product(range(3), (500, 1000))
    ]
    text = "\n".join(page(rows, SETTINGS["table"]))
    assert text.count("| `aga` | 3 | 0.710 ±0.025 |") == 2
    assert "**+0.200 ±0.000**" in text
    assert "| chance |" in text
