"""The shipped model: one folder that embeds images and reports and needs nothing else.

    config.json             architecture and objective settings, resolved: no path in it
    model.safetensors       encoders and projections
    objective.safetensors   gates and temperatures, which group scores need
    tokenizer/              transformers tokenizer
    transform.json          prepared pixels to normalised pixels
    trained_on.safetensors  hashes of the images it was made from, where the caller states them
    metadata.json           data, licence, metrics, versions: what the caller states
    README.md               model card, generated from the above
    manifest.json           SHA-256 of every file; the bundle's own SHA-256 is over these lines

A bundle holds no pickle, and no path, report text or patient data unless the metadata does.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aga.config import Config
from aga.data.splitting.trained_on import TRAINED_ON, TrainedOn
from aga.data.tokenizing.tokenizer import PaddedTokens, encode, open_tokenizer, pad_tokens
from aga.data.transforms import ImageTransform
from aga.encoders.weights import load_strict, on_cpu
from aga.errors import CheckpointError
from aga.model import AlignmentModel, ModelArchitecture
from aga.model_card import model_card
from aga.objectives import ObjectiveConfig, ShippedObjective
from aga.objectives.base import Objective
from aga.pairs import PairBatch, PairEmbeddings
from aga.tensors import normalize

MANIFEST = "manifest.json"
Images = UInt8[Tensor, "B H W C"] | UInt8[np.ndarray, "B H W C"]


class BundleConfig(Config):
    """The content of `config.json`."""

    format: Literal[1]
    architecture: ModelArchitecture
    objective: ShippedObjective


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, in evaluation mode.

    Attributes:
        model: The alignment model.
        objective: The objective it was trained with; `groups` and group scores need it.
        tokenizer: The transformers tokenizer.
        transform: From prepared pixels to the model's input.
        metadata: What the exporter stated.
        sha256: Identity of the bundle: equal content, equal hash.
        trained_on: Hashes of the images it was made from; None where the exporter stated none.
    """

    model: AlignmentModel
    objective: Objective
    tokenizer: PreTrainedTokenizerFast
    transform: ImageTransform
    metadata: Mapping[str, Any]
    sha256: str
    trained_on: TrainedOn | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes, and where every result is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def embed_images(self, images: Images, batch_size: int = 64) -> Float[Tensor, "B D"]:
        """L2-normalised global embeddings of prepared images, `batch_size` at a time."""
        parts = [self.model.encode_images(chunk)[1] for chunk in self._pixels(images, batch_size)]
        return normalize(torch.cat(parts))

    @torch.no_grad()
    def image_features(self, images: Images, batch_size: int = 64) -> Float[Tensor, "B F"]:
        """The image encoder's own pooled features, before any projection: what a probe reads."""
        pixels = self._pixels(images, batch_size)
        return torch.cat([self.model.image_encoder(chunk)[1] for chunk in pixels])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "B D"]:
        """L2-normalised global embeddings of texts, `batch_size` at a time; long ones are cut."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenize(texts[start : start + batch_size])
            parts.append(self.model.encode_texts(tokens.token_ids, tokens.attention_mask)[1])
        return normalize(torch.cat(parts))

    @torch.no_grad()
    def embed_pairs(
        self, images: Images, texts: Sequence[str], batch_size: int = 64
    ) -> PairEmbeddings:
        """Local and global embeddings of pairs, as the model gives them: not normalised.

        Keeps B * (P + L) * D floats; pass few pairs at a time.
        """
        tokens = vars(self.tokenize(texts))
        parts = []
        for start, pixels in zip(
            range(0, len(texts), batch_size), self._pixels(images, batch_size), strict=True
        ):
            part = slice(start, start + batch_size)
            batch = PairBatch(
                images=pixels,
                **{name: value[part] for name, value in tokens.items()},
                rows=torch.arange(start, start + len(pixels), device=self.device),
            )
            parts.append(self.model(batch))
        return PairEmbeddings.joined(parts)

    def tokenize(self, texts: Sequence[str]) -> PaddedTokens:
        """Tokens made as in training, where the model is; long texts are cut."""
        max_tokens = self.model.architecture.max_tokens
        rows = encode(self.tokenizer, texts, max_tokens)
        padded = pad_tokens(
            [row.token_ids for row in rows],
            [row.sentences for row in rows],
            self.model.architecture.pad_id,
            max_tokens,
        )
        return PaddedTokens(**{name: value.to(self.device) for name, value in vars(padded).items()})

    def _pixels(self, images: Images, batch_size: int) -> Iterator[Float[Tensor, "b C H W"]]:
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            # A copy: the array may be a read-only memory map, which torch cannot share.
            pixels = torch.from_numpy(np.array(chunk)) if isinstance(chunk, np.ndarray) else chunk
            yield self.transform(pixels.to(self.device))


def save_bundle(
    folder: Path,
    model: AlignmentModel,
    objective: Objective,
    *,
    objective_config: ObjectiveConfig,
    tokenizer: PreTrainedTokenizerFast,
    transform: ImageTransform,
    metadata: Mapping[str, Any],
    trained_on: TrainedOn | None = None,
) -> str:
    """Write a bundle; `folder` holds the old bundle or the whole new one, never a part.

    Args:
        folder: Replaced where it holds a bundle; must not exist, or be empty, otherwise.
        model: The trained model, not wrapped (DDP's `.module`).
        objective: The trained objective, not wrapped.
        objective_config: The settings the objective was built from.
        tokenizer: The tokenizer the model was trained with.
        transform: From prepared pixels to the model's input.
        metadata: JSON-able; `source`, `licence`, `citation` and `metrics` go into the model card.
            No report text, patient identifier or path of patient data.
        trained_on: Hashes of the images it was made from, so that it is never measured on them.

    Returns:
        The bundle's SHA-256.

    Raises:
        CheckpointError: `folder` holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise CheckpointError(
            "The folder to export to holds something other than a bundle.",
            where=folder,
            fix="empty it, or choose another folder",
        )
    shipped = ShippedObjective.of(objective_config)
    config = BundleConfig(format=1, architecture=model.architecture, objective=shipped)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        _write_json(new / "config.json", config.model_dump(mode="json"))
        save_file(on_cpu(model.state_dict()), new / "model.safetensors")
        save_file(on_cpu(objective.state_dict()), new / "objective.safetensors")
        tokenizer.save_pretrained(new / "tokenizer")
        (new / "transform.json").write_text(transform.to_json() + "\n", encoding="utf-8")
        _write_json(new / "metadata.json", metadata)
        if trained_on is not None:
            trained_on.save(new / TRAINED_ON)
        card = model_card(model.architecture, shipped.name, metadata, trained_on)
        (new / "README.md").write_text(card, encoding="utf-8")
        hashes = _hashes(new)
        _write_json(new / MANIFEST, hashes)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    return _identity(hashes)


def load_bundle(folder: Path, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle after checking every file of it; opens no network connection.

    Raises:
        CheckpointError: A file is missing, added or changed, or the weights differ from the
            architecture in names or shapes.
    """
    hashes = _verified(folder)
    try:
        config = BundleConfig.model_validate_json((folder / "config.json").read_bytes())
        objective = config.objective.build(config.architecture.model.width)
    except ValidationError as error:
        raise CheckpointError(
            "The bundle is of another version of this library.",
            where=folder / "config.json",
            got=error,
        ) from error
    model = AlignmentModel.from_architecture(config.architecture)
    load_strict(model, folder / "model.safetensors")
    load_strict(objective, folder / "objective.safetensors")
    return Bundle(
        model=model.to(device).eval(),
        objective=objective.to(device).eval(),
        tokenizer=open_tokenizer(folder / "tokenizer"),
        transform=ImageTransform.from_json((folder / "transform.json").read_text(encoding="utf-8")),
        metadata=_read_json(folder / "metadata.json"),
        trained_on=TrainedOn.load(folder / TRAINED_ON) if TRAINED_ON in hashes else None,
        sha256=_identity(hashes),
    )


def bundle_sha256(folder: Path) -> str:
    """Identity of a bundle on disk, its files checked against it.

    Raises:
        CheckpointError: A file is missing, added or changed.
    """
    return _identity(_verified(folder))


def _verified(folder: Path) -> dict[str, str]:
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            "There is no bundle in this folder.", where=folder, fix="train one: dvc repro pretrain"
        )
    try:
        stated = _read_json(folder / MANIFEST)
    except ValueError as error:
        raise CheckpointError(
            "The bundle's manifest is damaged.", where=folder / MANIFEST, got=error
        ) from error
    found = _hashes(folder)
    states = {
        "missing": stated.keys() - found.keys(),
        "not of the bundle": found.keys() - stated.keys(),
        "changed": {name for name in stated.keys() & found.keys() if stated[name] != found[name]},
    }
    wrong = [f"{name} ({state})" for state, names in states.items() for name in sorted(names)]
    if wrong:
        raise CheckpointError(
            "The bundle is not as it was exported.",
            where=folder,
            got=", ".join(wrong),
            expected=f"the files and hashes in {MANIFEST}",
            fix="export or download it again",
        )
    return found


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                file, "sha256"
            ).hexdigest()
    hashes.pop(MANIFEST, None)
    return hashes


def _identity(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError("A file of the bundle does not hold a JSON object.", where=path)
    return content
