"""Train a WordPiece tokenizer whose vocabulary is a pure function of the texts and the settings.

Left alone, the trainer numbers continuing characters, and breaks ties in a crowded alphabet, in
the order of a randomly seeded hash table. Here both are decided beforehand, so that two runs, on
any machine, give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from hashlib import blake2b

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
_TEXT_WORDS = 512
MIN_PAIR_COUNT = 2  # a piece seen once is a word of one report, not of the language


@dataclass
class WordCounts:
    """How often words occur, and of how many patients they are.

    Attributes:
        least: How many patients a word must be of before a piece is learned from it.
        counts: Occurrences of each word.
        patients: Hashes of patients per word: all of them, or the first `least`.
    """

    least: int
    counts: Counter[str] = field(default_factory=Counter)
    patients: dict[str, frozenset[bytes]] = field(default_factory=dict)

    def add(self, word: str, count: int, patients: frozenset[bytes]) -> None:
        """Enter occurrences of a word."""
        self.counts[word] += count
        known = self.patients.get(word, frozenset())
        if len(known) < self.least:
            self.patients[word] = known | patients

    def update(self, other: WordCounts) -> None:
        """Enter what was counted elsewhere."""
        for word, count in other.counts.items():
            self.add(word, count, other.patients[word])

    def shared(self) -> Iterator[tuple[str, int]]:
        """The words of enough patients, in alphabetical order, with their counts."""
        for word in sorted(self.counts):
            if len(self.patients[word]) >= self.least:
                yield word, self.counts[word]


def count_words(
    texts: Iterable[tuple[str, str]], lowercase: bool, least: int, marks: Sequence[str] = ()
) -> WordCounts:
    """Count the words of texts as the tokenizer tells them apart.

    Args:
        texts: Patient and text; only the words are kept.
        lowercase: Fold case before anything else.
        least: See `WordCounts`.
        marks: What stands in the texts for something else; not counted.
    """
    blank, words = _pipeline({}, lowercase), WordCounts(least)
    for patient, text in texts:
        plain = reduce(lambda left, mark: left.replace(mark, " "), marks, text)
        normalized = blank.normalizer.normalize_str(plain)
        found = Counter(word for word, _ in blank.pre_tokenizer.pre_tokenize_str(normalized))
        identity = frozenset({blake2b(patient.encode(), digest_size=8).digest()})
        for word, count in found.items():
            words.add(word, count, identity)
    return words


def train_wordpiece(words: WordCounts, vocabulary: int, lowercase: bool) -> Tokenizer:
    """Learn WordPiece pieces from counted words.

    A piece of several characters is learned only from words that enough patients have: the
    vocabulary leaves with the model, and must not carry a name that stands in one patient's
    reports. Single characters are taken from all words. Chinese characters are words of their own;
    accents and vowel signs are kept, as they carry meaning in many scripts. Characters that do not
    fit into the vocabulary, rarest first, become `[UNK]`.

    Args:
        words: Of the training split's reports.
        vocabulary: Upper bound on the number of pieces, special tokens included.
        lowercase: Fold case before anything else.

    Returns:
        A tokenizer that wraps a text in `[CLS]` and `[SEP]`.
    """
    blank = _pipeline({}, lowercase)
    alphabet, continuing = _alphabet(words.counts, vocabulary - len(SPECIAL_TOKENS))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=[*SPECIAL_TOKENS, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUING,
        show_progress=False,
    )
    blank.train_from_iterator(_repeated(words.shared()), trainer)
    return _pipeline(blank.get_vocab(with_added_tokens=False), lowercase)


def _repeated(words: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Texts in which each word occurs as often as it was counted: all that the trainer sees."""
    for word, count in words:
        for first in range(0, count, _TEXT_WORDS):
            yield " ".join([word] * min(_TEXT_WORDS, count - first))


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
