"""A tokenizer made or opened, and the one way that training and inference apply it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int64
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aga.data.text.sentences import NO_SENTENCE
from aga.data.tokenizing.encoding import TokenizedText, encoded
from aga.data.tokenizing.wordpiece import (
    CLS,
    MASK,
    PAD,
    SEP,
    UNK,
    WordCounts,
    count_words,
    train_wordpiece,
)
from aga.errors import ParamsError

PAD_MULTIPLE = 8  # lengths that kernels like, and few distinct ones
_ROLES = (
    "pad_token",
    "unk_token",
    "cls_token",
    "sep_token",
    "mask_token",
    "bos_token",
    "eos_token",
)


def trained_tokenizer(
    texts: Sequence[str],
    vocabulary: int,
    lowercase: bool,
    max_tokens: int,
    marks: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on `texts`; equal arguments give equal saved bytes.

    Each of `marks` is one token wherever it stands, and content, as a word is.
    """
    patients = map(str, range(len(texts)))
    words = count_words(zip(patients, texts, strict=True), lowercase, 1, marks)
    return tokenizer_of_words(words, vocabulary, lowercase, max_tokens, marks)


def tokenizer_of_words(
    words: WordCounts,
    vocabulary: int,
    lowercase: bool,
    max_tokens: int,
    marks: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on counted words; see `trained_tokenizer`."""
    roles = dict(zip(_ROLES, (PAD, UNK, CLS, SEP, MASK), strict=False))
    backend = train_wordpiece(words, vocabulary - len(marks), lowercase)
    return _wrap(backend, roles, max_tokens, marks)


def local_tokenizer(
    folder: Path, max_tokens: int, marks: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer from a local folder; the network is never asked.

    Each of `marks` is one token, as in `trained_tokenizer`. It takes the id of one of the tokens
    that BERT's vocabularies keep unused, so that pretrained weights fit; a new one where there is
    none.

    Raises:
        ParamsError: There is no such folder, it holds no fast tokenizer, the tokenizer has no
            padding token, or it allows fewer than `max_tokens` tokens.
    """
    if not folder.is_dir():
        raise _unusable("There is no such tokenizer folder", folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unusable("The folder holds no tokenizer", folder, type(error).__name__) from error
    roles = {role: getattr(tokenizer, role, None) for role in _ROLES}
    if not tokenizer.is_fast:
        raise _unusable("The tokenizer cannot tell character offsets", folder, "no fast tokenizer")
    if roles["pad_token"] is None:
        raise _unusable("The tokenizer has no padding token", folder)
    if max_tokens > tokenizer.model_max_length:
        raise ParamsError(
            "tokenizer.max_tokens is more than the tokenizer at tokenizer.path allows",
            where=folder,
            got=max_tokens,
            expected=f"at most {tokenizer.model_max_length}",
        )
    backend = _with_ids(tokenizer.backend_tokenizer.to_str(), marks)
    backend.no_padding()
    backend.no_truncation()
    named = {role: str(token) for role, token in roles.items() if token}
    return _wrap(backend, named, max_tokens, marks)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of this module, from the folder that its `save_pretrained` wrote."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def encode(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_tokens: int
) -> list[TokenizedText]:
    """Tokenize texts as in training.

    What looks like a special token in a text, `[SEP]`, is tokenized as the characters it is.

    Args:
        tokenizer: A fast tokenizer.
        texts: Cleaned report texts.
        max_tokens: Longest result in tokens, special tokens included; the rest is cut off.
    """
    return encoded(tokenizer.backend_tokenizer, texts, max_tokens)


@dataclass(frozen=True)
class PaddedTokens:
    """Reports of one batch, as `PairBatch` wants them.

    Attributes:
        token_ids: Vocabulary ids, padded on the right.
        attention_mask: True for every real token, special tokens included.
        content_mask: True for content tokens.
        sentences: Number of each token's sentence in its report; -1 where it is no content.
    """

    token_ids: Int64[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    content_mask: Bool[Tensor, "B L"]
    sentences: Int64[Tensor, "B L"]


def pad_tokens(
    token_ids: Sequence[npt.ArrayLike],
    sentences: Sequence[npt.ArrayLike],
    pad_id: int,
    max_tokens: int,
) -> PaddedTokens:
    """Pad on the right to the longest report, rounded up to a multiple of 8.

    Args:
        token_ids: Per report, its ids, special tokens included.
        sentences: Per report and token, the number of its sentence; -1 for special tokens.
        pad_id: Id of the padding token.
        max_tokens: Never padded beyond: the text encoder has no more positions.
    """
    lengths = np.array([np.size(ids) for ids in token_ids])
    width = min(-(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE, max_tokens)
    attention_mask = np.arange(width) < lengths[:, None]
    padded_ids = np.full(attention_mask.shape, pad_id, np.int64)
    padded_ids[attention_mask] = np.concatenate(token_ids)
    padded_sentences = np.full(attention_mask.shape, NO_SENTENCE, np.int64)
    padded_sentences[attention_mask] = np.concatenate(sentences)
    return PaddedTokens(
        token_ids=torch.from_numpy(padded_ids),
        attention_mask=torch.from_numpy(attention_mask),
        content_mask=torch.from_numpy(padded_sentences != NO_SENTENCE),
        sentences=torch.from_numpy(padded_sentences),
    )


def _with_ids(description: str, marks: Sequence[str]) -> Tokenizer:
    """The tokenizer of a description, with the ids of unused pieces given to the marks."""
    content = json.loads(description)
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):
        unused = [piece for piece in vocabulary if re.fullmatch(r"\[unused\d+\]", piece)]
        for mark, piece in zip(marks, unused, strict=False):
            vocabulary[mark] = vocabulary.pop(piece)
    return Tokenizer.from_str(json.dumps(content))


def _wrap(
    backend: Tokenizer, roles: dict[str, str], max_tokens: int, marks: Sequence[str]
) -> PreTrainedTokenizerFast:
    # Not `special`: `encode` takes special tokens that stand in a text for the characters they are.
    backend.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _unusable(what: str, folder: Path, got: str | None = None) -> ParamsError:
    return ParamsError(
        what,
        where=f"tokenizer.path = {folder}",
        got=got,
        expected="a folder that transformers' save_pretrained wrote, such as that of a BERT model",
        fix="set tokenizer.path to such a folder, or to null to train a tokenizer",
    )
