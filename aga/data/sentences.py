"""Which sentence of its report each token belongs to, told from the token ids alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aga.data.tokenizer import encode

MARKS = ".!?。！？"  # full-width ones too  # noqa: RUF001
SPACES = "#Ġ▁"  # how vocabularies write what goes before a token
NO_SENTENCE = -1  # of padding and special tokens


@dataclass(frozen=True)
class SentenceSplitter:
    """Splits after `.`, `!` and `?`, and their full-width forms.

    The point of a number (`3.5`) ends nothing, and several marks in a row (`...`) end one sentence.
    The number of a list item (`1.`) is a sentence of its own. Where the tokenizer has no token for
    a mark, nothing is split.

    Attributes:
        marks: Ids of the marks.
        begins: Per id of the vocabulary, whether it begins with a digit.
        ends: Per id of the vocabulary, whether it ends with a digit.
    """

    marks: Int64[Tensor, "M"]
    begins: Bool[Tensor, "V"]
    ends: Bool[Tensor, "V"]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """The splitter of a tokenizer's vocabulary."""
        begins, ends = ([False] * len(tokenizer) for _ in range(2))
        marks = set()
        for token, number in tokenizer.get_vocab().items():
            begins[number], ends[number] = token[:1].isdigit(), token[-1:].isdigit()
            if token.strip(SPACES) and not token.strip(SPACES + MARKS):
                marks.add(number)
        # A byte-level vocabulary writes full-width marks as other characters.
        for row in encode(tokenizer, [f"a{mark}" for mark in MARKS], tokenizer.model_max_length):
            last = len(row.content) - 1 - row.content[::-1].index(True)
            if row.starts[last] == 1:
                marks.add(row.token_ids[last])
        marks -= {tokenizer.unk_token_id}
        numbers = torch.tensor(sorted(marks), dtype=torch.long)
        return cls(numbers, torch.tensor(begins), torch.tensor(ends))

    def __call__(
        self, token_ids: Int64[Tensor, "B L"], content_mask: Bool[Tensor, "B L"]
    ) -> Int64[Tensor, "B L"]:
        """Number of each token's sentence in its report, from 0; -1 where it is no content.

        A mark belongs to the sentence that it ends.
        """
        mark = torch.isin(token_ids, self.marks.to(token_ids.device)) & content_mask
        outside = torch.zeros_like(mark[:, :1])
        before = self.ends.to(token_ids.device)[token_ids[:, :-1]]
        after = self.begins.to(token_ids.device)[token_ids[:, 1:]]
        in_number = torch.cat((outside, before), 1) & torch.cat((after, outside), 1)
        more_marks = torch.cat((mark[:, 1:], outside), 1)
        last = (mark & ~in_number & ~more_marks).long()
        return (last.cumsum(1) - last).masked_fill(~content_mask, NO_SENTENCE)
