"""Every mistake planted in the objectives is caught by their tests.

`mutants.toml` lists mistakes as exact replacements in the source: a flipped sign, a dropped mask, a
swapped axis, a gradient that is lost or let through. Each is planted in a copy of the package,
whose tests then run until one fails. The working tree is only read.

    python -m benchmarks.mutants [--check] [--jobs 2] [--only mgca] ...
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

# Imported once: a mutant's process is a fork of this one, which must not import `aga` before.
import beartype  # noqa: F401
import hypothesis
import jaxtyping  # noqa: F401
import pydantic.main  # noqa: F401
import pytest
import pytest_timeout  # type: ignore[import-untyped]
import ruamel.yaml  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch.distributed.tensor  # what `torch.testing` waits for

HOME = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".toml")
COPIED = ("aga", "tests", "params.yaml", "pyproject.toml")
SECONDS = 300  # a mutant may make a test hang


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        group: The objective, or the shared part, whose tests shall catch it.
        name: What is wrong.
        file: Relative to the repository.
        old: Text that stands in the file exactly once.
        new: Text in its place.
        tests: Arguments of pytest.
    """

    group: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self) -> str:
        """The whole mutated file."""
        text = (HOME / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1 or self.old == self.new:
            sys.exit(
                f"{LIST.name}: {self.group}: {self.name}: the old text stands "
                f"{text.count(self.old)} times in {self.file}; expected exactly once, and another "
                f"text in its place:\n{self.old}"
            )
        return text.replace(self.old, self.new)


class Watch:
    """A pytest plugin: which test failed first; examples are fixed, and not made smaller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.caught = ""
        self.broken = ""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """After `tests/conftest.py`, which has a profile of its own."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "mutants", phases=phases, deadline=None, database=None, derandomize=True
        )
        hypothesis.settings.load_profile("mutants")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A mutant that cannot be imported is none."""
        if report.failed:
            self.broken = str(report.longrepr)

    def pytest_collection_finish(self) -> None:
        """The copy is what is tested."""
        where = sys.modules["aga"].__file__ or ""
        if not where.startswith(str(self.folder)):
            self.broken = f"aga comes from {where}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the first failure."""
        if report.failed and not self.caught:
            self.caught = report.nodeid.removeprefix("tests/")


def main() -> int:
    """Plant each mistake, print who catches it, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where one survives")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--only", nargs="*", help="groups; writes no rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mutants = [m for m in listed() if not options.only or m.group in options.only]
    sources = [(mutant, mutant.source()) for mutant in mutants]  # all are valid before any is run
    if not options.only:
        unharmed(mutants)
    rows = []
    for mutant, found in outcomes(sources, options.jobs):
        if found["broken"]:
            sys.exit(f"{mutant.group}: {mutant.name} cannot be tested:\n{found['broken']}")
        rows.append({"group": mutant.group, "mutant": mutant.name, "caught_by": found["caught"]})
        caught = found["caught"] or "SURVIVED"
        print(f"{mutant.group}: {mutant.name} → {caught} ({found['seconds']} s)", flush=True)
    rows.sort(key=lambda row: (str(row["group"]), str(row["mutant"])))
    survived = [row for row in rows if not row["caught_by"]]
    print(f"{len(rows) - len(survived)} of {len(rows)} caught")
    if not options.only:
        from benchmarks.rows import write_rows  # noqa: PLC0415  # imports aga

        print(write_rows("mutants", rows))
    return int(options.check and bool(survived))


def listed() -> Iterator[Mutant]:
    """The mutants of the list, in its order."""
    content = tomllib.loads(LIST.read_text(encoding="utf-8"))
    for group, entries in content["mutants"].items():
        for entry in entries:
            fields = {"file": content["file"][group], "tests": group, **entry}
            tests = tuple(content["tests"][fields.pop("tests")])
            yield Mutant(group=group, tests=tests, **fields)


def unharmed(mutants: Sequence[Mutant]) -> None:
    """Without a mistake all tests pass; otherwise their failures would say nothing."""
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    whole = replace(mutants[0], group="no mistake", tests=tests)
    text = (HOME / whole.file).read_text(encoding="utf-8")
    ((_, found),) = outcomes([(whole, text)], 1)
    if found["caught"] or found["broken"]:
        sys.exit(f"The tests fail without a mistake: {found['caught'] or found['broken']}")
    print(f"no mistake → passes ({found['seconds']} s)", flush=True)


def outcomes(
    sources: Sequence[tuple[Mutant, str]], jobs: int
) -> Iterator[tuple[Mutant, dict[str, object]]]:
    """What became of each mutant, given with the text of its file, in the order in which they end.

    Yields:
        The mutant, with `caught`, the test that failed; `broken`, why none could be run; `seconds`.
    """
    gc.freeze()  # what is imported is not looked through in each process
    waiting, running = list(reversed(sources)), dict[int, tuple[BaseProcess, Mutant, Path, float]]()
    with tempfile.TemporaryDirectory() as shared:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant, text = waiting.pop()
                folder = Path(tempfile.mkdtemp(dir=shared)).resolve()
                process: BaseProcess = multiprocessing.get_context("fork").Process(
                    target=tested, args=(folder, mutant, text)
                )
                process.start()
                running[process.sentinel] = (process, mutant, folder, time.monotonic())
            for sentinel in wait(list(running)):
                process, mutant, folder, start = running.pop(int(str(sentinel)))
                process.join()
                written = folder / "outcome.json"
                found = {"caught": "", "broken": "" if written.is_file() else "the process died"}
                if written.is_file():
                    found = json.loads(written.read_text(encoding="utf-8"))
                shutil.rmtree(folder)
                yield mutant, found | {"seconds": round(time.monotonic() - start, 1)}


def tested(folder: Path, mutant: Mutant, text: str) -> None:
    """In a process of its own: copy the package with the mistake, and run the tests there."""
    for name in COPIED:
        source = HOME / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / mutant.file).write_text(text, encoding="utf-8")
    os.chdir(folder)
    sys.dont_write_bytecode = True
    watch = Watch(folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"timeout={SECONDS}", *mutant.tests]
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log):
        code = pytest.main(arguments, plugins=[watch, pytest_timeout])
    broken = watch.broken
    if not broken and code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        broken = (folder / "log").read_text(encoding="utf-8")
    outcome = {"caught": watch.caught, "broken": broken}
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
