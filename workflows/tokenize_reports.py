"""Stage `tokenize`: data/studies/ becomes data/tokens/, row for row."""

from __future__ import annotations

from dataclasses import asdict

from aga.command import load, option_parser, run, write_json
from aga.data.tokens import tokenize


def main(arguments: list[str] | None = None) -> None:
    """Run the stage and write metrics/tokenize.json."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
    config = params.tokenizer
    if config.path is not None:
        config = config.model_copy(update={"path": str(home / config.path)})
    summary = tokenize(home / "data/studies", home / "data/tokens", config)
    write_json(home / "metrics/tokenize.json", asdict(summary))


if __name__ == "__main__":
    run(main)
