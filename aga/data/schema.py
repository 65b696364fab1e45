"""The one Arrow schema that everything after `prepare` reads, and the record a source yields.

`data/studies/` holds `manifest.parquet` (one row per image-report pair, no pixels),
`images-NNNNN.parquet` (the pixels, aligned to the manifest by row), `rejects.parquet` and
`dataset.json`. The manifest holds patient data and stays private.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 2
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
NO_REPORT = "none"
"""`section` of a row whose source has labels but no reports; its `text` is empty."""


@dataclass(frozen=True)
class Region:
    """A finding that is known to be at one place of the image and in one stretch of the report.

    Attributes:
        finding: Name of the finding.
        box: (left, top, right, bottom) in pixels of the original image.
        span: (start, end) character offsets in the raw report, end exclusive; None where the report
            does not speak of it.
    """

    finding: str
    box: tuple[float, float, float, float]
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Study:
    """One image with its report, as a source found it; nothing is decoded or cleaned yet.

    Attributes:
        patient_id: The source's patient identifier; splits never separate its rows.
        study_id: The source's study identifier.
        image: Absolute path of the image file.
        report: Raw report text; None where the source has labels but no reports.
        location: Where the source states this row, for error messages: `metadata.csv:17`.
        view: Projection as the source names it, or None where it does not say.
        split: The source's own split, or None to let `prepare` decide.
        labels: Finding name to 1 (present), 0 (absent) or None (unknown).
        regions: Known places of findings.
        statement: A key that two reports share when they say the same in other words; None where
            the source cannot know, and then the cleaned text itself is the key.
        repaired: True where bytes of this row were not UTF-8 and the source read them otherwise.
    """

    patient_id: str
    study_id: str
    image: Path
    report: str | None
    location: str
    view: str | None = None
    split: Split | None = None
    labels: dict[str, int | None] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    statement: str | None = None
    repaired: bool = False


@dataclass(frozen=True)
class Reject:
    """A row of the source that is not used, and why.

    Attributes:
        location: Where the source states the row.
        reason: A short fixed word group, counted in the metrics: `image unreadable`.
        detail: What exactly was wrong; never report text or patient data.
        column: The column of the source's table at fault, or None where no single one is.
    """

    location: str
    reason: str
    detail: str
    column: str | None = None


REGION = pa.struct(
    [
        ("finding", pa.string()),
        ("box", pa.list_(pa.float32(), 4)),
        ("span", pa.list_(pa.int32())),
    ]
)

MANIFEST = pa.schema(
    [
        ("row", pa.int64()),  # 0, 1, 2, ...: the alignment key of image and token shards
        ("patient_id", pa.string()),
        ("study_id", pa.string()),
        ("location", pa.string()),
        ("view", pa.string()),  # PA, AP, frontal, lateral, oblique, other; null is unknown
        ("view_name", pa.string()),  # as the source has it
        ("split", pa.string()),
        ("report", pa.large_string()),  # raw; null where the source has none
        ("section", pa.string()),  # which of prepare.report.prefer was used, or NO_REPORT
        ("text", pa.large_string()),  # cleaned, of those sections
        ("text_offsets", pa.large_list(pa.int32())),  # text[i] stands at report[text_offsets[i]]
        ("statement", pa.string()),
        ("labels", pa.map_(pa.string(), pa.int8())),
        ("regions", pa.list_(REGION)),  # boxes in original pixels, spans in the raw report
        ("height", pa.int32()),  # original image size in pixels
        ("width", pa.int32()),
        ("pixel_sha256", pa.string()),  # of the prepared pixels: equal pixels, equal hash
        ("perceptual_hash", pa.string()),  # of the prepared pixels: close for copies of an image
    ]
)

IMAGES = pa.schema([("row", pa.int64()), ("pixels", pa.large_binary())])

REJECTS = pa.schema(
    [
        ("location", pa.string()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

TOKENS = pa.schema(
    [
        ("row", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),  # CLS ... SEP, not padded
        ("starts", pa.list_(pa.int32())),  # character offsets in `text`; -1 for special tokens
        ("ends", pa.list_(pa.int32())),
        ("sentences", pa.list_(pa.int32())),  # which sentence of `text`, from 0; -1 likewise
        ("truncated", pa.int32()),  # tokens cut off
    ]
)
