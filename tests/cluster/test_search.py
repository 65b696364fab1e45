"""What a search refuses, and which trial wins, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.small_runs import make_home, small_params
from pydantic import ValidationError

from aga.cluster.config import ClusterConfig
from aga.cluster.job import Job
from aga.cluster.search import SearchResult, Settings, Trial, TuneConfig, rank, search
from aga.errors import AgaError, ClusterError, ParamsError
from aga.tracking import TrackingConfig
from aga.training.recipe import Recipe


@pytest.mark.slow
def test_the_nodes_are_surveyed_before_a_trial_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def survey(job: Job, _cluster: ClusterConfig) -> None:
        assert job.folder.parent.name == "searches"
        raise ClusterError("A node is unfit")

    monkeypatch.setattr("aga.cluster.search.survey", survey)
    home = make_home(tmp_path / "home")
    params = small_params()
    tracking = TrackingConfig.model_validate(params["tracking"])
    recipe = Recipe.model_validate({name: params[name] for name in Recipe.model_fields})
    with pytest.raises(ClusterError, match="unfit"):
        search(
            TuneConfig.model_validate(params["tune"]),
            lambda _: Job.of(recipe, tracking, home, "runs"),
            trials=1,
            seed=0,
            cluster=ClusterConfig.model_validate(params["cluster"]),
            tracking=tracking,
            home=home,
        )
    assert [path.name for path in (home / "runs").iterdir()] == ["searches"]


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
