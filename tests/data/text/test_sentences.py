"""Sentences are those that a reader sees: numbers, abbreviations, other scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aga.data.text.sentences import sentence_numbers, sentence_spans, sentence_starts
from aga.data.tokenizing.tokenizer import encode, trained_tokenizer

# The sentences of a text are its parts between `|`.
TEXTS = """
No effusion.| Heart is normal.
No effusion.| Heart is normal
no effusion.| heart is normal.
Nodule of 3.5 cm.| Stable
Nodule of 3.5 cm. in the left lung.| Stable
Stable since 2019.| No effusion
Effusion?!| No...|  Stable!
Heart ... normal
pneumonia? versus edema.| Stable
Fever of 38.5 ? C.| Edema ?| Yes
1. No effusion.| 2. Clear lungs.| (3) Stable
A. No effusion.| B. Clear lungs
Stable
.
Seen by Dr. Smith at 9 a.m. on Monday.| Stable.
Seen by Dr. J. K. Smith.| Stable.
At 5:14 a.m.| The tube was moved.
Tubes, e.g. a drain, vs. clips, etc. are in place.| S/p CABG.| Fig. 2 shows it.
Drain no. 2 is out.| Is it gone?| No.| It is in.
Hepatitis C.| The liver is large.
The lungs are clear.|The heart is normal.
Atelectasis (left.)| Stable.
He said "stable."| No change.
As seen (cf. prior).| No change, i.e. stable
Z.n. Sternotomie.| Herz ca. 15 cm, z.B. basal.| Keine Stauung.
双肺清晰。|心影正常！|未见"积液。"|右肺结节3.5cm。
双肺清晰.|心影正常.
1.双肺清晰。|2.心影正常。
हृदय सामान्य है।| फेफड़े साफ हैं।
القلب طبيعي؟| نعم.
""".strip().splitlines()  # noqa: RUF001


@pytest.mark.parametrize("marked", TEXTS)
def test_sentences_are_those_of_a_reader(marked: str) -> None:
    expected = marked.split("|")
    text = "".join(expected)
    found = [text[start:end] for start, end in sentence_spans(text)]
    assert [part.strip() for part in found] == [part.strip() for part in expected]


def test_an_empty_line_and_a_list_end_a_sentence() -> None:
    text = "No effusion\n\nHeart normal\n1. Clear\n- Stable\nsince May"
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == [
        "No effusion",
        "Heart normal",
        "1. Clear",
        "- Stable\nsince May",
    ]


PIECES = st.sampled_from(
    [".", "?", "。", "!", ")", "\n", "\n\n", " ", "Dr", "a.m", "1", "肺", "No", "c"]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=20).map("".join))
def test_sentences_are_the_whole_text_and_none_is_blank(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(text[start:end].strip() for start, end in spans) or not text.strip()
    assert sentence_starts(text) == sorted(set(sentence_starts(text)))
    whole = sentence_numbers(text, range(len(text)), range(1, len(text) + 1))
    assert whole == [number for number, (a, b) in enumerate(spans) for _ in range(a, b)]


# --- of tokens


def byte_level() -> PreTrainedTokenizerFast:
    """The kind of GPT-2 and RoBERTa: a space is part of the token that follows it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["[PAD]"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_max_length=80)


@pytest.mark.parametrize("kind", ["wordpiece", "byte level"])
@pytest.mark.parametrize("marked", TEXTS)
def test_tokens_are_in_the_sentences_of_the_text(marked: str, kind: str) -> None:
    parts = marked.split("|")
    text = "".join(parts)
    tokenizer = trained_tokenizer(TEXTS, 400, True, 80) if kind == "wordpiece" else byte_level()
    row = encode(tokenizer, [text], 80)[0]
    spans: dict[int, list[int]] = {}
    for number, start, end in zip(row.sentences, row.starts, row.ends, strict=True):
        assert (number == -1) == (start == -1)
        if number >= 0:
            spans.setdefault(number, []).extend((start, end))
    assert list(spans) == list(range(len(parts)))
    joined = [text[min(span) : max(span)].strip() for span in spans.values()]
    assert joined == [part.strip() for part in parts]
