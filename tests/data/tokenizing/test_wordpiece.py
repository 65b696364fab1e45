"""What a vocabulary may carry away: words of enough patients, counted the same in any pieces."""

from __future__ import annotations

from pathlib import Path

from fixtures.studies import write_studies
from hypothesis import given
from hypothesis import strategies as st

from aga.data.tokenizing.tokens import TokenDataset, TokenizerConfig, tokenize
from aga.data.tokenizing.wordpiece import WordCounts, count_words, train_wordpiece

NAME = "quaxilbrand"
CONFIG = TokenizerConfig(path=None, vocabulary=300, lowercase=True, min_patients=3, max_tokens=40)


def rows(named: int) -> list[dict[str, object]]:
    """Reports of 30 patients; of one patient's ten reports, and so of `named` patients, a name."""
    plain = [{"text": f"no effusion in the {side} lung"} for side in ("left", "right")] * 15
    often = [{"text": f"{NAME} has no effusion", "patient_id": "p0"} for _ in range(10)]
    for number in range(1, named):
        plain[number] = {"text": f"{NAME} has no effusion"}
    return [{**row, "split": "train"} for row in (*plain, *often)]


def pieces(folder: Path, named: int) -> set[str]:
    studies = write_studies(folder / "studies", rows(named))
    tokenize(studies.folder, folder / "tokens", CONFIG)
    return set(TokenDataset.open(folder / "tokens", studies).tokenizer.get_vocab())


def test_no_piece_is_learned_of_a_word_that_too_few_patients_have(tmp_path: Path) -> None:
    two, three = pieces(tmp_path / "two", 2), pieces(tmp_path / "three", 3)
    assert NAME in three
    assert "effusion" in two & three
    learned = {piece.removeprefix("##") for piece in two if piece[0] != "["}
    of_the_name = {piece for piece in learned if len(piece) > 1 and piece in NAME}
    assert not of_the_name, "a part of the name was learned"
    assert set(NAME) <= two, "its letters are in the alphabet, so that it is not unknown"


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.text("ab ", max_size=9)), max_size=30))
def test_words_counted_in_pieces_are_the_words_counted_at_once(
    texts: list[tuple[str, str]],
) -> None:
    whole, merged = count_words(texts, True, 3), WordCounts(3)
    for first in range(0, len(texts), 7):
        merged.update(count_words(texts[first : first + 7], True, 3))
    assert merged.counts == whole.counts
    assert list(merged.shared()) == list(whole.shared())


def test_training_from_counts_is_training_from_the_texts() -> None:
    from tokenizers import trainers

    from aga.data.tokenizing.wordpiece import SPECIAL_TOKENS, _alphabet, _pipeline

    texts = [f"no pleural effusion, {side} lung clear; opacity {n % 7}" for n in range(900)
             for side in ("left", "right")]  # fmt: skip
    words = count_words([("p", text) for text in texts], True, 1)
    blank = _pipeline({}, True)
    alphabet, continuing = _alphabet(words.counts, 200 - len(SPECIAL_TOKENS))
    trainer = trainers.WordPieceTrainer(
        vocab_size=200,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    blank.train_from_iterator(texts, trainer)
    assert train_wordpiece(words, 200, True).get_vocab() == blank.get_vocab()
