"""What is tested must be new to the model: no patient, study, image or copy of one on both sides.

`prepare` splits so that nothing leaks. The prepared folder is asked again at the start of training
and of evaluation, and by `workflows/leakcheck.py`: folders are edited, mixed and prepared anew. Row
numbers say where; identifiers are never shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Int64
from pydantic import model_validator

from aga.config import Config
from aga.data.schema import Split
from aga.data.splitting.id_list import IdList
from aga.data.splitting.near_duplicates import HashedImages, near_duplicates
from aga.data.splitting.patients import HeldOut, listed_patients
from aga.data.splitting.trained_on import TrainedOn
from aga.data.studies import StudyDataset
from aga.errors import DataError

_log = logging.getLogger(__name__)
_SHOWN = 5
_IDENTITIES = {
    "same patient": "patient_id",
    "same study": "study_id",
    "same image": "pixel_sha256",
}
_OF_ONE_SOURCE = ("same patient", "same study")


class LeakConfig(Config):
    """What nothing may be learned from, beside the dataset's own test split.

    Attributes:
        lists: Id lists, as `workflows/id_lists.py` writes them, each with its SHA-256: their
            patients are put into the test split, and refused anywhere else.
        elsewhere: Those of them that need not name any patient of the source at hand.
        against: Other prepared folders: nothing that is learned may be in their test splits.
    """

    lists: dict[str, str]
    elsewhere: list[str]
    against: list[str]

    @model_validator(mode="after")
    def _elsewhere_is_listed(self) -> Self:
        unknown = [name for name in self.elsewhere if name not in self.lists]
        if unknown:
            raise ValueError(f"elsewhere: {unknown[0]} is not in lists")
        return self


class Leak(NamedTuple):
    """Something that is on both sides.

    Attributes:
        kind: `same patient`, `same study`, `same image` or `near duplicate`.
        learned: Row number on the side that is learned from.
        tested: Row number on the other.
    """

    kind: str
    learned: int
    tested: int


@dataclass(frozen=True)
class Side:
    """Some rows of a prepared folder."""

    studies: StudyDataset
    rows: Int64[np.ndarray, " rows"]

    @classmethod
    def of(cls, studies: StudyDataset, *splits: Split) -> Side:
        """The rows of these splits."""
        return cls(studies, np.sort(np.concatenate([studies.rows(split) for split in splits])))

    def values(self, column: str) -> list[str]:
        """A column of the manifest at these rows."""
        values: list[str] = self.studies.column(column).take(self.rows).to_pylist()
        return values

    def images(self) -> HashedImages:
        """The rows' images."""
        image = self.studies.info.image
        hashes = self.studies.column("perceptual_hash").to_pylist()
        shape = (image.height, image.width, image.channels)
        return HashedImages.of(self.studies.folder, shape, self.rows, hashes)


def _issuer(source: str) -> str:
    """The source whose patient identifiers a source shares; by default its own."""
    return {"chexpert_plus": "chexpert", "rsna": "nih14"}.get(source, source)


def held_out_lists(config: LeakConfig, home: Path) -> list[HeldOut]:
    """The test lists that settings name.

    Args:
        config: Their paths, relative to `home`, and hashes.
        home: The project's folder.

    Raises:
        DataError: A list is missing, or not the one with this hash.
    """
    return [
        HeldOut(
            path, frozenset(IdList.read(home / path, sha256).patients), path in config.elsewhere
        )
        for path, sha256 in config.lists.items()
    ]


def find_leaks(learned: Side, tested: Side, *, near: bool = True) -> list[Leak]:
    """All that the tested rows share with the learned ones, one leak of a kind per tested row.

    Patient and study identifiers are compared within a source, and between two that have them from
    one issuer.

    Args:
        learned: Rows that are learned from.
        tested: Rows of the same folder or of another.
        near: Whether to look for near duplicates, too.
    """
    one_source = _issuer(learned.studies.info.source) == _issuer(tested.studies.info.source)
    leaks = []
    for kind, column in _IDENTITIES.items():
        if one_source or kind not in _OF_ONE_SOURCE:
            pairs = _shared(learned.values(column), tested.values(column))
            leaks += [Leak(kind, int(learned.rows[a]), int(tested.rows[b])) for a, b in pairs]
    if near:
        equal = {leak.tested for leak in leaks if leak.kind == "same image"}
        copies = {
            pair.second: pair.first for pair in near_duplicates(learned.images(), tested.images())
        }
        leaks += [Leak("near duplicate", copies[row], row) for row in sorted(copies.keys() - equal)]
    return leaks


def leaks_within(studies: StudyDataset) -> list[Leak]:
    """What the splits of a prepared folder share; near duplicates where its splits heed them."""
    near = studies.info.config.get("split", {}).get("near_duplicates") != "ignore"
    train, validation = Side.of(studies, "train"), Side.of(studies, "validation")
    return [
        *find_leaks(train, Side.of(studies, "validation", "test"), near=near),
        *find_leaks(validation, Side.of(studies, "test"), near=near),
    ]


def shared_reports(learned: Side, tested: Side) -> int:
    """Tested rows whose report says what a learned one says; normal findings often do."""
    keys = [side.studies.statement_keys() for side in (learned, tested)]
    known = {keys[0][row] for row in learned.rows}
    return sum(keys[1][row] in known for row in tested.rows)


def refuse_leaks(studies: StudyDataset, config: LeakConfig, home: Path) -> None:
    """Refuse studies in which what is learned from is also tested, here or elsewhere.

    Args:
        studies: Whose training and validation splits are learned from.
        config: What else is tested.
        home: Folder that the relative paths of `config` start from.

    Raises:
        DataError: The splits share something; a listed patient is in the training or validation
            split; these splits share something with the test split of another folder; or a list is
            not the one that `config` names.
    """
    _refuse(leaks_within(studies), "Two splits share what must be in one", studies)
    learned = Side.of(studies, "train", "validation")
    listed = listed_patients(held_out_lists(config, home))
    found = [
        int(row)
        for row, patient in zip(learned.rows, learned.values("patient_id"), strict=True)
        if patient in listed
    ]
    if found:
        raise DataError(
            "Patients of a test list are learned from",
            where=studies.folder,
            got=f"{len(found)} rows of the training and validation splits: {_first(found)}",
            expected="none of the patients in leaks.lists",
            fix="run `dvc repro prepare`: it puts listed patients into the test split",
        )
    for name in config.against:
        other = StudyDataset.open(home / name)
        leaks = find_leaks(learned, Side.of(other, "test"))
        _refuse(leaks, f"What is learned is in the test split of {name}", studies)


def refuse_known(trained_on: TrainedOn | None, studies: StudyDataset, split: Split) -> None:
    """Refuse to measure a model on what it was made from; warn of what cannot be compared.

    Args:
        trained_on: What the model's bundle remembers; None where it has no list.
        studies: The prepared studies.
        split: What is measured.

    Raises:
        DataError: The model knows some of these rows.
    """
    if trained_on is None or not trained_on.complete:
        unknown = (
            "what it" if trained_on is None else "what the weights that its training began with"
        )
        _log.warning(
            "The bundle does not state %s had seen: whether the %s split was a part of it, "
            "nobody can tell",
            unknown,
            split,
        )
    seen = trained_on.seen(studies, split) if trained_on else {}
    if seen:
        found = "; ".join(f"{kind}: {len(rows)}, {_first(rows)}" for kind, rows in seen.items())
        raise DataError(
            f"The model was trained on what the {split} split holds",
            where=studies.folder,
            got=found,
            expected="patients and images that it has not seen",
            fix="train again on the data as they are now split, or leave these patients out",
        )


def describe(leaks: Iterable[Leak]) -> list[str]:
    """A line for each kind: how many tested rows, and where the first few are."""
    kinds: dict[str, list[Leak]] = {}
    for leak in leaks:
        kinds.setdefault(leak.kind, []).append(leak)
    return [
        f"{kind}: {len(some)} rows, "
        + ", ".join(f"{one.tested} (as {one.learned})" for one in some[:_SHOWN])
        + (", ..." if len(some) > _SHOWN else "")
        for kind, some in kinds.items()
    ]


def _refuse(leaks: Sequence[Leak], what: str, studies: StudyDataset) -> None:
    if leaks:
        raise DataError(
            what,
            where=studies.folder,
            got="; ".join(describe(leaks)),
            expected="no patient, study, image or copy of an image on both sides",
            fix="run `dvc repro prepare`; `python workflows/leakcheck.py` lists all of them",
        )


def _shared(learned: Sequence[str], tested: Sequence[str]) -> list[tuple[int, int]]:
    first: Mapping[str, int] = {value: place for place, value in reversed([*enumerate(learned)])}
    return [(first[value], place) for place, value in enumerate(tested) if value in first]


def _first(rows: Sequence[int]) -> str:
    return "rows " + ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
