"""Damaged DICOM, PNG, JPEG and CSV files through `prepare`: no crash, no hang, no half output.

Every image is examined alone first, in a process with a time limit, and then all of them together
as rows of one manifest. Every table is prepared by itself. What must hold: the library's process
lives; each row is used or rejected with a reason, and the same one both times; an output is whole
or absent. A native decoder that crashes takes down a process of its own; its row is a reject like
any other, and is counted here.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import logging
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.studies import StudyDataset
from aga.data.workers import LocalWorkers, WorkerDied, in_order
from aga.errors import DataError
from aga.params import load_params
from benchmarks.damage import (
    damaged,
    damages_of_dicoms,
    damages_of_files,
    damages_of_tables,
    whole_dicoms,
    whole_images,
    whole_table,
)
from benchmarks.probe import LIMIT_S, REPORT, peak_mib, probe
from benchmarks.rows import write_rows

LIMIT_MIB = 2048
TABLE_ROWS = 12
SHARES = {"dicom": 0.5, "png": 0.175, "jpeg": 0.175, "csv": 0.15}


@dataclass
class Outcome:
    """What became of the inputs of a kind."""

    inputs: int = 0
    used: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    decoder_crashes: int = 0
    hangs: int = 0
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    peak_mib: float = 0.0

    def row(self, kind: str, seed: int) -> dict[str, object]:
        """As a row of results."""
        values = vars(self) | {"rejects": dict(self.rejects.most_common())}
        return {"kind": kind, "seed": seed, **values, "slowest_s": round(self.slowest_s, 3)}


def main() -> int:
    """Fuzz every kind of file, write the rows, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 where something did not hold")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, outcome in fuzz(options.inputs, options.seed, Path(scratch)).items():
            rows.append(outcome.row(kind, options.seed))
            print(f"{kind:<6}", *(f"{name}={value}" for name, value in rows[-1].items()))
    print(write_rows("fuzz", rows))
    broken = any(row["broken"] or row["hangs"] for row in rows)
    heavy = any(float(str(row["peak_mib"])) > LIMIT_MIB for row in rows)
    return int(options.check and (broken or heavy))


def fuzz(inputs: int, seed: int, scratch: Path) -> dict[str, Outcome]:
    """Damage, prepare, and account for, `inputs` files.

    Args:
        inputs: How many, over all kinds.
        seed: Of the damages.
        scratch: An empty folder.
    """
    params = load_params(Path(__file__).parent.parent / "params.yaml")
    config = params.prepare.model_copy(update={"max_reject_fraction": 1.0})
    whole = {
        "dicom": whole_dicoms(scratch),
        "png": whole_images("PNG"),
        "jpeg": whole_images("JPEG"),
    }
    outcomes = {}
    with LocalWorkers() as workers:
        for number, (kind, share) in enumerate(SHARES.items()):
            rng, count = np.random.default_rng([seed, number]), round(inputs * share)
            home = scratch / kind
            home.mkdir()
            if kind == "csv":
                tables = damaged([whole_table(TABLE_ROWS)], damages_of_tables(), count, rng)
                outcomes[kind] = _fuzz_tables(list(tables), home, config, workers)
            else:
                damages = damages_of_dicoms() if kind == "dicom" else damages_of_files()
                files = damaged(whole[kind], damages, count, rng)
                outcomes[kind] = _fuzz_images(list(files), home, config, workers)
    return outcomes


def _fuzz_images(
    files: list[bytes], home: Path, config: PrepareConfig, workers: LocalWorkers
) -> Outcome:
    outcome = Outcome(inputs=len(files))
    paths = [home / str(number) for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    alone = list(
        in_order(lambda path: _probed(path, config, workers, outcome), paths, workers.count)
    )
    with (home / "pairs.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["patient_id", "study_id", "image", "text", "split"])
        # Every report is another, so that no row repeats another's pixels and text.
        writer.writerows((n, n, path.name, f"{REPORT} {n}", "test") for n, path in enumerate(paths))
    reasons = {f"pairs.csv:{number + 2}": found for number, found in enumerate(alone)}
    rejects = _prepared(home, config, workers, outcome, len(files))
    outcome.used = outcome.inputs - len(rejects)
    together = {row["location"]: (row["reason"], row["detail"]) for row in rejects}
    for location, reason in reasons.items():
        if together.get(location, ("", "")) != reason:
            outcome.broken.append(f"{location}: {reason} alone, {together.get(location)} together")
    return outcome


def _probed(
    path: Path, config: PrepareConfig, workers: LocalWorkers, outcome: Outcome
) -> tuple[str, str]:
    start = time.perf_counter()
    try:
        reason, detail, seconds, peak = workers.call(probe, path, config.recipe)
    except WorkerDied:
        if time.perf_counter() - start > LIMIT_S:
            outcome.hangs += 1
        outcome.decoder_crashes += 1
        return "image unreadable", "the decoder crashed"
    outcome.slowest_s = max(outcome.slowest_s, seconds)
    outcome.peak_mib = max(outcome.peak_mib, round(peak))
    return reason, detail


def _fuzz_tables(
    tables: list[bytes], home: Path, config: PrepareConfig, workers: LocalWorkers
) -> Outcome:
    outcome = Outcome(inputs=len(tables))
    for number, pixels in enumerate(
        np.random.default_rng(2).integers(0, 256, (TABLE_ROWS, 32, 32))
    ):
        Image.fromarray(pixels.astype(np.uint8)).save(home / f"{number}.png")
    for data in tables:
        (home / "pairs.csv").write_bytes(data)
        start = time.perf_counter()
        _prepared(home, config, workers, outcome, None)
        outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - start)
    outcome.peak_mib = round(peak_mib())
    return outcome


def _prepared(
    home: Path, config: PrepareConfig, workers: LocalWorkers, outcome: Outcome, rows: int | None
) -> list[dict[str, str]]:
    """Prepare the manifest in `home`; the rejects, or those of none where the table is refused."""
    out = home.with_name(f"{home.name}-out") / "studies"
    faulthandler.dump_traceback_later(60 + 0.2 * (rows or 0), exit=True)  # our own process hangs
    try:
        source = Manifest(ManifestConfig(table="pairs.csv", not_utf8="reject"))
        summary = prepare(source, home, out, config, 0, "manifest", workers)
    except DataError as error:
        outcome.rejects[error.what.partition(":")[0]] += 1
        if out.exists():
            outcome.broken.append("an output after an error")
        return []
    finally:
        faulthandler.cancel_dump_traceback_later()
    studies = StudyDataset.open(out)
    rejects: list[dict[str, str]] = pq.read_table(out / "rejects.parquet").to_pylist()
    whole = len(studies.manifest) == summary.used == summary.rows - len(rejects)
    if not whole or (rows is not None and summary.rows != rows):
        outcome.broken.append("rows that are neither used nor rejected")
    if not all(row["reason"] and row["detail"] for row in rejects):
        outcome.broken.append("a reject without a reason")
    if rows is None:
        outcome.used += 1
        for path in sorted(out.iterdir()):
            path.unlink()
        out.rmdir()
    outcome.rejects.update(row["reason"] for row in rejects)
    return rejects


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
