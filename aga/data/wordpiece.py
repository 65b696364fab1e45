"""Train a WordPiece tokenizer whose vocabulary is a pure function of the texts and the settings.

Left alone, the trainer numbers continuing characters, and breaks ties in a crowded alphabet, in
the order of a randomly seeded hash table. Here both are decided beforehand, so that two runs, on
any machine, give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUING = "##"
MIN_PAIR_COUNT = 2  # a piece seen once is a word of one report, not of the language


def train_wordpiece(texts: Sequence[str], vocabulary: int, lowercase: bool) -> Tokenizer:
    """Learn WordPiece pieces from `texts`.

    Chinese characters are words of their own; accents and vowel signs are kept, as they carry
    meaning in many scripts. Characters that do not fit into the vocabulary, rarest first, become
    `[UNK]`.

    Args:
        texts: The training split's reports.
        vocabulary: Upper bound on the number of pieces, special tokens included.
        lowercase: Fold case before anything else.

    Returns:
        A tokenizer that wraps a text in `[CLS]` and `[SEP]`.
    """
    blank = _pipeline({}, lowercase)
    alphabet, continuing = _alphabet(_count_words(blank, texts), vocabulary - len(SPECIAL_TOKENS))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=[*SPECIAL_TOKENS, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUING,
        show_progress=False,
    )
    blank.train_from_iterator(texts, trainer)
    return _pipeline(blank.get_vocab(with_added_tokens=False), lowercase)


def _pipeline(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUING)
    if vocabulary:
        tokenizer.post_processor = processors.BertProcessing(
            (SEP, vocabulary[SEP]), (CLS, vocabulary[CLS])
        )
    return tokenizer


def _count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    return words


def _alphabet(words: Counter[str], budget: int) -> tuple[list[str], list[str]]:
    """Characters, most frequent first, until they and their continuing forms fill the budget."""
    counts: Counter[str] = Counter()
    continuing: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        continuing.update(word[1:])
    chosen: list[str] = []
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        budget -= 1 + (character in continuing)
        if budget < 0:
            break
        chosen.append(character)
    chosen.sort()
    return chosen, [CONTINUING + character for character in chosen if character in continuing]
