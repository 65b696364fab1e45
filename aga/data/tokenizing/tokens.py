"""Tokenize every report once, and read the result back.

`data/tokens/` holds `tokenizer/`, one `tokens-NNNNN.parquet` per image shard with the same rows
(`schema.TOKENS`), and `tokens.json`, whose hashes bind the tokens to the studies and the tokenizer
they were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import Field
from transformers import PreTrainedTokenizerFast

from aga.config import Config
from aga.data.files import code_sha256, replaced_folder, working_folder
from aga.data.progress import progress
from aga.data.schema import SPLITS
from aga.data.shards import image_shards
from aga.data.studies import StudyDataset
from aga.data.text.cleaning import DEID
from aga.data.text.sentences import NO_SENTENCE
from aga.data.tokenizing.token_shards import (
    AGAIN,
    RowRange,
    ShardCounts,
    count_training_words,
    flat,
    lengths,
    read_shard,
    shard_sha256,
    write_shard,
)
from aga.data.tokenizing.tokenizer import local_tokenizer, open_tokenizer, tokenizer_of_words
from aga.data.tokenizing.wordpiece import WordCounts
from aga.data.workers import Workers, in_order, opened
from aga.errors import DataError


class TokenizerConfig(Config):
    """How reports become token ids.

    Attributes:
        path: Folder of an existing tokenizer; None trains one on the training split.
        vocabulary: Most pieces that a trained tokenizer may have, special tokens included.
        lowercase: Whether a trained tokenizer folds case.
        min_patients: How many patients must have a word before a trained tokenizer learns a piece
            of it: the vocabulary leaves with the model, names should not.
        max_tokens: Longest report in tokens, special tokens included; the rest is cut off.
    """

    path: str | None
    vocabulary: Annotated[int, Field(ge=16)]
    lowercase: bool
    min_patients: Annotated[int, Field(ge=1)]
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


def tokenize(
    studies: Path, out: Path, config: TokenizerConfig, workers: Workers | None = None
) -> TokenSummary:
    """Make `data/tokens/` from `data/studies/`; `out` appears whole or not at all.

    Nothing is drawn at random: equal studies and settings give equal bytes, whatever the workers.
    Finished shards are kept beside `out` until all are done: after a kill, the same call goes on
    from them.

    Args:
        studies: Folder that `prepare` wrote.
        out: Folder to create or replace.
        config: The tokenizer's settings; `path` is absolute, or relative to the working folder.
        workers: Processes to work in; by default those of this machine.

    Raises:
        ParamsError: `tokenizer.path` holds no usable tokenizer.
        DataError: The studies are missing or have no training split, or the disk is full.
    """
    dataset = StudyDataset.open(studies)
    rows = list(_row_ranges(dataset))
    with opened(workers) as processes, replaced_folder(out) as folder:
        tokenizer = _make_tokenizer(rows, config, _marks(dataset), processes)
        tokenizer.save_pretrained(folder / "tokenizer")
        made_from = (dataset.info.sha256, _folder_sha256(folder / "tokenizer"))
        bounds = " ".join(str(one.stop) for one in rows)
        key = combined(*made_from, bounds, str(config.max_tokens), code_sha256())[:16]
        with working_folder(out, key) as work:
            shards = _write_shards(work, folder / "tokenizer", rows, config.max_tokens, processes)
            for shard in token_shards(work):
                shard.rename(folder / shard.name)
        record = TokenRecord(
            studies_sha256=made_from[0],
            tokenizer_sha256=made_from[1],
            max_tokens=config.max_tokens,
            truncated_rows=sum(shard.truncated_rows for shard in shards),
            sha256=combined(*made_from, *(shard.sha256 for shard in shards)),
        )
        (folder / "tokens.json").write_text(json.dumps(asdict(record), indent=2) + "\n")
    return _summary(shards, len(tokenizer))


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
        for path in token_shards(folder):
            table = read_shard(path)
            hashes.append(shard_sha256(table))
            columns = (flat(table, name) for name in ("token_ids", "sentences"))
            parts.append((lengths(table), *columns))
        _require_equal("The token shards are damaged", folder, combined(*hashes), record.sha256)
        sizes, token_ids, sentences = map(np.concatenate, zip(*parts, strict=True))
        self._bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
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
        tables = [read_shard(path) for path in token_shards(self._folder)]
        columns = [np.concatenate([flat(t, name) for t in tables]) for name in ("starts", "ends")]
        return np.stack(columns, axis=1)


def _marks(studies: StudyDataset) -> tuple[str, ...]:
    """What stands in the texts for something else and is one token."""
    report = studies.info.config.get("report", {})
    return (DEID,) if report.get("deidentified") == "token" else ()


def _make_tokenizer(
    rows: Sequence[RowRange], config: TokenizerConfig, marks: tuple[str, ...], workers: Workers
) -> PreTrainedTokenizerFast:
    if config.path is not None:
        return local_tokenizer(Path(config.path), config.max_tokens, marks)
    words = WordCounts(config.min_patients)

    def count(part: RowRange) -> WordCounts:
        settings = (config.lowercase, config.min_patients, marks)
        return workers.call(count_training_words, part, *settings)

    for counted in progress(in_order(count, rows, workers.count), "shards of words", len(rows)):
        words.update(counted)
    if not words.counts:
        raise DataError(
            "There is no report in the training split to train a tokenizer on",
            fix="raise prepare.split.train, or set tokenizer.path to an existing tokenizer; images "
            "with labels alone need no tokens: run `python workflows/evaluate.py` on them",
        )
    return tokenizer_of_words(words, config.vocabulary, config.lowercase, config.max_tokens, marks)


def _write_shards(
    work: Path, tokenizer: Path, rows: Sequence[RowRange], max_tokens: int, workers: Workers
) -> list[ShardCounts]:
    unknown_id = open_tokenizer(tokenizer).unk_token_id

    def write(numbered: tuple[int, RowRange]) -> ShardCounts:
        number, part = numbered
        out = work / f"tokens-{number:05d}.parquet"
        file = tokenizer / "tokenizer.json"
        return workers.call(write_shard, out, part, file, max_tokens, unknown_id)

    shards = in_order(write, enumerate(rows), workers.count)
    return list(progress(shards, "reports", rows[-1].stop, size=lambda shard: shard.rows))


def _summary(shards: Sequence[ShardCounts], vocabulary: int) -> TokenSummary:
    rows = sum(shard.rows for shard in shards)
    content, unknown = (
        {split: sum(getattr(shard, name)[split] for shard in shards) for split in SPLITS}
        for name in ("content", "unknown")
    )
    return TokenSummary(
        vocabulary=vocabulary,
        rows=rows,
        mean_tokens=sum(shard.tokens for shard in shards) / rows,
        longest=max(shard.longest for shard in shards),
        truncated_rows=sum(shard.truncated_rows for shard in shards),
        unknown_share={
            split: unknown[split] / content[split] for split in SPLITS if content[split]
        },
    )


def _row_ranges(studies: StudyDataset) -> Iterator[RowRange]:
    """The rows of each image shard: token shards have the same bounds."""
    start = 0
    for path in image_shards(studies.folder):
        stop = start + pq.read_metadata(path).num_rows
        yield RowRange(studies.manifest_path, start, stop)
        start = stop


def token_shards(folder: Path) -> list[Path]:
    """The shards of a folder, in row order."""
    return sorted(folder.glob("tokens-*.parquet"))


def combined(*hashes: str) -> str:
    """One hash of several."""
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
        raise DataError("There are no tokens", where=path, fix=AGAIN) from error
    except (ValueError, TypeError) as error:
        raise DataError("The record of the tokens is damaged", where=path, got=error) from error


def _require_equal(what: str, where: Path, got: str, expected: str) -> None:
    if got != expected:
        raise DataError(what, where=where, got=got, expected=expected, fix=AGAIN)
