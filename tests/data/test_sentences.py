"""Sentences are told from token ids as a reader tells them from the text."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aga.data.sentences import SentenceSplitter
from aga.data.tokenizer import encode, pad_tokens, trained_tokenizer

TEXTS = {
    "No effusion. Heart is normal.": ["No effusion.", "Heart is normal."],
    "No effusion. Heart is normal": ["No effusion.", "Heart is normal"],
    "Nodule of 3.5 cm. Stable": ["Nodule of 3.5 cm.", "Stable"],
    "Stable since 2019. No effusion": ["Stable since 2019.", "No effusion"],
    "Effusion?! No...  Stable!": ["Effusion?!", "No...", "Stable!"],
    "1. No effusion": ["1.", "No effusion"],
    "Stable": ["Stable"],
    ".": ["."],
    "双肺清晰。心影正常！": ["双肺清晰。", "心影正常！"],  # noqa: RUF001
}


def byte_level() -> PreTrainedTokenizerFast:
    """The kind of GPT-2 and RoBERTa: a space is part of the token that follows it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["[PAD]"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(list(TEXTS) * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_max_length=80)


@pytest.mark.parametrize("kind", ["wordpiece", "byte level"])
@pytest.mark.parametrize("text", TEXTS)
def test_sentences_are_those_of_the_text(text: str, kind: str) -> None:
    tokenizer = (
        trained_tokenizer(list(TEXTS) * 4, 300, True, 80) if kind == "wordpiece" else byte_level()
    )
    rows = encode(tokenizer, [text, "Stable. " * 9], 80)
    ids, _, content = pad_tokens([r.token_ids for r in rows], [r.content for r in rows], 0, 80)
    found = SentenceSplitter.of(tokenizer)(ids, content)[0].tolist()
    spans: dict[int, list[int]] = {}
    for number, start, end in zip(found, rows[0].starts, rows[0].ends, strict=False):
        if number >= 0:
            spans.setdefault(number, []).extend((start, end))
    assert [text[min(s) : max(s)].strip() for s in spans.values()] == TEXTS[text]
    assert list(spans) == list(range(len(TEXTS[text])))
    assert all((number == -1) == (not kept) for number, kept in zip(found, content[0], strict=True))


def test_a_tokenizer_without_the_marks_sees_one_sentence() -> None:
    tokenizer = trained_tokenizer(["heart lung"] * 4, 40, True, 40)
    splitter = SentenceSplitter.of(tokenizer)
    assert tokenizer.unk_token_id not in splitter.marks
    row = encode(tokenizer, ["heart. lung."], 40)[0]
    ids = torch.tensor([row.token_ids])
    assert splitter(ids, torch.tensor([row.content])).unique().tolist() == [-1, 0]
