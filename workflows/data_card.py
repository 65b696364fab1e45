"""Stage `data_card`: what data/studies/ holds, as a page of numbers that name nobody."""

from __future__ import annotations

from aga.command import load, option_parser, run
from aga.data.preparing.card import build_card


def main(arguments: list[str] | None = None) -> None:
    """Write `reports/data_card.html`."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
    out = home / "reports/data_card.html"
    build_card(out, home / "data/studies", params.data_card)
    print(out)


if __name__ == "__main__":
    run(main)
