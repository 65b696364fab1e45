"""A few large Parquet files of pixels, in row order, written and read in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from aga.config import Config
from aga.data.schema import IMAGES

_MIB = 2**20


class ShardConfig(Config):
    """How the pixels are cut into files.

    Attributes:
        rows: Rows of a shard; the token shards have the same boundaries.
        row_group_mib: Largest row group in MiB of raw pixels, the unit that is held in memory.
    """

    rows: int = Field(gt=0)
    row_group_mib: int = Field(gt=0)

    def group_rows(self, row_bytes: int) -> int:
        """Rows of a row group, for rows of so many bytes of pixels."""
        return max(1, self.row_group_mib * _MIB // row_bytes)


@contextmanager
def lean_arrow() -> Iterator[None]:
    """Let Arrow give memory back to the system at once; its own allocators keep it for later."""
    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(pool)


def image_shards(folder: Path) -> list[Path]:
    """The pixel shards of a prepared folder, in row order."""
    return sorted(folder.glob("images-*.parquet"))


def read_pixels(shard: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a pixel shard, one row group at a time."""
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_batches()


class ImageShardWriter:
    """Writes pixels row after row into numbered shards; a context manager.

    Args:
        folder: Where the shards go.
        config: Where to cut.
        row_bytes: Pixel bytes of one row.
        first: Number of the first row that is written; a shard begins with it.
    """

    def __init__(self, folder: Path, config: ShardConfig, row_bytes: int, first: int = 0) -> None:
        self._folder = folder
        self._shard_rows = config.rows
        self._group_rows = config.group_rows(row_bytes)
        self._writer: pq.ParquetWriter | None = None
        self._page_rows = max(1, _MIB // row_bytes)
        self._pixels: list[pa.Array] = []
        self._waiting = 0
        self._rows = first

    def add(self, pixels: bytes) -> None:
        """Append the pixels of the next row."""
        self.extend(pa.array([pixels], pa.large_binary()))

    def extend(self, pixels: pa.LargeBinaryArray) -> None:
        """Append the pixels of the next rows; they are not copied before a row group is full."""
        while len(pixels):
            shard_room = self._shard_rows - self._rows % self._shard_rows
            room = min(shard_room, self._group_rows - self._waiting)
            self._pixels.append(pixels[:room])
            self._rows += len(self._pixels[-1])
            self._waiting += len(self._pixels[-1])
            pixels = pixels[room:]
            shard_is_full = self._rows % self._shard_rows == 0
            if shard_is_full or self._waiting == self._group_rows:
                self._flush()
            if shard_is_full:
                self._close()

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
            self._close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        first = self._rows - self._waiting
        if self._writer is None:
            path = self._folder / f"images-{first // self._shard_rows:05d}.parquet"
            self._writer = pq.ParquetWriter(
                path,
                IMAGES,
                compression="zstd",
                use_dictionary=False,
                write_batch_size=self._page_rows,  # a page is compressed in memory
            )
        rows = pa.array(range(first, self._rows), pa.int64())
        pixels = pa.concat_arrays(self._pixels)  # in one piece the bytes do not tell the parts
        self._pixels.clear()
        self._writer.write_batch(pa.record_batch([rows, pixels], schema=IMAGES))
        self._waiting = 0

    def _close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
