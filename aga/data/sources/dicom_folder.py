"""An export of a PACS: DICOM files in folders of any shape, and one table of reports.

Images and reports are joined by what the headers of the images say. Of a header only the
identifiers of patient and study and the view are read, and nothing else is kept of it. Folders and
files may be named after patients, so that a file is spoken of by its number in the sorted list.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from aga.config import Config
from aga.data.pixels.dicom import UNREADABLE, DicomError, codecs, header_text, is_dicom
from aga.data.schema import Reject, Study
from aga.data.sources.layouts import Layout, page, require_layout
from aga.data.sources.records import Record, records
from aga.errors import DataError

_log = logging.getLogger(__name__)
_TAGS = ("PatientID", "StudyInstanceUID", "AccessionNumber", "ViewPosition", "Rows", "SOPClassUID")
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: a list of the other files
_ENDINGS = (".dcm", ".dicom", ".dic")


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
        if not codecs():
            raise DataError(
                "DICOM files cannot be read: pydicom is not installed",
                fix=f"pip install 'aga[data]'; see {page('dicom_folder')}",
            )
        reports = _Reports(config)
        yield from reports.read(root / config.table)
        passed_over = -1  # the table
        for number, path in enumerate(_files(root), start=1):
            row = self._row(path, f"file {number}", reports)
            passed_over += row is None
            if row is not None:
                yield row
        yield from reports.without_image()
        _log.info("%d files beside the table are no DICOM images", passed_over)

    @staticmethod
    def _row(path: Path, location: str, reports: _Reports) -> Study | Reject | None:
        """What becomes of a file; nothing of one that does not claim to be DICOM, and of a list."""
        try:
            if not is_dicom(path):
                claims = path.suffix.lower() in _ENDINGS
                return Reject(location, "not DICOM", "by its first bytes") if claims else None
            header = header_text(path, _TAGS)
        except OSError as error:
            return Reject(location, UNREADABLE, type(error).__name__)
        except DicomError as error:
            return Reject(location, error.reason, error.problem)
        return (
            None if header["SOPClassUID"] == _DIRECTORY else reports.study(header, path, location)
        )


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
    """All files below a folder, as `find . ! -xtype d | LC_ALL=C sort` lists them.

    Links to files are among them; links to folders are neither listed nor followed.
    """
    folder = root.absolute()
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(folder)))
