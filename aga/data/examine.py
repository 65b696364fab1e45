"""Rows of a source, examined in parallel: image decoded and fitted, report parsed, or rejected."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from aga.data.images import ImageConfig, ImageError, decode_image, prepare_image
from aga.data.reports import (
    WITHOUT_REPORT,
    ParsedReport,
    ReportConfig,
    parse_report,
    report_problem,
)
from aga.data.schema import Reject, Study

_WINDOW = 8  # rows in flight per thread: enough to keep all busy, few enough to hold in memory


@dataclass(frozen=True)
class PreparedPair:
    """A row that can be used.

    Attributes:
        study: The row as the source gave it.
        report: What is used of its report.
        pixels: The prepared image, uint8, height x width x channels, row-major.
        size: (height, width) of the original image in pixels.
        pixel_sha256: Of `pixels`.
        text_sha256: Of the used text.
    """

    study: Study
    report: ParsedReport
    pixels: bytes
    size: tuple[int, int]
    pixel_sha256: str
    text_sha256: str


def examine(
    studies: Iterable[Study | Reject], image: ImageConfig, report: ReportConfig
) -> Iterator[PreparedPair | Reject]:
    """Prepare every row on all cores, in the order in which it comes, in bounded memory.

    Threads do: Pillow and NumPy let go of the interpreter lock while they compute.

    Args:
        studies: Rows of a source; rejects pass through.
        image: Shape of the prepared images.
        report: Which part of a report is used.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pending: deque[Future[PreparedPair | Reject]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for study in studies:
                pending.append(pool.submit(_examine_one, study, image, report))
                if len(pending) >= _WINDOW * (threads or 1):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _examine_one(
    study: Study | Reject, image: ImageConfig, report: ReportConfig
) -> PreparedPair | Reject:
    if isinstance(study, Reject):
        return study
    parsed = WITHOUT_REPORT
    if study.report is not None:
        parsed = parse_report(study.report, report)
        problem = report_problem(study.report, parsed, report)
        if problem is not None:
            return Reject(study.location, *problem, column="report")
    try:
        original = decode_image(study.image)
    except ImageError as error:
        return Reject(study.location, "image unreadable", error.problem, "image")
    if original.min() == original.max():
        return Reject(study.location, "image blank", "all pixels are equal", "image")
    prepared = np.ascontiguousarray(prepare_image(original, image)).tobytes()
    return PreparedPair(
        study=study,
        report=parsed,
        pixels=prepared,
        size=(original.shape[0], original.shape[1]),
        pixel_sha256=hashlib.sha256(prepared).hexdigest(),
        text_sha256=hashlib.sha256(parsed.text.encode()).hexdigest(),
    )
