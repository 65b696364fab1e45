"""Stage `evaluate`: measure the registered encoder on the test patients, from raw pairs."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from aga.bundle import load_bundle
from aga.data.studies import StudyDataset
from aga.errors import AgaError
from aga.evaluation import evaluate, format_table, write_metrics
from aga.params import load_params
from aga.registry import RegisteredVersion, load_registered


def main(arguments: list[str] | None = None) -> None:
    """Write `metrics/retrieval.json` and `metrics/zero_shot.json`, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="folder of relative paths; default: the params'")
    options = parser.parse_args(arguments)
    params = load_params(options.params)
    home = (options.home or options.params.parent).resolve()
    version = RegisteredVersion.read(home / "models/registered.json")
    folder = load_registered(params.registry, params.tracking, home, version=version)
    results = evaluate(
        load_bundle(folder, "cuda" if torch.cuda.is_available() else "cpu"),
        StudyDataset.open(home / "data/studies"),
        home / "data/cache",
        params.evaluation,
        seed=params.seed,
    )
    write_metrics(results, home / "metrics")
    print(format_table(results))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main()
    except AgaError as error:
        sys.exit(f"error: {error}")
