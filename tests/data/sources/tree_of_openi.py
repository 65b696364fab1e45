"""Open-I's two layouts with the same five reports, written for this test."""

from __future__ import annotations

from pathlib import Path

from raw_folders import Rows, noise_image, write_csv

REPORTS = {
    "1": {
        "MeSH": "normal",
        "indication": "Chest pain.",
        "comparison": "None.",
        "findings": "Both lungs are clear & well expanded.",
        "impression": "No acute disease.",
    },
    "2": {
        "MeSH": "Cardiomegaly/mild;Opacity/lung/base/left",
        "indication": "XXXX-year-old with cough",
        "comparison": "",
        "findings": "The heart is enlarged. Opacity at the left base, XXXX atelectasis.",
        "impression": "",
    },
    "10": {
        "MeSH": "No Indexing",
        "indication": "",
        "comparison": "XXXX, XXXX",
        "findings": "",
        "impression": "1. Stable appearance of the chest. 2. No effusion.",
    },
    "11": {
        "MeSH": "Pleural Effusion/right/small",
        "indication": "Dyspnea",
        "comparison": "",
        "findings": "Small right pleural effusion.",
        "impression": "Small effusion.",
    },
}
IMAGES = {
    "1": ("1_IM-0001-4001", "1_IM-0001-3001"),
    "2": ("2_IM-0652-1001", "2_IM-0652-2001"),
    "10": ("10_IM-0002-2001",),
    "11": ("11_IM-0067-1001",),
    "12": ("12_IM-0133-1001",),
}
WORDLESS = {"MeSH": "normal", "indication": "Positive TB test", "comparison": "None."}


def kaggle(root: Path) -> None:
    reports: Rows = [
        {"uid": uid, "Problems": report["MeSH"], "image": "PA and Lateral", **report}
        for uid, report in REPORTS.items()
    ]
    reports.append(
        {
            "uid": "12",
            "Problems": "normal",
            "image": "",
            **WORDLESS,
            "findings": "",
            "impression": "",
        }
    )
    views: Rows = []
    for seed, (uid, name) in enumerate(_pictures()):
        noise_image(root / f"images/images_normalized/{name}.dcm.png", seed)
        projection = "Lateral" if name.endswith(("3001", "2_IM-0652-2001")) else "Frontal"
        views.append({"uid": uid, "filename": f"{name}.dcm.png", "projection": projection})
    write_csv(root / "indiana_reports.csv", reports)
    write_csv(root / "indiana_projections.csv", views)


def original(root: Path) -> None:
    (root / "ecgen-radiology").mkdir(parents=True)
    for seed, (_, name) in enumerate(_pictures()):
        noise_image(root / f"NLMCXR_png/CXR{name}.png", seed)
    for uid, report in {**REPORTS, "12": WORDLESS}.items():
        images = [f"CXR{name}" for owner, name in _pictures() if owner == uid]
        (root / f"ecgen-radiology/{uid}.xml").write_text(citation(uid, report, images))


def citation(uid: str, report: dict[str, str], images: list[str]) -> str:
    """A report as the collection writes it, without what is not read."""
    sections = "\n".join(
        f'<AbstractText Label="{name.upper()}">{report.get(name, "").replace("&", "&amp;")}'
        "</AbstractText>"
        for name in ("comparison", "indication", "findings", "impression")
    )
    pictures = "\n".join(
        f'<parentImage id="{name}"><caption>PA and Lateral</caption></parentImage>'
        for name in images
    )
    terms = "".join(f"<major>{term}</major>" for term in report["MeSH"].split(";"))
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><uId id="CXR{uid}"/>\n'
        f"<MedlineCitation><Article><Abstract>\n{sections}\n</Abstract></Article></MedlineCitation>\n"
        f"<MeSH>{terms}<automatic>heart</automatic></MeSH>\n{pictures}\n</eCitation>\n"
    )


def _pictures() -> list[tuple[str, str]]:
    return [(uid, name) for uid, names in IMAGES.items() for name in names]
