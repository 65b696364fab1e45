"""A small run of the fuzz benchmark: what must hold of damaged files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import LIMIT_MIB, SHARES, fuzz


def test_damaged_files_are_rejected_with_a_reason_and_nothing_breaks(tmp_path: Path) -> None:
    outcomes = fuzz(200, seed=77, scratch=tmp_path)
    assert sum(outcome.inputs for outcome in outcomes.values()) == 200
    for kind in SHARES:
        found = outcomes[kind]
        assert found.broken == [], kind
        assert found.hangs == 0, kind
        assert found.peak_mib < LIMIT_MIB, kind
        assert sum(found.rejects.values()) > found.inputs / 5, kind
