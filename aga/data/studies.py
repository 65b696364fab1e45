"""Reading `data/studies/`: its description, manifest and splits, and all pixels as one array."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8

from aga.data.files import disk_errors
from aga.data.schema import MANIFEST, NO_REPORT, SCHEMA_VERSION, SPLITS, Split
from aga.data.shards import image_shards, read_pixels
from aga.errors import DataError

MANIFEST_FILE = "manifest.parquet"
REJECTS_FILE = "rejects.parquet"
INFO_FILE = "dataset.json"
_AGAIN = "run `dvc repro prepare`"


@dataclass(frozen=True)
class ImageInfo:
    """Shape of the prepared images, in pixels, and how they were fitted: `pad`, `crop`, ..."""

    height: int
    width: int
    channels: int
    fit: str


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` states.

    Attributes:
        schema_version: Of the Arrow schemas.
        source: Name of the source.
        licence: Terms of the raw data.
        citation: How to cite the raw data.
        config: The prepare config it was made with.
        seed: The seed of its splits.
        rows: How many pairs.
        splits: Pairs of each split.
        image: Shape of the prepared images.
        sha256: Of the content: every manifest row and every pixel.
        may_be_shown: Whether images and reports may leave `data/`, as the source declares. A file
            that does not say does not allow it.
    """

    schema_version: int
    source: str
    licence: str
    citation: str
    config: Mapping[str, Any]
    seed: int
    rows: int
    splits: Mapping[str, int]
    image: ImageInfo
    sha256: str
    may_be_shown: bool = False

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> DatasetInfo:
        """Read the text of `dataset.json`; ValueError, KeyError or TypeError if it is not one."""
        values = json.loads(text)
        return cls(**(values | {"image": ImageInfo(**values["image"])}))


class StudyDataset:
    """The prepared pairs of a folder; nothing is read before it is asked for.

    Args:
        folder: The prepared folder.
        info: What its `dataset.json` states.

    Attributes:
        folder: The prepared folder.
        info: What its `dataset.json` states.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, folder: Path) -> StudyDataset:
        """Open a folder that `prepare` wrote.

        Raises:
            DataError: It is missing, incomplete, damaged, or of another schema version.
        """
        path = folder / INFO_FILE
        if not path.is_file():
            raise DataError("There are no prepared studies", where=folder, fix=_AGAIN)
        try:
            info = DatasetInfo.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "dataset.json cannot be read", where=path, got=type(error).__name__, fix=_AGAIN
            ) from error
        if info.schema_version != SCHEMA_VERSION:
            raise DataError(
                "The prepared studies have another schema version",
                where=path,
                got=info.schema_version,
                expected=SCHEMA_VERSION,
                fix=_AGAIN,
            )
        dataset = cls(folder, info)
        dataset._check_files()
        return dataset

    @property
    def manifest_path(self) -> Path:
        """The manifest's file."""
        return self.folder / MANIFEST_FILE

    @cached_property
    def manifest(self) -> pa.Table:
        """The whole manifest, `schema.MANIFEST`, in row order. `column` reads less."""
        return pq.read_table(self.manifest_path, schema=MANIFEST)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the manifest in row order; the others are not read."""
        return pq.read_table(self.manifest_path, columns=[name]).column(name)

    def rows(self, split: Split) -> Int64[np.ndarray, "rows"]:
        """Row numbers of a split, rising.

        Raises:
            ValueError: There is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"{split!r} is not one of {', '.join(SPLITS)}")
        return np.flatnonzero(self._splits == split).astype(np.int64)

    def require_reports(self, *splits: Split) -> None:
        """Refuse studies in which a row of these splits has no report to learn from.

        Raises:
            DataError: There is such a row.
        """
        without = self._splits[np.asarray(self.column("section").to_pylist()) == NO_REPORT]
        for split in splits:
            if count := int((without == split).sum()):
                raise DataError(
                    f"The {split} split has images without reports, and training learns from pairs",
                    where=self.folder,
                    got=f"{count} of {self.info.splits[split]} rows with labels alone",
                    expected="a report in every row",
                    fix="pretrain on a source with reports and register the encoder; then prepare "
                    "this one and run `python workflows/evaluate.py` on it",
                )

    def statement_keys(self) -> list[str]:
        """A key per row; equal where two reports say the same: duplicates of each other.

        The source's statement, or, where it has none, the cleaned text but for case.
        """
        columns = (self.column(name).to_pylist() for name in ("statement", "text"))
        return [
            f"text:{text.casefold()}" if statement is None else f"statement:{statement}"
            for statement, text in zip(*columns, strict=True)
        ]

    def images(self, cache: Path) -> UInt8[np.ndarray, "rows H W C"]:
        """All pixels as one read-only array in row order, mapped from an uncompressed file.

        The file is made once per content, under a lock, and readable by its owner alone. Processes
        of a node share its pages, so a worker's own memory stays flat.

        Args:
            cache: A folder on a local disk with room for rows x height x width x channels bytes.

        Raises:
            DataError: The shards are damaged, or the disk is full.
        """
        path = cache / f"{self.info.sha256}.u8"
        image = self.info.image
        shape = (self.info.rows, image.height, image.width, image.channels)
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{self.info.sha256}.lock"):
            if not path.is_file() or path.stat().st_size != int(np.prod(shape)):
                self._write_cache(path, int(np.prod(shape)))
        return np.memmap(path, np.uint8, mode="r", shape=shape)

    @cached_property
    def _splits(self) -> np.ndarray:
        return np.asarray(self.column("split").to_pylist())

    def _write_cache(self, path: Path, size: int) -> None:
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        try:
            with disk_errors(path), open(partial, "xb", opener=_private) as file:
                for shard in image_shards(self.folder):
                    for batch in read_pixels(shard):
                        for pixels in batch.column("pixels"):
                            file.write(pixels.as_buffer())
            if partial.stat().st_size != size:
                raise DataError(
                    "The image shards do not hold what dataset.json states",
                    where=self.folder,
                    got=f"{partial.stat().st_size} bytes of pixels",
                    expected=f"{size} bytes",
                    fix=_AGAIN,
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _check_files(self) -> None:
        """Refuse a folder whose files do not hold the rows that dataset.json states."""
        try:
            rows = {
                "the manifest": pq.read_metadata(self.manifest_path).num_rows,
                "the image shards": sum(
                    pq.read_metadata(shard).num_rows for shard in image_shards(self.folder)
                ),
            }
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                "The prepared studies are damaged",
                where=self.folder,
                got=f"{type(error).__name__} while reading Parquet files",
                fix=_AGAIN,
            ) from error
        for what, found in rows.items():
            if found != self.info.rows:
                raise DataError(
                    f"The prepared studies are incomplete: {what} and dataset.json differ",
                    where=self.folder,
                    got=f"{found} rows",
                    expected=f"{self.info.rows} rows",
                    fix=_AGAIN,
                )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of this machine; the system frees it if one dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
