"""`--resume auto|never|must`: what is gone on with, what is refused, and what changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures.small_runs import make_home, small_params, small_recipe

from aga.cluster.job import Job
from aga.cluster.resuming import MADE_OF, differences, enter, note
from aga.errors import CheckpointError
from aga.tracking import TrackingConfig
from aga.training.recipe import RunData
from aga.training.run import run_local


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("resuming") / "home")


def run_of(home: Path, *overlays: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
    """A run's job, its folder made and noted, and what it is made of."""
    recipe = small_recipe(*overlays)
    tracking = TrackingConfig.model_validate(small_params(*overlays)["tracking"])
    return Job.of(recipe, tracking, home, "runs"), recipe.made_of(RunData.open(home), home)


def test_modes(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="aga")
    short = {"training": {"epochs": 1}}
    job, made_of = run_of(home, short)
    with pytest.raises(CheckpointError, match="no run of this experiment"):
        enter(job, made_of, "must")
    enter(job, made_of, "never")
    enter(job, made_of, "auto")
    assert "a new run" not in caplog.text, "there is none to compare with"
    job.folder.mkdir(parents=True)
    note(job.folder, made_of)
    run_local(job.recipe, home, folder=job.folder)

    enter(job, made_of, "must")
    enter(job, made_of, "auto")
    with pytest.raises(CheckpointError, match="leave the option out") as caught:
        enter(job, made_of, "never")
    assert str(job.folder) in str(caught.value)

    changed = {"training": {"epochs": 2}, "optimizer": {"learning_rate": 0.5}}
    other, made_of_other = run_of(home, changed)
    with pytest.raises(CheckpointError, match=job.name) as caught:
        enter(other, made_of_other, "must")
    told = str(caught.value)
    assert "training.epochs: 1 -> 2" in told
    assert "optimizer.learning_rate: 0.001 -> 0.5" in told
    assert told.count(" -> ") == 2
    enter(other, made_of_other, "auto")
    assert "training.epochs: 1 -> 2" in caplog.text

    stranger, made_of_stranger = run_of(home, {**changed, "tracking": {"experiment": "small-b"}})
    with pytest.raises(CheckpointError, match="no run of this experiment"):
        enter(stranger, made_of_stranger, "must")

    # A note cut off in the middle hinders nobody.
    (job.folder / MADE_OF).write_text('{"seed": ')
    enter(other, made_of_other, "auto")


def test_the_first_note_stays(tmp_path: Path) -> None:
    note(tmp_path, {"seed": 1})
    note(tmp_path, {"seed": 2})
    assert (tmp_path / MADE_OF).read_text() == '{\n "seed": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == [MADE_OF]


def test_differences() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "data/studies": "x", "gone": {}}
    now = {"a": {"b": 2, "c": [1, 2], "d": None}, "data/studies": "y"}
    assert differences(before, now) == [
        "a.b: 1 -> 2",
        "a.d: absent -> None",
        "data/studies: x -> y",
        "gone: {} -> absent",
    ]
    assert differences(now, now) == []
