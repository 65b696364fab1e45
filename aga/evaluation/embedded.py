"""One split as a bundle embeds it, with all that the tasks need to know of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int8, Int64, UInt8
from torch import Tensor

from aga.bundle import Bundle
from aga.data.schema import NO_REPORT, Split
from aga.data.studies import StudyDataset
from aga.errors import CheckpointError, DataError
from aga.pairs import PairEmbeddings

UNKNOWN = -1


@dataclass(frozen=True)
class EmbeddedSplit:
    """N pairs, embedded.

    Attributes:
        images: L2-normalised global image embeddings, on the CPU.
        texts: L2-normalised global text embeddings, on the CPU.
        keys: Equal numbers mark pairs whose reports say the same.
        patients: Equal numbers mark pairs of one patient.
        labels: Per finding: 1 present, 0 absent, -1 unknown.
        provenance: Split, rows, and hashes of the bundle, the studies and the gallery.
        has_reports: Whether every row has a report; else some `texts` embed nothing.
    """

    images: Float[Tensor, "N D"]
    texts: Float[Tensor, "N D"]
    keys: Int64[Tensor, "N"]
    patients: Int64[np.ndarray, "N"]
    labels: Mapping[str, Int8[np.ndarray, "N"]]
    provenance: Mapping[str, object]
    has_reports: bool = True

    def __len__(self) -> int:
        return len(self.patients)


@dataclass(frozen=True)
class PreparedSplit:
    """The N rows of a split as `prepare` left them, for tasks that read more than embeddings.

    Attributes:
        rows: Their rows of the manifest, rising.
        table: Those rows of the manifest.
        pixels: Of every row of the manifest, mapped from disk.
    """

    rows: Int64[np.ndarray, "N"]
    table: pa.Table
    pixels: UInt8[np.ndarray, "all H W C"]

    @classmethod
    def open(cls, studies: StudyDataset, split: Split, cache: Path) -> PreparedSplit:
        """The rows of a split, which may be none."""
        rows = studies.rows(split)
        return cls(rows, studies.manifest.take(pa.array(rows)), studies.images(cache))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def patients(self) -> Int64[np.ndarray, "N"]:
        """Equal numbers mark rows of one patient."""
        return _numbered(self.table["patient_id"].to_pylist())

    @property
    def labels(self) -> dict[str, Int8[np.ndarray, "N"]]:
        """Per finding: 1 present, 0 absent, -1 unknown."""
        return _labels(self.table["labels"].to_pylist())

    @property
    def has_reports(self) -> bool:
        """Whether every row has a report; a source of labels alone has none."""
        return NO_REPORT not in self.table["section"].to_pylist()

    @property
    def sha256(self) -> str:
        """Identity of the split: its images, patients and labels in order."""
        digest = hashlib.sha256()
        for name in ("pixel_sha256", "patient_id", "labels"):
            digest.update(repr(self.table[name].to_pylist()).encode())
        return digest.hexdigest()

    def records(self, places: Int64[np.ndarray, " n"]) -> list[dict[str, Any]]:
        """Rows of the manifest by their places in the split, 0 to N - 1."""
        records: list[dict[str, Any]] = self.table.take(pa.array(places)).to_pylist()
        return records

    def pairs(self, bundle: Bundle, places: Int64[np.ndarray, " n"]) -> PairEmbeddings:
        """Local embeddings of some pairs; see `Bundle.embed_pairs`."""
        texts = self.table["text"].take(pa.array(places)).to_pylist()
        return bundle.embed_pairs(self.pixels[self.rows[places]], texts)


def embed_split(
    bundle: Bundle, studies: StudyDataset, split: Split, cache: Path, batch_size: int
) -> EmbeddedSplit:
    """Embed the prepared images and cleaned texts of a split.

    Args:
        bundle: The encoder; its own tokenizer and transform are used.
        studies: Prepared pairs.
        split: Which of them.
        cache: Folder of the uncompressed pixel cache.
        batch_size: Images or texts at once.

    Raises:
        DataError: The split is empty, or its images do not fit the bundle's transform.
        CheckpointError: An embedding is not finite.
    """
    prepared = PreparedSplit.open(studies, split, cache)
    rows, table = prepared.rows, prepared.table
    if len(rows) == 0:
        raise DataError(
            f"The {split} split is empty",
            where=studies.folder,
            fix=f"raise prepare.split.{split}, or use more data, and run prepare again",
        )
    parts = [
        bundle.embed_images(prepared.pixels[rows[start : start + batch_size]], batch_size).cpu()
        for start in range(0, len(rows), batch_size)
    ]
    images = torch.cat(parts)
    texts = bundle.embed_texts(table["text"].to_pylist(), batch_size).cpu()
    for side, embeddings in (("image", images), ("text", texts)):
        if not embeddings.isfinite().all():
            raise CheckpointError(
                f"The {side} encoder gives numbers that are not finite",
                where=f"bundle {bundle.sha256}",
                fix="train again with a lower learning rate, or in fp32",
            )
    every = studies.statement_keys()
    keys = [every[row] for row in rows]
    return EmbeddedSplit(
        images=images,
        texts=texts,
        keys=torch.from_numpy(_numbered(keys)),
        patients=prepared.patients,
        labels=prepared.labels,
        provenance={
            "split": split,
            "rows": len(rows),
            "patients": len(set(table["patient_id"].to_pylist())),
            "bundle_sha256": bundle.sha256,
            "studies_sha256": studies.info.sha256,
            "gallery_sha256": _gallery_sha256(table["pixel_sha256"].to_pylist(), keys),
        },
        has_reports=prepared.has_reports,
    )


def _numbered(values: list[str]) -> Int64[np.ndarray, "N"]:
    """Equal strings become equal numbers."""
    _, numbers = np.unique(np.asarray(values, dtype=object), return_inverse=True)
    return numbers.astype(np.int64)


def _labels(rows: list[Iterable[tuple[str, Any]]]) -> dict[str, Int8[np.ndarray, "N"]]:
    labels: dict[str, Int8[np.ndarray, "N"]] = {}
    for index, row in enumerate(rows):
        for name, value in row:
            column = labels.setdefault(name, np.full(len(rows), UNKNOWN, np.int8))
            column[index] = UNKNOWN if value is None else value
    return labels


def _gallery_sha256(pixel_hashes: list[str], keys: list[str]) -> str:
    """Identity of the gallery: its images and statements in order."""
    digest = hashlib.sha256()
    for pair in zip(pixel_hashes, keys, strict=True):
        digest.update(repr(pair).encode())
    return digest.hexdigest()
