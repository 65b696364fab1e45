"""What a task returns: named metrics with intervals and chance, as JSON and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aga.errors import DataError
from aga.evaluation.bootstrap import Estimate

# Names of the tasks, in the order in which they are shown; each writes `<task>.json`.
TASKS = ("retrieval", "zero_shot", "probe", "grounding")


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Attributes:
        value: The number on the rows as they are.
        low: Lower end of its bootstrap interval; None where no resample defines it.
        high: Upper end.
        chance: What a model that knows nothing reaches on the same rows.
        n: Rows it was measured on.
    """

    value: float
    low: float | None
    high: float | None
    chance: float
    n: int

    @classmethod
    def of(cls, estimate: Estimate, chance: float, n: int) -> Metric:
        """The metric of a bootstrap estimate."""
        low, high = (None if math.isnan(end) else end for end in (estimate.low, estimate.high))
        return cls(estimate.value, low, high, chance, n)


@dataclass(frozen=True)
class Metrics:
    """The result of one task.

    Attributes:
        task: Name of the task; the first part of every metric's name.
        values: Metric by full name: `retrieval/text_to_image/recall_at_10`.
        provenance: What was measured with and on: hashes, versions, counts. No patient data.
    """

    task: str
    values: Mapping[str, Metric]
    provenance: Mapping[str, object] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Value by full name, for the registry and for tracking."""
        return {name: metric.value for name, metric in self.values.items()}

    @property
    def measured_on(self) -> str:
        """Hashes of the test pairs, and of prompts, words or training pairs that the task uses.

        Equal where numbers are comparable.

        Raises:
            KeyError: The provenance does not state the test pairs.
        """
        used = ("prompts_sha256", "words_sha256", "training_sha256")
        hashes = [self.provenance[name] for name in used if name in self.provenance]
        return " ".join(map(str, [self.provenance["gallery_sha256"], *hashes]))

    def to_json(self) -> dict[str, Any]:
        """Headlines, then everything.

        `dvc metrics show` makes a column of each number and text but skips lists. So the headlines
        (names of one part: `retrieval/mean_recall_at_10`) are plain numbers, and the full metrics
        and the provenance are lists of records.
        """
        headlines = {
            name.partition("/")[2]: metric.value
            for name, metric in self.values.items()
            if name.count("/") == 1
        }
        return {
            **headlines,
            "metrics": [{"name": name, **asdict(metric)} for name, metric in self.values.items()],
            "provenance": [{"name": n, "value": value} for n, value in self.provenance.items()],
        }

    @classmethod
    def from_json(cls, task: str, document: Mapping[str, Any]) -> Metrics:
        """The inverse of `to_json`; KeyError or TypeError if the document is something else."""
        numbers = [number.name for number in fields(Metric)]
        values = {
            record["name"]: Metric(**{name: record[name] for name in numbers})
            for record in document["metrics"]
        }
        provenance = {record["name"]: record["value"] for record in document["provenance"]}
        return cls(task, values, provenance)


def write_metrics(results: Sequence[Metrics], folder: Path) -> None:
    """Write each task's `<folder>/<task>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        text = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        (folder / f"{result.task}.json").write_text(text, encoding="utf-8")


def read_metrics(folder: Path) -> list[Metrics]:
    """Read what `write_metrics` wrote: the files of `TASKS` that are there, in that order.

    Raises:
        DataError: A file holds something else.
    """
    results = []
    for task in TASKS:
        path = folder / f"{task}.json"
        if not path.is_file():
            continue
        try:
            results.append(Metrics.from_json(task, json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "A metrics file cannot be read",
                where=path,
                got=f"{type(error).__name__}: {error}",
                fix="run workflows/evaluate.py again",
            ) from error
    return results


def format_table(results: Sequence[Metrics]) -> str:
    """A text table of every metric: value, interval, chance, rows."""
    header = ("metric", "value", "interval", "chance", "n")
    rows = [
        (name, *_cells(metric), str(metric.n))
        for result in results
        for name, metric in result.values.items()
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for name, *cells in [header, tuple("-" * width for width in widths), *rows]:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def format_number(value: float | None) -> str:
    """Three decimals for shares, one for ranks and other large numbers, a dash for none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"


def _cells(metric: Metric) -> tuple[str, str, str]:
    interval = f"[{format_number(metric.low)}, {format_number(metric.high)}]"
    return format_number(metric.value), interval, format_number(metric.chance)
