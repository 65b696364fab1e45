"""Stage `tokenize`: data/studies/ becomes data/tokens/, row for row."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from aga.data.tokens import tokenize
from aga.errors import AgaError
from aga.params import load_params


def main(arguments: list[str] | None = None) -> None:
    """Run the stage and write metrics/tokenize.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="folder of relative paths; default: the params'")
    options = parser.parse_args(arguments)
    params = load_params(options.params)
    home = options.home or options.params.absolute().parent
    config = params.tokenizer
    if config.path is not None:
        config = config.model_copy(update={"path": str(home / config.path)})
    summary = tokenize(home / "data/studies", home / "data/tokens", config)
    (home / "metrics").mkdir(exist_ok=True)
    metrics = json.dumps(asdict(summary), indent=2) + "\n"
    (home / "metrics/tokenize.json").write_text(metrics, encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main()
    except AgaError as error:
        sys.exit(f"error: {error}")
