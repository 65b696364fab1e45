"""Stage `register`: the exported bundle becomes a version of the registered model, @candidate."""

from __future__ import annotations

from aga.command import load, option_parser, run
from aga.registry import register
from aga.tracking import provenance


def main(arguments: list[str] | None = None) -> None:
    """Register `models/encoder` and state its version in `models/registered.json`."""
    options = option_parser(__doc__).parse_args(arguments)
    params, home = load(options)
    version = register(
        home / "models/encoder", params.registry, params.tracking, home, tags=provenance(home)
    )
    version.write(home / "models/registered.json")
    print(f"{version.model} version {version.version}, @candidate")


if __name__ == "__main__":
    run(main)
