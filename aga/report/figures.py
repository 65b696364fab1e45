"""Training curves as SVG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# The page's own ink; distinguishable in grey and for the colour-blind, as line styles differ too.
COLOURS = ("#0b5cad", "#c2570c", "#3d7a4e", "#7a3e9d")
STYLES = ("-", "--", "-.", ":")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b6670",
    "axes.grid": True,
    "grid.color": "#e3e8ec",
    "svg.hashsalt": "aga",  # equal data, equal bytes
}

Series = Mapping[str, Sequence[float | None]]


def line_chart(
    x: Sequence[float], series: Series, label: str, *, share: bool, marked: int | None
) -> str:
    """A line chart over epochs.

    Args:
        x: Epochs.
        series: Values by name of the line; None leaves a gap.
        label: What the values are.
        share: Whether they lie in [0, 1], and the chart spans it.
        marked: An epoch to mark: the exported one; None marks none.

    Returns:
        An SVG data URI.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour, style in zip(series.items(), COLOURS, STYLES, strict=False):
            heights = [float("nan") if value is None else value for value in values]
            marker = "o" if len(x) == 1 else ""
            axes.plot(x, heights, style, marker=marker, color=colour, label=name, linewidth=1.8)
        if marked is not None:
            axes.axvline(marked, color="#5b6670", linewidth=1, linestyle=":")
            axes.annotate(
                "exported",
                (marked, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-4, -12),
                textcoords="offset points",
                ha="right",
                color="#5b6670",
                fontsize=8,
            )
        if share:
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        buffer = io.BytesIO()
        # Without metadata: it would name web addresses and the time.
        keys = ("Creator", "Date", "Format", "Type")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(keys))
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
