"""A raw folder looked through before it is used: what is wrong with it, and how much is right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

from aga.data.pixels.dicom import codec_summary
from aga.data.preparing.chunks import examined
from aga.data.preparing.ledger import Ledger
from aga.data.preparing.parts import examined_facts
from aga.data.preparing.prepare import PrepareConfig
from aga.data.preparing.tally import Tally
from aga.data.progress import progress
from aga.data.schema import Reject, Study
from aga.data.sources import read_studies
from aga.data.sources.base import Source
from aga.data.sources.layouts import Layout, page, require_folder
from aga.data.splitting.patients import HeldOut, listed_patients, patient_groups, separated_repeats
from aga.data.text.reports import ReportConfig, parse_report, report_problem
from aga.data.views import LEFT_OUT
from aga.data.workers import Workers, opened
from aga.errors import DataError

_log = logging.getLogger(__name__)
IMAGE_MISSING = "image missing"
REPORT_MISSING = "report missing"
_LOST = "\ufffd"


@dataclass(frozen=True)
class Findings:
    """What a look through a raw folder found.

    Attributes:
        bad: The rows that `prepare` would reject or refuse.
        rows: Rows of the source.
        reports: Reports, one per study, by the sections that would be used, or by the reason why
            none would.
        repaired: Rows with bytes that were not UTF-8, which the source read otherwise.
        lost: Rows with U+FFFD, which marks a character lost before it came to us.
        images: Where the images of the layout lie; empty where the source does not say.
    """

    bad: Sequence[Reject]
    rows: int
    reports: dict[str, int]
    repaired: int
    lost: int
    images: str

    @property
    def usable(self) -> int:
        """Rows with which nothing is wrong."""
        return self.rows - len({reject.location for reject in self.bad})

    @property
    def reasons(self) -> dict[str, int]:
        """Bad rows by reason, most frequent first."""
        return _ordered(Counter(reject.reason for reject in self.bad))

    def lines(self) -> Iterator[str]:
        """The counts, for a person."""
        yield f"{self.rows} rows, {self.usable} of them usable"
        yield from (f"  {count:>7} {reason}" for reason, count in self.reasons.items())
        yield f"{self.repaired} rows repaired: bytes that were not UTF-8"
        yield f"{self.lost} rows with characters that were lost before"
        yield "near duplicates are not looked for here; `prepare` looks for them"
        yield f"{sum(self.reports.values())} reports"
        yield from (f"  {count:>7} {section}" for section, count in self.reports.items())

    def refuse_without_files(self, root: Path, source_name: str) -> None:
        """Say once, instead of row by row, that there are no images or no reports at all.

        Raises:
            DataError: No row can be used, and files are missing.
        """
        for what, reason in (("images", IMAGE_MISSING), ("reports", REPORT_MISSING)):
            if self.usable == 0 and reason in self.reasons:
                raise DataError(
                    f"The {what} of the source are not there",
                    where=root,
                    got=f"none of {self.reasons[reason]} {what} that {self.rows} rows name",
                    expected=(what == "images" and self.images) or f"the {what} of the layout",
                    fix=f"put the {what} there; {page(source_name)} shows the layout",
                )


def look_through(
    source: Source, root: Path, config: PrepareConfig, held_out: Sequence[HeldOut] = ()
) -> Findings:
    """Examine every row as `prepare` would, and count; nothing is written.

    Args:
        source: Reads the raw folder.
        root: The raw folder.
        config: How rows would be prepared.
        held_out: The lists of `leaks.lists`.

    Raises:
        LayoutError: `root` has no layout of this source.
    """
    counted = _Counted(source, config.report)
    bad = check(counted, root, config, held_out=held_out)
    images = next((one.images for one in source.LAYOUTS if not one.missing(root)), "")
    return Findings(
        bad, counted.rows, _ordered(counted.reports), counted.repaired, counted.lost, images
    )


def check(
    source: Source,
    root: Path,
    config: PrepareConfig,
    workers: Workers | None = None,
    held_out: Sequence[HeldOut] = (),
) -> list[Reject]:
    """Examine every row as `prepare` would, write nothing, and list all that is wrong.

    Args:
        source: Reads the raw folder.
        root: The raw folder.
        config: How rows would be prepared.
        workers: Processes to work in; by default those of this machine.
        held_out: The lists of `leaks.lists`; their patients may be in any given split.

    Returns:
        The rows that `prepare` would reject or refuse, with line, column and reason; rows that
        contradict earlier ones are among them. Near duplicates are not looked for.

    Raises:
        DataError: The layout under `root` is not this source's.
    """
    require_folder(root)
    _log.info(codec_summary())
    listed = listed_patients(held_out)
    ledger, tally = Ledger(listed), Tally()
    studies = (
        study if isinstance(study, Reject) else ledger.conflict(study) or study
        for study in read_studies(source, root)
    )
    bad: list[Reject] = []
    with opened(workers) as processes:
        chunks = examined(processes, studies, config.recipe, examined_facts)
        for chunk in progress(chunks, "rows", size=len):
            rejects = tally.take_all(chunk)[1]
            bad += [reject for reject in rejects if reject.reason not in LEFT_OUT]
    group_of = patient_groups(chain(tally.rows, tally.repeats))
    tested = {group_of[patient] for patient in listed & group_of.keys()}
    given = (
        row
        for row in chain(tally.rows, tally.repeats)
        if row.given and group_of[row.patient_id] not in tested
    )
    return [*bad, *separated_repeats(given)]


class _Counted:
    """A source whose rows and reports are counted as they pass."""

    LICENSE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = ()

    def __init__(self, source: Source, report: ReportConfig) -> None:
        self._source, self._report = source, report
        self._seen: set[str] = set()
        self.rows = self.repaired = self.lost = 0
        self.reports: Counter[str] = Counter()

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """The rows of the source; see `Source.studies`."""
        for row in self._source.studies(root):
            self.rows += 1
            if isinstance(row, Study):
                self._count(row)
            yield row

    def _count(self, row: Study) -> None:
        self.repaired += row.repaired
        self.lost += _LOST in (row.report or "")
        if row.study_id not in self._seen:
            self._seen.add(row.study_id)
            self.reports[self._section(row)] += 1

    def _section(self, study: Study) -> str:
        if study.report is None:
            return "no report, labels only"
        parsed = parse_report(study.report, self._report)
        problem = report_problem(study.report, parsed, self._report)
        return parsed.section if problem is None else problem[0]


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
