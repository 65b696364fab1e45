"""Many synthetic rows through `prepare` and `tokenize`: memory, files, kill -9, and throughput.

The rows are images that look nothing alike, a fifth PNG and the rest JPEG, with reports. Both
stages run in processes of their own: once to the end, and once killed at a random moment and
repeated. Memory is the proportional set size of all of a stage's processes, sampled four times a
second. Throughput is that of all of `prepare` against the decoder alone, on the same files and
cores, by turns. `--check` exits 1 where a limit is missed.

    python -m benchmarks.prepare --check                     100,000 rows; an hour on two cores
    python -m benchmarks.prepare --check --rows 2000
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aga.data.preparing.prepare import prepare
from aga.data.sources import open_source
from aga.data.workers import LocalWorkers, in_order
from aga.params import apply_overlay, load_params
from benchmarks.drawing import decode_all, draw_images
from benchmarks.rows import write_rows

PROJECT = Path(__file__).parent.parent
STAGES = {"prepare": "workflows/prepare.py", "tokenize": "workflows/tokenize_reports.py"}
OUTS = {"prepare": "data/studies", "tokenize": "data/tokens"}
LIMITS = {"memory_growth": 1.1, "files": 199, "status_seconds": 5.0, "of_decoder": 0.8}
MIB = 2**20
WORDS = (
    *("there", "is", "no", "a", "of", "and", "the", "in", "left", "right", "upper", "lower"),
    *("lung", "zone", "heart", "size", "normal", "clear", "mild", "moderate", "severe", "pleural"),
    *("effusion", "opacity", "nodule", "consolidation", "edema", "atelectasis", "unchanged"),
)


@dataclass(frozen=True)
class Run:
    """How a stage went.

    Attributes:
        seconds: From its start to its end.
        memory: MiB of its processes, sample after sample.
    """

    seconds: float
    memory: list[float]

    @property
    def growth(self) -> float:
        """Peak of the second half of the time over that of the first."""
        half = len(self.memory) // 2
        return max(self.memory[half:]) / max(self.memory[:half])


def main() -> int:
    """Measure, print and write the rows; 1 where a limit is missed and checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=256, help="pixels of the many images")
    parser.add_argument("--large", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--large-rows", type=int, default=512)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    parser.add_argument("--work", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        home = copied_project(Path(folder) / "project")
        start = time.monotonic()
        draw(home / "data/raw/many", options.rows, options.side, ("jpg",) * 4 + ("png",))
        print(f"drawn in {time.monotonic() - start:.0f} s; seed {options.seed}", flush=True)
        rows = list(many(home, options.rows, random.Random(options.seed)))
        for side in options.large:
            for kind in ("jpg", "png"):
                rows.append(throughput(Path(folder), options.large_rows, side, kind))
                print(json.dumps(rows[-1]), flush=True)
    print(write_rows("prepare", rows))
    missed = list(misses(rows))
    print(*missed, sep="\n")
    return int(options.check and bool(missed))


def copied_project(folder: Path) -> Path:
    """What git tracks of the project, as a repository of its own, set to the many rows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name)
    source = {"name": "manifest", "root": "data/raw/many"}
    image = {"size": 128}
    apply_overlay(folder / "params.yaml", {"source": source, "prepare": {"image": image}})
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "copy"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def draw(root: Path, rows: int, side: int, kinds: Sequence[str]) -> None:
    """Write a manifest of reports and images, two of a patient."""
    generator = np.random.default_rng(0)
    root.mkdir(parents=True)
    paths = [root / f"{row}.{kinds[row % len(kinds)]}" for row in range(rows)]
    firsts = range(0, rows, 64)
    with LocalWorkers() as workers:
        for _ in in_order(
            lambda first: workers.call(draw_images, paths[first : first + 64], side, first),
            firsts,
            workers.count,
        ):
            pass
    with (root / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "study_id", "image", "text"])
        for row, path in enumerate(paths):
            words = [WORDS[word] for word in generator.integers(0, len(WORDS), 50)]
            text = f"FINDINGS: {' '.join(words[:40])}. IMPRESSION: {' '.join(words[40:])} {row}."
            writer.writerow([f"P{row // 2}", f"S{row}", path.name, text])


def many(home: Path, rows: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    """A row for each stage: memory, time, files, what a kill changed; then one for DVC."""
    for stage in STAGES:
        run, expected = finished(home, stage), digests(home / OUTS[stage])
        shutil.rmtree(home / OUTS[stage])
        moment = chance.uniform(0.05, 0.9) * run.seconds
        left = killed(home, stage, moment)
        again = finished(home, stage)
        row = {
            "stage": stage,
            "rows": rows,
            "seconds": round(run.seconds, 1),
            "rows_per_second": round(rows / run.seconds),
            "memory_mib": memory_line(run.memory),
            "memory_growth": round(run.growth, 3),
            "files": len(expected),
            "killed_after_seconds": round(moment, 1),
            "left_by_the_kill": left,
            "seconds_after_the_kill": round(again.seconds, 1),
            "same_bytes": digests(home / OUTS[stage]) == expected,
        }
        print(json.dumps(row), flush=True)
        yield row
    row = {"stage": "dvc status", "raw_files": sum(1 for _ in (home / "data/raw/many").iterdir())}
    yield row | {"status_seconds": round(status_seconds(home), 2)}


def command_of(home: Path, stage: str) -> subprocess.Popen[bytes]:
    """A stage, started in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, STAGES[stage]],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(home)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finished(home: Path, stage: str) -> Run:
    """Run a stage to its end."""
    start = time.monotonic()
    process = command_of(home, stage)
    memory = []
    while process.poll() is None:
        memory.append(group_memory(process.pid))
        time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"{stage} ended with {process.returncode}")
    return Run(time.monotonic() - start, [sample for sample in memory if sample])


def killed(home: Path, stage: str, moment: float) -> int:
    """Run a stage and kill all of its processes after some seconds; how many files it had done."""
    process = command_of(home, stage)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    work = home / OUTS[stage]
    return sum(1 for _ in work.with_name(f".{work.name}.work").glob("*/*.parquet"))


def group_memory(group: int) -> float:
    """Proportional set size in MiB of a group's processes: shared pages count once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                for line in (folder / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        except (OSError, ProcessLookupError):
            continue
    return total / 1024


def memory_line(memory: Sequence[float]) -> list[int]:
    """Peaks of ten stretches of the time."""
    parts = np.array_split(np.asarray(memory), min(10, len(memory)))
    return [round(float(part.max())) for part in parts]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def status_seconds(home: Path) -> float:
    """The quickest of three `dvc status` that find nothing to do."""
    dvc = [str(Path(sys.executable).with_name("dvc"))]
    run = partial(subprocess.run, cwd=home, check=True, capture_output=True, text=True)
    if not (home / ".dvc/config").exists():
        run([*dvc, "init", "-q", "-f"])
    run([*dvc, "commit", "-q", "-f", "prepare", "tokenize"])
    taken = []
    for _ in range(3):
        start = time.monotonic()
        told = run([*dvc, "status", "prepare", "tokenize"]).stdout
        taken.append(time.monotonic() - start)
        if "up to date" not in told:
            raise RuntimeError(f"dvc status found something to do: {told}")
    return min(taken)


def throughput(folder: Path, rows: int, side: int, kind: str) -> dict[str, Any]:
    """Rows a second of `prepare` and of the decoder alone, on the same files, by turns."""
    root = folder / f"{side}{kind}"
    draw(root, rows, side, (kind,))
    params = load_params(PROJECT / "params.yaml")
    source = open_source("manifest", params.source)
    shape = params.prepare.image.model_copy(update={"size": 224})
    settings = params.prepare.model_copy(update={"image": shape})
    files = sorted(root.glob(f"*.{kind}"))
    chunks = [files[first : first + 64] for first in range(0, rows, 64)]
    seconds: dict[str, list[float]] = {"prepare": [], "decoder": []}
    processor = {"prepare": 0.0, "decoder": 0.0}
    with LocalWorkers() as workers:
        decode = partial(workers.call, decode_all)
        # The workers are up and have imported what they need; the files are in memory.
        prepare(source, root, folder / "out", settings, 0, "manifest", workers)
        for _ in range(3):
            for name, taken in seconds.items():
                start, used = time.perf_counter(), processor_seconds()
                if name == "decoder":
                    list(in_order(decode, chunks, workers.count))
                else:
                    prepare(source, root, folder / "out", settings, 0, "manifest", workers)
                taken.append(time.perf_counter() - start)
                processor[name] += processor_seconds() - used
    shutil.rmtree(root)
    per_second = {name: rows / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "stage": "prepare against the decoder",
        "images": f"{side} x {side} {kind}",
        "rows": rows,
        "cores": len(os.sched_getaffinity(0)),
        "rows_per_second": {name: round(value, 1) for name, value in per_second.items()},
        "of_decoder": round(per_second["prepare"] / per_second["decoder"], 3),
        "processor_of_decoder": round(processor["decoder"] / processor["prepare"], 3),
    }


def processor_seconds() -> float:
    """Processor time of this process and its workers so far: what else runs adds nothing to it."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if os.getpid() in (int(folder.name), int(fields[1])):
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def misses(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is not as it should be, a line each."""
    for row in rows:
        name = f"{row['stage']} {row.get('images', '')}".strip()
        for key in ("memory_growth", "files", "status_seconds"):
            if key in row and row[key] > LIMITS[key]:
                yield f"{name}: {key} is {row[key]}, at most {LIMITS[key]}"
        if row.get("of_decoder", 1.0) < LIMITS["of_decoder"]:
            yield f"{name}: of_decoder is {row['of_decoder']}, at least {LIMITS['of_decoder']}"
        if not row.get("same_bytes", True):
            yield f"{name}: other bytes after a kill"


if __name__ == "__main__":
    sys.exit(main())
