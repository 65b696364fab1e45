"""One shard of tokens: written from rows of the manifest, read back, hashed, counted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from aga.data.schema import SPLITS, TOKENS
from aga.data.tokenizing.encoding import NO_OFFSET, TokenizedText, encoded
from aga.data.tokenizing.wordpiece import WordCounts, count_words
from aga.errors import DataError

AGAIN = "run `dvc repro tokenize`"
_ENCODED = 256  # reports in memory as Python objects


@dataclass(frozen=True)
class RowRange:
    """Rows of a manifest.

    Attributes:
        manifest: The file.
        start: The first row.
        stop: The row after the last.
    """

    manifest: Path
    start: int
    stop: int

    def read(self, *columns: str) -> pa.Table:
        """Some columns of the rows; only the row groups that hold them are read."""
        tables = []
        first = 0
        with pq.ParquetFile(self.manifest) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < self.stop and last > self.start:
                    table = file.read_row_group(group, columns=list(columns))
                    begin = max(self.start - first, 0)
                    tables.append(table.slice(begin, self.stop - first - begin))
                first = last
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class ShardCounts:
    """What a shard adds to the summary.

    Attributes:
        rows: Reports.
        tokens: Tokens, before truncation.
        longest: Length of the longest report in tokens, before truncation.
        truncated_rows: Reports that lost tokens.
        content: Content tokens by split.
        unknown: Unknown tokens by split.
        sha256: Of the tokens.
    """

    rows: int
    tokens: int
    longest: int
    truncated_rows: int
    content: dict[str, int]
    unknown: dict[str, int]
    sha256: str


def count_training_words(
    rows: RowRange, lowercase: bool, least: int, marks: Sequence[str]
) -> WordCounts:
    """The words of the training reports among some rows; see `wordpiece.count_words`."""
    table = rows.read("split", "patient_id", "text")
    training = table.filter(pc.field("split") == "train")
    columns = (training[name].to_pylist() for name in ("patient_id", "text"))
    return count_words(zip(*columns, strict=True), lowercase, least, marks)


def write_shard(
    out: Path, rows: RowRange, tokenizer: Path, max_tokens: int, unknown_id: int | None
) -> ShardCounts:
    """Tokenize rows into a file, or take the file that is there, and count.

    Args:
        out: The file; it appears whole or not at all.
        rows: Of the manifest.
        tokenizer: The file `tokenizer.json`.
        max_tokens: Longest row, special tokens included.
        unknown_id: Id of the unknown token; None where there is none.
    """
    if not out.exists():
        partial = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            pq.write_table(_tokens(rows, tokenizer, max_tokens), partial, compression="zstd")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    split = np.asarray(rows.read("split")["split"].to_pylist())
    return _counts(read_shard(out), split, unknown_id)


def read_shard(path: Path) -> pa.Table:
    """The rows of a shard, `schema.TOKENS`.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return pq.read_table(path, schema=TOKENS)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("A token shard is damaged", where=path, got=error, fix=AGAIN) from error


def lengths(table: pa.Table) -> npt.NDArray[np.int32]:
    """Tokens per row."""
    return np.asarray(pc.list_value_length(table["token_ids"]))


def flat(table: pa.Table, name: str) -> npt.NDArray[np.int32]:
    """A list column's values, row after row."""
    return np.asarray(pc.list_flatten(table[name]))


def shard_sha256(table: pa.Table) -> str:
    """Hash of the values, not of the file: another Arrow version writes equal tokens otherwise."""
    digest = hashlib.sha256(lengths(table).tobytes())
    for name in ("token_ids", "starts", "ends", "sentences"):
        digest.update(flat(table, name).tobytes())
    return digest.hexdigest()


def _tokens(rows: RowRange, tokenizer: Path, max_tokens: int) -> pa.Table:
    text = rows.read("text")["text"].to_pylist()
    backend = _opened(tokenizer, tokenizer.stat().st_mtime_ns)
    blocks = []
    for first in range(0, len(text), _ENCODED):
        block = encoded(backend, text[first : first + _ENCODED], max_tokens)
        blocks.append(_table(rows.start + first, block))
    return pa.concat_tables(blocks).combine_chunks()


@lru_cache(maxsize=1)
def _opened(path: Path, changed: int) -> Tokenizer:
    """A tokenizer, read once in a process as long as its file does not change."""
    del changed
    return Tokenizer.from_file(str(path))


def _counts(table: pa.Table, split: npt.NDArray[np.str_], unknown_id: int | None) -> ShardCounts:
    kept, truncated = lengths(table), np.asarray(table["truncated"])
    whole = kept + truncated
    split_of_token = np.repeat(split, kept)
    is_content = flat(table, "starts") != NO_OFFSET
    is_unknown = flat(table, "token_ids") == (-1 if unknown_id is None else unknown_id)
    return ShardCounts(
        rows=table.num_rows,
        tokens=int(whole.sum()),
        longest=int(whole.max()),
        truncated_rows=int((truncated > 0).sum()),
        content={one: int(is_content[split_of_token == one].sum()) for one in SPLITS},
        unknown={one: int(is_unknown[split_of_token == one].sum()) for one in SPLITS},
        sha256=shard_sha256(table),
    )


def _table(start: int, rows: Sequence[TokenizedText]) -> pa.Table:
    columns = {
        "row": range(start, start + len(rows)),
        "token_ids": [row.token_ids for row in rows],
        "starts": [row.starts for row in rows],
        "ends": [row.ends for row in rows],
        "sentences": [row.sentences for row in rows],
        "truncated": [row.truncated for row in rows],
    }
    return pa.table(columns, schema=TOKENS)
