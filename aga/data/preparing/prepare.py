"""Raw folder in, `data/studies/` out: every row used or rejected, nothing half-written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from aga.config import Config
from aga.data.files import replaced_folder, working_folder
from aga.data.pixels.dicom import codec_summary
from aga.data.pixels.images import ImageConfig
from aga.data.preparing.assemble import Segment, write_images, write_manifest
from aga.data.preparing.choosing import chosen_rows, usable_rows
from aga.data.preparing.chunks import examined
from aga.data.preparing.ledger import Ledger
from aga.data.preparing.parts import (
    PARTIAL,
    Recipe,
    write_part,
)
from aga.data.preparing.tally import Tally
from aga.data.progress import progress
from aga.data.schema import SCHEMA_VERSION, SPLITS, Reject, Split, Study
from aga.data.shards import ShardConfig, image_shards, lean_arrow
from aga.data.sources import read_studies
from aga.data.sources.base import Source
from aga.data.sources.layouts import require_folder
from aga.data.splitting.conflicts import Strictest
from aga.data.splitting.near_duplicates import HashedImages, near_duplicates
from aga.data.splitting.patients import (
    Copies,
    Groups,
    HeldOut,
    listed_patients,
    patient_groups,
)
from aga.data.splitting.splits import SplitConfig, assign_splits
from aga.data.studies import INFO_FILE, DatasetInfo, ImageInfo
from aga.data.text.reports import ReportConfig
from aga.data.views import ViewsConfig
from aga.data.workers import Workers, opened
from aga.errors import DataError

_log = logging.getLogger(__name__)
_KEEP_TEST = "; `prepare.split.conflicts: keep_test` leaves out those of the less strict split"


class PrepareConfig(Config):
    """How raw pairs become prepared ones.

    Attributes:
        image: Shape of the prepared images.
        report: Which part of a report is used.
        views: Which images of a study are used.
        split: Shares of the splits.
        shard: How pixels are cut into files.
        row_seconds: A row whose image is not decoded in this time is rejected.
        max_reject_fraction: More rejects than this share of the rows stop the stage.
    """

    image: ImageConfig
    report: ReportConfig
    views: ViewsConfig
    split: SplitConfig
    shard: ShardConfig
    row_seconds: float = Field(gt=0)
    max_reject_fraction: float = Field(ge=0, le=1)

    @property
    def recipe(self) -> Recipe:
        """What decides what becomes of a row on its own."""
        group_rows = self.shard.group_rows(self.image.row_bytes)
        return Recipe(self.image, self.report, self.views, group_rows, self.row_seconds)


@dataclass(frozen=True)
class SplitCount:
    """Size of a split."""

    rows: int
    patients: int


@dataclass(frozen=True)
class PrepareSummary:
    """What became of the rows; `to_metrics` is written for DVC.

    Attributes:
        rows: Rows of the source; `used` plus all `rejects` and all `left_out`.
        used: Rows in the prepared folder.
        patients: Patient identifiers among them.
        near_duplicates: Pairs of used images that are copies, but not equal: as many as link all
            that are, and all those between given splits.
        linked_patients: Identifiers that share an image, or copies of one, with another one, and so
            its split.
        splits: Size of each split.
        rejects: Rejected rows by reason.
        left_out: Rows that are not used though nothing is wrong with them, by reason.
        views: Used rows by view.
        sections: Used rows by the part of the report that they use.
        dropped_sentences: Sentences left out of the used texts, by entry of `drop_sentences`.
        repaired_rows: Used rows whose bytes were not UTF-8.
        lost_characters: Used rows in which U+FFFD marks a character lost before it came to us.
        sha256: Of the prepared content.
    """

    rows: int
    used: int
    patients: int
    near_duplicates: int
    linked_patients: int
    splits: dict[Split, SplitCount]
    rejects: dict[str, int]
    left_out: dict[str, int]
    views: dict[str, int]
    sections: dict[str, int]
    dropped_sentences: dict[str, int]
    repaired_rows: int
    lost_characters: int
    sha256: str

    def to_metrics(self) -> dict[str, Any]:
        """The summary as nested JSON values."""
        return asdict(self)


def prepare(
    source: Source,
    root: Path,
    out: Path,
    config: PrepareConfig,
    seed: int,
    source_name: str,
    workers: Workers | None = None,
    held_out: Sequence[HeldOut] = (),
) -> PrepareSummary:
    """Prepare all rows of a source. Equal input gives equal bytes, whatever the workers.

    Finished parts are kept beside `out` until all is done: after a kill, the same call goes on from
    them.

    Args:
        source: Reads the raw folder.
        root: The raw folder.
        out: The folder to write; what was there is replaced once all is done, and not before.
        config: How.
        seed: Of the split.
        source_name: Written into `dataset.json`.
        workers: Processes to work in; by default those of this machine.
        held_out: The lists of `leaks.lists`: tested, and never learned from.

    Raises:
        DataError: The raw data contradict themselves, too many rows are rejected, there are too
            few patients for the splits, or the disk is full. `out` stays as it was then.
    """
    require_folder(root)
    _log.info(codec_summary())
    recipe, listed = config.recipe, listed_patients(held_out)
    with (
        lean_arrow(),
        opened(workers) as processes,
        working_folder(out, recipe.key) as work,
        replaced_folder(out) as folder,
    ):
        ledger = Ledger(listed, one_split=config.split.conflicts == "refuse")
        parts = _write_parts(source, root, work, recipe, processes, ledger)
        strictest = None
        if config.split.conflicts == "keep_test":
            strictest = Strictest((row.split_row for _, row in usable_rows(parts)), listed)
        tally, segments, copies = _written(parts, folder, config, strictest, processes)
        if strictest and strictest.heed(copies):  # some are copies of what is tested: once more
            tally, segments, copies = _written(parts, folder, config, strictest, processes)
        splits = assign_splits(tally.rows, tally.repeats, config.split, seed, copies, held_out)
        # In a process, which has the room already that it was given to examine rows.
        sha256 = processes.call(write_manifest, folder, segments, splits)
        info = _info(source, source_name, config, seed, splits, sha256)
        (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
    return _summary(tally, copies, splits, sha256)


def _write_parts(
    source: Source, root: Path, work: Path, recipe: Recipe, workers: Workers, ledger: Ledger
) -> list[Path]:
    for unfinished in work.glob(f"*{PARTIAL}"):
        unfinished.unlink()
    write = partial(write_part, folder=work)
    parts = examined(workers, _consistent(read_studies(source, root), ledger), recipe, write)
    return list(progress(parts, "rows", size=lambda part: pq.read_metadata(part).num_rows))


def _written(
    parts: Sequence[Path],
    folder: Path,
    config: PrepareConfig,
    strictest: Strictest | None,
    workers: Workers,
) -> tuple[Tally, list[Segment], Copies]:
    """Choose the rows, write the rejects and the images; find the near duplicates among them."""
    tally, segments = chosen_rows(parts, folder, config.views, strictest)
    _refuse_too_many_rejects(tally, config.max_reject_fraction)
    for shard in image_shards(folder):  # of a first attempt
        shard.unlink()
    shards = write_images(folder, segments, config.shard, config.image.row_bytes, workers)
    for _ in progress(shards, "rows written", len(tally.rows), size=int):
        pass
    return tally, segments, _copies(folder, tally, config)


def _copies(folder: Path, tally: Tally, config: PrepareConfig) -> Copies:
    """Near duplicates among the used rows: what links all, and all pairs between given splits."""
    if config.split.near_duplicates == "ignore":
        return []
    size, rows, words = config.image.size, tally.rows, tally.words
    pixels = b"".join(bytes.fromhex(row.pixel_sha256) for row in rows)
    distinct = np.sort(np.unique(np.frombuffer(pixels, "S32"), return_index=True)[1])
    images = HashedImages(
        folder,
        (size, size, config.image.channels),
        distinct,
        words[distinct],
    )
    pairs = near_duplicates(images, scratch=folder)
    groups = Groups(len(rows))
    found = ((one, other, rows[one], rows[other]) for one, other, _ in pairs)
    return [
        (first, second)
        for one, other, first, second in found
        if groups.link(one, other) or first.given != second.given
    ]


def _info(
    source: Source,
    source_name: str,
    config: PrepareConfig,
    seed: int,
    splits: Sequence[Split],
    sha256: str,
) -> DatasetInfo:
    counts = Counter(splits)
    size, image = config.image.size, config.image
    return DatasetInfo(
        schema_version=SCHEMA_VERSION,
        source=source_name,
        licence=source.LICENSE,
        citation=source.CITATION,
        config=config.model_dump(mode="json"),
        seed=seed,
        rows=len(splits),
        splits={split: counts[split] for split in SPLITS},
        image=ImageInfo(size, size, image.channels, image.fit),
        sha256=sha256,
        may_be_shown=source.MAY_BE_SHOWN,
    )


def _consistent(studies: Iterator[Study | Reject], ledger: Ledger) -> Iterator[Study | Reject]:
    """The rows, up to the first that contradicts an earlier one."""
    for study in studies:
        conflict = None if isinstance(study, Reject) else ledger.conflict(study)
        if conflict is not None:
            raise DataError(
                f"The raw data contradict themselves: {conflict.reason}",
                where=conflict.location,
                got=conflict.detail,
                fix="correct the rows; `python workflows/prepare.py --check` lists all of them"
                + (_KEEP_TEST if conflict.column == "split" else ""),
            )
        yield study


def _refuse_too_many_rejects(tally: Tally, most: float) -> None:
    rejected = tally.rejected
    if tally.left_out and not tally.rows and not rejected:
        raise DataError(
            "prepare.views leaves out every row",
            got=", ".join(f"{count} {why}" for why, count in tally.left_out.items()),
            fix="set prepare.views.keep to all, or prepare.views.unknown to keep",
        )
    rows = len(tally.rows) + rejected
    if tally.rows and rejected <= most * rows:
        return
    reasons = ", ".join(f"{count} {why}" for why, count in tally.most_frequent_reasons().items())
    raise DataError(
        "Too many rows are rejected" if rows else "The source has no rows",
        where=", ".join(tally.first_rejected) or None,
        got=f"{rejected} of {rows} rows: {reasons}" if rows else None,
        expected=f"at most {most:.0%}, prepare.max_reject_fraction, and a row to use",
        fix="`python workflows/prepare.py --check` lists each bad row",
    )


def _summary(tally: Tally, copies: Copies, splits: list[Split], sha256: str) -> PrepareSummary:
    patients: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for row, split in zip(tally.rows, splits, strict=True):
        patients[split].add(row.patient_id)
    counts = Counter(splits)
    used = set[str]().union(*patients.values())
    group_of = patient_groups(chain(tally.rows, tally.repeats), copies)
    group_sizes = Counter(group_of.values())
    return PrepareSummary(
        rows=len(tally.rows) + tally.rejected + tally.left_out.total(),
        used=len(tally.rows),
        patients=len(used),
        near_duplicates=len(copies),
        linked_patients=sum(size for size in group_sizes.values() if size > 1),
        splits={split: SplitCount(counts[split], len(ids)) for split, ids in patients.items()},
        rejects=tally.most_frequent_reasons(),
        left_out=dict(sorted(tally.left_out.items())),
        views=dict(sorted(tally.views.items())),
        sections=dict(sorted(tally.sections.items())),
        dropped_sentences=dict(sorted(tally.dropped_sentences.items())),
        repaired_rows=tally.repaired_rows,
        lost_characters=tally.lost_characters,
        sha256=sha256,
    )
