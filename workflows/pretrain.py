"""Stage `pretrain`: train with Ray Train, export the best epoch. Repeat the command to resume."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from aga.errors import AgaError
from aga.params import load_params
from aga.training.distributed import pretrain
from aga.training.export import summary, write_curves, write_metrics
from aga.training.run import Recipe


def main(arguments: list[str] | None = None) -> None:
    """Train on this machine, or on the cluster that RAY_ADDRESS names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="where data/ and runs/ are; default: the params'")
    options = parser.parse_args(arguments)
    params = load_params(options.params)
    home = (options.home or options.params.parent).resolve()
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
    result = pretrain(recipe, params.cluster, params.tracking, home)
    history = result.state.history
    write_metrics(home / "metrics/pretrain.json", summary(history, params.training.select))
    write_curves(home / "plots/training.csv", history)
    print(f"run {result.run}\nbundle {result.bundle}  sha256 {result.bundle_sha256}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main()
    except AgaError as error:
        sys.exit(f"error: {error}")
