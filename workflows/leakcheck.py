"""Say what two prepared datasets share, or the splits of one; the exit status is 1 if anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from aga.command import run
from aga.data.schema import SPLITS
from aga.data.splitting.leaks import Side, describe, find_leaks, leaks_within, shared_reports
from aga.data.studies import StudyDataset


def main(arguments: list[str] | None = None) -> int:
    """Compare the training and validation splits of one folder with all rows of another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="prepared folder to learn from")
    parser.add_argument("--against", type=Path, help="the other; default: its own other splits")
    options = parser.parse_args(arguments)
    studies = StudyDataset.open(options.train)
    if options.against is None:
        leaks = leaks_within(studies)
    else:
        learned = Side.of(studies, "train", "validation")
        tested = Side.of(StudyDataset.open(options.against), *SPLITS)
        leaks = find_leaks(learned, tested)
        print(f"{shared_reports(learned, tested)} rows with a report that says the same: no leak")
        if studies.info.source != tested.studies.info.source:
            print("patients and studies not compared: identifiers of two sources")
    print("\n".join(describe(leaks)) or "nothing is shared")
    return 1 if leaks else 0


if __name__ == "__main__":
    run(main)
