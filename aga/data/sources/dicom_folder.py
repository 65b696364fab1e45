"""An export of a PACS: DICOM files in folders of any shape, and one table of reports.

Images and reports are joined by what the headers of the images say. Of a header only the
identifiers of patient and study and the view are read, and nothing else is kept of it. Folders and
files may be named after patients, so that a file is spoken of by its number in the sorted list.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from aga.config import Config
from aga.data.schema import Reject, Study
from aga.data.sources.layouts import Layout, page, require_layout
from aga.data.sources.records import Record, records
from aga.errors import DataError

_TAGS = ("PatientID", "StudyInstanceUID", "AccessionNumber", "ViewPosition", "Rows", "SOPClassUID")
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: a list of the other files
_MAGIC = slice(128, 132)
_ENDINGS = (".dcm", ".dicom", ".dic")
_DAMAGED = (
    *(OSError, EOFError, struct.error, NotImplementedError, RecursionError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)


class DicomFolderConfig(Config):
    """How reports find their images.

    Attributes:
        table: The CSV table of reports, relative to the raw folder.
        key: The header tag that joins: which study an image is of.
        key_column: The column of the table that holds the values of that tag.
        text_column: The column that holds the report.
    """

    table: str = Field(min_length=1)
    key: Literal["AccessionNumber", "StudyInstanceUID"]
    key_column: str = Field(min_length=1)
    text_column: str = Field(min_length=1)


class DicomFolder:
    """Reads DICOM files below a folder, and a table of their reports.

    Args:
        config: Which table, and how it is joined.
    """

    LICENSE: ClassVar[str] = "as the owner of the data states"
    CITATION: ClassVar[str] = "as the owner of the data states"
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = ()

    def __init__(self, config: DicomFolderConfig) -> None:
        self._config = config

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the headers of all files by the order of their paths; see `Source.studies`.

        Raises:
            LayoutError: The table or a column is missing.
            DataError: The DICOM reader is not installed.
        """
        config = self._config
        columns = (config.key_column, config.text_column)
        require_layout(root, [Layout("dicom_folder", {config.table: columns})])
        reports = _Reports(config)
        yield from reports.read(root / config.table)
        read_header, damaged = _header_reader()
        for number, path in enumerate(_files(root), start=1):
            location = f"file {number}"
            if not _is_dicom(path):
                if path.suffix.lower() in _ENDINGS:
                    yield Reject(location, "not DICOM", "no DICOM file, by its first bytes")
                continue
            try:
                header = read_header(path)
            except damaged as error:
                yield Reject(location, "image unreadable", f"header: {type(error).__name__}")
                continue
            if header["SOPClassUID"] != _DIRECTORY:
                yield reports.study(header, path, location)
        yield from reports.without_image()


@dataclass
class _Report:
    row: Record
    images: int = 0
    ambiguous: bool = False


class _Reports:
    """The reports by their key, and which of them have met an image."""

    def __init__(self, config: DicomFolderConfig) -> None:
        self._config = config
        self._by_key: dict[str, _Report] = {}

    def read(self, table: Path) -> Iterator[Reject]:
        """Take in the table; rows that cannot be read come out."""
        key, text = self._config.key_column, self._config.text_column
        for row in records(table, (key, text), (key,)):
            if isinstance(row, Reject):
                yield row
                continue
            report = self._by_key.setdefault(row.cells[key], _Report(row))
            report.ambiguous |= report.row.cells[text] != row.cells[text]

    def study(self, header: Mapping[str, str], image: Path, location: str) -> Study | Reject:
        """The row of an image, by its header."""
        if not header["Rows"]:
            return Reject(location, "not an image", "the DICOM file has no pixels")
        key, patient = header[self._config.key], header["PatientID"]
        for tag, value in ((self._config.key, key), ("PatientID", patient)):
            if not value:
                return Reject(location, "value missing", "the header does not say", tag)
        report = self._by_key.get(key)
        if report is None:
            detail = f"the table has no such {self._config.key_column}"
            return Reject(location, "report missing", detail, self._config.key)
        report.images += 1
        if report.ambiguous:
            detail = f"{report.row.location} and another row hold two reports of one key"
            return Reject(location, "report ambiguous", detail, self._config.key_column)
        return Study(
            patient_id=patient,
            study_id=key,
            image=image,
            report=report.row.cells[self._config.text_column],
            location=location,
            view=header["ViewPosition"] or None,
            repaired=report.row.repaired,
        )

    def without_image(self) -> Iterator[Reject]:
        """The reports that no image asked for."""
        for report in self._by_key.values():
            if not report.images:
                detail = f"no DICOM file has this {self._config.key}"
                column = self._config.key_column
                yield Reject(report.row.location, "image missing", detail, column)


def _files(root: Path) -> list[Path]:
    """All files below a folder, as `find . -type f | LC_ALL=C sort` lists them."""
    folder = root.absolute()
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(folder)))


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC.stop)[_MAGIC] == b"DICM"
    except OSError:
        return False


def _header_reader() -> tuple[Callable[[Path], dict[str, str]], tuple[type[Exception], ...]]:
    """What reads the text of `_TAGS` from a header, and what it raises for a damaged one.

    The text is empty where a header does not say.
    """
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise DataError(
            "DICOM files cannot be read: pydicom is not installed",
            fix=f"pip install 'aga[data]'; see {page('dicom_folder')}",
        ) from error

    def read(path: Path) -> dict[str, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they repeat values of the header
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            cells = {tag: header.get(tag) for tag in _TAGS}
            return {tag: "" if cell is None else str(cell).strip() for tag, cell in cells.items()}

    return read, (*_DAMAGED, BytesLengthException, InvalidDicomError)
