"""Stage `tokenize`: data/studies/ becomes data/tokens/, row for row.

Here or on RAY_ADDRESS's cluster. After a kill the same command goes on from finished shards.
"""

from __future__ import annotations

from dataclasses import asdict

from aga.command import load, option_parser, run, write_json
from aga.data.cluster import open_workers
from aga.data.tokenizing.tokens import tokenize


def main(arguments: list[str] | None = None) -> None:
    """Run the stage and write metrics/tokenize.json."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
    config = params.tokenizer
    if config.path is not None:
        config = config.model_copy(update={"path": str(home / config.path)})
    with open_workers(home) as workers:
        summary = tokenize(home / "data/studies", home / "data/tokens", config, workers)
    write_json(home / "metrics/tokenize.json", asdict(summary))


if __name__ == "__main__":
    run(main)
