"""Write docs/results.md and its plot from the rows of all cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.comparison import PROJECT, RESULTS, settings
from benchmarks.comparison.statistics import Interval, Row, difference, mean_ranks, values

mpl.use("svg")
from matplotlib import pyplot as plt

PAGE = PROJECT / "docs/results.md"
PLOT = PROJECT / "docs/results.svg"


def main() -> None:
    """Read every row, write the page and the plot."""
    chosen = settings()["table"]
    rows = [
        r for path in sorted(RESULTS.glob("*.json")) for r in json.loads(path.read_text("utf-8"))
    ]
    PAGE.write_text("\n".join([*page(rows, chosen), ""]), encoding="utf-8")
    plot(rows, chosen, PLOT)


def page(rows: Sequence[Row], chosen: Mapping[str, Any]) -> Iterator[str]:
    """The lines of docs/results.md.

    Args:
        rows: What the cells left.
        chosen: `table` of the settings: metrics with their headings, objectives, ablations.
    """
    yield from chosen["introduction"].strip().splitlines()
    metrics: Mapping[str, str] = chosen["metrics"]
    shown: set[tuple[str, int, str]] = set()
    for title, names in chosen["sections"].items():
        for data, pairs in sorted({(r["data"].partition("-")[0], r["pairs"] or 0) for r in rows}):
            cells = grouped(rows, data, pairs or None, names)
            told = {(data, pairs, name) for name in cells}
            if len(told) < 2 or told <= shown:  # nothing to compare, or a table above says it
                continue
            shown |= told
            yield from ("", f"## {title}: {data}, {pairs or 'all'} training pairs", "")
            yield from score_table(cells, metrics)
            if chosen["reference"] in cells:
                yield from ("", f"Differences from `{chosen['reference']}`, paired by seed:", "")
                yield from difference_table(cells, metrics, chosen["reference"])


def grouped(
    rows: Sequence[Row], data: str, pairs: int | None, names: Sequence[str]
) -> dict[str, list[Row]]:
    """The rows of one data set and size by variant, in the order of `names`.

    Folds of cross-validation count as seeds do.
    """
    cells: dict[str, list[Row]] = {}
    for name in names:
        found: list[Row] = [
            {**row, "seed": (row["data"], row["seed"])}
            for row in rows
            if row["variant"] == name
            and row["data"].partition("-")[0] == data
            and row["pairs"] == pairs
        ]
        if found:
            cells[name] = found
    return cells


def score_table(cells: Mapping[str, Sequence[Row]], metrics: Mapping[str, str]) -> Iterator[str]:
    """A row for each variant: seeds, mean and interval of each metric, mean rank; then chance."""
    kept = [m for m in metrics if any(values(found, m) for found in cells.values())]
    ranks = mean_ranks(cells, kept)
    yield "| | seeds | " + " | ".join(metrics[m] for m in kept) + " | mean rank |"
    yield "|---|---|" + "---|" * (len(kept) + 1)
    for name, found in cells.items():
        texts = [_text(list(values(found, metric).values())) for metric in kept]
        rank = f"{ranks[name]:.1f}" if name in ranks else ""
        yield f"| `{name}` | {len(found)} | " + " | ".join([*texts, rank]) + " |"
    chance = next(iter(cells.values()))[0]["chance"]
    texts = [f"{chance[m]:.3f}" if m in chance else "" for m in kept]
    yield "| chance | | " + " | ".join([*texts, ""]) + " |"


def difference_table(
    cells: Mapping[str, Sequence[Row]], metrics: Mapping[str, str], reference: str
) -> Iterator[str]:
    """A row for each variant but the reference; bold where the interval does not hold 0."""
    kept = [m for m in metrics if values(cells[reference], m)]
    yield "| | " + " | ".join(metrics[m] for m in kept) + " |"
    yield "|---|" + "---|" * len(kept)
    for name, found in cells.items():
        if name == reference:
            continue
        intervals = [difference(found, cells[reference], metric) for metric in kept]
        yield f"| `{name}` | " + " | ".join(_signed(i) if i else "" for i in intervals) + " |"


def plot(rows: Sequence[Row], chosen: Mapping[str, Any], path: Path) -> None:
    """Learning curves: each plotted metric against the number of pairs, with intervals."""
    metrics: Mapping[str, str] = chosen["plotted"]
    figure, axes = plt.subplots(1, len(metrics), figsize=(4 * len(metrics), 3.6))
    for axis, (metric, label) in zip(axes, metrics.items(), strict=True):
        for name in chosen["curves"]:
            own = [r for r in rows if r["variant"] == name and r["data"] == "phantom"]
            sizes = sorted({r["pairs"] for r in own if r["pairs"]})
            found = [
                list(values([r for r in own if r["pairs"] == n], metric).values()) for n in sizes
            ]
            points = [(n, Interval.of(v)) for n, v in zip(sizes, found, strict=True) if v]
            axis.errorbar(
                [n for n, _ in points],
                [interval.mean for _, interval in points],
                [interval.half for _, interval in points],
                marker="o",
                markersize=3,
                capsize=2,
                label=name,
            )
        axis.set(xscale="log", xlabel="training pairs", title=label)
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _text(found: list[float]) -> str:
    return Interval.of(found).text() if found else ""


def _signed(interval: Interval) -> str:
    text = interval.text(signed=True)
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


if __name__ == "__main__":
    main()
