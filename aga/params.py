"""Compose every configuration class to that of `params.yaml`, and read, check and overlay it.

It holds no values and no logic of the components.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from aga.cluster.config import ClusterConfig
from aga.cluster.search import TuneConfig
from aga.config import Config
from aga.data.preparing.card import CardConfig
from aga.data.preparing.prepare import PrepareConfig
from aga.data.sources import SourceConfig
from aga.data.sources.phantom import PhantomConfig
from aga.data.splitting.leaks import LeakConfig
from aga.data.tokenizing.tokens import TokenizerConfig
from aga.encoders.image import ImageEncoderConfig
from aga.encoders.text import TextEncoderConfig
from aga.evaluation import EvaluationConfig
from aga.model import ModelConfig
from aga.objectives import ObjectiveConfig
from aga.registry import PromotionConfig, RegistryConfig
from aga.report import ReportPageConfig
from aga.settings import (
    Overlay,
    checked,
    merged,
    parse_settings,
    read_preset,
    read_yaml,
    rewrite,
)
from aga.tracking import TrackingConfig
from aga.training.checkpoint import CheckpointConfig
from aga.training.optimizer import OptimizerConfig
from aga.training.settings import TrainingConfig

__all__ = [
    "Overlay",
    "Params",
    "apply_overlay",
    "load_params",
    "overlaid",
    "parse_settings",
    "read_preset",
    "read_yaml",
    "validate",
]


class Params(Config):
    """The whole of `params.yaml`; each field is the configuration of one component."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    source: SourceConfig
    phantom: PhantomConfig
    prepare: PrepareConfig
    data_card: CardConfig
    leaks: LeakConfig
    tokenizer: TokenizerConfig
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    registry: RegistryConfig
    evaluation: EvaluationConfig
    promotion: PromotionConfig
    report: ReportPageConfig
    tune: TuneConfig


def load_params(path: Path) -> Params:
    """Read and validate a params file.

    Raises:
        ParamsError: The file is missing, is not YAML, or a key or value is wrong; the message
            names every wrong key, its value and what is allowed.
    """
    return validate(read_yaml(path), path)


def validate(values: object, where: object) -> Params:
    """Check parsed values against the configuration classes; `where` names them in errors."""
    return checked(values, Params, where)


def overlaid(values: Mapping[str, Any], overlay: Overlay) -> dict[str, Any]:
    """Plain values with an overlay merged in; nothing is validated or written."""
    return merged(values, overlay, Params)


def apply_overlay(path: Path, overlay: Overlay, *, write: bool = True) -> str:
    """Merge an overlay into a params file; see `aga.settings.rewrite`."""
    return rewrite(path, overlay, Params, write=write)
