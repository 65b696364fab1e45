"""What MLflow runs to serve a version: images or texts in, embeddings out.

MLflow stores this file with the model and executes it when the model is loaded. It imports MLflow
at the top, so nothing else imports it.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from aga.bundle import load_bundle
from aga.data.pixels.images import read_image
from aga.data.transforms import ImageTransform
from aga.errors import DataError


class EncoderModel(PythonModel):  # type: ignore[misc]
    """Embeds images and texts with the bundle that was registered."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle."""
        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(self, model_input: list[dict[str, str]]) -> list[list[float]]:
        """L2-normalised embeddings, in the order of the rows.

        Args:
            model_input: Each row has either `image`, a DICOM, PNG, JPEG or TIFF file as base64, or
                `text`.

        Raises:
            DataError: A row has neither or both, or its image cannot be read.
        """
        embeddings: dict[int, list[float]] = {}
        images = {i: row["image"] for i, row in enumerate(model_input) if row.keys() == {"image"}}
        texts = {i: row["text"] for i, row in enumerate(model_input) if row.keys() == {"text"}}
        if len(images) + len(texts) < len(model_input):
            raise DataError("A row cannot be embedded.", expected="either `image` or `text` in it")
        if images:
            pixels = np.stack([_prepared(v, self.bundle.transform) for v in images.values()])
            found = self.bundle.embed_images(pixels).tolist()
            embeddings |= zip(images, found, strict=True)
        if texts:
            found = self.bundle.embed_texts(list(texts.values())).tolist()
            embeddings |= zip(texts, found, strict=True)
        return [embeddings[i] for i in range(len(model_input))]


def _prepared(encoded: str, transform: ImageTransform) -> UInt8[np.ndarray, "H W C"]:
    """Decode and fit an image as `prepare` did with the training images."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise DataError("An image is not valid base64.") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        return read_image(path, transform.image_config).pixels


set_model(EncoderModel())
