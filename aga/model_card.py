"""What a person reads first in a bundle: its README, in the form of a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aga.data.splitting.trained_on import TrainedOn, what_is_known
from aga.model import ModelArchitecture


def model_card(
    shape: ModelArchitecture, objective: str, metadata: Mapping[str, Any], seen: TrainedOn | None
) -> str:
    """The bundle's README: what the model is, what it was made from, how good it is.

    Args:
        shape: Of the model.
        objective: Name of what it was trained with.
        metadata: `source`, `licence`, `citation` and `metrics` are shown, as far as stated.
        seen: The images it was made from; None where that is not stated.
    """
    stated = {name: metadata.get(name, "not stated") for name in ("source", "licence", "citation")}
    metrics = metadata.get("metrics") or {}
    rows = [f"| {name} | {value} |" for name, value in sorted(metrics.items())]
    return "\n".join(
        [
            "# Image-report encoder",
            "",
            f"Trained with the objective `{objective}` of the library `aga`.",
            "",
            f"- Image encoder: `{shape.image.architecture}`, {shape.channels} channel(s), "
            f"{shape.image_size[0]} x {shape.image_size[1]} pixels",
            f"- Text encoder: `{shape.text.settings['model_type']}`, "
            f"at most {shape.max_tokens} tokens",
            f"- Joint width: {shape.model.width}",
            "",
            "## Data",
            "",
            *(f"- {name.capitalize()}: {value}" for name, value in stated.items()),
            "- This folder holds no patient data: no image, report or identifier.",
            f"- {what_is_known(seen)}",
            "",
            "## Metrics",
            "",
            *(["| metric | value |", "|---|---|", *rows] if rows else ["None stated."]),
            "",
            "## Intended use",
            "",
            "Research on image-report representations: retrieval, zero-shot and transfer studies.",
            "Not a medical device: not for diagnosis or any decision about a patient.",
            "",
            "## Use",
            "",
            "```python",
            "from aga.bundle import load_bundle",
            "",
            "bundle = load_bundle(folder)",
            "image_embeddings = bundle.embed_images(prepared_uint8_images)",
            "text_embeddings = bundle.embed_texts(reports)",
            "```",
            "",
        ]
    )
