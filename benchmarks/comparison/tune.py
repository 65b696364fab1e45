"""Choose a variant's settings: train its candidates, keep the best on validation patients."""

from __future__ import annotations

import argparse
import json
import logging

from aga.training.history import best_epoch
from aga.training.recipe import Recipe
from aga.training.run import run_local
from benchmarks.comparison import TUNED, WORK, cell_params, merged, settings


def main() -> None:
    """Write `tuned/<variant>.json`: every candidate with its score, and the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", required=True)
    options = parser.parse_args()
    values = settings()
    budget, entry = values["tuning"], values["variants"][options.variant]
    tried = []
    for candidate in entry["candidates"]:
        overlay = merged(entry["overlay"], candidate)
        params = cell_params(
            overlay, budget["data"], budget["pairs"], budget["seed"], budget["steps"]
        )
        recipe = Recipe(**{name: getattr(params, name) for name in Recipe.model_fields})
        history = run_local(recipe, WORK / budget["data"]).history
        select = recipe.training.select
        score = history[best_epoch(history, select) - 1][select.metric]
        tried.append({"candidate": candidate, select.metric: score})
    best = max(tried, key=lambda trial: trial[select.metric])["candidate"]
    TUNED.mkdir(exist_ok=True)
    text = json.dumps({"best": best, "tried": tried}, indent=1) + "\n"
    (TUNED / f"{options.variant}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    main()
