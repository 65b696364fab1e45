"""A part of a source's rows, examined and kept on disk until all parts are there.

A part is a Parquet file of one row per row of the source, used or rejected. Its name is the hash of
all that went into it, so a part that is there need not be made again: what a killed `prepare` had
finished, the next one goes on from. Parts appear whole or not at all, and hold patient data.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aga.data.files import code_sha256, sha256_of
from aga.data.pixels.images import ImageConfig
from aga.data.preparing.examine import PreparedPair, examine
from aga.data.schema import IMAGES, MANIFEST, REJECTS, Reject, Study
from aga.data.splitting.patients import SplitRow
from aga.data.text.reports import ReportConfig
from aga.data.views import View, ViewsConfig, normal_view

_MADE_LATER = ("row",)  # a row's number is known when all parts before it are
PARTIAL = ".partial"
_LOST = "\ufffd"
PART = pa.schema(
    [
        *(field for field in MANIFEST if field.name not in _MADE_LATER),
        IMAGES.field("pixels"),
        *(field for field in REJECTS if field.name != "location"),
        ("text_sha256", pa.string()),
        ("content_sha256", pa.string()),  # of the manifest's columns but row and split
        ("dropped", pa.map_(pa.string(), pa.int32())),
        ("repaired", pa.bool_()),
        ("lost", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """All that decides what becomes of a row on its own.

    Attributes:
        image: Shape of the prepared images.
        report: Which part of a report is used.
        views: Which views are used.
        group_rows: Rows of pixels that are held in memory.
        row_seconds: What a row may take; no part of the key, since a part holds what did not take
            longer, and the rows of it that did are among what its name is the hash of.
    """

    image: ImageConfig
    report: ReportConfig
    views: ViewsConfig
    group_rows: int
    row_seconds: float

    @property
    def key(self) -> str:
        """A hash that another recipe, other code or other libraries change."""
        settings = (self.image, self.report, self.views)
        parts = [config.model_dump_json() for config in settings]
        return sha256_of(*parts, str(self.group_rows), code_sha256())[:16]


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What the stage must know of a usable row to place it: no text, no pixels.

    Attributes:
        split_row: What splitting needs.
        perceptual_hash: Of the prepared pixels.
        study_id: The source's study identifier.
        view: The projection, by one set of names.
        text_sha256: Of the used text.
        section: The part of the report that it uses.
        dropped: Sentences left out of that, by what was to be dropped.
        repaired: Whether bytes of it were not UTF-8.
        lost: Whether U+FFFD marks a character lost before it came to us.
    """

    split_row: SplitRow
    perceptual_hash: str
    study_id: str
    view: View | None
    text_sha256: str
    section: str
    dropped: Mapping[str, int]
    repaired: bool
    lost: bool


def write_part(rows: Sequence[Study | Reject], recipe: Recipe, folder: Path) -> Path:
    """Examine rows and write them as a part, or find the part that is there.

    Args:
        rows: Consecutive rows of a source.
        recipe: How.
        folder: Holds the parts of this recipe.

    Returns:
        The part's file.
    """
    path = folder / f"{_state_sha256(rows)}.parquet"
    if path.exists():
        return path
    partial = folder / f"{path.stem}.{os.getpid()}{PARTIAL}"
    try:
        with partial.open("wb") as file:
            with pq.ParquetWriter(file, PART, compression="lz4", use_dictionary=False) as writer:
                for group in _grouped(rows, recipe.group_rows):
                    table = [
                        _part_row(examine(row, recipe.image, recipe.report, recipe.views))
                        for row in group
                    ]
                    writer.write_table(pa.Table.from_pylist(table, schema=PART))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def examined_facts(rows: Sequence[Study | Reject], recipe: Recipe) -> list[RowFacts | Reject]:
    """Examine rows and keep nothing but their facts."""
    table = (_examined(row, recipe) for row in rows)
    return [one if isinstance(one, Reject) else _facts(_part_row(one)) for one in table]


def read_facts(part: Path) -> Iterator[RowFacts | Reject]:
    """The facts of a part's rows, in their order."""
    columns = [
        *("location", "patient_id", "split", "pixel_sha256", "text_sha256", "section"),
        *("study_id", "view"),
        *("perceptual_hash", "labels"),
        *("dropped", "repaired", "lost", "column", "reason", "detail"),
    ]
    for row in _read(part, columns).to_pylist():
        if row["reason"] is None:
            yield _facts(row)
        else:
            yield Reject(row["location"], row["reason"], row["detail"], row["column"])


def read_manifest(part: Path, kept: np.ndarray) -> pa.Table:
    """The manifest's columns of some rows of a part, but for `row`; and `content_sha256`.

    Args:
        part: The file.
        kept: Their places in the part, rising.
    """
    names = [name for name in MANIFEST.names if name not in _MADE_LATER]
    table = _read(part, [*names, "content_sha256"])
    # Runs are cut out: the compute kernels of `take` would cost 30 MiB to load.
    return pa.concat_tables([table.slice(run[0], run.size) for run in _runs(kept)])


def read_part_pixels(part: Path, kept: np.ndarray) -> Iterator[pa.LargeBinaryArray]:
    """The pixels of some rows of a part; one row group is in memory at a time.

    Args:
        part: The file.
        kept: Their places in the part, rising.
    """
    first = 0
    with pq.ParquetFile(part) as file:
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            wanted = kept[(first <= kept) & (kept < last)] - first
            if wanted.size:
                column = file.read_row_group(group, columns=["pixels"]).column("pixels")
                pixels = column.combine_chunks()
                yield from (pixels.slice(run[0], run.size) for run in _runs(wanted))
            first = last


def _read(part: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of a part; without threads, each of which would keep memory of its own."""
    with pq.ParquetFile(part) as file:
        return file.read(columns, use_threads=False)


def _runs(places: np.ndarray) -> list[np.ndarray]:
    """Rising places, of which there is one, cut where one is left out."""
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def _grouped(rows: Sequence[Study | Reject], group_rows: int) -> Iterator[Sequence[Study | Reject]]:
    for first in range(0, len(rows), group_rows):
        yield rows[first : first + group_rows]


def _examined(row: Study | Reject, recipe: Recipe) -> PreparedPair | Reject:
    return examine(row, recipe.image, recipe.report, recipe.views)


def _part_row(examined: PreparedPair | Reject) -> dict[str, Any]:
    if isinstance(examined, Reject):
        return vars(examined)
    study = examined.study
    height, width = examined.size
    content = {
        "patient_id": study.patient_id,
        "study_id": study.study_id,
        "location": study.location,
        "view": normal_view(study.view),
        "view_name": study.view,
        "report": study.report,
        "section": examined.report.section,
        "text": examined.report.text,
        "statement": study.statement,
        "labels": sorted(study.labels.items()),
        "regions": [
            {"finding": region.finding, "box": list(region.box), "span": region.span}
            for region in study.regions
        ],
        "height": height,
        "width": width,
        "pixel_sha256": examined.pixel_sha256,
        "perceptual_hash": examined.perceptual_hash,
    }
    offsets = examined.report.offsets.astype(np.int32)
    digest = hashlib.sha256(json.dumps(content).encode())
    digest.update(offsets.astype("<i4").tobytes())
    return content | {
        "text_offsets": offsets,
        "split": study.split,
        "pixels": examined.pixels,
        "text_sha256": examined.text_sha256,
        "content_sha256": digest.hexdigest(),
        "dropped": list(examined.report.dropped.items()),
        "repaired": study.repaired,
        "lost": _LOST in (study.report or ""),
    }


def _facts(row: dict[str, Any]) -> RowFacts:
    return RowFacts(
        SplitRow(
            row["patient_id"],
            row["pixel_sha256"],
            row["location"],
            row["split"],
            tuple(sys.intern(name) for name, value in row["labels"] if value == 1),
        ),
        row["perceptual_hash"],
        row["study_id"],
        row["view"],
        row["text_sha256"],
        row["section"],
        dict(row["dropped"]),
        row["repaired"],
        row["lost"],
    )


def _state_sha256(rows: Sequence[Study | Reject]) -> str:
    """Of the rows as the source gives them, and of the size and time of their image files."""
    return sha256_of(*(f"{row!r} {_file_state(row)}" for row in rows))


def _file_state(row: Study | Reject) -> str:
    if isinstance(row, Reject):
        return ""
    try:
        status = row.image.stat()
    except OSError as error:
        return type(error).__name__
    return f"{status.st_size} {status.st_mtime_ns}"
