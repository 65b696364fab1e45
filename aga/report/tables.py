"""The tables of measured numbers: which metric stands in which row and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aga.evaluation import Metric

# Scores of grounding as the metrics and as the page call them.
SCORES = {
    "pointing_game": "pointing game, clause",
    "word_pointing_game": "pointing game, word",
    "miou": "IoU, clause",
    "word_miou": "IoU, word",
    "cnr": "contrast, clause",
    "word_cnr": "contrast, word",
    "side_accuracy": "side accuracy",
    "side_mass": "heat in the named lung",
}


@dataclass(frozen=True)
class Table:
    """Rows by name; each has a metric, or None, for each column."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Metric | None]]


def retrieval_rows(measured: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row per metric; the columns are duplicate-aware and exact."""
    rows = []
    for ranking, after in (("", ""), ("rerank/", ", re-ranked")):
        for direction in ("text_to_image", "image_to_text"):
            prefix = f"retrieval/{ranking}{direction}/"
            for name, metric in measured.items():
                if name.startswith(prefix) and not name.endswith("_exact"):
                    rows.append(
                        {
                            "direction": direction.replace("text", "report").replace("_", " ")
                            + after,
                            "name": name.removeprefix(prefix).replace("_", " "),
                            "aware": metric,
                            "exact": measured.get(f"{name}_exact"),
                        }
                    )
    return rows


def probe_table(measured: Mapping[str, Metric]) -> Table:
    """Findings by share of the labels, and their mean as the last row."""
    prefix, mean = "probe/auroc_at_", "probe/mean_auroc_at_"
    percents = [name.removeprefix(mean) for name in measured if name.startswith(mean)]
    known = [name.removeprefix(prefix) for name in measured if name.startswith(prefix)]
    findings = dict.fromkeys(name.partition("/")[2] for name in known)
    rows = {
        finding: [measured.get(f"{prefix}{percent}/{finding}") for percent in percents]
        for finding in findings
    }
    if percents:
        rows["mean of the findings"] = [measured.get(f"{mean}{percent}") for percent in percents]
    return Table([f"{percent} % of the labels" for percent in percents], rows)


def grounding_table(measured: Mapping[str, Metric]) -> Table:
    """Findings by score, those that were measured, and all mentions as the last row."""
    scores = [score for score in SCORES if f"grounding/{score}" in measured]
    known = [name.split("/") for name in measured if name.startswith("grounding/")]
    findings = dict.fromkeys(parts[2] for parts in known if len(parts) == 3)
    rows = {
        finding: [measured.get(f"grounding/{score}/{finding}") for score in scores]
        for finding in findings
    }
    if scores:
        rows["all mentions"] = [measured[f"grounding/{score}"] for score in scores]
    return Table([SCORES[score] for score in scores], rows)
