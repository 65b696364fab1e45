"""Parts: what a killed `prepare` leaves, the next one goes on from, to the same bytes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_folders import Rows, noise_image, write_csv

from aga.data.cluster import open_workers
from aga.data.preparing import chunks
from aga.data.preparing.parts import Recipe, examined_facts, read_facts, write_part
from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.schema import Reject, Study
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.workers import LocalWorkers, WorkerDied
from aga.errors import DataError

SOURCE = Manifest(ManifestConfig(table="pairs.csv", not_utf8="reject"))
RUN = """
import sys
from pathlib import Path
from aga.data.preparing import chunks
from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.sources.manifest import Manifest, ManifestConfig
chunks.CHUNK_ROWS = 8
config = PrepareConfig.model_validate_json(sys.argv[3])
source = Manifest(ManifestConfig(table="pairs.csv", not_utf8="reject"))
prepare(source, Path(sys.argv[1]), Path(sys.argv[2]), config, 0, "manifest")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """64 rows, among them a repeat over a part's bounds, a damaged and a short one."""
    rows: Rows = []
    for number in range(64):
        noise_image(tmp_path / f"raw/{number}.png", number, (300, 300))
        text = f"FINDINGS: Opacity number {number} is seen."
        row = {"patient_id": f"P{number}", "study_id": f"S{number}", "image": f"{number}.png"}
        rows.append({**row, "text": text})
    rows[50] |= {"image": rows[3]["image"], "text": rows[3]["text"]}
    rows[20]["text"] = "-"
    (tmp_path / "raw/30.png").write_bytes(b"no image")
    write_csv(tmp_path / "raw/pairs.csv", rows)
    return tmp_path / "raw"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def started(root: Path, out: Path, config: PrepareConfig) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(root), str(out), config.model_dump_json()]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)


def killed_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_kill_9_at_any_moment_then_the_same_call_gives_the_same_bytes(
    tmp_path: Path, root: Path, prepare_config: PrepareConfig
) -> None:
    assert started(root, tmp_path / "whole", prepare_config).wait() == 0
    expected = digests(tmp_path / "whole")
    out = tmp_path / "studies"
    work = tmp_path / ".studies.work"
    for parts in (1, 3, 6):

        def reached(parts: int = parts) -> bool:
            return len(list(work.glob("*/*.parquet"))) >= parts

        killed_when(started(root, out, prepare_config), reached)
        assert not out.exists()
        kept = {path: path.stat().st_ino for path in work.glob("*/*.parquet")}
    assert len(kept) >= 6
    killed_when(
        started(root, out, prepare_config),
        lambda: any(tmp_path.glob(".studies.partial/images-*")),  # all parts are there
    )
    assert {path: path.stat().st_ino for path in kept} == kept, "a finished part was made again"
    assert started(root, out, prepare_config).wait() == 0
    assert digests(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "studies", "whole"]


def test_size_of_chunks_and_number_of_workers_change_no_byte(
    tmp_path: Path, root: Path, prepare_config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, (rows, count) in enumerate(((256, 1), (7, 2))):
        monkeypatch.setattr(chunks, "CHUNK_ROWS", rows)
        with LocalWorkers(count) as workers:
            out = tmp_path / f"out{number}"
            prepare(SOURCE, root, out, prepare_config, 0, "manifest", workers)
        found.append(digests(out))
    assert found[0] == found[1]
    rejects = pq.read_table(tmp_path / "out0/rejects.parquet").to_pylist()
    assert [(row["location"], row["reason"]) for row in rejects] == [
        ("pairs.csv:22", "report too short"),
        ("pairs.csv:32", "image unreadable"),
        ("pairs.csv:52", "repeated pair"),
    ]


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(
    tmp_path: Path, root: Path, prepare_config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(SOURCE, root, tmp_path / "here", prepare_config, 0, "manifest")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 8)
    with open_workers(tmp_path, root) as workers:
        prepare(SOURCE, root, tmp_path / "there", prepare_config, 0, "manifest", workers)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def test_a_part_is_made_again_where_anything_that_went_into_it_changed(
    tmp_path: Path, root: Path, prepare_config: PrepareConfig
) -> None:
    rows = list(SOURCE.studies(root))[:4]
    recipe = prepare_config.recipe
    first = write_part(rows, recipe, tmp_path)
    state = first.stat()
    assert write_part(rows, recipe, tmp_path) == first
    assert first.stat().st_ino == state.st_ino
    assert write_part(rows[:3], recipe, tmp_path) != first
    noise_image(root / "0.png", 99, (300, 300))
    assert write_part(rows, recipe, tmp_path) != first
    stretch = recipe.image.model_copy(update={"fit": "stretch"})
    assert replace(recipe, image=stretch).key != recipe.key


class Fragile:
    """Workers that die of an image, as a native decoder that crashes would have them."""

    count = 1

    def __init__(
        self, poison: str, limit: int = 10**9, number: signal.Signals = signal.SIGSEGV
    ) -> None:
        self.signal = number
        self.poison = poison
        self.calls = 0
        self.limit = limit

    def call(self, function: Callable, rows: object, *arguments: object) -> object:
        self.calls += 1
        studies = rows if isinstance(rows, list) else [rows]
        poisoned = any(isinstance(s, Study) and s.image.name == self.poison for s in studies)
        if poisoned or (len(studies) > 1 and self.calls > self.limit):
            raise WorkerDied(-self.signal)
        return function(rows, *arguments)


def test_a_row_that_crashes_its_process_is_rejected_and_no_other(
    root: Path, prepare_config: PrepareConfig
) -> None:
    def collected(rows: object, recipe: Recipe) -> object:
        return rows

    studies = list(SOURCE.studies(root))[:8]
    workers = Fragile("5.png")
    (rows,) = chunks.examined(workers, studies, prepare_config.recipe, collected)
    assert rows[5] == Reject("pairs.csv:7", "image unreadable", "the decoder crashed", "image")
    assert rows[:5] == studies[:5]
    assert rows[6:] == studies[6:]


def test_processes_that_die_of_no_row_in_particular_are_an_error(
    root: Path, prepare_config: PrepareConfig
) -> None:
    studies = list(SOURCE.studies(root))[:8]
    with pytest.raises(DataError, match=r"(?s)processes are killed.*pairs.csv:2 to pairs.csv:9"):
        list(
            chunks.examined(
                Fragile("none", limit=0), studies, prepare_config.recipe, lambda rows, recipe: None
            )
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_rejects_no_row(
    root: Path, prepare_config: PrepareConfig, number: signal.Signals
) -> None:
    studies = list(SOURCE.studies(root))[:8]
    workers = Fragile("5.png", number=number)
    with pytest.raises(DataError, match=rf"(?s)pairs.csv:7.*{number.name}.*memory.*taskset"):
        list(chunks.examined(workers, studies, prepare_config.recipe, lambda rows, _: rows))


def test_an_image_that_is_never_opened_is_rejected_in_time(
    root: Path, prepare_config: PrepareConfig
) -> None:
    recipe = replace(prepare_config.recipe, row_seconds=3.0)
    studies = list(SOURCE.studies(root))[:6]
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with studies[4].image.open("rb+") as file, LocalWorkers(1) as workers:
        # Whoever opens the file waits until the lease is given back: 45 s, if it is not.
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        start = time.monotonic()
        (facts,) = chunks.examined(workers, studies, recipe, examined_facts)
        taken = time.monotonic() - start
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, before)
    assert taken < 30
    detail = "not decoded within 3 s, prepare.row_seconds"
    assert facts[4] == Reject("pairs.csv:6", "image unreadable", detail, "image")
    assert sum(isinstance(one, Reject) for one in facts) == 1


def test_facts_are_read_in_the_order_of_the_rows(
    tmp_path: Path, root: Path, prepare_config: PrepareConfig
) -> None:
    rows = list(SOURCE.studies(root))
    facts = list(read_facts(write_part(rows, prepare_config.recipe, tmp_path)))
    where = [f.location if isinstance(f, Reject) else f.split_row.location for f in facts]
    assert where == [f"pairs.csv:{number + 2}" for number in range(64)]
    assert np.flatnonzero([isinstance(f, Reject) for f in facts]).tolist() == [20, 30]
