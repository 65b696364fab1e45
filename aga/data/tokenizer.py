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
from tokenizers import AddedToken, Encoding, Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aga.data.sentences import NO_SENTENCE, sentence_numbers
from aga.data.wordpiece import CLS, MASK, PAD, SEP, UNK, train_wordpiece
from aga.errors import ParamsError

NO_OFFSET = -1  # where a special token stands in the text
NO_WORD = -1  # which word it is a piece of
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


@dataclass(frozen=True)
class TokenizedText:
    """One report's tokens, special tokens included, not padded.

    Attributes:
        token_ids: Vocabulary ids.
        starts: Character offsets in the text; -1 for special tokens.
        ends: Character offsets, exclusive; -1 for special tokens.
        words: Which word of the text each token is a piece of; -1 for special tokens.
        sentences: Which sentence of the text each token is in; -1 for special tokens.
        truncated: Tokens that were cut off.
    """

    token_ids: list[int]
    starts: list[int]
    ends: list[int]
    words: list[int]
    sentences: list[int]
    truncated: int

    @property
    def content(self) -> list[bool]:
        """Per token, True where it is no special token."""
        return [start != NO_OFFSET for start in self.starts]


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
    roles = dict(zip(_ROLES, (PAD, UNK, CLS, SEP, MASK), strict=False))
    for mark in marks:
        texts = [text.replace(mark, " ") for text in texts]
    backend = train_wordpiece(texts, vocabulary - len(marks), lowercase)
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
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.enable_truncation(max_tokens)
    encodings = backend.encode_batch(list(texts))
    backend.no_truncation()  # it would be saved with the tokenizer
    return [_tokenized(*pair) for pair in zip(encodings, texts, strict=True)]


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


def _tokenized(encoding: Encoding, text: str) -> TokenizedText:
    special = encoding.special_tokens_mask
    offsets = [
        (NO_OFFSET, NO_OFFSET) if is_special else offset
        for offset, is_special in zip(encoding.offsets, special, strict=True)
    ]
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    return TokenizedText(
        token_ids=encoding.ids,
        starts=starts,
        ends=ends,
        words=[NO_WORD if number is None else number for number in encoding.word_ids],
        sentences=sentence_numbers(text, starts, ends),
        truncated=sum(part.special_tokens_mask.count(0) for part in encoding.overflowing),
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
