"""Whether a command goes on with a run or begins one, and what makes a run another one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from aga.cluster.job import Job
from aga.errors import CheckpointError
from aga.training.checkpoint import checkpoints

logger = logging.getLogger(__name__)

Resume: TypeAlias = Literal["auto", "never", "must"]
MadeOf: TypeAlias = Mapping[str, Any]
RESUME: tuple[Resume, ...] = get_args(Resume)
MADE_OF = "recipe.json"
SHOWN = 20  # lines of a comparison, at most


def enter(job: Job, made_of: MadeOf, resume: Resume) -> None:
    """Check that the run of these settings is there, or is not, as is wanted.

    Where it is not there, what makes it another run than the newest of its experiment is told.

    Args:
        job: The run.
        made_of: As of `Recipe.made_of`.
        resume: `auto` goes on with it or begins it; `must` only goes on; `never` only begins, and
            deletes nothing.

    Raises:
        CheckpointError: `must` finds no checkpoint, or `never` finds one.
    """
    if not checkpoints(job.folder):
        _tell_of_another(job, made_of, resume)
    elif resume == "never":
        raise CheckpointError(
            "There is a run of these settings, data and code",
            where=job.folder,
            expected="none, as --resume never says",
            fix="move or delete that folder, or leave the option out to go on with the run",
        )


def note(run: Path, made_of: MadeOf) -> None:
    """Write what a run is made of to its folder, in one step; the first note of a run stays."""
    path = run / MADE_OF
    if path.exists():
        return
    scratch = path.with_suffix(f".{os.getpid()}.new")
    scratch.write_text(json.dumps(made_of, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(path)


def differences(before: MadeOf, now: MadeOf) -> list[str]:
    """What differs between two nested records, one line each: `training.epochs: 14 -> 20`."""
    old, new = _flat(before), _flat(now)
    pairs = {n: (old.get(n, "absent"), new.get(n, "absent")) for n in sorted(old.keys() | new)}
    return [f"{name}: {was} -> {value}" for name, (was, value) in pairs.items() if was != value]


def _tell_of_another(job: Job, made_of: MadeOf, resume: Resume) -> None:
    other = _newest_other(job)
    if other is None:
        changed = "no run of this experiment"
    else:
        lines = differences(_read(other), made_of)
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        listed = "".join(f"\n    {line}" for line in [*lines[:SHOWN], *more])
        changed = f"the newest run of this experiment, {other.name}, differs:{listed}"
    if resume == "must":
        raise CheckpointError(
            "There is no run of these settings, data and code to go on with",
            where=job.folder,
            got=changed,
            fix="undo what was changed, or leave --resume must out to begin a run",
        )
    if other is not None:
        logger.info("a new run: %s", changed)


def _newest_other(job: Job) -> Path | None:
    """The run of the same experiment that was begun last, this one left out."""
    experiment = job.name.rpartition("-")[0]
    notes = [
        place
        for place in job.folder.parent.glob(f"*/{MADE_OF}")
        if place.parent != job.folder and place.parent.name.rpartition("-")[0] == experiment
    ]
    return max(notes, key=lambda place: place.stat().st_mtime).parent if notes else None


def _read(run: Path) -> MadeOf:
    """What a run is made of; nothing where its note is damaged."""
    try:
        made_of: MadeOf = json.loads((run / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return made_of


def _flat(record: MadeOf, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
