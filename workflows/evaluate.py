"""Stage `evaluate`: measure the registered encoder on the test patients, from raw pairs."""

from __future__ import annotations

import torch

from aga.bundle import load_bundle
from aga.command import load, option_parser, run
from aga.data.splitting.leaks import refuse_leaks
from aga.data.studies import StudyDataset
from aga.evaluation import evaluate, format_table, write_metrics
from aga.registry import RegisteredVersion, load_registered


def main(arguments: list[str] | None = None) -> None:
    """Write `metrics/<task>.json` for every task, and print them as a table."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
    studies = StudyDataset.open(home / "data/studies")
    refuse_leaks(studies, params.leaks, home)
    version = RegisteredVersion.read(home / "models/registered.json")
    folder = load_registered(params.registry, params.tracking, home, version=version)
    results = evaluate(
        load_bundle(folder, "cuda" if torch.cuda.is_available() else "cpu"),
        studies,
        home / "data/cache",
        params.evaluation,
        seed=params.seed,
    )
    write_metrics(results, home / "metrics")
    print(format_table(results))


if __name__ == "__main__":
    run(main)
