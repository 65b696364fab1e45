"""Writes phantom studies to disk as a hospital would hand them over.

    images/<study>.png     8-bit grey radiographs
    reports/<study>.txt    raw reports
    studies.csv            patient_id, study_id, image, report, view
    truth.jsonl            what only a phantom knows: labels, statement, boxes and spans

The patient's left is on the image's right, as radiologists look at radiographs.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field

from aga.config import Config
from aga.data.files import replaced_folder
from aga.data.progress import progress
from aga.data.sources.phantom.anatomy import Anatomy, Look
from aga.data.sources.phantom.drawing import draw_picture
from aga.data.sources.phantom.facts import draw_facts, labels_of, statement_of
from aga.data.sources.phantom.reports import write_report
from aga.errors import DataError

TABLE = "studies.csv"
TRUTH = "truth.jsonl"
COLUMNS = ("patient_id", "study_id", "image", "report", "view")
VIEWS = ("PA", "AP")
DAMAGES = ("truncated image", "text file as image", "empty report", "missing image")
_PATIENTS_PER_TASK = 40


def _sum_to_one(values: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"the probabilities sum to {sum(values):g}, not to 1")
    return values


Probabilities = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...],
    Field(min_length=1, max_length=7),
    AfterValidator(_sum_to_one),
]


class PhantomConfig(Config):
    """How many phantom studies are drawn, and how.

    Attributes:
        patients: Number of patients.
        studies_per_patient: Probability of 1, 2, 3, ... studies of a patient.
        size: Height and width of the images in pixels.
        findings_per_study: Probability of 0, 1, 2, ... findings of a study.
        noise: Standard deviation of the images' noise, on a grey scale of 0 to 1.
        corrupt_fraction: Share of rows whose files are damaged on purpose.
    """

    patients: int = Field(ge=1, lt=10**6)
    studies_per_patient: Probabilities
    size: int = Field(ge=64, le=4096)
    findings_per_study: Probabilities
    noise: float = Field(ge=0, le=0.5)
    corrupt_fraction: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class _Row:
    """One line of `studies.csv` with its line of `truth.jsonl`."""

    patient_id: str
    study_id: str
    image: str
    report: str
    view: str
    truth: dict[str, Any]


def generate(root: Path, config: PhantomConfig, seed: int, workers: int | None = None) -> None:
    """Write a phantom data set; the folder appears whole or not at all.

    Every study is drawn from its own generator, seeded by (seed, patient, study), so the bytes
    written do not depend on the number of processes.

    Args:
        root: The folder to write; an earlier phantom data set there is replaced.
        config: What to draw.
        seed: Seed of everything drawn.
        workers: Processes to draw with; None takes one per available core.

    Raises:
        DataError: `root` holds something other than a phantom data set, or the disk is full.
    """
    _require_replaceable(root)
    with replaced_folder(root) as folder:
        (folder / "images").mkdir()
        (folder / "reports").mkdir()
        rows = list(chain.from_iterable(_write_all(folder, config, seed, workers)))
        _damage(folder, rows, config.corrupt_fraction, seed)
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(asdict(row) for row in rows)
        with (folder / TRUTH).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps({"study_id": r.study_id, **r.truth}) + "\n" for r in rows)


def _require_replaceable(root: Path) -> None:
    if root.is_dir() and any(root.iterdir()) and not (root / TRUTH).is_file():
        raise DataError(
            "Will not replace a folder that is not a phantom data set",
            where=root,
            got="a folder with other files in it",
            expected=f"no folder, an empty one, or one with {TRUTH}",
            fix="set `source.root` in params.yaml to a folder of its own",
        )


def _write_all(
    folder: Path, config: PhantomConfig, seed: int, workers: int | None
) -> Iterator[list[_Row]]:
    """Draw all patients, in their order, over several processes."""
    write = partial(_write_patient, folder, config, seed)
    patients = range(1, config.patients + 1)
    tasks = -(-config.patients // _PATIENTS_PER_TASK)
    processes = min(workers or _available_cores(), tasks)
    if processes == 1:
        yield from progress(map(write, patients), "patients", config.patients)
        return
    # A forked child inherits locks of the parent's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        written = pool.map(write, patients, chunksize=_PATIENTS_PER_TASK)
        yield from progress(written, "patients", config.patients)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux, where a process may be bound to a few
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_patient(folder: Path, config: PhantomConfig, seed: int, patient: int) -> list[_Row]:
    """Draw and write all studies of one patient, who is numbered from 1."""
    rng = np.random.default_rng([seed, patient, 0])
    anatomy = Anatomy.draw(rng)
    chances = config.studies_per_patient
    count = int(rng.choice(len(chances), p=chances)) + 1
    return [
        _write_study(folder, config, anatomy, (seed, patient, study))
        for study in range(1, count + 1)
    ]


def _write_study(
    folder: Path, config: PhantomConfig, anatomy: Anatomy, key: tuple[int, int, int]
) -> _Row:
    rng = np.random.default_rng(key)
    _, patient, study = key
    facts = draw_facts(rng, config.findings_per_study)
    picture = draw_picture(anatomy, Look.draw(rng), facts, size=config.size, noise=config.noise)
    view = VIEWS[int(rng.random() < 0.3)]
    report = write_report(facts, view, study == 1, rng)
    name = f"p{patient:06d}-s{study}"
    image, text = f"images/{name}.png", f"reports/{name}.txt"
    Image.fromarray(picture.pixels).save(folder / image, compress_level=1)
    (folder / text).write_text(report.text, encoding="utf-8", newline="\n")
    regions = [
        {"finding": finding, "box": box, "spans": report.spans[finding]}
        for finding, box in picture.boxes.items()
    ]
    truth = {"statement": statement_of(facts), "labels": labels_of(facts), "regions": regions}
    return _Row(f"p{patient:06d}", name, image, text, view, truth)


def _damage(folder: Path, rows: Sequence[_Row], fraction: float, seed: int) -> None:
    """Damage the files of a share of the rows, in equal parts in each of the ways `DAMAGES`."""
    rng = np.random.default_rng([seed, 0, 0])  # patients are numbered from 1
    chosen = rng.permutation(len(rows))[: round(fraction * len(rows))]
    for turn, number in enumerate(chosen):
        row = rows[number]
        image, report = folder / row.image, folder / row.report
        damage = DAMAGES[turn % len(DAMAGES)]
        if damage == "truncated image":
            image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
        elif damage == "text file as image":
            image.write_text("This is no image.\n", encoding="utf-8")
        elif damage == "empty report":
            report.write_text("", encoding="utf-8")
        else:
            image.unlink()
        row.truth["damage"] = damage
