"""Small raw folders of every source, as their owners lay them out.

A source is entered in `TREES` with the function that makes its folder; `test_every_source` asks the
same of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tree_of_dicom_folder
import tree_of_mimic_cxr
import tree_of_openi
import trees_of_public_sets as public
from raw_folders import Rows, noise_image, write_csv

from aga.data.sources.phantom import PhantomConfig, generate

REPORT = "FINDINGS: Opacity number {} is seen at the left base.\nIMPRESSION: Pneumonia."


@dataclass(frozen=True)
class Tree:
    """A raw folder of three to eight studies.

    Attributes:
        source: Name of the source that reads it.
        build: Makes it below a root.
        settings: Of `source` in params.yaml, beside name and root.
        optional: Files and columns whose absence rejects no row.
        columns: How many columns its tables must have.
        reports: Whether its rows have reports, or labels alone.
    """

    source: str
    build: Callable[[Path], None]
    settings: Mapping[str, object] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    columns: int = 3
    reports: bool = True


def covid_chestxray(root: Path) -> None:
    rows: Rows = []
    for number in range(4):
        noise_image(root / f"images/{number}.png", number)
        rows.append(
            {
                "patientid": f"{number}",
                "offset": "3",
                "finding": "COVID-19" if number % 2 else "No Finding",
                "view": "PA",
                "modality": "X-ray",
                "filename": f"{number}.png",
                "clinical_notes": f"Day {number}: opacities in the lower zones of both lungs.",
            }
        )
    write_csv(root / "metadata.csv", rows)
    boxes = {
        "categories": [{"id": 1, "name": "Left Lung"}],
        "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 30}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [3, 4, 10, 20]}],
    }
    (root / "annotations").mkdir()
    file = root / "annotations/imageannotation_ai_lung_bounding_boxes.json"
    file.write_text(json.dumps(boxes))


def manifest(root: Path) -> None:
    rows: Rows = []
    for number in range(4):
        noise_image(root / f"images/{number}.png", number)
        rows.append(
            {
                "patient_id": f"P{number}",
                "study_id": f"S{number}",
                "image": f"images/{number}.png",
                "text": REPORT.format(number),
                "labels": {"opacity": 1, "nodule": None},
            }
        )
    write_csv(root / "pairs.csv", rows)


def phantom(root: Path) -> None:
    config = PhantomConfig(
        patients=4,
        studies_per_patient=(1.0,),
        size=64,
        findings_per_study=(0.5, 0.5),
        noise=0.03,
        corrupt_fraction=0.0,
    )
    generate(root, config, seed=0)


TREES: Mapping[str, Tree] = {
    "chexpert": Tree("chexpert", public.chexpert, reports=False),
    "chexpert-test": Tree("chexpert", partial(public.chexpert, test=True), reports=False),
    "chexpert_plus-dicom": Tree(
        "chexpert_plus",
        partial(public.chexpert_plus, dicom=True),
        optional=("chexbert_labels/report_fixed.json",),
    ),
    "chexpert_plus-png": Tree(
        "chexpert_plus",
        public.chexpert_plus,
        optional=("chexbert_labels/report_fixed.json",),
    ),
    "covid_chestxray": Tree(
        "covid_chestxray",
        covid_chestxray,
        optional=("annotations/imageannotation_ai_lung_bounding_boxes.json",),
    ),
    "dicom_folder-accession": Tree(
        "dicom_folder",
        tree_of_dicom_folder.by_accession,
        {"dicom_folder": {"key_column": "study"}},
        optional=tree_of_dicom_folder.UNMISSED,
        columns=2,
    ),
    "dicom_folder-study_uid": Tree(
        "dicom_folder",
        tree_of_dicom_folder.by_study_uid,
        {"dicom_folder": {"key": "StudyInstanceUID", "key_column": "study"}},
        optional=tree_of_dicom_folder.UNMISSED,
        columns=2,
    ),
    "mimic_cxr-jpg-2.0.0": Tree("mimic_cxr", tree_of_mimic_cxr.jpg),
    "mimic_cxr-dicom-2.1.0": Tree(
        "mimic_cxr", tree_of_mimic_cxr.dicom, {"mimic_cxr": {"labels": "negbio"}}
    ),
    "manifest": Tree("manifest", manifest, optional=("labels",)),
    "covidx": Tree("covidx", public.covidx, columns=0, reports=False),
    "covidx-old": Tree(
        "covidx", partial(public.covidx, three_classes=True), columns=0, reports=False
    ),
    "nih14": Tree(
        "nih14",
        public.nih14,
        optional=("BBox_List_2017.csv", "Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"),
        reports=False,
    ),
    "openi-kaggle": Tree("openi", tree_of_openi.kaggle),
    "openi-original": Tree("openi", tree_of_openi.original, columns=0),
    "phantom": Tree("phantom", phantom),
    "roco-1": Tree("roco", public.roco_first, columns=0),
    "roco-2": Tree("roco", public.roco_second),
    "rsna": Tree(
        "rsna",
        public.rsna,
        optional=("pneumonia-challenge-dataset-mappings_2018.json",),
        reports=False,
    ),
    "siim": Tree("siim", public.siim, columns=2, reports=False),
}
