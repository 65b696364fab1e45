"""Every objective on the same encoders, data, steps and seeds: which learns more from few pairs.

    python -m benchmarks.comparison.run                      everything, from where it stopped
    python -m benchmarks.comparison.run --match 'main@(aga|clip|sparc)-500'      the fast grid

`settings.yaml` holds what is compared: `base`, an overlay of the project's params.yaml that all
share; `data`, what is learned from; `variants`, one overlay for each row of the tables. `dvc.yaml`
holds the grids. `data` prepares pairs, `tune` chooses an objective's settings by a budget that is
the same for each, `cell` trains and measures one model, `table` writes docs/results.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aga.params import Overlay, Params, overlaid, read_yaml, validate

PROJECT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
SETTINGS = FOLDER / "settings.yaml"
TUNED = FOLDER / "tuned"  # one file for each variant that has candidates
RESULTS = FOLDER / "results"
WORK = FOLDER / "work"  # prepared data; not in the history


def settings() -> dict[str, Any]:
    """The content of `settings.yaml`."""
    return read_yaml(SETTINGS)


def data_settings(name: str) -> dict[str, Any]:
    """An entry of `data`; `covid-3` is fold 3 of the entry `covid`."""
    name, _, fold = name.partition("-")
    entry: dict[str, Any] = settings()["data"][name]
    if fold:
        entry["overlay"] = merged(entry["overlay"], {"prepare": {"split": {"fold": int(fold)}}})
    return entry


def composed(*overlays: Overlay) -> Params:
    """The project's params.yaml under `base` and these overlays, validated.

    Raises:
        ParamsError: An overlay names an unknown key or a wrong value.
    """
    values: dict[str, Any] = read_yaml(PROJECT / "params.yaml")
    for overlay in (settings()["base"], *overlays):
        values = overlaid(values, overlay)
    return validate(values, SETTINGS)


def cell_params(
    variant: Overlay, data: str, pairs: int | None, seed: int, steps: int | None = None
) -> Params:
    """The params of one cell: as many steps as every other one, however few its pairs.

    Args:
        variant: Its overlay.
        data: Name of an entry of `data` in the settings.
        pairs: How many pairs it learns from; None takes all.
        seed: Of its weights, its pairs and their order.
        steps: Other than those of the data.
    """
    source = data_settings(data)
    batch_size = composed(source["overlay"], variant).training.batch_size
    steps_per_epoch = (pairs or source["pairs"]) // batch_size
    epochs = max(1, round((steps or source["steps"]) / steps_per_epoch))
    of_cell = {"seed": seed, "training": {"pairs": pairs, "epochs": epochs}}
    return composed(source["overlay"], variant, of_cell)


def chosen(variant: str) -> dict[str, Any]:
    """The overlay of a variant, with what tuning chose for it or for the one that it is like."""
    entry = settings()["variants"][variant]
    if "like" in entry:
        return merged(chosen(entry["like"]), entry["overlay"])
    best = json.loads((TUNED / f"{variant}.json").read_text(encoding="utf-8"))["best"]
    return merged(entry["overlay"], best)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two overlays as one; the second wins."""
    both = dict(first)
    for key, value in second.items():
        old = both.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            both[key] = merged(old, value)
        else:
            both[key] = value
    return both
