"""The data card: what a prepared folder holds, in numbers that name nobody.

A page for the people who decide about a data set. It has no text, no image and no identifier. A
number that stands for fewer than `min_patients` patients (of rejects, whose patients are not known,
rows) is not shown, and neither is the name of such a group: a view or a finding that one patient
has may be that patient's name. All other numbers are rounded to a multiple of `min_patients`, so
that none can be found by subtraction. Sources that may be shown are shown exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from aga.config import Config
from aga.data.schema import SPLITS
from aga.data.shards import image_shards, read_pixels
from aga.data.studies import REJECTS_FILE, StudyDataset
from aga.data.text.boilerplate import KINDS

BINS = 32  # of the intensity histogram
NOT_STATED = "not stated"
QUARTILES = (25, 50, 75)


class CardConfig(Config):
    """What the data card may say.

    Attributes:
        min_patients: Numbers that stand for fewer patients are not shown, the others are rounded to
            a multiple of it. 1 shows everything.
    """

    min_patients: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Discretion:
    """Turns counts into what may be shown of them.

    Attributes:
        least: Fewest patients that a number may stand for, and what numbers are rounded to.
    """

    least: int

    def shown(self, count: int, patients: int) -> str:
        """A count as text.

        Args:
            count: What is counted.
            patients: Of how many patients it is.
        """
        if not count:
            return "0"
        if patients < self.least:
            return f"< {self.least}"
        return f"{self.least * round(count / self.least):,}".replace(",", "\u202f")


@dataclass(frozen=True)
class Table:
    """A table of the card: a row of texts per group, a column per split.

    Attributes:
        title: What is counted.
        columns: Heads of the columns after the first.
        rows: Name of the group, and its cells.
        left_out: Groups of too few patients, of which only the number is told.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    left_out: int = 0


@dataclass(frozen=True)
class Histogram:
    """Intensities of the prepared pixels of a split.

    Attributes:
        split: Which.
        mean: Of all samples, 0 to 255.
        deviation: Standard deviation.
        shares: Share of the samples in each of `BINS` equal bins.
    """

    split: str
    mean: float
    deviation: float
    shares: Sequence[float]


def build_card(out: Path, studies: Path, config: CardConfig) -> None:
    """Write the page, one self-contained HTML file, in one step; its folder is made.

    Args:
        out: The page.
        studies: Folder that `prepare` wrote.
        config: What it may say.

    Raises:
        DataError: The studies are missing or damaged.
        ModuleNotFoundError: jinja2 is missing: `pip install 'aga[report]'`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    dataset = StudyDataset.open(studies)
    environment = Environment(
        loader=PackageLoader("aga", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("data_card.html.j2").render(contents(dataset, config))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)


def contents(dataset: StudyDataset, config: CardConfig) -> dict[str, Any]:
    """All that the page says, by the names of its template."""
    discretion = Discretion(1 if dataset.info.may_be_shown else config.min_patients)
    groups = _Groups(dataset, discretion)
    views = dataset.column("view").fill_null(NOT_STATED).to_pylist()
    sections = dataset.column("section").to_pylist()
    tables = [
        groups.table("Pairs", {"pairs": np.ones(dataset.info.rows, bool)}),
        groups.patients(),
        groups.table("Views", _indicators(views)),
        groups.table("Part of the report that is used", _indicators(sections)),
        *_label_tables(dataset, groups),
        groups.quartiles("Characters of the used text", _lengths(dataset)),
        groups.quartiles("Height of the original images, pixels", _numbers(dataset, "height")),
        groups.quartiles("Width of the original images, pixels", _numbers(dataset, "width")),
        _rejects(dataset, discretion),
    ]
    return {
        "info": dataset.info,
        "settings": json.dumps(_settings(dataset.info.config), indent=1, ensure_ascii=False),
        "least": discretion.least,
        "tables": [table for table in tables if table.rows or table.left_out],
        "histograms": list(_histograms(dataset, groups)),
    }


class _Groups:
    """Rows by split and patient."""

    def __init__(self, dataset: StudyDataset, discretion: Discretion) -> None:
        splits = np.asarray(dataset.column("split").to_pylist())
        self.of = {split: splits == split for split in SPLITS}
        encoded = dataset.column("patient_id").combine_chunks().dictionary_encode()
        self._patient = np.asarray(encoded.indices)
        self._discretion = discretion

    def count(self, chosen: npt.NDArray[np.bool_]) -> int:
        """Patients of some rows."""
        return int(np.unique(self._patient[chosen]).size)

    def table(self, title: str, groups: Mapping[str, npt.NDArray[np.bool_]]) -> Table:
        """Rows of each group in each split; the largest groups first."""
        rows = []
        for name, chosen in sorted(groups.items(), key=lambda item: (-item[1].sum(), item[0])):
            if self.count(chosen) >= self._discretion.least:
                rows.append((name, [self._cell(chosen & split) for split in self.of.values()]))
        return Table(title, SPLITS, rows, len(groups) - len(rows))

    def patients(self) -> Table:
        """Patients of each split."""
        counts = [self.count(split) for split in self.of.values()]
        cells = [self._discretion.shown(count, count) for count in counts]
        return Table("Patients", SPLITS, [("patients", cells)])

    def quartiles(self, title: str, values: npt.NDArray[np.float64]) -> Table:
        """Quartiles of a number of each row; none of a split of too few patients."""
        measured = [self._quartiles(values[split], split) for split in self.of.values()]
        names = ("first quartile", "median", "third quartile")
        rows = [(name, [cells[place] for cells in measured]) for place, name in enumerate(names)]
        return Table(title, SPLITS, rows)

    def may_be_described(self, split: npt.NDArray[np.bool_]) -> bool:
        """Whether a split has enough patients."""
        return self.count(split) >= self._discretion.least

    def _cell(self, chosen: npt.NDArray[np.bool_]) -> str:
        return self._discretion.shown(int(chosen.sum()), self.count(chosen))

    def _quartiles(
        self, values: npt.NDArray[np.float64], split: npt.NDArray[np.bool_]
    ) -> list[str]:
        # A quartile is some patient's own value where a quarter of them is fewer than `least`.
        if self.count(split) < 4 * self._discretion.least:
            return ["not shown"] * len(QUARTILES)
        return [f"{value:.0f}" for value in np.percentile(values, QUARTILES)]


def _indicators(names: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    column = np.asarray(names, dtype=object)
    return {name: column == name for name in set(names)}


def _label_tables(dataset: StudyDataset, groups: _Groups) -> Iterator[Table]:
    """Rows in which each finding is present, and in which it is absent."""
    present: dict[str, npt.NDArray[np.bool_]] = {}
    absent: dict[str, npt.NDArray[np.bool_]] = {}
    for row, labels in enumerate(dataset.column("labels").to_pylist()):
        for finding, label in labels:
            for table, value in ((present, 1), (absent, 0)):
                chosen = table.setdefault(finding, np.zeros(dataset.info.rows, bool))
                chosen[row] = label == value
    yield groups.table("Findings present", present)
    yield groups.table("Findings absent", absent)


def _lengths(dataset: StudyDataset) -> npt.NDArray[np.float64]:
    return np.asarray(pc.utf8_length(dataset.column("text")), np.float64)


def _numbers(dataset: StudyDataset, name: str) -> npt.NDArray[np.float64]:
    return np.asarray(dataset.column(name), np.float64)


def _rejects(dataset: StudyDataset, discretion: Discretion) -> Table:
    counts = pc.value_counts(pq.read_table(dataset.folder / REJECTS_FILE)["reason"]).to_pylist()
    ordered = sorted(((one["counts"], one["values"]) for one in counts), reverse=True)
    rows = [(reason, [discretion.shown(count, count)]) for count, reason in ordered]
    return Table("Rows that are not used; of how many patients is not known", ["rows"], rows)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """As they are, but for the phrases of `drop_sentences`, which may hold names: their number."""
    report = dict(config.get("report", {}))
    if "drop_sentences" in report:
        kinds = [entry for entry in report["drop_sentences"] if entry in KINDS]
        own = len(report["drop_sentences"]) - len(kinds)
        report["drop_sentences"] = [*kinds, *([f"{own} phrases that are not shown"] if own else [])]
        return {**config, "report": report}
    return dict(config)


def _histograms(dataset: StudyDataset, groups: _Groups) -> Iterator[Histogram]:
    counts = {split: np.zeros(256, np.int64) for split in SPLITS}
    first = 0
    for shard in image_shards(dataset.folder):
        for batch in read_pixels(shard):
            for place, pixels in enumerate(batch.column("pixels")):
                found = np.bincount(np.frombuffer(pixels.as_buffer(), np.uint8), minlength=256)
                split = next(name for name in SPLITS if groups.of[name][first + place])
                counts[split] += found
            first += batch.num_rows
    values = np.arange(256)
    for split, count in counts.items():
        if groups.may_be_described(groups.of[split]):
            mean = float(np.average(values, weights=count))
            deviation = float(np.sqrt(np.average((values - mean) ** 2, weights=count)))
            shares = count.reshape(BINS, -1).sum(axis=1) / count.sum()
            yield Histogram(split, mean, deviation, shares.tolist())
