"""Small folders in the layouts of public data sets; every word and pixel is made here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raw_folders import Rows, noise_dicom, noise_image, write_csv

from aga.data.sources.chexpert_labels import FINDINGS

SIDE = 1024  # of the masks of SIIM


# --- CheXpert


def chexpert_row(path: str, view: str, **told: str) -> dict[str, object]:
    """A row whose findings are blank but for those that are told, by label name."""
    lateral = view == "Lateral"
    findings = {column: told.get(name, "") for column, name in FINDINGS.items()}
    return {
        "Path": path,
        "Sex": "Female",
        "Age": 68,
        "Frontal/Lateral": "Lateral" if lateral else "Frontal",
        "AP/PA": "" if lateral else view,
        **findings,
    }


def chexpert(root: Path, folder: str = "CheXpert-v1.0-small", test: bool = False) -> None:
    """Four training patients, one with two studies and a lateral view, and two of `valid`."""
    effusion, clear = {"pleural_effusion": "1.0"}, {"no_finding": "1.0", "pleural_effusion": "0.0"}
    train = [
        ("train/patient00001/study1/view1_frontal.jpg", "AP", effusion | {"edema": "-1.0"}),
        ("train/patient00001/study1/view2_lateral.jpg", "Lateral", effusion | {"edema": "-1.0"}),
        ("train/patient00001/study2/view1_frontal.jpg", "PA", clear),
        ("train/patient00002/study1/view1_frontal.jpg", "AP", clear),
        ("train/patient00003/study1/view1_frontal.jpg", "PA", effusion),
        ("train/patient00004/study1/view1_frontal.jpg", "PA", clear),
    ]
    valid = [
        ("valid/patient64541/study1/view1_frontal.jpg", "AP", effusion),
        ("valid/patient64542/study1/view1_frontal.jpg", "PA", clear),
    ]
    home = root / folder if test else root  # the folder itself, or the one that holds it
    for seed, (path, _, _) in enumerate(train + valid):
        noise_image(home / path, seed)
    for name, rows in (("train", train), ("valid", valid)):
        written = [chexpert_row(f"{folder}/{path}", view, **told) for path, view, told in rows]
        write_csv(home / f"{name}.csv", written)
    if test:
        path = "test/patient64741/study1/view1_frontal.jpg"
        noise_image(home / path, 99)
        row = chexpert_row(path, "PA", **dict.fromkeys(FINDINGS.values(), "0.0"))
        columns = ("Path", *FINDINGS)
        write_csv(home / "test_labels.csv", [{name: row[name] for name in columns}])


# --- CheXpert Plus


def chexpert_plus(root: Path, dicom: bool = False) -> None:
    """Four studies of three patients; one has no sections of its own, one no findings."""
    rows: Rows = []
    said = [
        ("train/patient00001/study1", "Small left effusion.", "Effusion, unchanged."),
        ("train/patient00001/study2", "", "No acute disease."),
        ("train/patient00002/study1", "", ""),
        ("valid/patient64541/study1", "The lungs are clear.", "Normal chest."),
    ]
    for seed, (study, findings, impression) in enumerate(said):
        path = f"{study}/view1_frontal"
        split, patient = study.split("/")[:2]
        if dicom:
            noise_dicom(root / f"DICOM/{path}.dcm", seed)
        else:
            noise_image(root / f"PNG/{path}.png", seed)
        rows.append(
            {
                "path_to_image": f"{path}.jpg",
                "path_to_dcm": f"{path}.dcm",
                "frontal_lateral": "Frontal",
                "ap_pa": "AP" if seed else "PA",
                "deid_patient_id": patient,
                "report": "NARRATIVE:\nChest radiograph, one view.\nIMPRESSION:\n1. Normal heart.",
                "section_findings": findings,
                "section_impression": impression,
                "age": 54,
                "split": split,
            }
        )
    write_csv(root / "df_chexpert_plus_240401.csv", rows)
    (root / "chexbert_labels").mkdir()
    lines = []
    for row in rows[1:]:
        unsaid = dict.fromkeys(FINDINGS)
        told = {"path_to_image": row["path_to_image"], "Cardiomegaly": 0.0, "No Finding": 1.0}
        lines.append(json.dumps(unsaid | told))
    (root / "chexbert_labels/report_fixed.json").write_text("\n".join(lines) + "\n")


# --- RSNA


def rsna(root: Path) -> None:
    """Five images of four patients of the NIH; one has two boxes, in rows apart."""
    boxed = {"a": [(100.0, 200.0, 50.0, 80.0), (600.5, 210.0, 40.0, 90.0)], "b": [(5, 6, 7, 8)]}
    classes = {
        "a": "Lung Opacity",
        "b": "Lung Opacity",
        "c": "Normal",
        "d": "No Lung Opacity / Not Normal",
        "e": "Normal",
    }
    for seed, name in enumerate(classes):
        noise_dicom(root / f"stage_2_train_images/{name}.dcm", seed)
    rows: Rows = [_rsna_row(name, boxes[0]) for name, boxes in boxed.items()]
    rows += [_rsna_row(name, None) for name in classes if name not in boxed]
    rows += [_rsna_row(name, box) for name, boxes in boxed.items() for box in boxes[1:]]
    write_csv(root / "stage_2_train_labels.csv", rows)
    told: Rows = [
        {"patientId": row["patientId"], "class": classes[row["patientId"]]} for row in rows
    ]
    write_csv(root / "stage_2_detailed_class_info.csv", told)
    origins = [
        {"subset_img_id": name, "img_id": f"{seed // 2:08}_{seed:03}.png"}
        for seed, name in enumerate(classes)
    ]
    file = root / "pneumonia-challenge-dataset-mappings_2018.json"
    file.write_text(json.dumps(origins))


def _rsna_row(name: str, box: Sequence[float] | None) -> dict[str, object]:
    cells = dict(zip(("x", "y", "width", "height"), box or [""] * 4, strict=True))
    return {"patientId": name, **cells, "Target": int(box is not None)}


# --- NIH ChestX-ray14

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def nih14(root: Path) -> None:
    """Six images of five patients in two of the folders; the last two are official test images."""
    named = {
        "00000001_000.png": "Cardiomegaly",
        "00000001_001.png": "Cardiomegaly|Effusion",
        "00000002_000.png": "No Finding",
        "00000003_000.png": "Infiltration",
        "00000004_000.png": "Pleural_Thickening|Mass",
        "00000005_000.png": "No Finding",
    }
    lines = [NIH_HEADER]
    for seed, (name, findings) in enumerate(named.items()):
        noise_image(root / f"images_00{1 + seed // 3}/images/{name}", seed)
        patient, follow_up = int(name[:8]), int(name[9:12])
        lines.append(f"{name},{findings},{follow_up},{patient},58,M,PA,2682,2749,0.143,0.143,")
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    names = list(named)
    (root / "train_val_list.txt").write_text("\n".join(names[:4]))
    (root / "test_list.txt").write_text("\n".join(names[4:]))
    boxes = [
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        "00000001_000.png,Cardiomegaly,225.5,547.25,86.5,79.0,,,",
        "00000003_000.png,Infiltrate,10,20,30,40,,,",
        "00000003_000.png,Infiltrate,100,20,30,40,,,",
    ]
    (root / "BBox_List_2017.csv").write_text("\n".join(boxes) + "\n")


# --- COVIDx


def covidx(root: Path, three_classes: bool = False) -> None:
    """Patients of one number in two collections; a name with a space; a validation list or none."""
    lists = {
        "train": [("3", "a.png", "negative", "rsna"), ("3", "b.jpg", "positive", "cohen")],
        "val": [("7", "c (1).png", "negative", "sirm"), ("8", "d.png", "positive", "ricord")],
        "test": [("9", "e.png", "negative", "rsna"), ("9", "f.png", "positive", "bimcv")],
    }
    if three_classes:
        lists["train"] = [
            ("1", "a.png", "normal"),
            ("2", "b.jpg", "pneumonia"),
            ("3", "c.png", "COVID-19"),
            ("4", "d.png", "normal"),
        ]
        lists["test"] = [("5", "e.png", "normal"), ("6", "f.png", "COVID-19")]
        del lists["val"]
    for split, rows in lists.items():
        for _, name, *_ in rows:
            noise_image(root / split / name, ord(name[0]))
        name = f"{split}_COVIDx9A.txt" if three_classes else f"{split}.txt"
        (root / name).write_text("".join(f"{' '.join(row)}\n" for row in rows))


# --- SIIM


def runs(*boxes: tuple[int, int, int, int]) -> str:
    """A mask of boxes (left, top, right, bottom), left to right, as the challenge encodes it."""
    numbers, end = [], 0
    for left, top, right, bottom in boxes:
        for column in range(left, right):
            start = column * SIDE + top
            numbers += [start - end, bottom - top]
            end = start + bottom - top
    return " ".join(map(str, numbers))


def siim(root: Path) -> None:
    """Five images, one with two masks in rows apart; the header has the first stage's space."""
    rows = [
        ("1.2.3.1", f" {runs((100, 200, 110, 240))}"),
        ("1.2.3.2", " -1"),
        ("1.2.3.3", f" {runs((5, 0, 6, 1024))}"),
        ("1.2.3.1", f" {runs((700, 300, 702, 310), (705, 290, 706, 320))}"),
        ("1.2.3.4", " -1"),
        ("1.2.3.5", " -1"),
    ]
    root.mkdir(parents=True)
    lines = ["ImageId, EncodedPixels", *(",".join(row) for row in rows)]
    (root / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(dict.fromkeys(name for name, _ in rows)):
        noise_dicom(root / f"dicom-images-train/9.{seed}/8.{seed}/{name}.dcm", seed)


# --- ROCO

CAPTIONS = {
    "train": ["CT of the chest shows a nodule.", "Axial MRI of the brain, T2.", "Plain film."],
    "validation": ["Ultrasound of the liver\nwith a cyst."],
    "test": ["Lateral radiograph of the knee.", "Fracture of the radius."],
}


def roco_first(root: Path) -> None:
    number = 0
    for split, captions in CAPTIONS.items():
        folder = root / "data" / split / "radiology"
        folder.mkdir(parents=True)
        lines = []
        for caption in captions:
            number += 1
            name = f"ROCO_{number:05}"
            noise_image(folder / f"images/{name}.jpg", number)
            lines.append(f"{name}\t {caption}\n")
        (folder / "captions.txt").write_text("".join(lines))


def roco_second(root: Path) -> None:
    number = 0
    for split, captions in CAPTIONS.items():
        short = {"validation": "valid"}.get(split, split)
        rows: Rows = []
        for caption in captions:
            number += 1
            name = f"ROCOv2_2023_{split}_{number:06}"
            noise_image(root / f"{short}_images/{short}/{name}.jpg", number)
            rows.append({"ID": name, "Caption": caption})
        write_csv(root / f"{short}_captions.csv", rows)
