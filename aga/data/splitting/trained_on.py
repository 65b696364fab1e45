"""What a bundle remembers of the images it was made from: hashes, no image, report or identifier.

Whoever holds an image can tell from them whether it was among those; nobody can make an image of
them. Patients are not remembered: the hash of an identifier is as good as the identifier where all
of them can be tried. They are found again through their images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from safetensors import safe_open
from safetensors.numpy import save_file

from aga.data.pixels.perceptual import close_pairs, hash_words
from aga.data.schema import Split
from aga.data.studies import StudyDataset

NEAR = 12
"""Bits by which the perceptual hash of a copy differs at most where no pixels are left to compare:
`benchmarks/near_duplicates.py` measures what that finds and takes wrongly."""

_DIGEST = 16  # bytes kept of an image's SHA-256


@dataclass(frozen=True)
class TrainedOn:
    """The images that a model has learned from, or was chosen by, in the order of their hashes.

    Attributes:
        pixels: First bytes of the SHA-256 of the prepared pixels.
        words: Their perceptual hashes, as of `hash_words`.
        learned: True for the training split, False for the validation split.
        studies_sha256: Of the dataset they belong to.
    """

    pixels: UInt8[np.ndarray, "rows bytes"]
    words: UInt64[np.ndarray, "rows words"]
    learned: Bool[np.ndarray, "rows"]
    studies_sha256: str

    @classmethod
    def of(cls, studies: StudyDataset) -> TrainedOn:
        """Those of the training and the validation split."""
        train, validation = studies.rows("train"), studies.rows("validation")
        rows = np.concatenate([train, validation])
        pixels = _digests(studies)[rows]
        order = np.lexsort(pixels.T[::-1])
        hashes = studies.column("perceptual_hash").to_pylist()
        learned = np.arange(len(rows)) < len(train)
        words = hash_words([hashes[row] for row in rows])
        return cls(pixels[order], words[order], learned[order], studies.info.sha256)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {"pixels": self.pixels, "words": self.words, "learned": self.learned}
        arrays = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        save_file(arrays, path, {"studies_sha256": self.studies_sha256})

    @classmethod
    def load(cls, path: Path) -> TrainedOn:
        """Read what `save` wrote."""
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(**tensors, studies_sha256=file.metadata()["studies_sha256"])

    def seen(self, studies: StudyDataset, split: Split) -> dict[str, list[int]]:
        """Rows of a split that the model knows, by how.

        Args:
            studies: Any prepared studies.
            split: What is measured. The validation split may hold images that chose the model.

        Returns:
            `same image`: its pixels are known; `same patient`: those of another row of its patient
            are, whatever its split; `near duplicate`: its perceptual hash is that of a known image.
        """
        known = self.learned | (split == "test")
        digests = _digests(studies)
        is_known = _is_in(digests, self.pixels[known])
        patients = np.asarray(studies.column("patient_id").to_pylist(), dtype=object)
        known_patients = set(patients[is_known])
        rows = studies.rows(split)
        seen = {
            "same image": [int(row) for row in rows if is_known[row]],
            "same patient": [int(row) for row in rows if patients[row] in known_patients],
            "near duplicate": [],
        }
        if studies.info.sha256 != self.studies_sha256:  # its own were compared pixel by pixel
            others = [row for row in rows if not is_known[row]]
            hashes = studies.column("perceptual_hash").to_pylist()
            words = hash_words([hashes[row] for row in others])
            pairs = close_pairs(self.words[known], words, NEAR)
            seen["near duplicate"] = [int(others[place]) for place in np.unique(pairs[:, 1])]
        return {kind: places for kind, places in seen.items() if places}


def _digests(studies: StudyDataset) -> UInt8[np.ndarray, "rows bytes"]:
    digits = "".join(sha256[: 2 * _DIGEST] for sha256 in studies.column("pixel_sha256").to_pylist())
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, _DIGEST)


def _is_in(digests: np.ndarray, known: np.ndarray) -> Bool[np.ndarray, "rows"]:
    of_rows = {digest.tobytes() for digest in known}
    return np.fromiter((digest.tobytes() in of_rows for digest in digests), bool, len(digests))
