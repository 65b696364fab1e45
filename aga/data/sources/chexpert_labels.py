"""The fourteen findings that the CheXpert labeler tells, in any data set that it was used on."""

from __future__ import annotations

import math
from collections.abc import Mapping

FINDINGS: Mapping[str, str] = {
    "No Finding": "no_finding",
    "Enlarged Cardiomediastinum": "enlarged_cardiomediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung_opacity",
    "Lung Lesion": "lung_lesion",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural_effusion",
    "Pleural Other": "pleural_other",
    "Fracture": "fracture",
    "Support Devices": "support_devices",
}
"""Name of the column to name of the label."""

_UNCERTAIN = -1.0


def label(cell: str | float | None) -> int | None:
    """What a cell of one of the columns says.

    Args:
        cell: `1.0`, `0.0`, `-1.0` or nothing, as text or as a number.

    Returns:
        1 present, 0 absent; None where the report does not speak of the finding (nothing) or is
        uncertain (-1): neither is a truth to learn from or to be measured by.

    Raises:
        ValueError: It says something else.
    """
    value = float("nan" if cell is None or cell == "" else cell)
    if math.isnan(value):
        return None
    if value not in (1.0, 0.0, _UNCERTAIN):
        raise ValueError(f"not one of 1, 0, -1: {value}")
    return None if value == _UNCERTAIN else int(value)


def labels(cells: Mapping[str, str | float | None]) -> dict[str, int | None]:
    """Labels of a row by name.

    Raises:
        ValueError: A cell is none of those that `label` knows; the message is its column.
    """
    found = {}
    for column, name in FINDINGS.items():
        try:
            found[name] = label(cells[column])
        except ValueError as error:
            raise ValueError(column) from error
    return found
