"""Raw folder in, `data/studies/` out: every row used or rejected, nothing half-written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from aga.config import Config
from aga.data.examine import PreparedPair, examine
from aga.data.files import replaced_folder
from aga.data.images import ImageConfig
from aga.data.ledger import Ledger
from aga.data.manifest_file import ManifestWriter, complete_manifest
from aga.data.progress import progress
from aga.data.reports import ReportConfig
from aga.data.schema import REJECTS, SCHEMA_VERSION, SPLITS, Reject, Split, Study
from aga.data.shards import ImageShardWriter, ShardConfig
from aga.data.sources import read_studies
from aga.data.sources.base import Source
from aga.data.sources.layouts import require_folder
from aga.data.splits import SplitConfig, SplitRow, assign_splits, patient_groups, separated_repeats
from aga.data.studies import INFO_FILE, MANIFEST_FILE, REJECTS_FILE, DatasetInfo, ImageInfo
from aga.errors import DataError

_LOST = "\ufffd"
_REPEATED = "repeated pair"


class PrepareConfig(Config):
    """How raw pairs become prepared ones.

    Attributes:
        image: Shape of the prepared images.
        report: Which part of a report is used.
        split: Shares of the splits.
        shard: How pixels are cut into files.
        max_reject_fraction: More rejects than this share of the rows stop the stage.
    """

    image: ImageConfig
    report: ReportConfig
    split: SplitConfig
    shard: ShardConfig
    max_reject_fraction: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class SplitCount:
    """Size of a split."""

    rows: int
    patients: int


@dataclass(frozen=True)
class PrepareSummary:
    """What became of the rows; `to_metrics` is written for DVC.

    Attributes:
        rows: Rows of the source; `used` plus all `rejects`.
        used: Rows in the prepared folder.
        patients: Patient identifiers among them.
        linked_patients: Identifiers that share an image with another one, and so its split.
        splits: Size of each split.
        rejects: Rejected rows by reason.
        sections: Used rows by the part of the report that they use.
        dropped_sentences: Sentences left out of the used texts, by entry of `drop_sentences`.
        repaired_rows: Used rows whose bytes were not UTF-8.
        lost_characters: Used rows in which U+FFFD marks a character lost before it came to us.
        sha256: Of the prepared content.
    """

    rows: int
    used: int
    patients: int
    linked_patients: int
    splits: dict[Split, SplitCount]
    rejects: dict[str, int]
    sections: dict[str, int]
    dropped_sentences: dict[str, int]
    repaired_rows: int
    lost_characters: int
    sha256: str

    def to_metrics(self) -> dict[str, Any]:
        """The summary as nested JSON values."""
        return asdict(self)


@dataclass
class _Tally:
    """What is remembered of the rows: no text, no pixels."""

    rows: list[SplitRow] = field(default_factory=list)
    repeats: list[SplitRow] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    sections: Counter[str] = field(default_factory=Counter)
    dropped_sentences: Counter[str] = field(default_factory=Counter)
    repaired_rows: int = 0
    lost_characters: int = 0
    _first: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, pair: PreparedPair | Reject) -> PreparedPair | None:
        """Enter a row; give it back if it is to be written.

        A row that repeats an earlier one's pixels and text adds nothing and is rejected; it still
        links its patient to the other.
        """
        if isinstance(pair, Reject):
            self.rejects.append(pair)
            return None
        study = pair.study
        row = SplitRow(study.patient_id, pair.pixel_sha256, study.location, study.split)
        key = (pair.pixel_sha256, pair.text_sha256)
        if key in self._first:
            detail = f"same image and text as {self._first[key]}"
            self.rejects.append(Reject(study.location, _REPEATED, detail))
            self.repeats.append(row)
            return None
        self._first[key] = study.location
        self.rows.append(row)
        self.sections[pair.report.section] += 1
        self.dropped_sentences += pair.report.dropped
        self.repaired_rows += study.repaired
        self.lost_characters += _LOST in (study.report or "")
        return pair

    @property
    def reasons(self) -> dict[str, int]:
        """Rejects by reason, most frequent first, then by name."""
        counts = Counter(reject.reason for reject in self.rejects)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def prepare(
    source: Source, root: Path, out: Path, config: PrepareConfig, seed: int, source_name: str
) -> PrepareSummary:
    """Prepare all rows of a source. Equal input gives equal bytes, on any number of cores.

    Args:
        source: Reads the raw folder.
        root: The raw folder.
        out: The folder to write; what was there is replaced once all is done, and not before.
        config: How.
        seed: Of the split.
        source_name: Written into `dataset.json`.

    Raises:
        DataError: The raw data contradict themselves, too many rows are rejected, there are too
            few patients for the splits, or the disk is full. Nothing is written then.
    """
    require_folder(root)
    with replaced_folder(out) as folder:
        tally = _write_rows(source, root, folder, config)
        _refuse_too_many_rejects(tally, config.max_reject_fraction)
        splits = assign_splits(tally.rows, tally.repeats, config.split, seed)
        sha256 = complete_manifest(folder / MANIFEST_FILE, splits)
        rejects = pa.Table.from_pylist([vars(one) for one in tally.rejects], schema=REJECTS)
        pq.write_table(rejects, folder / REJECTS_FILE)
        counts = Counter(splits)
        size, image = config.image.size, config.image
        info = DatasetInfo(
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
        (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
    return _summary(tally, splits, sha256)


def check(source: Source, root: Path, config: PrepareConfig) -> list[Reject]:
    """Examine every row as `prepare` would, write nothing, and list all that is wrong.

    Args:
        source: Reads the raw folder.
        root: The raw folder.
        config: How rows would be prepared.

    Returns:
        The rows that `prepare` would reject or refuse, with line, column and reason; rows that
        contradict earlier ones are among them.

    Raises:
        DataError: The layout under `root` is not this source's.
    """
    require_folder(root)
    ledger, tally = Ledger(), _Tally()
    studies = (
        study if isinstance(study, Reject) else ledger.conflict(study) or study
        for study in read_studies(source, root)
    )
    for pair in progress(examine(studies, config.image, config.report), "rows"):
        tally.take(pair)
    given = [row for row in (*tally.rows, *tally.repeats) if row.given is not None]
    return [*tally.rejects, *separated_repeats(given)]


def _write_rows(source: Source, root: Path, folder: Path, config: PrepareConfig) -> _Tally:
    tally = _Tally()
    row_bytes = config.image.size**2 * config.image.channels
    pairs = examine(_consistent(read_studies(source, root)), config.image, config.report)
    with (
        ImageShardWriter(folder, config.shard, row_bytes) as images,
        ManifestWriter(folder) as manifest,
    ):
        for examined in progress(pairs, "rows"):
            pair = tally.take(examined)
            if pair is not None:
                images.add(pair.pixels)
                manifest.add(pair)
    return tally


def _consistent(studies: Iterator[Study | Reject]) -> Iterator[Study | Reject]:
    """The rows, up to the first that contradicts an earlier one."""
    ledger = Ledger()
    for study in studies:
        conflict = None if isinstance(study, Reject) else ledger.conflict(study)
        if conflict is not None:
            raise DataError(
                f"The raw data contradict themselves: {conflict.reason}",
                where=conflict.location,
                got=conflict.detail,
                fix="correct the rows; `python workflows/prepare.py --check` lists all of them",
            )
        yield study


def _refuse_too_many_rejects(tally: _Tally, most: float) -> None:
    rejected = len(tally.rejects)
    rows = len(tally.rows) + rejected
    if tally.rows and rejected <= most * rows:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.items())
    raise DataError(
        "Too many rows are rejected" if rows else "The source has no rows",
        where=", ".join(reject.location for reject in tally.rejects[:5]) or None,
        got=f"{rejected} of {rows} rows: {reasons}" if rows else None,
        expected=f"at most {most:.0%}, prepare.max_reject_fraction, and a row to use",
        fix="`python workflows/prepare.py --check` lists each bad row",
    )


def _summary(tally: _Tally, splits: list[Split], sha256: str) -> PrepareSummary:
    patients: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for row, split in zip(tally.rows, splits, strict=True):
        patients[split].add(row.patient_id)
    counts = Counter(splits)
    used = set[str]().union(*patients.values())
    group_of = patient_groups([*tally.rows, *tally.repeats])
    group_sizes = Counter(group_of.values())
    return PrepareSummary(
        rows=len(tally.rows) + len(tally.rejects),
        used=len(tally.rows),
        patients=len(used),
        linked_patients=sum(size for size in group_sizes.values() if size > 1),
        splits={split: SplitCount(counts[split], len(ids)) for split, ids in patients.items()},
        rejects=tally.reasons,
        sections=dict(sorted(tally.sections.items())),
        dropped_sentences=dict(sorted(tally.dropped_sentences.items())),
        repaired_rows=tally.repaired_rows,
        lost_characters=tally.lost_characters,
        sha256=sha256,
    )
