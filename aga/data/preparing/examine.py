"""One row of a source, examined: image decoded and fitted, report parsed; or rejected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from aga.data.pixels.images import ImageConfig, ImageError, read_image
from aga.data.pixels.perceptual import perceptual_hash
from aga.data.schema import Reject, Study
from aga.data.sources.base import is_file
from aga.data.text.reports import (
    WITHOUT_REPORT,
    ParsedReport,
    ReportConfig,
    parse_report,
    report_problem,
)
from aga.data.views import ViewsConfig, view_problem


@dataclass(frozen=True)
class PreparedPair:
    """A row that can be used.

    Attributes:
        study: The row as the source gave it.
        report: What is used of its report.
        pixels: The prepared image, uint8, height x width x channels, row-major.
        size: (height, width) of the original image in pixels.
        pixel_sha256: Of `pixels`.
        perceptual_hash: Of `pixels`.
        text_sha256: Of the used text.
    """

    study: Study
    report: ParsedReport
    pixels: bytes
    size: tuple[int, int]
    pixel_sha256: str
    perceptual_hash: str
    text_sha256: str


def examine(
    study: Study | Reject, image: ImageConfig, report: ReportConfig, views: ViewsConfig
) -> PreparedPair | Reject:
    """Prepare a row, or say why it cannot be used.

    Args:
        study: A row of a source; a reject passes through.
        image: Shape of the prepared image.
        report: Which part of the report is used.
        views: Which views are used.
    """
    if isinstance(study, Reject):
        return study
    parsed = _before_decoding(study, report, views)
    if isinstance(parsed, Reject):
        return parsed
    try:
        fitted, size = read_image(study.image, image)
    except ImageError as error:
        return Reject(study.location, error.reason, error.problem, "image")
    prepared = fitted.tobytes()
    return PreparedPair(
        study=study,
        report=parsed,
        pixels=prepared,
        size=size,
        pixel_sha256=hashlib.sha256(prepared).hexdigest(),
        perceptual_hash=perceptual_hash(fitted),
        text_sha256=hashlib.sha256(parsed.text.encode()).hexdigest(),
    )


def _before_decoding(
    study: Study, report: ReportConfig, views: ViewsConfig
) -> ParsedReport | Reject:
    left_out = view_problem(study.view, views)
    if left_out is not None:
        return Reject(study.location, *left_out, column="view")
    if not is_file(study.image):
        return Reject(study.location, "image missing", "no such file", "image")
    if study.report is None:
        return WITHOUT_REPORT
    parsed = parse_report(study.report, report)
    problem = report_problem(study.report, parsed, report)
    return parsed if problem is None else Reject(study.location, *problem, column="report")
