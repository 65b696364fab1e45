"""The page: inputs, the numbers of each section, and the rendered file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from aga.bundle import load_bundle
from aga.data.studies import DatasetInfo, StudyDataset
from aga.errors import DataError
from aga.evaluation import Metrics, read_metrics
from aga.evaluation.metrics import format_number
from aga.report import ReportPageConfig
from aga.report.examples import Example, examples
from aga.report.figures import line_chart
from aga.report.tables import grounding_table, probe_table, retrieval_rows

HEADLINES = {
    "retrieval/mean_recall_at_10": (
        "Recall at 10",
        "the right answer is among the first ten, mean of image to report and report to image",
    ),
    "zero_shot/mean_auroc": (
        "Zero-shot AUROC",
        "mean over findings, from prompts alone, without training on labels",
    ),
    "grounding/word_pointing_game": (
        "Pointing game",
        "the word of a finding looks hardest at a patch inside the finding's box",
    ),
}


@dataclass(frozen=True)
class Chart:
    """Lines that share one picture.

    Attributes:
        title: What it shows.
        label: What the values are.
        columns: Column of the history by name of the line.
        share: Whether the values lie in [0, 1].
    """

    title: str
    label: str
    columns: Mapping[str, str]
    share: bool = False


CURVES = (
    Chart("Loss", "loss", {"training": "loss/train", "validation": "loss/validation"}),
    Chart(
        "Validation recall at 10",
        "recall",
        {
            "mean": "retrieval/mean_recall_at_10",
            "image to report": "retrieval/image_to_text_recall_at_10",
            "report to image": "retrieval/text_to_image_recall_at_10",
        },
        share=True,
    ),
    Chart(
        "Terms of the training loss",
        "weighted loss",
        {
            "global contrast": "loss/train/contrast",
            "in-pair groups (IGA)": "loss/train/iga",
            "groups, both ways (BCGA)": "loss/train/bcga",
        },
    ),
)
GATES = (
    Chart(
        "Thresholds of the gates",
        "mean threshold",
        {
            "of tokens": "diagnostics/gate/token_threshold_mean",
            "of patches": "diagnostics/gate/patch_threshold_mean",
        },
    ),
    Chart(
        "Mean group size",
        "elements",
        {
            "patches of a token": "diagnostics/group/visual_size",
            "tokens of a patch": "diagnostics/group/language_size",
        },
    ),
    Chart(
        "Groups that choose nothing in particular",
        "share of groups",
        {
            "tokens: all patches": "diagnostics/group/visual_full",
            "tokens: one patch": "diagnostics/group/visual_single",
            "patches: all tokens": "diagnostics/group/language_full",
            "patches: one token": "diagnostics/group/language_single",
        },
        share=True,
    ),
    Chart(
        "Spread of the global embeddings",
        "standard deviation",
        {
            "images": "diagnostics/embedding/image_std",
            "reports": "diagnostics/embedding/text_std",
        },
    ),
)


@dataclass(frozen=True)
class ReportInputs:
    """Where the stages left what the page is made of. What is not there is said to be missing.

    Attributes:
        metrics: Folder of `prepare.json`, `tokenize.json`, `retrieval.json`, ...
        history: `plots/training.csv`: one row per epoch.
        studies: Folder of the prepared pairs.
        cache: Folder of the uncompressed pixel cache.
        bundle: Folder of the encoder that was measured.
        provenance: What else to state, by name: git commit, model version, ...
    """

    metrics: Path
    history: Path
    studies: Path
    cache: Path
    bundle: Path
    provenance: Mapping[str, str] = field(default_factory=dict)


def build_report(out: Path, inputs: ReportInputs, config: ReportPageConfig) -> None:
    """Write the page to `out`, replacing it in one step; its folder is made.

    Raises:
        DataError: A file of the stages is damaged.
        CheckpointError: The bundle is damaged.
    """
    page = _environment().get_template("report.html.j2").render(_context(inputs, config))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)


def _context(inputs: ReportInputs, config: ReportPageConfig) -> dict[str, Any]:
    history = _read_history(inputs.history)
    results = read_metrics(inputs.metrics)
    measured = {name: metric for result in results for name, metric in result.values.items()}
    prepared, pretrained = (
        _read_json(inputs.metrics / f"{stage}.json") for stage in ("prepare", "pretrain")
    )
    dataset = StudyDataset.open(inputs.studies).info if inputs.studies.is_dir() else None
    withheld = _withheld(dataset, config)
    exported = int(pretrained["best_epoch"]) if "best_epoch" in pretrained else None
    return {
        "title": f"Encoder report: {dataset.source}" if dataset else "Encoder report",
        "headlines": [
            {"name": name, "meaning": meaning, "metric": measured[key]}
            for key, (name, meaning) in HEADLINES.items()
            if key in measured
        ],
        "dataset": dataset,
        "prepared": prepared,
        "stages": {
            stage: _flat(_read_json(inputs.metrics / f"{stage}.json"))
            for stage in ("tokenize", "pretrain", "promotion")
        },
        "epochs": len(history),
        "exported": exported,
        "curves": _charts(CURVES, history, exported),
        "gates": _charts(GATES, history, exported),
        "results": {result.task: result for result in results},
        "retrieval": retrieval_rows(measured),
        "zero_shot": {
            name.removeprefix("zero_shot/auroc/"): metric
            for name, metric in measured.items()
            if name.startswith("zero_shot/auroc/")
        },
        "mean_auroc": measured.get("zero_shot/mean_auroc"),
        "probe": probe_table(measured),
        "grounding": grounding_table(measured),
        "examples": [] if withheld else _examples(inputs, config.pairs),
        "withheld": withheld,
        "provenance": _provenance(inputs, results),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("aga", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["count"] = lambda value: f"{value:,}".replace(",", "\u202f")
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    return environment


def _withheld(dataset: DatasetInfo | None, config: ReportPageConfig) -> str | None:
    """What forbids images and report texts: `setting`, or `source`; None if they may be shown."""
    if not config.show_images:
        return "setting"
    return "source" if dataset is not None and not dataset.may_be_shown else None


def _examples(inputs: ReportInputs, count: int) -> list[Example]:
    if not inputs.bundle.is_dir() or not inputs.studies.is_dir():
        return []
    bundle, studies = load_bundle(inputs.bundle), StudyDataset.open(inputs.studies)
    return examples(bundle, studies, inputs.cache, count)


def _charts(
    charts: Sequence[Chart], history: Sequence[Mapping[str, float | None]], exported: int | None
) -> list[dict[str, str]]:
    """Charts with at least one column in the history; each with its last values as text."""
    known = set(history[0]) if history else set()
    drawn = []
    for chart in charts:
        columns = {name: column for name, column in chart.columns.items() if column in known}
        if not columns:
            continue
        series = {name: [row[column] for row in history] for name, column in columns.items()}
        epochs = [float(row["epoch"] or 0) for row in history]
        last = ", ".join(f"{name} {format_number(line[-1])}" for name, line in series.items())
        drawn.append(
            {
                "title": chart.title,
                "picture": line_chart(
                    epochs, series, chart.label, share=chart.share, marked=exported
                ),
                "description": f"{chart.title} over {len(epochs)} epochs; at the end: {last}",
            }
        )
    return drawn


def _provenance(inputs: ReportInputs, results: Sequence[Metrics]) -> dict[str, str]:
    stated = dict(inputs.provenance)
    for result in results:
        for name, value in result.provenance.items():
            if isinstance(value, str | int):
                stated.setdefault(name.replace("_", " "), str(value))
    return stated


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested JSON by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = _shown(value)
    return leaves


def _shown(value: Any) -> Any:
    """Floats in few digits; whole ones, as counts become in a CSV or JSON file, without any."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else format_number(value)


def _read_json(path: Path) -> dict[str, Any]:
    """A stage's JSON object; empty where the stage has not run."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError("A metrics file is not JSON", where=path, got=error) from error
    return dict(document)


def _read_history(path: Path) -> list[dict[str, float | None]]:
    """Rows of the training history; an empty cell is None."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {name: float(cell) if cell else None for name, cell in row.items()}
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError) as error:
        raise DataError(
            "The training history is not a table of numbers", where=path, got=error
        ) from error
