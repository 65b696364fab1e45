"""Stage `promote`: move @champion to the registered version if the gate's metric is not worse."""

from __future__ import annotations

from aga.command import load, option_parser, run, write_json
from aga.evaluation import read_metrics
from aga.registry import RegisteredVersion, promote, roll_back, set_metrics


def main(arguments: list[str] | None = None) -> None:
    """Keep the measured metrics with the version, decide, and write `metrics/promotion.json`."""
    parser = option_parser(__doc__)
    parser.add_argument("--roll-back", action="store_true", help="make the last champion it again")
    parser.add_argument(
        "--accept-incomparable",
        action="store_true",
        help="promote even over a champion that was measured on other data",
    )
    options = parser.parse_args(arguments)
    params, home = load(options)
    store = (params.registry, params.tracking, home)
    if options.roll_back:
        print(f"version {roll_back(*store)} is @champion again")
        return
    version = RegisteredVersion.read(home / "models/registered.json")
    for result in read_metrics(home / "metrics"):
        set_metrics(version, result.flat(), *store, measured_on=result.measured_on)
    accept = options.accept_incomparable
    decision = promote(version, params.promotion, *store, accept_incomparable=accept)
    write_json(home / "metrics/promotion.json", decision.to_json())
    verdict = "is" if decision.promoted else "is not"
    print(f"version {version.version} {verdict} @champion: {decision.reason}")


if __name__ == "__main__":
    run(main)
