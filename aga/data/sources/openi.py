"""Open-I: the Indiana University chest radiographs, in the original layout or in Kaggle's.

The original has one XML file per report, which names its images; Kaggle's copy has two tables, and
says which image is frontal. Neither knows patients: a report stands for one. The numbers of reports
are the same in both, so that two copies can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from aga.data.schema import Reject, Study
from aga.data.sources.layouts import Layout, page, require_layout
from aga.data.sources.records import Record, records
from aga.errors import DataError

_REPORTS, _PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
_SECTIONS = ("comparison", "indication", "findings", "impression")
_REPORT_COLUMNS = ("uid", "MeSH", *_SECTIONS)
_PROJECTION_COLUMNS = ("uid", "filename", "projection")
_XML_FOLDER = "ecgen-radiology"
_UNINDEXED = frozenset({"no indexing", "technical quality of image unsatisfactory"})
_NORMAL = "normal"

_HEADINGS = {
    "airspace_disease": "airspace disease",
    "atelectasis": "pulmonary atelectasis",
    "calcified_granuloma": "calcified granuloma",
    "cardiomegaly": "cardiomegaly",
    "consolidation": "consolidation",
    "edema": "pulmonary edema",
    "emphysema": "emphysema",
    "fracture": "fractures, bone",
    "hiatal_hernia": "hernia, hiatal",
    "infiltrate": "infiltrate",
    "lung_opacity": "opacity",
    "nodule": "nodule",
    "pleural_effusion": "pleural effusion",
    "pneumonia": "pneumonia",
    "pneumothorax": "pneumothorax",
    "scoliosis": "scoliosis",
}
CLASSES = (*_HEADINGS, "no_finding")


class Openi:
    """Reads both layouts of Open-I."""

    LICENSE: ClassVar[str] = "CC BY-NC-ND 4.0"
    CITATION: ClassVar[str] = (
        "Demner-Fushman et al., Preparing a collection of radiology examinations for distribution "
        "and retrieval, JAMIA 23(2), 304-310 (2016)"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    KAGGLE: ClassVar[Layout] = Layout(
        "openi",
        {_REPORTS: _REPORT_COLUMNS, _PROJECTIONS: _PROJECTION_COLUMNS},
        images="images/images_normalized/*.png",
    )
    ORIGINAL: ClassVar[Layout] = Layout(
        "openi", files=(f"{_XML_FOLDER}/*.xml",), images="NLMCXR_png/*.png"
    )
    LAYOUTS: ClassVar[Sequence[Layout]] = (KAGGLE, ORIGINAL)

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the tables, or the XML files by their numbers; see `Source.studies`.

        Raises:
            LayoutError: The folder has neither layout.
            DataError: The XML reader is not installed.
        """
        layout = require_layout(root, self.LAYOUTS)
        yield from _kaggle(root) if layout is self.KAGGLE else _original(root)


def mesh_labels(headings: Sequence[str]) -> dict[str, int | None]:
    """Labels of the classes that the index terms of a report settle.

    An indexer names what a report states to be there. `normal` denies every finding; another term
    says nothing of the findings that are not named.

    Args:
        headings: Index terms: `Opacity/lung/base/left`, `normal`.

    Returns:
        For each of `CLASSES` 1, 0, or None where the terms do not say.
    """
    named = {heading.split("/")[0].strip().casefold() for heading in headings} - {""}
    labels: dict[str, int | None] = dict.fromkeys(CLASSES)
    if not named - _UNINDEXED:
        return labels
    if _NORMAL in named:
        return {name: int(name == "no_finding") for name in CLASSES}
    labels |= {name: 1 for name, heading in _HEADINGS.items() if heading in named}
    return labels | {"no_finding": 0}


def report_text(sections: Mapping[str, str]) -> str:
    """The sections as one raw report with headings; empty where it neither finds nor concludes."""
    if not any(sections[name].strip() for name in ("findings", "impression")):
        return ""  # why and against what the patient was imaged is not what the image shows
    stated = {name: sections[name] for name in _SECTIONS if sections[name].strip()}
    return "\n".join(f"{name.upper()}: {text}" for name, text in stated.items())


def _kaggle(root: Path) -> Iterator[Study | Reject]:
    reports: dict[str, Record] = {}
    for row in records(root / _REPORTS, _REPORT_COLUMNS, ("uid",)):
        if isinstance(row, Reject):
            yield row
        else:
            reports[row.cells["uid"]] = row
    pictured = set()
    for row in records(root / _PROJECTIONS, _PROJECTION_COLUMNS, ("uid", "filename")):
        if isinstance(row, Reject):
            yield row
            continue
        uid = row.cells["uid"]
        report = reports.get(uid)
        if report is None:
            yield Reject(row.location, "report missing", f"no such uid in {_REPORTS}", "uid")
            continue
        pictured.add(uid)
        yield Study(
            patient_id=uid,
            study_id=uid,
            image=(root / "images" / "images_normalized" / row.cells["filename"]).absolute(),
            report=report_text(report.cells),
            location=row.location,
            view=row.cells["projection"] or None,
            labels=mesh_labels(report.cells["MeSH"].split(";")),
            repaired=report.repaired,
        )
    for uid, report in reports.items():
        if uid not in pictured:
            detail = f"no row of {_PROJECTIONS} has its uid"
            yield Reject(report.location, "no image", detail, "uid")


def _original(root: Path) -> Iterator[Study | Reject]:
    parse, errors = _xml_reader()
    told = set()
    files = sorted((root / _XML_FOLDER).glob("*.xml"), key=lambda path: (len(path.stem), path.stem))
    for file in files:
        location = f"{_XML_FOLDER}/{file.name}"
        try:
            citation = parse(file).getroot()
        except errors as error:
            yield Reject(location, "not XML", type(error).__name__)
            continue
        sections = dict.fromkeys(_SECTIONS, "")
        for section in citation.iter("AbstractText"):
            name = section.get("Label", "").casefold()
            if name in sections:
                sections[name] = re.sub(r"\s+", " ", "".join(section.itertext())).strip()
        images = [image.get("id", "") for image in citation.iter("parentImage")]
        labels = mesh_labels([term.text or "" for term in citation.iter("major")])
        told |= set(images)
        for number, image in enumerate(images, start=1):
            yield Study(
                patient_id=file.stem,
                study_id=file.stem,
                image=(root / "NLMCXR_png" / f"{image}.png").absolute(),
                report=report_text(sections),
                location=f"{location}:{number}",
                labels=labels,
            )
        if not images:
            yield Reject(location, "no image", "the report names none", "parentImage")
    for picture in sorted((root / "NLMCXR_png").glob("*.png")):
        if picture.stem not in told:
            yield Reject(f"NLMCXR_png/{picture.name}", "report missing", "no XML file names it")


def _xml_reader() -> tuple[Any, tuple[type[Exception], ...]]:
    """A parser that resolves no entities, and what it raises for files that it cannot read."""
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import ParseError, parse
    except ImportError as error:
        raise DataError(
            "The XML reports of Open-I cannot be read: defusedxml is not installed",
            fix=f"pip install 'aga[data]'; see {page('openi')}",
        ) from error
    return parse, (ParseError, DefusedXmlException)
