"""Stage `pretrain`: train with Ray Train, export the best epoch. Repeat the command to resume."""

from __future__ import annotations

import torch

from aga.cluster.distributed import pretrain
from aga.cluster.preflight import check_machine
from aga.cluster.resuming import RESUME
from aga.command import load, option_parser, run, write_json
from aga.data.splitting.leaks import refuse_leaks
from aga.data.studies import StudyDataset
from aga.explain import explanation_pages
from aga.training.export import summary, write_curves
from aga.training.overfit import overfit
from aga.training.recipe import Recipe


def main(arguments: list[str] | None = None) -> int:
    """Train on this machine, or on the cluster that RAY_ADDRESS names; 1 if a self-test fails."""
    parser = option_parser(__doc__)
    parser.add_argument(
        "--overfit", type=int, metavar="PAIRS", help="only see if so many pairs can be memorised"
    )
    parser.add_argument(
        "--resume", choices=RESUME, default="auto", help="go on with this very run, if it is there"
    )
    options = parser.parse_args(arguments)
    params, home = load(options)
    if options.overfit is None:
        check_machine(params.cluster)
    refuse_leaks(StudyDataset.open(home / "data/studies"), params.leaks, home)
    recipe = Recipe(
        seed=params.seed,
        image_encoder=params.image_encoder,
        text_encoder=params.text_encoder,
        model=params.model,
        objective=params.objective,
        optimizer=params.optimizer,
        training=params.training,
        checkpoint=params.checkpoint,
    )
    if options.overfit is not None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        verdict = overfit(recipe, home, options.overfit, device)
        print(verdict)
        return int(not verdict.passed)
    result = pretrain(
        recipe, params.cluster, params.tracking, home, explanation_pages, options.resume
    )
    history = result.state.history
    write_json(home / "metrics/pretrain.json", summary(history, params.training.select))
    write_curves(home / "plots/training.csv", history)
    print(f"run {result.run}\nbundle {result.bundle}  sha256 {result.bundle_sha256}")
    return 0


if __name__ == "__main__":
    run(main)
