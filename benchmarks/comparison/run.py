"""Run cells of the comparison, several at a time; those that are done and unchanged are skipped.

    python -m benchmarks.comparison.run                                         everything
    python -m benchmarks.comparison.run --match 'main@(aga|clip|sparc)-500'    the fast grid

DVC runs the stages of one command one after the other, so this starts a `dvc repro --single-item`
for each. Whenever it is stopped, only the cells that were running are lost.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aga.params import read_yaml
from benchmarks.comparison import FOLDER, PROJECT, settings

PREFIX = f"{FOLDER.relative_to(PROJECT)}/"

BEFORE = ("data", "tune")  # without them nothing can be measured


def main() -> int:
    """Prepare the data, tune, run the cells, write the table; 1 where a stage failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--match", default="", help="regular expression for the names of cells")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time, a thread each")
    parser.add_argument("--force", action="store_true", help="run cells that are done as well")
    options = parser.parse_args()
    stages = dvc("stage", "list", "--name-only", capture=True).stdout.split()
    cells = [name for name in stages if not name.startswith((*BEFORE, "table"))]
    cells = [name for name in cells if re.search(options.match, name)]
    for kind in BEFORE:
        wave = sorted({name for cell in cells for name in needed(cell, kind, stages)})
        if failures(wave, options.jobs, force=False):
            return 1
    failed = failures(cells, options.jobs, force=options.force)
    return failures(["table"], 1, force=False) or int(failed)


def needed(cell: str, kind: str, stages: Sequence[str]) -> Iterator[str]:
    """The stages of a kind that a cell stands on: what tuned it, the data of both."""
    grid, _, rest = cell.partition("@")
    if kind == "tune":
        variant = rest.partition("-")[0]
        yield f"tune@{settings()['variants'][variant].get('like', variant)}"
        return
    folders = read_yaml(FOLDER / "dvc.yaml")["stages"][grid]["deps"]
    used = {name.split("/")[3] for name in folders if name.startswith(f"{PREFIX}work/")}
    used.add(settings()["tuning"]["data"])
    yield from (name for name in stages if name.removeprefix("data@") in used)


def failures(stages: Sequence[str], jobs: int, *, force: bool) -> bool:
    """Run stages, those with unchanged dependencies only where forced; whether one failed."""
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(partial(repro, force=force), stages))
    failed = [name for name, code in zip(stages, codes, strict=True) if code]
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return bool(failed)


def repro(stage: str, *, force: bool) -> int:
    """Run one stage; its exit status."""
    options = ["--quiet", "--single-item", *(["--force"] if force else [])]
    return dvc("repro", *options, stage).returncode


def dvc(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Call DVC in the folder of the comparison; what it starts computes with one thread."""
    command = [sys.executable, "-m", "dvc", *arguments]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads}
    return subprocess.run(
        command, cwd=FOLDER, env=environment, text=True, capture_output=capture, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
