"""Tokenizer training, encoding, and the token shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.studies import phantom_rows, write_studies
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from aga.data.schema import TOKENS
from aga.data.shards import image_shards
from aga.data.studies import StudyDataset
from aga.data.text.cleaning import DEID
from aga.data.tokenizing.token_shards import write_shard
from aga.data.tokenizing.tokenizer import (
    encode,
    local_tokenizer,
    open_tokenizer,
    pad_tokens,
    trained_tokenizer,
)
from aga.data.tokenizing.tokens import TokenDataset, TokenizerConfig, tokenize
from aga.data.tokenizing.wordpiece import SPECIAL_TOKENS
from aga.data.workers import LocalWorkers
from aga.errors import DataError, ParamsError

CONFIG = TokenizerConfig(path=None, vocabulary=120, lowercase=True, min_patients=1, max_tokens=40)
CHINESE = [
    "左肺上叶见结节影、边界清楚。",
    "右侧胸腔积液、心影增大。",
    "双肺纹理清晰、未见实变。",
    "右肺下叶见实变影、未见气胸。",
]


@pytest.fixture
def studies(tmp_path: Path) -> StudyDataset:
    return write_studies(tmp_path / "studies", phantom_rows(40))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def texts_of(studies: StudyDataset) -> list[str]:
    return studies.column("text").to_pylist()


# --- the tokenizer


TRAIN_IN_A_FRESH_PROCESS = """
import hashlib, random
from aga.data.tokenizing.wordpiece import count_words, train_wordpiece
letters = "abcdefghijklmnopqrstuvwxyzäöüß肺叶结节"
draw = random.Random(1)
words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(300)]
texts = [" ".join(draw.choices(words, k=20)) for _ in range(100)]
for vocabulary in (40, 300):  # the alphabet does not fit; it does
    words = count_words([(str(n), text) for n, text in enumerate(texts)], True, 1)
    print(hashlib.sha256(train_wordpiece(words, vocabulary, True).to_str().encode()).hexdigest())
"""


def test_training_gives_the_same_bytes_in_every_process() -> None:
    # Hash tables are seeded anew in each process: an order taken from one would show here.
    outputs = {
        subprocess.run(
            [sys.executable, "-c", TRAIN_IN_A_FRESH_PROCESS],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        ).stdout
        for hash_seed in range(3)
    }
    assert len(outputs) == 1


def test_trained_vocabulary_keeps_its_bound_and_begins_with_the_special_tokens() -> None:
    tokenizer = trained_tokenizer([row["text"] for row in phantom_rows(40)], 60, True, 40)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert tuple(piece for piece, _ in vocabulary[:5]) == SPECIAL_TOKENS
    assert 5 < len(vocabulary) <= 60
    assert tokenizer.pad_token_id == 0


def test_a_crowded_alphabet_gives_up_its_rarest_characters() -> None:
    tokenizer = trained_tokenizer(["肺 肺 肺 叶 叶 结"], 7, True, 40)
    assert set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS, "肺", "叶"}


def test_accents_and_vowel_signs_are_kept_whatever_their_unicode_form() -> None:
    composed, decomposed = "\u00e9panchement", "e\u0301panchement"
    tokenizer = trained_tokenizer([composed, "हृदय का आकार"] * 3, 100, True, 40)
    one, two = (encode(tokenizer, [text], 40)[0] for text in (composed, decomposed))
    assert one.token_ids == two.token_ids
    assert "\u00e9" in tokenizer.decode(one.token_ids)
    hindi = tokenizer.decode(encode(tokenizer, ["हृदय"], 40)[0].token_ids[1:-1])
    assert hindi == "हृदय"


def test_lowercase_is_a_setting() -> None:
    folded = trained_tokenizer(["Lung LUNG lung"] * 5, 60, True, 40)
    kept = trained_tokenizer(["Lung LUNG lung"] * 5, 60, False, 40)
    assert len(set(map(tuple, (e.token_ids for e in encode(folded, ["LUNG", "lung"], 9))))) == 1
    assert len(set(map(tuple, (e.token_ids for e in encode(kept, ["LUNG", "lung"], 9))))) == 2


def test_chinese_characters_are_words_with_their_own_offsets() -> None:
    tokenizer = trained_tokenizer(CHINESE, 100, True, 40)
    for text, tokens in zip(CHINESE, encode(tokenizer, CHINESE, 40), strict=True):
        spans = list(zip(tokens.starts, tokens.ends, strict=True))
        assert spans == [(-1, -1), *((i, i + 1) for i in range(len(text))), (-1, -1)]
        assert tokenizer.unk_token_id not in tokens.token_ids


def test_offsets_point_at_the_text_of_each_piece() -> None:
    texts = [row["text"] for row in phantom_rows(20)]
    tokenizer = trained_tokenizer(texts, 90, True, 60)
    for text, tokens in zip(texts, encode(tokenizer, texts, 60), strict=True):
        pieces = tokenizer.convert_ids_to_tokens(tokens.token_ids)
        for piece, start, end in zip(pieces, tokens.starts, tokens.ends, strict=True):
            if start >= 0:
                assert text[start:end].lower() == piece.removeprefix("##")


def test_truncation_counts_what_it_cuts() -> None:
    text = "one two three four five six"
    tokenizer = trained_tokenizer([text] * 4, 200, True, 40)
    saved = tokenizer.backend_tokenizer.to_str()
    whole, cut = encode(tokenizer, [text], 40)[0], encode(tokenizer, [text], 5)[0]
    assert whole.truncated == 0
    assert len(cut.token_ids) == 5
    assert len(cut.token_ids) + cut.truncated == len(whole.token_ids)
    assert cut.token_ids == [*whole.token_ids[:4], whole.token_ids[-1]]
    assert tokenizer.backend_tokenizer.to_str() == saved, "truncation must not stick"


def test_a_special_token_written_in_a_report_is_only_text() -> None:
    tokenizer = trained_tokenizer(["no [SEP] effusion [PAD] here"] * 4, 100, True, 40)
    tokens = encode(tokenizer, ["no [SEP] effusion [PAD] here"], 40)[0]
    inner = tokens.token_ids[1:-1]
    assert all(tokens.content[1:-1])
    assert not {tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id} & set(inner)


# --- the mark of what was de-identified

MARKED = ["seen by Dr. [DEID] on [DEID].", "no [DEID]change", "no change since [deid]"]


def pieces_and_spans(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[str, str]]:
    row = encode(tokenizer, [text], 40)[0]
    pieces = tokenizer.convert_ids_to_tokens(row.token_ids)
    placed = zip(pieces, row.starts, row.ends, row.content, strict=True)
    return [(piece, text[start:end]) for piece, start, end, content in placed if content]


def test_the_mark_is_one_token_of_a_trained_tokenizer(tmp_path: Path) -> None:
    trained = trained_tokenizer(MARKED * 3, 100, True, 40, marks=(DEID,))
    assert len(trained) <= 100
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, open_tokenizer(tmp_path)):
        assert [pair for pair in pieces_and_spans(tokenizer, MARKED[0]) if DEID in pair] == [
            (DEID, DEID)
        ] * 2
        assert (DEID, DEID) in pieces_and_spans(tokenizer, MARKED[1])
        assert DEID not in dict(pieces_and_spans(tokenizer, MARKED[2]))
        assert tokenizer.convert_tokens_to_ids(DEID) == len(tokenizer) - 1
    other = trained_tokenizer(MARKED[:2] * 3, 100, True, 40, marks=(DEID,))
    assert not {"[", "]"} & other.get_vocab().keys(), "the mark itself is not learned from"
    assert DEID not in trained_tokenizer(MARKED * 3, 100, True, 40).get_vocab()


def test_the_mark_takes_an_unused_id_of_a_given_tokenizer(tmp_path: Path) -> None:
    words = [*SPECIAL_TOKENS, "[unused1]", "[unused2]", "seen", "by", "dr", ".", "on", "[", "]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    plain = local_tokenizer(tmp_path / "bert", 40)
    marked = local_tokenizer(tmp_path / "bert", 40, marks=(DEID,))
    assert len(marked) == len(plain) == len(words)
    assert marked.convert_tokens_to_ids(DEID) == plain.convert_tokens_to_ids("[unused1]") == 5
    assert [piece for piece, _ in pieces_and_spans(marked, MARKED[0])] == (
        ["seen", "by", "dr", ".", "[DEID]", "on", "[DEID]", "."]
    )


@pytest.mark.parametrize("deidentified", ["drop", "token"])
def test_the_stage_makes_the_mark_a_token_where_the_studies_have_it(
    tmp_path: Path, deidentified: str
) -> None:
    rows = [{"text": "Seen by [DEID].", "split": "train"}] * 3
    report = {"report": {"deidentified": deidentified}}
    studies = write_studies(tmp_path / "studies", rows, config=report)
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    tokenizer = TokenDataset.open(tmp_path / "tokens", studies).tokenizer
    assert (DEID in tokenizer.get_vocab()) == (deidentified == "token")


# --- padding


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    max_tokens=st.integers(40, 48),
)
def test_padding_keeps_tokens_and_masks_the_rest(lengths: list[int], max_tokens: int) -> None:
    ids = [np.arange(1, length + 1, dtype=np.int32) for length in lengths]
    sentences = [values % 3 - 1 for values in ids]
    padded = pad_tokens(ids, sentences, 99, max_tokens)
    token_ids, attention_mask = padded.token_ids, padded.attention_mask
    width = token_ids.shape[1]
    assert width == max_tokens or width % 8 == 0
    assert max(lengths) <= width < max(lengths) + 8
    assert width <= max_tokens
    for row, length in enumerate(lengths):
        assert token_ids[row].tolist() == [*ids[row].tolist(), *[99] * (width - length)]
        assert attention_mask[row].tolist() == [True] * length + [False] * (width - length)
        assert padded.sentences[row, :length].tolist() == sentences[row].tolist()
    assert (padded.sentences[~attention_mask] == -1).all()
    assert padded.content_mask.equal(padded.sentences != -1)
    assert token_ids.dtype == torch.int64


# --- the stage


def test_token_shards_follow_the_image_shards(studies: StudyDataset, tmp_path: Path) -> None:
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    shards = sorted((tmp_path / "tokens").glob("tokens-*.parquet"))
    assert len(shards) == 6
    for images, tokens in zip(image_shards(studies.folder), shards, strict=True):
        table = pq.read_table(tokens)
        assert table.schema == TOKENS
        assert table["row"].to_pylist() == pq.read_table(images)["row"].to_pylist()


def test_equal_input_gives_equal_bytes(studies: StudyDataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tokenize(studies.folder, tmp_path / name, CONFIG)
    first = folder_bytes(tmp_path / "a")
    assert first == folder_bytes(tmp_path / "b")
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_the_tokenizer_learns_from_the_training_split_alone(tmp_path: Path) -> None:
    rows = phantom_rows(20)
    other = [
        row if row["split"] == "train" else row | {"text": "Quixotic zymurgy jinxes."}
        for row in rows
    ]
    for name, these in (("a", rows), ("b", other)):
        write_studies(tmp_path / name, these)
        tokenize(tmp_path / name, tmp_path / f"tokens-{name}", CONFIG)
    a, b = (
        (tmp_path / f"tokens-{name}/tokenizer/tokenizer.json").read_bytes() for name in ("a", "b")
    )
    assert a == b


def test_summary_counts_tokens_and_unknowns(tmp_path: Path) -> None:
    rows = [
        {"text": "lung lung lung lung lung", "split": "train"},
        {"text": "lung lung", "split": "train"},
        {"text": "lung 肺", "split": "test"},
    ]
    write_studies(tmp_path / "studies", rows)
    config = CONFIG.model_copy(update={"max_tokens": 5})
    summary = tokenize(tmp_path / "studies", tmp_path / "tokens", config)
    assert summary.rows == 3
    assert summary.longest == 7
    assert summary.mean_tokens == pytest.approx((7 + 4 + 4) / 3)
    assert summary.truncated_rows == 1
    assert summary.unknown_share == {"train": 0, "test": 0.5}
    record = json.loads((tmp_path / "tokens/tokens.json").read_text())
    assert record["truncated_rows"] == 1
    assert record["max_tokens"] == 5


def test_a_chinese_dataset_has_no_unknowns(tmp_path: Path) -> None:
    write_studies(tmp_path / "studies", [{"text": text, "split": "train"} for text in CHINESE])
    summary = tokenize(tmp_path / "studies", tmp_path / "tokens", CONFIG)
    assert summary.unknown_share == {"train": 0}


def test_dataset_reads_back_what_encode_gave(studies: StudyDataset, tmp_path: Path) -> None:
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    tokens = TokenDataset.open(tmp_path / "tokens", studies)
    expected = encode(tokens.tokenizer, texts_of(studies), CONFIG.max_tokens)
    assert len(tokens) == len(expected) == 40
    for row, text in enumerate(expected):
        assert tokens.token_ids(row).tolist() == text.token_ids
        assert tokens.content(row).tolist() == text.content
        assert tokens.spans(row).tolist() == [
            list(span) for span in zip(text.starts, text.ends, strict=True)
        ]


def test_tokens_of_other_studies_are_refused(studies: StudyDataset, tmp_path: Path) -> None:
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    other = write_studies(tmp_path / "other", phantom_rows(39))
    with pytest.raises(DataError, match="made from other studies"):
        TokenDataset.open(tmp_path / "tokens", other)


def test_another_tokenizer_beside_the_tokens_is_refused(
    studies: StudyDataset, tmp_path: Path
) -> None:
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    path = tmp_path / "tokens/tokenizer/tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match="not the one that made the tokens"):
        TokenDataset.open(tmp_path / "tokens", studies)


def test_changed_or_missing_shards_are_refused(studies: StudyDataset, tmp_path: Path) -> None:
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    shard = tmp_path / "tokens/tokens-00001.parquet"
    table = pq.read_table(shard)
    swapped = table["token_ids"].to_pylist()[::-1]
    pq.write_table(
        table.set_column(1, TOKENS.field(1), pa.array(swapped, TOKENS.field(1).type)), shard
    )
    with pytest.raises(DataError, match="damaged"):
        TokenDataset.open(tmp_path / "tokens", studies)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        TokenDataset.open(tmp_path / "tokens", studies)
    shard.unlink()
    with pytest.raises(DataError, match="damaged"):
        TokenDataset.open(tmp_path / "tokens", studies)


def test_missing_tokens_name_the_command(studies: StudyDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dvc repro tokenize"):
        TokenDataset.open(tmp_path / "tokens", studies)


def test_a_failure_leaves_the_old_tokens_whole(tmp_path: Path) -> None:
    write_studies(tmp_path / "studies", phantom_rows(20))
    tokenize(tmp_path / "studies", tmp_path / "tokens", CONFIG)
    before = folder_bytes(tmp_path / "tokens")
    write_studies(tmp_path / "untrained", [{"text": "lung", "split": "test"}])
    with pytest.raises(DataError, match="training split"):
        tokenize(tmp_path / "untrained", tmp_path / "tokens", CONFIG)
    assert folder_bytes(tmp_path / "tokens") == before


# --- a tokenizer from a local folder


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    words = ["the", "heart", "is", "normal", "there", "a", "in", "zone", "##s", ".", "of", "size"]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    vocabulary |= {word: i + 5 for i, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_local_tokenizer_is_used_as_it_is(
    studies: StudyDataset, bert_folder: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"path": str(bert_folder)})
    summary = tokenize(studies.folder, tmp_path / "tokens", config)
    assert summary.vocabulary == 17
    assert summary.unknown_share["train"] > 0
    tokens = TokenDataset.open(tmp_path / "tokens", studies)
    bert = BertTokenizerFast.from_pretrained(bert_folder)
    text = texts_of(studies)[3]
    assert tokens.token_ids(3).tolist() == bert(text)["input_ids"]
    saved = (tmp_path / "tokens/tokenizer/tokenizer_config.json").read_text()
    assert str(bert_folder) not in saved
    assert open_tokenizer(tmp_path / "tokens/tokenizer").mask_token == "[MASK]"


def test_a_missing_local_tokenizer_names_the_setting(studies: StudyDataset, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", studies.folder):
        config = CONFIG.model_copy(update={"path": str(folder)})
        with pytest.raises(ParamsError, match=r"tokenizer\.path"):
            tokenize(studies.folder, tmp_path / "tokens", config)
    assert not (tmp_path / "tokens").exists()


def test_more_tokens_than_the_local_tokenizer_allows(
    studies: StudyDataset, bert_folder: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"path": str(bert_folder), "max_tokens": 65})
    with pytest.raises(ParamsError, match=r"tokenizer\.max_tokens"):
        tokenize(studies.folder, tmp_path / "tokens", config)


def test_finished_shards_of_a_killed_run_are_used(studies: StudyDataset, tmp_path: Path) -> None:
    tokenize(studies.folder, tmp_path / "whole", CONFIG)

    class Killed(BaseException):
        pass

    class Workers(LocalWorkers):
        left = 4

        def call(self, function: Callable, *arguments: object) -> object:
            if function is write_shard:
                if not self.left:
                    raise Killed
                self.left -= 1
            return super().call(function, *arguments)

    with Workers(1) as workers, pytest.raises(Killed):
        tokenize(studies.folder, tmp_path / "tokens", CONFIG, workers)
    kept = sorted((tmp_path / ".tokens.work").glob("*/tokens-*.parquet"))
    assert len(kept) == 4
    states = [path.stat().st_ino for path in kept]
    assert not (tmp_path / "tokens").exists()
    tokenize(studies.folder, tmp_path / "tokens", CONFIG)
    assert folder_bytes(tmp_path / "tokens") == folder_bytes(tmp_path / "whole")
    found = [(tmp_path / "tokens" / path.name).stat().st_ino for path in kept]
    assert found == states, "a finished shard was made again"
    assert not (tmp_path / ".tokens.work").exists()
