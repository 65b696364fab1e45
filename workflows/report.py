"""Stage `report`: a self-contained page of what the line made, also kept with the MLflow run."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from aga.errors import AgaError
from aga.params import load_params
from aga.registry import RegisteredVersion, load_registered
from aga.report.page import ReportInputs, build_report
from aga.tracking import attach_artifact, provenance


def main(arguments: list[str] | None = None) -> None:
    """Write `reports/report.html` from the files of the stages before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="folder of relative paths; default: the params'")
    options = parser.parse_args(arguments)
    params = load_params(options.params)
    home = (options.home or options.params.parent).resolve()
    registered = RegisteredVersion.read(home / "models/registered.json")
    version = {"model version": f"{registered.model} version {registered.version}"}
    inputs = ReportInputs(
        metrics=home / "metrics",
        history=home / "plots/training.csv",
        studies=home / "data/studies",
        cache=home / "data/cache",
        bundle=load_registered(params.registry, params.tracking, home, version=registered),
        provenance=version | provenance(home),
    )
    out = home / "reports/report.html"
    build_report(out, inputs, params.report)
    attach_artifact(params.tracking, home, registered.run_id, out)
    print(out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main()
    except AgaError as error:
        sys.exit(f"error: {error}")
