"""Prepare one data set of the comparison, as the line's stages do: `work/<name>/data/`."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from aga.data.preparing.prepare import prepare
from aga.data.sources import open_source
from aga.data.sources.phantom import generate
from aga.data.tokenizing.tokens import tokenize
from benchmarks.comparison import WORK, composed, data_settings


def main() -> None:
    """Draw the phantom, or read real pairs from the folder in AGA_REALDATA; prepare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="an entry of `data` in settings.yaml")
    options = parser.parse_args()
    params = composed(data_settings(options.data)["overlay"])
    home = WORK / options.data
    name = params.source.name
    root = home / "data/raw" / name
    if name == "phantom":
        generate(root, params.phantom, params.seed)
    else:
        root = Path(os.environ.get("AGA_REALDATA", "data/raw")) / name.replace("_", "-")
    source = open_source(name, params.source)
    prepare(source, root, home / "data/studies", params.prepare, params.seed, name)
    tokenize(home / "data/studies", home / "data/tokens", params.tokenizer)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
