"""Search gates and loss weights with Ray Tune; the winner becomes a diff of params.yaml."""

from __future__ import annotations

from aga.cluster.job import Job
from aga.cluster.search import Settings, format_trials, search
from aga.command import load, option_parser, run
from aga.data.splitting.leaks import refuse_leaks
from aga.data.studies import StudyDataset
from aga.params import apply_overlay, overlaid, parse_settings, read_yaml, validate
from aga.training.recipe import Recipe


def main(arguments: list[str] | None = None) -> None:
    """Run the trials on this machine, or on the cluster that RAY_ADDRESS names."""
    parser = option_parser(__doc__)
    parser.add_argument("--trials", type=int, default=16, help="how many choices of settings")
    parser.add_argument("--apply", action="store_true", help="write the winner into params.yaml")
    options = parser.parse_args(arguments)
    (params, home), values = load(options), read_yaml(options.params)
    refuse_leaks(StudyDataset.open(home / "data/studies"), params.leaks, home)

    def overlay(settings: Settings) -> dict[str, object]:
        return parse_settings(f"{key}={value:.4g}" for key, value in settings.items())

    def make_job(settings: Settings) -> Job:
        shorter = overlaid(values, {"training": {"epochs": params.tune.epochs}})
        trial = validate(overlaid(shorter, overlay(settings)), where="a trial of tune.space")
        recipe = Recipe(**{name: getattr(trial, name) for name in Recipe.model_fields})
        return Job.of(recipe, trial.tracking, home, trial.cluster.storage)

    result = search(
        params.tune,
        make_job,
        trials=options.trials,
        seed=params.seed,
        cluster=params.cluster,
        tracking=params.tracking,
        home=home,
    )
    print(format_trials(result, params.tune.metric), end="\n\n")
    print(apply_overlay(options.params, overlay(result.winner.settings), write=options.apply))


if __name__ == "__main__":
    run(main)
