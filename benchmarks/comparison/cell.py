"""Train and measure one cell of the comparison: one variant on some pairs, with every seed."""

from __future__ import annotations

import argparse
import json
import logging

from aga.tracking import provenance
from benchmarks.comparison import PROJECT, RESULTS, WORK, cell_params, chosen, settings
from benchmarks.quality import train_and_measure


def main() -> None:
    """Write `results/<data>-<pairs>-<variant>.json`: a row for each seed, or for each fold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="an entry of `data` in settings.yaml")
    parser.add_argument("--variant", required=True, help="an entry of `variants`")
    parser.add_argument("--pairs", type=int, help="default: all")
    options = parser.parse_args()
    source = settings()["data"][options.data]
    if "folds" in source:  # of cross-validation: a data set and a model each
        models = [(f"{options.data}-{fold}", 0) for fold in range(source["folds"])]
    else:
        models = [(options.data, seed) for seed in source["seeds"]]
    rows = [row(options.variant, data, options.pairs, seed) for data, seed in models]
    name = f"{options.data}-{options.pairs or 'all'}-{options.variant}.json"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def row(variant: str, data: str, pairs: int | None, seed: int) -> dict[str, object]:
    """One model: every metric with its chance level, and what it stands on."""
    params = cell_params(chosen(variant), data, pairs, seed)
    size = pairs or "all"
    # One bundle of each cell stays, for what looks at a single model: `benchmarks.explanation`.
    bundle = None if seed else WORK / "bundles" / f"{data}-{size}-{variant}"
    found = train_and_measure(params, WORK / data, bundle)
    dependence = {
        name.removeprefix("diagnostics/"): value
        for name, value in found.best.items()
        if name.startswith("diagnostics/") and ("dependence" in name or "gap" in name)
    }
    return {
        "data": data,
        "variant": variant,
        "pairs": pairs,
        "seed": seed,
        "epoch": found.best["epoch"],
        "epochs": params.training.epochs,
        "seconds": round(found.seconds),
        "metrics": {n: round(v, 5) for r in found.results for n, v in r.flat().items()},
        "chance": {
            n: round(m.chance, 5)
            for r in found.results
            for n, m in r.values.items()
            if n.count("/") == 1
        },
        "dependence": {n: round(v, 5) for n, v in dependence.items()},
        "git_commit": provenance(PROJECT).get("git_commit", "unknown"),
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    main()
