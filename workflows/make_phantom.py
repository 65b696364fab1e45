"""Stage `phantom`: draw synthetic radiographs and reports, in a raw layout like a hospital's."""

from __future__ import annotations

from aga.command import load, option_parser, run
from aga.data.sources.phantom import generate


def main() -> None:
    """Write data/raw/phantom, whichever source params.yaml names."""
    params, home = load(option_parser(__doc__).parse_args())
    generate(home / "data/raw/phantom", params.phantom, params.seed)


if __name__ == "__main__":
    run(main)
