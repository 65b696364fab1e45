"""Stage `prepare`: the raw folder becomes data/studies/, here or on RAY_ADDRESS's cluster.

With `--check`, only list its bad rows. After a kill the same command goes on from finished parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aga.command import load, option_parser, run, write_json
from aga.data.cluster import open_workers
from aga.data.pixels.dicom import codecs
from aga.data.preparing.checking import look_through
from aga.data.preparing.prepare import prepare
from aga.data.sources import open_source
from aga.data.sources.layouts import page
from aga.data.splitting.leaks import held_out_lists


def main(arguments: list[str] | None = None) -> int:
    """Run the stage; the exit status is 0, or 1 where the data or the params are wrong."""
    parser = option_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="list each bad row, write nothing")
    parser.add_argument("--source", help="with --check: another source than source.name")
    parser.add_argument("--root", type=Path, help="with --check: another folder than source.root")
    options = parser.parse_args(arguments)
    if not options.check and (options.source or options.root):
        parser.error("--source and --root go with --check; params.yaml says what is prepared")
    params, home = load(options)
    name = options.source or params.source.name
    root = options.root or home / params.source.root
    source = open_source(name, params.source)
    held_out = held_out_lists(params.leaks, home)
    if options.check:
        found = look_through(source, root, params.prepare, held_out)
        print(*found.lines(), sep="\n", file=sys.stderr)
        found.refuse_without_files(root, name)
        for row in found.bad:
            print(f"{row.location}: {row.column or 'row'}: {row.reason} ({row.detail})")
        if found.bad:
            print(
                f"{len(found.bad)} bad rows; {page(name)} says what belongs there", file=sys.stderr
            )
        return 1 if found.bad else 0
    out, config, seed = home / "data/studies", params.prepare, params.seed
    with open_workers(home, root, decoders=codecs()) as workers:
        summary = prepare(source, root, out, config, seed, name, workers, held_out)
    write_json(home / "metrics/prepare.json", summary.to_metrics())
    return 0


if __name__ == "__main__":
    run(main)
