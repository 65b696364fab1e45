"""Train and measure one cell of the comparison: one variant, some pairs, one seed."""

from __future__ import annotations

import argparse
import json
import logging

from aga.tracking import provenance
from benchmarks.comparison import PROJECT, RESULTS, WORK, cell_params, chosen
from benchmarks.quality import train_and_measure


def main() -> None:
    """Write `results/<data>/<variant>-<pairs>-<seed>.json`: every metric, and what it stands on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="phantom")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--pairs", type=int, help="default: all")
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    params = cell_params(chosen(options.variant), options.data, options.pairs, options.seed)
    found = train_and_measure(params, WORK / options.data)
    dependence = {
        name.removeprefix("diagnostics/"): value
        for name, value in found.best.items()
        if name.endswith("_dependence")
    }
    row = {
        "data": options.data,
        "variant": options.variant,
        "pairs": options.pairs,
        "seed": options.seed,
        "epoch": found.best["epoch"],
        "epochs": params.training.epochs,
        "seconds": round(found.seconds),
        "metrics": {n: v for result in found.results for n, v in result.flat().items()},
        "chance": {n: m.chance for result in found.results for n, m in result.values.items()},
        "dependence": dependence,
        "git_commit": provenance(PROJECT).get("git_commit", "unknown"),
    }
    size = "all" if options.pairs is None else options.pairs
    path = RESULTS / options.data / f"{options.variant}-{size}-{options.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    main()
