"""Metrics survive their JSON file, and the table shows value, interval and chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aga.errors import DataError
from aga.evaluation.metrics import Metric, Metrics, format_table, read_metrics, write_metrics

RETRIEVAL = Metrics(
    "retrieval",
    {
        "retrieval/text_to_image/recall_at_10": Metric(0.8125, 0.75, 0.875, 0.025, 400),
        "retrieval/text_to_image/median_rank": Metric(3.0, 2.0, 5.0, 200.0, 400),
        "retrieval/mean_recall_at_10": Metric(0.7, None, None, 0.025, 400),
    },
    {"gallery_sha256": "ab", "rows": 400},
)
ZERO_SHOT = Metrics("zero_shot", {}, {"omitted": {"nodule": {"positives": 2}}})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_metrics([ZERO_SHOT, RETRIEVAL], tmp_path)
    assert read_metrics(tmp_path) == [RETRIEVAL, ZERO_SHOT]
    document = json.loads((tmp_path / "retrieval.json").read_text())
    numbers = {"value": 0.8125, "low": 0.75, "high": 0.875, "chance": 0.025, "n": 400}
    assert document["metrics"][0] == {"name": "retrieval/text_to_image/recall_at_10", **numbers}


def test_dvc_shows_headlines_only(tmp_path: Path) -> None:
    """DVC makes a column of every number and text outside lists."""
    document = RETRIEVAL.to_json()
    columns = {name: value for name, value in document.items() if not isinstance(value, list)}
    assert columns == {"mean_recall_at_10": 0.7}


def test_missing_tasks_are_skipped_and_damaged_files_are_named(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    for damaged in ("{", '{"mean_recall_at_10": 1}', '{"metrics": [{"name": "x"}]}'):
        (tmp_path / "retrieval.json").write_text(damaged)
        with pytest.raises(DataError, match=r"retrieval\.json"):
            read_metrics(tmp_path)


def test_flat_names_are_full_names() -> None:
    assert RETRIEVAL.flat()["retrieval/mean_recall_at_10"] == 0.7


def test_the_table_shows_each_metric_on_an_aligned_line() -> None:
    lines = format_table([RETRIEVAL, ZERO_SHOT]).splitlines()
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["metric", "value", "interval", "chance", "n"]
    assert lines[2].split() == [
        "retrieval/text_to_image/recall_at_10", "0.812", "[0.750,", "0.875]", "0.025", "400",
    ]  # fmt: skip
    assert "[-, -]" in lines[4]
