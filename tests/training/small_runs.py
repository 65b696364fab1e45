"""A tiny project folder and the settings of a run that takes a second."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fixtures.studies import phantom_rows, write_studies
from ruamel.yaml import YAML
from torch import Tensor

from aga.data.tokenizing.tokens import TokenizerConfig, tokenize
from aga.training.checkpoint import Row, TrainingState
from aga.training.recipe import Recipe

PARAMS = Path(__file__).parents[2] / "params.yaml"
SMALL: dict[str, Any] = {
    "tokenizer": {"vocabulary": 60, "max_tokens": 16},
    "image_encoder": {
        "architecture": "resnet10t",
        "options": {"channels": [8, 8, 16, 16]},
        "patch_layer": 1,
    },
    "text_encoder": {"width": 16, "layers": 1, "heads": 2},
    "model": {"width": 16},
    "training": {"epochs": 3, "batch_size": 8, "threads": 1},
    "checkpoint": {"every_steps": 2},
    "cluster": {"workers": 1, "cpus_per_worker": 1, "max_failures": 2},
    "tracking": {"experiment": "small"},
}
# Batch statistics differ between processes on a CPU: comparisons of their numbers use a ViT.
WITHOUT_BATCH_STATISTICS: dict[str, Any] = {
    "image_encoder": {
        "architecture": "vit_tiny_patch16_224",
        "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "patch_layer": -1,
    },
    "text_encoder": {"dropout": 0.0},
}


def small_params(*overlays: Mapping[str, Any]) -> dict[str, Any]:
    """The committed params with `SMALL` and then each overlay merged in."""
    values: dict[str, Any] = YAML(typ="safe").load(PARAMS)
    for overlay in (SMALL, *overlays):
        _merge(values, overlay)
    return values


def small_recipe(*overlays: Mapping[str, Any]) -> Recipe:
    values = small_params(*overlays)
    return Recipe.model_validate({name: values[name] for name in Recipe.model_fields})


def make_home(home: Path, rows: int = 40) -> Path:
    """A project folder with studies and tokens: seven tenths of the rows are for training."""
    studies = home / "data/studies"
    studies.parent.mkdir(parents=True)
    write_studies(studies, phantom_rows(rows), size=32)
    tokenizer = TokenizerConfig.model_validate(small_params()["tokenizer"])
    tokenize(studies, home / "data/tokens", tokenizer)
    return home


def write_params(home: Path, *overlays: Mapping[str, Any]) -> Path:
    """`small_params` as `home/params.yaml`."""
    path = home / "params.yaml"
    with path.open("w") as file:
        YAML().dump(small_params(*overlays), file)
    return path


def same_tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether names and every bit of the values are the same."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(_bits(left[name]), _bits(right[name]))
        for name in left
    )


def same_state(left: TrainingState, right: TrainingState) -> bool:
    """Whether two states are equal to the bit, but for the measured speed."""
    return (
        left.step == right.step
        and left.sums == right.sums
        and _timeless(left) == _timeless(right)
        and same_tensors(left.tensors, right.tensors)
        and same_tensors(left.best, right.best)
    )


def _timeless(state: TrainingState) -> list[Row]:
    return [{n: v for n, v in row.items() if n != "pairs_per_second"} for row in state.history]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def _merge(values: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict) and key != "options":
            _merge(values[key], value)
        else:
            values[key] = copy.deepcopy(value)
