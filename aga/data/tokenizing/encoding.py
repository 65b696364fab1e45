"""Texts to tokens by a trained tokenizer; needs neither PyTorch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from aga.data.text.sentences import sentence_numbers

NO_OFFSET = -1  # where a special token stands in the text
NO_WORD = -1  # which word it is a piece of


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


def encoded(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[TokenizedText]:
    """Tokenize texts as in training.

    What looks like a special token in a text, `[SEP]`, is tokenized as the characters it is.

    Args:
        tokenizer: The tokenizer.
        texts: Cleaned report texts.
        max_tokens: Longest result in tokens, special tokens included; the rest is cut off.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    encodings = tokenizer.encode_batch(list(texts))
    tokenizer.no_truncation()  # it would be saved with the tokenizer
    return [_tokenized(one, text) for one, text in zip(encodings, texts, strict=True)]


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
