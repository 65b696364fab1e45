"""Stage `register`: the exported bundle becomes a version of the registered model, @candidate."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from aga.errors import AgaError
from aga.params import load_params
from aga.registry import register
from aga.tracking import provenance


def main(arguments: list[str] | None = None) -> None:
    """Register `models/encoder` and state its version in `models/registered.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="folder of relative paths; default: the params'")
    options = parser.parse_args(arguments)
    params = load_params(options.params)
    home = (options.home or options.params.parent).resolve()
    version = register(
        home / "models/encoder", params.registry, params.tracking, home, tags=provenance(home)
    )
    version.write(home / "models/registered.json")
    print(f"{version.model} version {version.version}, @candidate")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main()
    except AgaError as error:
        sys.exit(f"error: {error}")
