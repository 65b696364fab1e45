"""Stage `pretrain`: train with Ray Train, export the best epoch. Repeat the command to resume."""

from __future__ import annotations

from aga.command import load, option_parser, run, write_json
from aga.explain import explanation_pages
from aga.training.distributed import pretrain
from aga.training.export import summary, write_curves
from aga.training.run import Recipe


def main(arguments: list[str] | None = None) -> None:
    """Train on this machine, or on the cluster that RAY_ADDRESS names."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
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
    result = pretrain(recipe, params.cluster, params.tracking, home, explanation_pages)
    history = result.state.history
    write_json(home / "metrics/pretrain.json", summary(history, params.training.select))
    write_curves(home / "plots/training.csv", history)
    print(f"run {result.run}\nbundle {result.bundle}  sha256 {result.bundle_sha256}")


if __name__ == "__main__":
    run(main)
