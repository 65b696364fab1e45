"""Quality of the demo's encoder on test patients, over seeds.

Needs `data/studies` and `data/tokens` of the committed params (`dvc repro tokenize`). Each seed
draws its own weights, order and augmentations; the data stay the same.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

from aga.bundle import load_bundle
from aga.data.studies import StudyDataset
from aga.evaluation import Metrics, evaluate
from aga.params import Params, load_params
from aga.training.export import export_bundle
from aga.training.run import Recipe, RunData, run_local
from benchmarks.rows import write_rows

LIMITS = {
    "zero_shot/mean_auroc": 0.85,
    "retrieval/text_to_image/recall_at_10": 0.80,
    "retrieval/image_to_text/recall_at_10": 0.80,
}
GALLERY = 400  # at least


def main() -> int:
    """Train and measure each seed, and print the means with 95 % intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path.cwd(), help="holds params.yaml and data/")
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    options = parser.parse_args()
    home = options.home.resolve()
    params = load_params(home / "params.yaml")
    rows = [row(params, seed, home) for seed in options.seeds]
    print(write_rows("demo_quality", rows))
    missed = 0
    for name, limit in LIMITS.items():
        values = [float(str(r[name])) for r in rows]
        spread = interval(values)
        missed += min(values) < limit
        print(f"{name:<40}{statistics.mean(values):.3f} ± {spread:.3f}   each >= {limit}: {values}")
    missed += any(int(str(r["gallery"])) < GALLERY for r in rows)
    return int(options.check and missed > 0)


def row(params: Params, seed: int, home: Path) -> dict[str, object]:
    """Train one seed without Ray, and measure the bundle it leaves."""
    recipe = Recipe(**{name: getattr(params, name) for name in Recipe.model_fields})
    recipe = recipe.model_copy(update={"seed": seed})
    start = time.perf_counter()
    state = run_local(recipe, home)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        data = RunData.open(home)
        export_bundle(bundle, recipe=recipe, data=data, home=home, state=state, names={})
        studies = StudyDataset.open(home / "data/studies")
        cache = home / "data/cache"
        results = evaluate(load_bundle(bundle), studies, cache, params.evaluation, seed=seed)
    gallery = len(studies.rows("test"))
    return {
        "seed": seed,
        "pairs": len(studies.rows("train")),
        "gallery": gallery,
        "seconds": round(seconds),
        **measured(results),
    }


def measured(results: list[Metrics]) -> dict[str, float]:
    """Value and chance level of the limited metrics."""
    metrics = {name: metric for result in results for name, metric in result.values.items()}
    values = {name: round(metrics[name].value, 4) for name in LIMITS}
    return values | {f"{name}/chance": round(metrics[name].chance, 4) for name in LIMITS}


def interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of the mean (Student's t, few seeds)."""
    if len(values) < 2:
        return float("nan")
    student = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 2.0)
    return float(student * statistics.stdev(values) / len(values) ** 0.5)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(main())
