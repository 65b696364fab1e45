"""The prepared folder from its parts: the rows that are used, numbered and cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aga.data.preparing.parts import read_manifest, read_part_pixels
from aga.data.schema import MANIFEST, REJECTS, Reject, Split
from aga.data.shards import ImageShardWriter, ShardConfig
from aga.data.studies import MANIFEST_FILE, REJECTS_FILE
from aga.data.workers import Workers, in_order

_BATCH = 512  # rows of a row group of the manifest, held in memory


@dataclass(frozen=True)
class Segment:
    """Rows of a part that are used.

    Attributes:
        part: The part's file.
        kept: Their places in it, rising.
    """

    part: Path
    kept: np.ndarray


class RejectsWriter:
    """Writes `rejects.parquet` as rejects become known.

    Args:
        folder: The folder to write into.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = pq.ParquetWriter(folder / REJECTS_FILE, REJECTS)
        self._waiting: list[Reject] = []

    def add(self, rejects: Sequence[Reject]) -> None:
        """Append rejects."""
        self._waiting += rejects
        if len(self._waiting) >= _BATCH:
            self._flush()

    def close(self) -> None:
        """Write what waits, and end the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = []
        for name in REJECTS.names:
            column = pa.lib.StringBuilder()  # pa.array would import pandas: 25 MiB
            for reject in self._waiting:
                column.append(getattr(reject, name))
            columns.append(column.finish())
        self._writer.write_table(pa.Table.from_arrays(columns, schema=REJECTS))
        self._waiting.clear()


def write_manifest(folder: Path, segments: Sequence[Segment], splits: Sequence[Split]) -> str:
    """Write `manifest.parquet`.

    Args:
        folder: The folder to write into.
        segments: Where the rows are, in their order.
        splits: The split of each row.

    Returns:
        SHA-256 of the content of all rows; they hold the hashes of their pixels.
    """
    digest = hashlib.sha256()
    done = 0
    with pq.ParquetWriter(folder / MANIFEST_FILE, MANIFEST, compression="zstd") as writer:
        for table in _batched(segments):
            stop = done + table.num_rows
            columns = dict(zip(table.column_names, table.columns, strict=True))
            columns["row"] = pa.array(range(done, stop), pa.int64())
            columns["split"] = pa.array(splits[done:stop], pa.string())
            chosen = [columns[name] for name in MANIFEST.names]
            writer.write_table(pa.Table.from_arrays(chosen, schema=MANIFEST))
            contents = table.column("content_sha256").to_pylist()
            for content, split in zip(contents, splits[done:stop], strict=True):
                digest.update(f"{content} {split} ".encode())
            done = stop
    return digest.hexdigest()


def write_images(
    folder: Path, segments: Sequence[Segment], shard: ShardConfig, row_bytes: int, workers: Workers
) -> Iterator[int]:
    """Write `images-NNNNN.parquet`, each shard in a process.

    Args:
        folder: The folder to write into.
        segments: Where the rows are, in their order.
        shard: Where to cut.
        row_bytes: Pixel bytes of a row.
        workers: The processes.

    Yields:
        Rows of each shard that is done.
    """
    write = partial(workers.call, _write_shard, folder, shard, row_bytes)
    yield from in_order(lambda one: write(*one), _cut(segments, shard.rows), workers.count)


def _write_shard(
    folder: Path, shard: ShardConfig, row_bytes: int, first: int, segments: Sequence[Segment]
) -> int:
    with ImageShardWriter(folder, shard, row_bytes, first) as writer:
        for segment in segments:
            for pixels in read_part_pixels(segment.part, segment.kept):
                writer.extend(pixels)
    return sum(segment.kept.size for segment in segments)


def _cut(segments: Sequence[Segment], rows: int) -> Iterator[tuple[int, list[Segment]]]:
    """The first row of each shard with the segments it is made of."""
    first, room = 0, rows
    current: list[Segment] = []
    for segment in segments:
        kept = segment.kept
        while kept.size:
            current.append(Segment(segment.part, kept[:room]))
            room -= current[-1].kept.size
            kept = kept[current[-1].kept.size :]
            if not room:
                yield first, current
                first, room, current = first + rows, rows, []
    if current:
        yield first, current


def _batched(segments: Sequence[Segment]) -> Iterator[pa.Table]:
    """The segments' rows in tables of `_BATCH` rows, the last of what is left."""
    waiting: list[pa.Table] = []
    count = 0
    for segment in segments:
        if segment.kept.size:
            waiting.append(read_manifest(segment.part, segment.kept))
        count += segment.kept.size
        while count >= _BATCH:
            table = pa.concat_tables(waiting)
            yield table.slice(0, _BATCH)
            waiting, count = [table.slice(_BATCH)], count - _BATCH
    if count:
        yield pa.concat_tables(waiting)
