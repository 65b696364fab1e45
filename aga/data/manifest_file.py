"""Writing `manifest.parquet` in two passes: the splits are known only when all rows were seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aga.data.examine import PreparedPair
from aga.data.schema import MANIFEST, Split

_BATCH = 1024  # rows in memory
_WITHOUT_SPLITS = "manifest.without-splits.parquet"


class ManifestWriter:
    """First pass: writes rows as they come, numbered and without a split; a context manager.

    Args:
        folder: Where the manifest will be.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = pq.ParquetWriter(folder / _WITHOUT_SPLITS, MANIFEST, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._count = 0

    def add(self, pair: PreparedPair) -> None:
        """Append the next row."""
        self._rows.append(_manifest_row(pair, self._count))
        self._count += 1
        if len(self._rows) == _BATCH:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=MANIFEST))
        self._rows.clear()


def complete_manifest(path: Path, splits: Sequence[Split]) -> str:
    """Second pass: write the manifest with its splits.

    Args:
        path: The manifest; the first pass's file is beside it and is removed.
        splits: The split of each row.

    Returns:
        SHA-256 of the content of all rows; they hold the hashes of their pixels.
    """
    first_pass = path.with_name(_WITHOUT_SPLITS)
    digest, offsets_digest = hashlib.sha256(), hashlib.sha256()
    column = MANIFEST.get_field_index("split")
    done = 0
    with (
        pq.ParquetFile(first_pass) as source,
        pq.ParquetWriter(path, MANIFEST, compression="zstd") as target,
    ):
        for batch in source.iter_batches(batch_size=_BATCH):
            values = pa.array(splits[done : done + batch.num_rows], pa.string())
            rows = batch.set_column(column, MANIFEST.field(column), values)
            done += batch.num_rows
            target.write_batch(rows)
            for row in rows.drop_columns(["text_offsets"]).to_pylist():
                digest.update(json.dumps(row).encode())
            offsets = rows.column("text_offsets").flatten().to_numpy()
            offsets_digest.update(offsets.astype("<i4").tobytes())
    first_pass.unlink()
    digest.update(offsets_digest.digest())
    return digest.hexdigest()


def _manifest_row(pair: PreparedPair, row: int) -> dict[str, Any]:
    study = pair.study
    height, width = pair.size
    return {
        "row": row,
        "patient_id": study.patient_id,
        "study_id": study.study_id,
        "location": study.location,
        "view": study.view,
        "split": None,
        "report": study.report,
        "section": pair.report.section,
        "text": pair.report.text,
        "text_offsets": pair.report.offsets.astype(np.int32),
        "statement": study.statement,
        "labels": sorted(study.labels.items()),
        "regions": [
            {"finding": region.finding, "box": list(region.box), "span": region.span}
            for region in study.regions
        ],
        "height": height,
        "width": width,
        "pixel_sha256": pair.pixel_sha256,
    }
