"""Which of the examined rows are used; the others are rejected, beside what they contradict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from aga.data.preparing.assemble import RejectsWriter, Segment
from aga.data.preparing.parts import RowFacts, read_facts
from aga.data.preparing.tally import Tally
from aga.data.splitting.conflicts import Strictest
from aga.data.views import ViewsConfig, stand_for_their_study


def chosen_rows(
    parts: Sequence[Path], folder: Path, views: ViewsConfig, strictest: Strictest | None
) -> tuple[Tally, list[Segment]]:
    """Decide which rows are used, and write the others to the rejects.

    Args:
        parts: Files of examined rows, in their order.
        folder: Receives `rejects.parquet`.
        views: Which images of a study are used.
        strictest: Rejects rows that another of the source's splits has, too; None rejects none.
    """
    chosen = None
    if views.keep == "one_per_study":
        chosen = stand_for_their_study((n, r.study_id, r.view) for n, r in usable_rows(parts))
    tally, segments = Tally(chosen, strictest), []
    with closing(RejectsWriter(folder)) as writer:
        for part in parts:
            kept, rejects = tally.take_all(read_facts(part))
            segments.append(Segment(part, kept))
            writer.add(rejects)
    return tally, segments


def usable_rows(parts: Sequence[Path]) -> Iterator[tuple[int, RowFacts]]:
    """The rows with which nothing is wrong, each with its number among all."""
    rows = enumerate(row for part in parts for row in read_facts(part))
    return ((number, row) for number, row in rows if isinstance(row, RowFacts))
