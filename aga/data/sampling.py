"""What of a study an epoch of training shows: one of its views, some of its sentences.

No state is kept, see docs/decisions/0001: each draw is a function of (seed, epoch, study), and all
views of a study show the same sentences in an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int64, Integer
from pydantic import Field

from aga.config import Config
from aga.data.text.sentences import NO_SENTENCE

# `row_generator` and `epoch_order` use the same keys: the third count tells the draws apart.
_VIEWS, _SENTENCES = 2, 3


class SamplingConfig(Config):
    """What of a study an epoch shows.

    Attributes:
        views: Every image of a study, or one of them, drawn anew in each epoch.
        sentences: At most this many sentences of a report, drawn anew in each epoch, in the
            report's order; None shows all.
    """

    views: Literal["all", "one_per_study"]
    sentences: Annotated[int, Field(gt=0)] | None


def study_numbers(study_ids: Sequence[str]) -> Int64[np.ndarray, "N"]:
    """A number per row, equal for rows of one study: the first of its rows."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, row) for row, name in enumerate(study_ids)], np.int64)


def one_per_study(
    rows: Int64[np.ndarray, "N"], studies: Int64[np.ndarray, "N"], seed: int, epoch: int
) -> Int64[np.ndarray, "S"]:
    """One row of each study, rising; each row of a study is as likely as another.

    Args:
        rows: Rising row numbers.
        studies: The study of each, as `study_numbers` counts them.
        seed: The run's seed.
        epoch: Counted from 0.
    """
    order = np.argsort(studies, kind="stable")
    numbers, starts, counts = np.unique(studies[order], return_index=True, return_counts=True)
    # The i-th number of the stream is study i's, whichever other studies there are.
    draws = _generator(seed, epoch, _VIEWS).random(int(numbers.max()) + 1)[numbers]
    return np.sort(rows[order[starts + (draws * counts).astype(np.int64)]])


def shown_tokens(
    sentences: Integer[np.ndarray, "L"], at_most: int, study: int, seed: int, epoch: int
) -> Bool[np.ndarray, "L"]:
    """Which tokens of a report are shown: those of the drawn sentences, and all special tokens.

    Args:
        sentences: The number of each token's sentence; -1 for special tokens.
        at_most: How many sentences.
        study: The report's study, as `study_numbers` counts them.
        seed: The run's seed.
        epoch: Counted from 0.
    """
    there = np.unique(sentences[sentences != NO_SENTENCE])
    drawn = _generator(seed, epoch, _SENTENCES, study).permutation(there)[:at_most]
    return np.isin(sentences, [NO_SENTENCE, *drawn])


def _generator(seed: int, epoch: int, what: int, study: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, what, study]))
