"""The words of phantom reports: noun phrases, sentences, negations and what says nothing of note.

In a template `{size}` and `{side}` are a fact's details, `{place}` is one of `PLACES`, `{noun}` a
noun phrase, and `{a}` the noun phrase with its article. The first letter is made a capital.
"""

from __future__ import annotations

NOUNS = {
    "nodule": ("nodule", "round nodule", "pulmonary nodule"),
    "opacity": ("hazy opacity", "ground glass opacity", "faint opacity"),
    "consolidation": (
        "dense consolidation",
        "area of consolidation with air bronchograms",
        "area of airspace consolidation",
    ),
    "cavity": ("cavity", "thick walled cavity", "cavitary lesion"),
    "calcification": (
        "cluster of calcifications",
        "cluster of calcified foci",
        "calcified cluster",
    ),
    "effusion": (
        "{size} {side} pleural effusion",
        "{size} {side} effusion",
        "{size} pleural effusion on the {side}",
        "{size} effusion at the {side} base",
    ),
    "pneumothorax": (
        "{size} {side} pneumothorax",
        "{size} {side} apical pneumothorax",
        "{size} pneumothorax on the {side}",
    ),
    "line": (
        "{side} central line",
        "{side} central venous catheter",
        "central venous catheter from the {side}",
    ),
}

PLACES = (
    "{side} {zone} zone",
    "{zone} zone of the {side} lung",
    "{side} {zone} lung",
)

# By the kind of finding, sentences for the section FINDINGS and then for IMPRESSION.
IN_LUNG = (
    (
        "there is {a} in the {place}",
        "{a} is seen in the {place}",
        "in the {place} there is {a}",
        "{a} projects over the {place}",
        "the {place} shows {a}",
        "{place}: {noun}",
    ),
    ("{noun} in the {place}", "{place}: {noun}"),
)
PLEURAL = (
    ("there is {a}", "{a} is seen", "{a} is present", "{noun}"),
    ("{noun}",),
)
LINE = (
    (
        "{a} is in place",
        "there is {a}",
        "{a} ends in the superior vena cava",
        "the tip of {a} is in the superior vena cava",
    ),
    ("{noun} in place", "{noun}"),
)
HEART = (
    (
        "the heart is enlarged",
        "the cardiac silhouette is enlarged",
        "there is cardiomegaly",
        "cardiomegaly is present",
    ),
    ("cardiomegaly", "enlarged heart", "enlarged cardiac silhouette"),
)

SENTENCES = {
    **dict.fromkeys(("nodule", "opacity", "consolidation", "cavity", "calcification"), IN_LUNG),
    **dict.fromkeys(("effusion", "pneumothorax"), PLEURAL),
    "line": LINE,
    "cardiomegaly": HEART,
}

# What is said of findings that are all absent.
NEGATIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("nodule",): ("no nodule is seen", "no pulmonary nodule", "there is no nodule"),
    ("opacity",): ("no hazy opacity", "there is no opacity", "no opacity is seen"),
    ("consolidation",): ("no consolidation", "there is no airspace consolidation"),
    ("cavity",): ("no cavity is seen", "no cavitary lesion", "there is no cavity"),
    ("calcification",): ("no calcifications", "no calcified foci are seen"),
    ("effusion",): ("no pleural effusion", "there is no effusion", "no effusion is seen"),
    ("pneumothorax",): ("no pneumothorax", "there is no pneumothorax", "no pneumothorax is seen"),
    ("cardiomegaly",): ("the heart is normal in size", "no cardiomegaly", "heart size is normal"),
    ("line",): ("no central line is present", "no central venous catheter"),
    ("effusion", "pneumothorax"): (
        "no pleural effusion or pneumothorax",
        "there is no pneumothorax or effusion",
    ),
    ("opacity", "consolidation"): ("no opacity or consolidation", "no consolidation or opacity"),
}

DISTRACTORS = (
    "the bones are intact",
    "no acute bony abnormality",
    "the trachea is midline",
    "the hila are unremarkable",
    "the soft tissues are normal",
    "the ribs are intact",
    "no fracture is seen",
    "the mediastinum is not widened",
)
OTHERWISE = ("the lungs are otherwise clear", "otherwise unremarkable")
CLEAR = ("the lungs are clear", "both lungs are clear", "clear lungs")
NORMAL_IMPRESSION = (
    "no acute abnormality",
    "normal chest radiograph",
    "no acute cardiopulmonary disease",
    "unremarkable chest",
)

EXAMINATIONS = (
    "EXAMINATION: Chest radiograph, {view} view.",
    "EXAM: Single {view} radiograph of the chest.",
    "TECHNIQUE: {view} view of the chest was obtained.",
)
COMPARISONS = {
    "first": ("COMPARISON: None.", "COMPARISON: No prior study."),
    "later": ("COMPARISON: Prior chest radiograph.", "COMPARISON: Earlier study of this patient."),
}
