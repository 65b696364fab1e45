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

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from aga.config import Config
from aga.data.schema import Reject, Split, Study
from aga.data.sources.base import is_file
from aga.data.sources.layouts import Layout, page, require_layout
from aga.data.sources.tables import csv_columns, has_stray_bytes, read_csv
from aga.errors import DataError

_log = logging.getLogger(__name__)
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
_REQUIRED = ("patient_id", "study_id", "image")
_TEXTS = ("text", "findings", "impression")
_FORMATS = (".csv", ".jsonl", ".parquet")


class ManifestConfig(Config):
    """Which table holds the rows.

    Attributes:
        table: Its path, relative to the raw folder; the ending names the format.
    """

    table: str = Field(min_length=1)


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _from_json(value: object) -> object:
    """Labels arrive as JSON text in a CSV cell, as tuples from a Parquet map, else as an object."""
    if isinstance(value, str) and value.strip():
        return json.loads(value)
    if isinstance(value, list) and all(isinstance(item, tuple) for item in value):
        return dict(value)
    return _none_if_blank(value)


Name = Annotated[str, Field(min_length=1, pattern=r"\S")]
OptionalText = Annotated[str | None, BeforeValidator(_none_if_blank)]
Label = Literal[0, 1] | None


class ManifestRow(BaseModel):
    """One image with its report."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", coerce_numbers_to_str=True, title="A row of an aga manifest"
    )

    patient_id: Name = Field(description="All rows of a patient go to one split.")
    study_id: Name = Field(description="Rows of one study share patient, report and split.")
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

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the table below `root`; see `Source.studies`.

        Raises:
            DataError: The table is missing, of another format, or lacks a column.
        """
        path = root / self._table
        if path.suffix not in _FORMATS:
            raise DataError(
                "The manifest is of no known format",
                where=path,
                got=path.suffix or "no ending",
                expected=", ".join(_FORMATS),
            )
        require_layout(root, [Layout("manifest", files=(self._table,))])
        _require_columns(path)
        for number, cells in _records(path):
            location = f"{path.name}:{number}"
            yield cells if isinstance(cells, Reject) else _study(cells, path.parent, location)


def row_schema() -> dict[str, Any]:
    """The JSON Schema of a row, as `manifest.schema.json` publishes it."""
    return ManifestRow.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": [{"required": [name]} for name in _TEXTS],
    }


def _study(cells: dict[str, Any], folder: Path, location: str) -> Study | Reject:
    stray = next((name for name, cell in cells.items() if _is_not_text(cell)), None)
    if stray is not None:
        return Reject(location, "not UTF-8", "save the table as UTF-8", stray)
    try:
        row = ManifestRow.model_validate(cells)
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


def _is_not_text(cell: object) -> bool:
    return isinstance(cell, str) and any("\ud800" <= character <= "\udfff" for character in cell)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """(line or row number, cells by column) of every record, whatever the format."""
    if path.suffix == ".csv":
        return _csv_records(path)
    return _json_records(path) if path.suffix == ".jsonl" else _parquet_records(path)


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    for line in read_csv(path):
        if line.surplus:
            detail = f"{line.surplus:+d} against the header"
            reject = Reject(f"{path.name}:{line.number}", "wrong number of columns", detail)
            yield line.number, reject
        else:
            yield line.number, dict(line.cells)


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            location = f"{path.name}:{number}"
            if has_stray_bytes(line):
                yield number, Reject(location, "not UTF-8", "save the table as UTF-8")
                continue
            try:
                cells = json.loads(line)
            except ValueError:
                yield number, Reject(location, "not JSON", "the line is not a JSON value")
                continue
            if isinstance(cells, dict):
                yield number, cells
            else:
                yield number, Reject(location, "not JSON", "the line is not an object")


def _parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    with _open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name in ManifestRow.model_fields]
        batches = file.iter_batches(batch_size=1024, columns=names)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


def _open_parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(
            "The manifest is not a Parquet file", where=path, got="other content"
        ) from error


def _columns(path: Path) -> set[str]:
    if path.suffix == ".csv":
        return set(csv_columns(path))
    if path.suffix == ".parquet":
        with _open_parquet(path) as file:
            return set(file.schema_arrow.names)
    records = (cells for _, cells in _json_records(path) if isinstance(cells, dict))
    return {name for cells in records for name in cells}


def _require_columns(path: Path) -> None:
    columns = _columns(path)
    missing = [name for name in _REQUIRED if name not in columns]
    if not columns & set(_TEXTS):
        missing.append("text (or findings, impression)")
    if missing:
        raise DataError(
            f"The manifest has no column {missing[0]}",
            where=path,
            got=f"the columns {', '.join(sorted(columns))}" if columns else "no column",
            expected=f"{', '.join(_REQUIRED)}, and text, findings or impression",
            fix=f"add the column, or rename the one that holds it; see {page('manifest')}",
        )
    unread = columns - set(ManifestRow.model_fields)
    if unread:
        _log.warning("%s: columns that are not read: %s", path.name, ", ".join(sorted(unread)))
