"""Your own pairs: one table (CSV, JSON lines or Parquet) of image paths and reports.

`ManifestRow` defines a row; `manifest.schema.json` beside this file is its JSON Schema, published
for those who write manifests with other tools.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from aga.config import Config
from aga.data.schema import Reject, Split, Study
from aga.data.sources.base import is_file
from aga.data.sources.layouts import Layout, page, require_layout
from aga.data.sources.manifest_table import (
    FORMATS,
    NotUtf8,
    Record,
    read_records,
    table_columns,
)
from aga.errors import DataError

_log = logging.getLogger(__name__)
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
_REQUIRED = ("patient_id", "study_id", "image")
_TEXTS = ("text", "findings", "impression")


class ManifestConfig(Config):
    """Which table holds the rows.

    Attributes:
        table: Its path, relative to the raw folder; the ending names the format.
        not_utf8: What text is read as whose bytes are not UTF-8 (Western European, or Chinese), or
            `reject`.
    """

    table: str = Field(min_length=1)
    not_utf8: NotUtf8


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _from_json(value: object) -> object:
    """Labels arrive as JSON text in a CSV cell, as tuples from a Parquet map, else as an object."""
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
    if isinstance(value, list) and all(isinstance(item, tuple) for item in value):
        return dict(value)
    return _none_if_blank(value)


Name = Annotated[str, Field(min_length=1, pattern=r"\S")]
Identifier = Annotated[Name, AfterValidator(str.strip)]
OptionalText = Annotated[str | None, BeforeValidator(_none_if_blank)]
Label = Literal[0, 1] | None


class ManifestRow(BaseModel):
    """One image with its report."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", coerce_numbers_to_str=True, title="A row of an aga manifest"
    )

    patient_id: Identifier = Field(description="All rows of a patient go to one split.")
    study_id: Identifier = Field(description="Rows of one study share patient, report and split.")
    image: Name = Field(description="Path of the image file, relative to the table's folder.")
    text: OptionalText = Field(None, description="The whole report, or leave it to the next two.")
    findings: OptionalText = Field(
        None, description="The FINDINGS section, where there is no `text`."
    )
    impression: OptionalText = Field(
        None, description="The IMPRESSION section, where there is no `text`."
    )
    view: OptionalText = Field(None, description="Projection, such as PA.")
    split: Annotated[Split | None, BeforeValidator(_none_if_blank)] = Field(
        None, description="Given in every row or in none."
    )
    labels: Annotated[dict[str, Label] | None, BeforeValidator(_from_json)] = Field(
        None, description="Finding to 1 (present), 0 (absent) or null; in CSV as JSON text."
    )

    @model_validator(mode="after")
    def _has_a_report(self) -> Self:
        if not self.report.strip():
            raise ValueError("the report is empty")
        return self

    @property
    def report(self) -> str:
        """The report as one raw text with headings, as if it had been written so."""
        if self.text is not None:
            return self.text
        sections = {"FINDINGS": self.findings, "IMPRESSION": self.impression}
        return "\n".join(f"{heading}: {text}" for heading, text in sections.items() if text)


class Manifest:
    """Reads a manifest table.

    Args:
        config: Which table.
    """

    LICENSE: ClassVar[str] = "as the owner of the data states"
    CITATION: ClassVar[str] = "as the owner of the data states"
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = ()

    def __init__(self, config: ManifestConfig) -> None:
        self._table = config.table
        self._not_utf8 = config.not_utf8

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the table below `root`; see `Source.studies`.

        Raises:
            DataError: The table is missing, of another format, or lacks a column.
        """
        path = root / self._table
        if path.suffix not in FORMATS:
            raise DataError(
                "The manifest is of no known format",
                where=path,
                got=path.suffix or "no ending",
                expected=", ".join(FORMATS),
            )
        require_layout(root, [Layout("manifest", files=(self._table,))])
        _require_columns(path)
        for record in read_records(path, ManifestRow.model_fields, self._not_utf8):
            yield record if isinstance(record, Reject) else _study(record, path.parent)


def row_schema() -> dict[str, Any]:
    """The JSON Schema of a row, as `manifest.schema.json` publishes it."""
    return ManifestRow.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": [{"required": [name]} for name in _TEXTS],
    }


def _study(record: Record, folder: Path) -> Study | Reject:
    location = record.location
    try:
        row = ManifestRow.model_validate(record.cells)
    except ValidationError as error:
        return _reject(error, location)
    image = (folder / row.image).absolute()
    if not is_file(image):
        return Reject(location, "image missing", "no such file", "image")
    return Study(
        patient_id=row.patient_id,
        study_id=row.study_id,
        image=image,
        report=row.report,
        location=location,
        view=row.view,
        split=row.split,
        labels=dict(sorted((row.labels or {}).items())),
        repaired=record.repaired,
    )


def _reject(error: ValidationError, location: str) -> Reject:
    """The first thing that is wrong with a row, without the value: it may name a patient."""
    first = error.errors(include_input=False, include_url=False)[0]
    if not first["loc"]:
        return Reject(location, "report empty", "no text, findings or impression", "text")
    column = ".".join(str(part) for part in first["loc"])
    empty = first["type"] in ("missing", "string_too_short", "string_pattern_mismatch")
    if empty or (first["type"] == "string_type" and first["loc"][0] in _REQUIRED):
        return Reject(location, "value missing", "the cell is empty", column)
    return Reject(location, "value invalid", first["msg"], column)


def _require_columns(path: Path) -> None:
    columns = table_columns(path)
    missing = [name for name in _REQUIRED if name not in columns]
    ours = columns & set(ManifestRow.model_fields)
    if not columns & set(_TEXTS):
        missing.append("text (or findings, impression)")
    if missing:
        raise DataError(
            f"The manifest has no column {missing[0]}",
            where=path,
            # Without a header the cells of a patient stand there: only our own names are told.
            got=f"{len(columns)} columns, of ours {', '.join(sorted(ours)) or 'none'}",
            expected=f"{', '.join(_REQUIRED)}, and text, findings or impression",
            fix=f"add the column, or rename the one that holds it; see {page('manifest')}",
        )
    unread = columns - ours
    if unread:
        names = ", ".join(sorted(unread)).encode("utf-8", "replace").decode()
        _log.warning("%s: columns that are not read: %s", path.name, names)
