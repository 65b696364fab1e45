"""What a search refuses, and which trial wins, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from small_runs import small_params

from aga.errors import AgaError, ParamsError
from aga.tracking import TrackingConfig
from aga.training.distributed import ClusterConfig
from aga.training.job import Job
from aga.training.search import SearchResult, Settings, Trial, TuneConfig, rank, search


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_failed_trial_does_not_win_however_good_it_was(mode: str) -> None:
    good, worse = (0.9, 0.5) if mode == "max" else (0.5, 0.9)
    extreme = 1.0 if mode == "max" else 0.0
    failed = Trial({"a": 1.0}, 2, extreme, "DivergenceError: not finite")
    trials = [failed, Trial({"a": 2.0}, 1, worse, None), Trial({"a": 3.0}, 2, good, None)]
    ranked = sorted(trials, key=lambda trial: rank(trial, mode))
    assert [trial.best for trial in ranked] == [good, worse, extreme]
    assert SearchResult(ranked).winner.best == good
    with pytest.raises(AgaError, match="Every trial failed"):
        _ = SearchResult([failed]).winner


def test_grace_beyond_the_last_epoch_is_refused() -> None:
    values = small_params()["tune"] | {"epochs": 2, "grace_epochs": 3}
    with pytest.raises(ValidationError, match="grace_epochs"):
        TuneConfig.model_validate(values)


def test_a_search_without_trials_is_refused(tmp_path: Path) -> None:
    values = small_params()

    def make_job(_settings: Settings) -> Job:
        raise AssertionError("no job is made")

    with pytest.raises(ParamsError, match="1 or more"):
        search(
            TuneConfig.model_validate(values["tune"]),
            make_job,
            trials=0,
            seed=0,
            cluster=ClusterConfig.model_validate(values["cluster"]),
            tracking=TrackingConfig.model_validate(values["tracking"]),
            home=tmp_path,
        )
