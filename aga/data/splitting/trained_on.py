"""What a bundle remembers of the images it was made from: hashes, no image, report or identifier.

Whoever holds an image can tell from them whether it was among those; nobody can make an image of
them. Patients are not remembered: the hash of an identifier is as good as the identifier where all
of them can be tried. They are found again through their images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aga.data.pixels.perceptual import close_pairs, hash_words
from aga.data.schema import Split
from aga.data.studies import StudyDataset
from aga.errors import DataError

TRAINED_ON = "trained_on.safetensors"
"""Name of the file, in a bundle and beside weights that training starts from."""

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
        own: True for those of the dataset `studies_sha256`, False for what only the weights that
            training started from had seen.
        studies_sha256: Of the dataset it was trained on last.
        complete: Whether these are all: False where it is not known what the weights that training
            started from had seen.
    """

    pixels: UInt8[np.ndarray, "rows bytes"]
    words: UInt64[np.ndarray, "rows words"]
    learned: Bool[np.ndarray, " rows"]
    own: Bool[np.ndarray, " rows"]
    studies_sha256: str
    complete: bool = True

    @classmethod
    def of(cls, studies: StudyDataset, started_from: Iterable[TrainedOn | None] = ()) -> TrainedOn:
        """The training and the validation split, and what the starting weights had seen.

        Args:
            studies: What was trained on.
            started_from: Of each file or folder of starting weights, what it had seen; None where
                that is not known.
        """
        train, validation = studies.rows("train"), studies.rows("validation")
        rows = np.concatenate([train, validation])
        hashes = studies.column("perceptual_hash").to_pylist()
        record = cls(
            pixels=_digests(studies)[rows],
            words=hash_words([hashes[row] for row in rows]),
            learned=np.arange(len(rows)) < len(train),
            own=np.ones(len(rows), bool),
            studies_sha256=studies.info.sha256,
        )._ordered()
        for earlier in started_from:
            record = record._after(earlier) if earlier else replace(record, complete=False)
        return record

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        names = ("pixels", "words", "learned", "own")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        arrays["complete"] = np.array([self.complete])
        # One entry: safetensors writes several in an order that differs from time to time.
        save_file(arrays, path, {"studies_sha256": self.studies_sha256})

    @classmethod
    def load(cls, path: Path) -> TrainedOn:
        """Read what `save` wrote.

        Raises:
            DataError: The file is another one.
        """
        try:
            with safe_open(path, "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                sha256 = file.metadata()["studies_sha256"]
            complete = bool(tensors.pop("complete").all())
            return cls(**tensors, studies_sha256=sha256, complete=complete)
        except (SafetensorError, KeyError, TypeError) as error:
            raise DataError(
                "This is no list of the images that weights were trained on",
                where=path,
                got=type(error).__name__,
                fix=f"copy the {TRAINED_ON} of the bundle that the weights are from, or remove it",
            ) from error

    def _after(self, earlier: TrainedOn) -> TrainedOn:
        """Both lists in one."""
        return replace(
            self,
            pixels=np.concatenate([self.pixels, earlier.pixels]),
            words=np.concatenate([self.words, earlier.words]),
            learned=np.concatenate([self.learned, earlier.learned]),
            own=np.concatenate([self.own, np.zeros_like(earlier.own)]),
            complete=self.complete and earlier.complete,
        )._ordered()

    def _ordered(self) -> TrainedOn:
        """By hash, each image once: learned from, or of the dataset, where one of its rows is."""
        pixels, first, image_of = np.unique(
            self.pixels, axis=0, return_index=True, return_inverse=True
        )
        learned, own = np.zeros((2, len(pixels)), bool)
        np.logical_or.at(learned, image_of.reshape(-1), self.learned)
        np.logical_or.at(own, image_of.reshape(-1), self.own)
        return replace(self, pixels=pixels, words=self.words[first], learned=learned, own=own)

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
        if studies.info.sha256 == self.studies_sha256:
            known = known & ~self.own  # its own were compared pixel by pixel
        others = [row for row in rows if not is_known[row]]
        if known.any() and others:
            hashes = studies.column("perceptual_hash").to_pylist()
            words = hash_words([hashes[row] for row in others])
            pairs = close_pairs(self.words[known], words, NEAR)
            seen["near duplicate"] = [int(others[place]) for place in np.unique(pairs[:, 1])]
        return {kind: places for kind, places in seen.items() if places}


def record_of(weights: Path) -> TrainedOn | None:
    """What a file or folder of weights had seen, where a list of that is with it.

    Raises:
        DataError: There is such a file, but it is damaged.
    """
    path = (weights if weights.is_dir() else weights.parent) / TRAINED_ON
    return TrainedOn.load(path) if path.is_file() else None


def what_is_known(trained_on: TrainedOn | None) -> str:
    """A sentence for the model card."""
    if trained_on is None:
        return "Which images it was trained on is not stated."
    unknown = "" if trained_on.complete else ", but for an unknown part: those of its first weights"
    return f"The hashes of `{TRAINED_ON}` tell who holds an image whether it was seen{unknown}."


def _digests(studies: StudyDataset) -> UInt8[np.ndarray, "rows bytes"]:
    digits = "".join(sha256[: 2 * _DIGEST] for sha256 in studies.column("pixel_sha256").to_pylist())
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, _DIGEST)


def _is_in(digests: np.ndarray, known: np.ndarray) -> Bool[np.ndarray, " rows"]:
    of_rows = {digest.tobytes() for digest in known}
    return np.fromiter((digest.tobytes() in of_rows for digest in digests), bool, len(digests))
