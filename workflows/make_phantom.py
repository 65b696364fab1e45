"""Draw the phantom: synthetic radiographs and reports in a raw layout, for `prepare` to read."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from aga.data.sources.phantom import generate
from aga.params import load_params


def main() -> None:
    """Write data/raw/phantom, whichever source params.yaml names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="what relative paths start from [its folder]")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    params = load_params(arguments.params)
    home = arguments.home or arguments.params.parent
    generate(home / "data/raw/phantom", params.phantom, params.seed)


if __name__ == "__main__":
    main()
