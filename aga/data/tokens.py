"""Tokenize every report once, and read the result back.

`data/tokens/` holds `tokenizer/`, one `tokens-NNNNN.parquet` per image shard with the same rows
(`schema.TOKENS`), and `tokens.json`, whose hashes bind the tokens to the studies and the tokenizer
they were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from transformers import PreTrainedTokenizerFast

from aga.config import Config
from aga.data.cleaning import DEID
from aga.data.files import replaced_folder
from aga.data.progress import progress
from aga.data.schema import SPLITS, TOKENS
from aga.data.sentences import NO_SENTENCE
from aga.data.shards import image_shards
from aga.data.studies import StudyDataset
from aga.data.tokenizer import (
    TokenizedText,
    encode,
    local_tokenizer,
    open_tokenizer,
    trained_tokenizer,
)
from aga.errors import DataError

_AGAIN = "run `dvc repro tokenize`"


class TokenizerConfig(Config):
    """How reports become token ids.

    Attributes:
        path: Folder of an existing tokenizer; None trains one on the training split.
        vocabulary: Most pieces that a trained tokenizer may have, special tokens included.
        lowercase: Whether a trained tokenizer folds case.
        max_tokens: Longest report in tokens, special tokens included; the rest is cut off.
    """

    path: str | None
    vocabulary: Annotated[int, Field(ge=16)]
    lowercase: bool
    max_tokens: Annotated[int, Field(ge=3)]


@dataclass(frozen=True)
class TokenSummary:
    """Counts of a tokenized dataset, for `metrics/tokenize.json`.

    Attributes:
        vocabulary: Pieces of the tokenizer.
        rows: Reports.
        mean_tokens: Mean length in tokens, before truncation.
        longest: Length of the longest report in tokens, before truncation.
        truncated_rows: Reports that lost tokens.
        unknown_share: Per split, the share of unknown tokens among its content tokens.
    """

    vocabulary: int
    rows: int
    mean_tokens: float
    longest: int
    truncated_rows: int
    unknown_share: dict[str, float]


@dataclass(frozen=True)
class TokenRecord:
    """What `tokens.json` says.

    Attributes:
        studies_sha256: Content hash of the studies that were tokenized.
        tokenizer_sha256: Hash of the files in `tokenizer/`.
        max_tokens: Longest row, special tokens included.
        truncated_rows: Reports that lost tokens.
        sha256: Content hash of all tokens and of the two hashes above.
    """

    studies_sha256: str
    tokenizer_sha256: str
    max_tokens: int
    truncated_rows: int
    sha256: str


def tokenize(studies: Path, out: Path, config: TokenizerConfig) -> TokenSummary:
    """Make `data/tokens/` from `data/studies/`; `out` appears whole or not at all.

    Nothing is drawn at random: equal studies and settings give equal bytes.

    Args:
        studies: Folder that `prepare` wrote.
        out: Folder to create or replace.
        config: The tokenizer's settings; `path` is absolute, or relative to the working folder.

    Raises:
        ParamsError: `tokenizer.path` holds no usable tokenizer.
        DataError: The studies are missing or have no training split, or the disk is full.
    """
    dataset = StudyDataset.open(studies)
    reports = pa.table({name: dataset.column(name) for name in ("split", "text")})
    tokenizer = _make_tokenizer(reports, config, _marks(dataset))
    tally = _Tally(tokenizer.unk_token_id)
    with replaced_folder(out) as folder:
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer_sha256 = _folder_sha256(folder / "tokenizer")
        shard_hashes = []
        for shard, start, stop in progress(list(_shard_bounds(studies)), "shards"):
            split, text = (column.to_pylist() for column in reports.slice(start, stop - start))
            rows = encode(tokenizer, text, config.max_tokens)
            tally.add(split, rows)
            table = _shard_table(start, rows)
            shard_hashes.append(_shard_sha256(table))
            pq.write_table(table, folder / shard, compression="zstd")
        record = TokenRecord(
            studies_sha256=dataset.info.sha256,
            tokenizer_sha256=tokenizer_sha256,
            max_tokens=config.max_tokens,
            truncated_rows=tally.truncated_rows,
            sha256=_combined(dataset.info.sha256, tokenizer_sha256, *shard_hashes),
        )
        (folder / "tokens.json").write_text(json.dumps(asdict(record), indent=2) + "\n")
    return tally.summary(len(tokenizer))


class TokenDataset:
    """The tokens of a folder that `tokenize` wrote, held as flat arrays: 8 bytes per token.

    Attributes:
        tokenizer: The transformers tokenizer.
        record: Sizes and hashes.
    """

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, record: TokenRecord
    ) -> None:
        self.tokenizer = tokenizer
        self.record = record
        self._folder = folder
        hashes = [record.studies_sha256, record.tokenizer_sha256]
        parts = []
        for path in _token_shards(folder):
            table = _read_shard(path)
            hashes.append(_shard_sha256(table))
            columns = (_flat(table, name) for name in ("token_ids", "sentences"))
            parts.append((_lengths(table), *columns))
        _require_equal("The token shards are damaged", folder, _combined(*hashes), record.sha256)
        lengths, token_ids, sentences = map(np.concatenate, zip(*parts, strict=True))
        self._bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._token_ids = token_ids
        self._sentences = sentences

    @classmethod
    def open(cls, folder: Path, studies: StudyDataset) -> Self:
        """Read and check a folder of tokens.

        Raises:
            DataError: The tokens are missing or damaged, or were made from other studies or with
                another tokenizer than the one beside them.
        """
        record = _read_record(folder / "tokens.json")
        _require_equal(
            "The tokens were made from other studies",
            folder,
            record.studies_sha256,
            studies.info.sha256,
        )
        _require_equal(
            "The tokenizer is not the one that made the tokens beside it",
            folder / "tokenizer",
            _folder_sha256(folder / "tokenizer"),
            record.tokenizer_sha256,
        )
        return cls(folder, open_tokenizer(folder / "tokenizer"), record)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def token_ids(self, row: int | np.int64) -> npt.NDArray[np.int32]:
        """Token ids of a manifest row, `[L]`, special tokens included, not padded."""
        return self._token_ids[self._bounds[row] : self._bounds[row + 1]]

    def content(self, row: int | np.int64) -> npt.NDArray[np.bool_]:
        """Per token of a manifest row, `[L]`, True where it is no special token."""
        return np.not_equal(self.sentences(row), NO_SENTENCE)

    def sentences(self, row: int | np.int64) -> npt.NDArray[np.int32]:
        """Per token of a manifest row, `[L]`, the number of its sentence; -1 if it is special."""
        return self._sentences[self._bounds[row] : self._bounds[row + 1]]

    def spans(self, row: int | np.int64) -> npt.NDArray[np.int32]:
        """Start and end of each token in the row's text, `[L, 2]`; -1 for special tokens."""
        return self._spans[self._bounds[row] : self._bounds[row + 1]]

    @cached_property
    def _spans(self) -> npt.NDArray[np.int32]:
        """Every row's spans; read when first asked for, as training never does."""
        tables = [_read_shard(path) for path in _token_shards(self._folder)]
        columns = [np.concatenate([_flat(t, name) for t in tables]) for name in ("starts", "ends")]
        return np.stack(columns, axis=1)


class _Tally:
    """Counts over the shards."""

    def __init__(self, unknown_id: int | None) -> None:
        self.truncated_rows = 0
        self._unknown_id = unknown_id
        self._lengths: list[int] = []
        self._unknown: Counter[str] = Counter()
        self._content: Counter[str] = Counter()

    def add(self, splits: Sequence[str], rows: Sequence[TokenizedText]) -> None:
        for split, row in zip(splits, rows, strict=True):
            self.truncated_rows += row.truncated > 0
            self._lengths.append(len(row.token_ids) + row.truncated)
            self._content[split] += sum(row.content)
            if self._unknown_id is not None:
                self._unknown[split] += row.token_ids.count(self._unknown_id)

    def summary(self, vocabulary: int) -> TokenSummary:
        return TokenSummary(
            vocabulary=vocabulary,
            rows=len(self._lengths),
            mean_tokens=sum(self._lengths) / len(self._lengths),
            longest=max(self._lengths),
            truncated_rows=self.truncated_rows,
            unknown_share={
                split: self._unknown[split] / self._content[split]
                for split in SPLITS
                if self._content[split]
            },
        )


def _marks(studies: StudyDataset) -> tuple[str, ...]:
    """What stands in the texts for something else and is one token."""
    report = studies.info.config.get("report", {})
    return (DEID,) if report.get("deidentified") == "token" else ()


def _make_tokenizer(
    reports: pa.Table, config: TokenizerConfig, marks: tuple[str, ...]
) -> PreTrainedTokenizerFast:
    if config.path is not None:
        return local_tokenizer(Path(config.path), config.max_tokens, marks)
    training = reports.filter(pc.field("split") == "train")["text"].to_pylist()
    if not any(training):
        raise DataError(
            "There is no report in the training split to train a tokenizer on",
            fix="raise prepare.split.train, or set tokenizer.path to an existing tokenizer; images "
            "with labels alone need no tokens: run `python workflows/evaluate.py` on them",
        )
    return trained_tokenizer(
        training, config.vocabulary, config.lowercase, config.max_tokens, marks
    )


def _shard_bounds(studies: Path) -> Iterator[tuple[str, int, int]]:
    """Name of each token shard with its first row and the row after its last."""
    start = 0
    for path in image_shards(studies):
        stop = start + pq.read_metadata(path).num_rows
        yield path.name.replace("images-", "tokens-"), start, stop
        start = stop


def _token_shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("tokens-*.parquet"))


def _shard_table(start: int, rows: Sequence[TokenizedText]) -> pa.Table:
    columns = {
        "row": range(start, start + len(rows)),
        "token_ids": [row.token_ids for row in rows],
        "starts": [row.starts for row in rows],
        "ends": [row.ends for row in rows],
        "sentences": [row.sentences for row in rows],
        "truncated": [row.truncated for row in rows],
    }
    return pa.table(columns, schema=TOKENS)


def _read_shard(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=TOKENS)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("A token shard is damaged", where=path, got=error, fix=_AGAIN) from error


def _lengths(table: pa.Table) -> npt.NDArray[np.int32]:
    return np.asarray(pc.list_value_length(table["token_ids"]))


def _flat(table: pa.Table, name: str) -> npt.NDArray[np.int32]:
    """A list column's values, row after row."""
    return np.asarray(pc.list_flatten(table[name]))


def _shard_sha256(table: pa.Table) -> str:
    """Hash of the values, not of the file: another Arrow version writes equal tokens otherwise."""
    digest = hashlib.sha256(_lengths(table).tobytes())
    for name in ("token_ids", "starts", "ends", "sentences"):
        digest.update(_flat(table, name).tobytes())
    return digest.hexdigest()


def _combined(*hashes: str) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _read_record(path: Path) -> TokenRecord:
    try:
        return TokenRecord(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError("There are no tokens", where=path, fix=_AGAIN) from error
    except (ValueError, TypeError) as error:
        raise DataError("The record of the tokens is damaged", where=path, got=error) from error


def _require_equal(what: str, where: Path, got: str, expected: str) -> None:
    if got != expected:
        raise DataError(what, where=where, got=got, expected=expected, fix=_AGAIN)
