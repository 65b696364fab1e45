"""Quality of the demo's encoder on test patients, over seeds.

Needs `data/studies` and `data/tokens` of the committed params (`dvc repro tokenize`). Each seed
draws its own weights, order and augmentations; the data stay the same.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from pathlib import Path

from aga.data.studies import StudyDataset
from aga.evaluation import Metrics
from aga.params import Params, load_params
from benchmarks.quality import train_and_measure
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
    """Train and measure one seed."""
    found = train_and_measure(params.model_copy(update={"seed": seed}), home)
    studies = StudyDataset.open(home / "data/studies")
    return {
        "seed": seed,
        "pairs": len(studies.rows("train")),
        "gallery": len(studies.rows("test")),
        "seconds": round(found.seconds),
        **measured(found.results),
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
