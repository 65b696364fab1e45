"""What a run is made of: its settings and its data; equal ones are the same run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import aga
from aga.config import Config
from aga.data.studies import StudyDataset
from aga.data.tokenizing.tokens import TokenDataset
from aga.encoders.image import ImageEncoderConfig
from aga.encoders.text import TextEncoderConfig
from aga.errors import CheckpointError
from aga.model import ModelConfig
from aga.objectives import ObjectiveConfig
from aga.training.checkpoint import CheckpointConfig
from aga.training.optimizer import OptimizerConfig
from aga.training.settings import TrainingConfig

STUDIES, TOKENS, CACHE = Path("data/studies"), Path("data/tokens"), Path("data/cache")
TRAINING_CODE = (
    "collectives.py",
    "data",
    "encoders",
    "model.py",
    "objectives",
    "pairs.py",
    "ranking.py",
    "tensors.py",
    "training",
)


class Recipe(Config):
    """The settings that a run's result depends on, and how often it is saved."""

    seed: Annotated[int, Field(ge=0)]
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig

    def identity(self, data: RunData, home: Path) -> str:
        """Ten hex digits that differ where settings, data, code or pretrained weights differ.

        Raises:
            CheckpointError: Pretrained files are not there.
        """
        text = json.dumps(self.made_of(data, home), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def made_of(self, data: RunData, home: Path) -> dict[str, Any]:
        """All that the weights of a run depend on: nested settings, and hashes of data and code.

        What changes no weight is left out, so that it may change between two starts of one run.
        Pretrained files count by their content, not by their place.

        Raises:
            CheckpointError: Pretrained files are not there.
        """
        settings = self.model_dump(mode="json", exclude={"checkpoint"})
        for idle in ("loader_workers", "heartbeat_seconds"):
            del settings["training"][idle]
        for part, key in (("image_encoder", "weights"), ("text_encoder", "path")):
            if (place := settings[part][key]) is not None:
                settings[part][key] = _content_sha256(home / place, f"{part}.{key}")
        hashes = {
            "data/studies": data.studies.info.sha256,
            "data/tokens": data.tokens.record.sha256,
            "training code": code_sha256(),
        }
        return settings | hashes


def code_sha256() -> str:
    """Hash of the library's code that weights depend on: after an edit a run is another run.

    Without it, an edited objective would find the old run finished and export its old weights.
    """
    library = Path(aga.__file__).parent
    digest = hashlib.sha256()
    for part in TRAINING_CODE:
        place = library / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(library)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _content_sha256(place: Path, setting: str) -> str:
    """Hash of a file, or of all files of a folder and their names."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) or [place]
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                "Pretrained weights are missing", where=path, fix=f"correct {setting}"
            )
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(place)}\0{own}\0".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class RunData:
    """The datasets of a project's folder.

    Attributes:
        studies: The prepared studies.
        tokens: Their tokens.
        cache: Folder for the uncompressed pixels.
    """

    studies: StudyDataset
    tokens: TokenDataset
    cache: Path

    @classmethod
    def open(cls, home: Path) -> RunData:
        """The datasets below `home`.

        Raises:
            DataError: They are missing, damaged, do not belong together, or lack reports.
        """
        studies = StudyDataset.open(home / STUDIES)
        studies.require_reports("train", "validation")
        return cls(studies, TokenDataset.open(home / TOKENS, studies), home / CACHE)
