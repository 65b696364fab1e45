"""Rebuild the identifier lists of published protocols from a download. No text, no pixels."""

from __future__ import annotations

import argparse
from pathlib import Path

from aga.command import run
from aga.data.splitting.id_lists import BUILDERS


def main(arguments: list[str] | None = None) -> None:
    """Write one list; print its counts and its SHA-256, as `leaks.lists` asks for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=BUILDERS)
    parser.add_argument("--root", type=Path, required=True, help="folder of the download's tables")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    built = BUILDERS[options.name](options.root, options.seed)
    built.write(options.out)
    counts = ", ".join(f"{len(ids)} {group}" for group, ids in built.ids.items())
    print(f"{counts}; {len(built.patients)} patients to keep out of training")
    print(f"leaks.lists: {{{options.out}: {built.sha256}}}")


if __name__ == "__main__":
    run(main)
