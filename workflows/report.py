"""Stage `report`: a self-contained page of what the line made, also kept with the MLflow run."""

from __future__ import annotations

from aga.command import load, option_parser, run
from aga.registry import RegisteredVersion, load_registered
from aga.report.page import ReportInputs, build_report
from aga.tracking import attach_artifact, provenance


def main(arguments: list[str] | None = None) -> None:
    """Write `reports/report.html` from the files of the stages before."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
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
    run(main)
