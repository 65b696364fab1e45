"""Stage `promote`: move @champion to the registered version if the gate's metric is not worse."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from aga.errors import AgaError
from aga.evaluation import read_metrics
from aga.params import load_params
from aga.registry import RegisteredVersion, promote, roll_back, set_metrics


def main(arguments: list[str] | None = None) -> None:
    """Keep the measured metrics with the version, decide, and write `metrics/promotion.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="folder of relative paths; default: the params'")
    parser.add_argument("--roll-back", action="store_true", help="make the last champion it again")
    options = parser.parse_args(arguments)
    params = load_params(options.params)
    home = (options.home or options.params.parent).resolve()
    store = (params.registry, params.tracking, home)
    if options.roll_back:
        print(f"version {roll_back(*store)} is @champion again")
        return
    version = RegisteredVersion.read(home / "models/registered.json")
    for result in read_metrics(home / "metrics"):
        measured_on = str(result.provenance["gallery_sha256"])
        set_metrics(version, result.flat(), *store, measured_on=measured_on)
    decision = promote(version, params.promotion, *store)
    text = json.dumps(decision.to_json(), indent=2) + "\n"
    (home / "metrics/promotion.json").write_text(text, encoding="utf-8")
    verdict = "is" if decision.promoted else "is not"
    print(f"version {version.version} {verdict} @champion: {decision.reason}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main()
    except AgaError as error:
        sys.exit(f"error: {error}")
