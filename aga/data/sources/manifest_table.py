"""The records of a manifest table, whatever its format, in UTF-8 or read so."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from aga.data.schema import Reject
from aga.data.sources.tables import csv_columns, has_stray_bytes, read_csv, repair_stray_bytes
from aga.errors import DataError

FORMATS = (".csv", ".jsonl", ".parquet")
NotUtf8: TypeAlias = Literal["reject", "windows-1252", "gb18030"]
_BATCH = 1024


@dataclass(frozen=True)
class Record:
    """One record of the table.

    Attributes:
        location: The table's name and the line or row number.
        cells: Values by column.
        repaired: Whether bytes were not UTF-8 and were read otherwise.
    """

    location: str
    cells: dict[str, Any]
    repaired: bool = False


def read_records(
    path: Path, columns: Collection[str], not_utf8: NotUtf8
) -> Iterator[Record | Reject]:
    """Every record of a table of `FORMATS`.

    Args:
        path: The table.
        columns: Which are read, where the format reads columns.
        not_utf8: What text is read as whose bytes are not UTF-8, or `reject`.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    _refuse_utf16(path)
    if path.suffix == ".csv":
        yield from _csv_records(path, not_utf8)
    elif path.suffix == ".jsonl":
        yield from _json_records(path, not_utf8)
    else:
        yield from _parquet_records(path, columns, not_utf8)


def table_columns(path: Path) -> set[str]:
    """The columns of a table; of JSON lines, all keys."""
    _refuse_utf16(path)
    if path.suffix == ".csv":
        return set(csv_columns(path))
    if path.suffix == ".parquet":
        with _open_parquet(path) as file:
            return set(file.schema_arrow.names)
    records = (record for record in _json_records(path, "reject") if isinstance(record, Record))
    return {name for record in records for name in record.cells}


def in_utf8(text: str, not_utf8: NotUtf8) -> str | None:
    """Text whose bytes were not UTF-8, as far as they are not, read in another encoding.

    Windows-1252 is what single stray bytes are read as, and the rest stays as it is. GB18030 has
    several bytes to a character: all of the text is read anew, as what looks like UTF-8 is chance.

    Args:
        text: Text in which bytes that are not UTF-8 are surrogate escapes (PEP 383).
        not_utf8: The other encoding.

    Returns:
        The text itself where it is UTF-8; None where it is of neither encoding.
    """
    if not _has_surrogates(text):
        return text
    if not_utf8 == "windows-1252":
        text = repair_stray_bytes(text)
        return None if _has_surrogates(text) else text
    try:
        return text.encode("utf-8", "surrogateescape").decode(not_utf8)
    except (UnicodeError, LookupError):  # `reject` is no encoding
        return None


def _record(
    location: str, cells: dict[str, Any], not_utf8: NotUtf8, repaired: bool = False
) -> Record | Reject:
    texts = {name: cell for name, cell in cells.items() if isinstance(cell, str)}
    read = {name: in_utf8(text, not_utf8) for name, text in texts.items()}
    failed = [name for name, text in read.items() if text is None]
    if failed:
        return _not_utf8(location, not_utf8, failed[0])
    return Record(location, cells | read, repaired or read != texts)


def _not_utf8(location: str, not_utf8: NotUtf8, column: str | None = None) -> Reject:
    advice = "save the table as UTF-8, or set source.manifest.not_utf8"
    detail = advice if not_utf8 == "reject" else f"nor {not_utf8}"
    return Reject(location, "not UTF-8", detail, column)


def _csv_records(path: Path, not_utf8: NotUtf8) -> Iterator[Record | Reject]:
    for line in read_csv(path):
        location = f"{path.name}:{line.number}"
        if line.surplus:
            detail = f"{line.surplus:+d} against the header"
            yield Reject(location, "wrong number of columns", detail)
        else:
            yield _record(location, line.cells, not_utf8)


def _json_records(path: Path, not_utf8: NotUtf8) -> Iterator[Record | Reject]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json_record(line, f"{path.name}:{number}", not_utf8)


def _json_record(line: str, location: str, not_utf8: NotUtf8) -> Record | Reject:
    text = in_utf8(line, not_utf8)
    if text is None:
        return _not_utf8(location, not_utf8)
    try:
        cells = json.loads(text)
    except (ValueError, RecursionError):  # the latter where it is nested too deeply
        return Reject(location, "not JSON", "the line is not a JSON value")
    if not isinstance(cells, dict):
        return Reject(location, "not JSON", "the line is not an object")
    return _record(location, cells, not_utf8, repaired=has_stray_bytes(line))


def _parquet_records(
    path: Path, columns: Collection[str], not_utf8: NotUtf8
) -> Iterator[Record | Reject]:
    number = 0
    with _open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name in columns]
        for batch in file.iter_batches(batch_size=_BATCH, columns=names):
            for cells in pa.Table.from_batches([batch]).cast(_as_bytes(batch.schema)).to_pylist():
                number += 1
                read = {name: _decoded(cell) for name, cell in cells.items()}
                yield _record(f"{path.name}:{number}", read, not_utf8)


def _as_bytes(schema: pa.Schema) -> pa.Schema:
    """The schema with text as bytes: Arrow does not check that text is UTF-8."""
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return pa.schema([field.with_type(kinds.get(field.type, field.type)) for field in schema])


def _decoded(cell: object) -> object:
    return cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell


def _open_parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(
            "The manifest is not a Parquet file", where=path, got="other content"
        ) from error


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                "The manifest is UTF-16", where=path, expected="UTF-8", fix="save it as UTF-8"
            )


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
