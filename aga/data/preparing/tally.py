"""What is remembered of the rows of a source: which are used, and what their splits stand on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

from aga.data.pixels.perceptual import hash_words
from aga.data.preparing.parts import RowFacts
from aga.data.preparing.seen import FirstSeen, PackedRows
from aga.data.schema import Reject
from aga.data.splitting.conflicts import Strictest
from aga.data.views import ANOTHER, LEFT_OUT

REPEATED = "repeated pair"
_SHOWN = 5


class Tally:
    """Counts rows in their order, and rejects those that repeat an earlier one.

    Args:
        chosen: Numbers of the rows that stand for their study, counted from 0 as they are entered;
            None where all do.
        strictest: Knows which rows a stricter split of the source has, too; None asks not.

    Attributes:
        rows: The used rows.
        repeats: Rows that are not used, but link their patient to an earlier row's.
        reasons: Rejected rows by reason.
        left_out: Rows with which nothing is wrong, by the reason why they are not used.
        first_rejected: Where the source states the first few of them.
        views: Used rows by view.
        sections: Used rows by the part of the report that they use.
        dropped_sentences: Sentences left out of the used texts, by what was to be dropped.
        repaired_rows: Used rows with bytes that were not UTF-8.
        lost_characters: Used rows in which U+FFFD marks a lost character.
    """

    def __init__(
        self, chosen: frozenset[int] | None = None, strictest: Strictest | None = None
    ) -> None:
        self._chosen = chosen
        self._strictest = strictest
        self._entered = 0
        self.rows = PackedRows()
        self.repeats = PackedRows()
        self.reasons: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.first_rejected: list[str] = []
        self.views: Counter[str] = Counter()
        self.sections: Counter[str] = Counter()
        self.dropped_sentences: Counter[str] = Counter()
        self.repaired_rows = 0
        self.lost_characters = 0
        self._hashes = bytearray()
        self._first = FirstSeen()

    @property
    def rejected(self) -> int:
        """How many rows are rejected; those that are left out are not among them."""
        return self.reasons.total()

    @property
    def words(self) -> UInt64[np.ndarray, "rows words"]:
        """Perceptual hashes of the used rows, as `hash_words` gives them."""
        return hash_words(bytes(self._hashes))

    def take(self, row: RowFacts | Reject) -> Reject | None:
        """Enter a row; None where it is used, else why it is not.

        A row that repeats an earlier one's pixels and text adds nothing; it still links its patient
        to the other.
        """
        stands = self._chosen is None or self._entered in self._chosen
        self._entered += 1
        reject = row if isinstance(row, Reject) else self._enter(row, stands)
        if reject is not None and reject.reason in LEFT_OUT:
            self.left_out[reject.reason] += 1
        elif reject is not None:
            self.reasons[reject.reason] += 1
            if len(self.first_rejected) < _SHOWN:
                self.first_rejected.append(reject.location)
        return reject

    def take_all(self, rows: Iterable[RowFacts | Reject]) -> tuple[np.ndarray, list[Reject]]:
        """Enter rows; the places of those that are used, and the rejects."""
        entered = [self.take(row) for row in rows]
        kept = np.array([place for place, reject in enumerate(entered) if reject is None], np.int32)
        return kept, [reject for reject in entered if reject is not None]

    def most_frequent_reasons(self) -> dict[str, int]:
        """Rejects by reason, most frequent first, then by name."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])))

    def _enter(self, row: RowFacts, stands: bool) -> Reject | None:
        split_row = row.split_row
        if not stands:
            detail = "prepare.views.keep asks for one per study"
            return Reject(split_row.location, ANOTHER, detail, "view")
        conflict = self._strictest.conflict(split_row) if self._strictest else None
        if conflict is not None:
            return conflict
        pair = bytes.fromhex(split_row.pixel_sha256)[:16] + bytes.fromhex(row.text_sha256)[:16]
        earlier = self._first.earlier(pair, split_row.location)
        if earlier is not None:
            self.repeats.append(split_row)
            return Reject(split_row.location, REPEATED, f"same image and text as {earlier}")
        self.rows.append(split_row)
        self._hashes += bytes.fromhex(row.perceptual_hash)
        self.views[row.view or "unknown"] += 1
        self.sections[row.section] += 1
        self.dropped_sentences.update(row.dropped)
        self.repaired_rows += row.repaired
        self.lost_characters += row.lost
        return None
