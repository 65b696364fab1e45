"""One pair explained: which patches each word chose, which words each patch; PNG, JSON, HTML."""

from __future__ import annotations

from pathlib import Path

from aga.bundle import load_bundle
from aga.command import load, option_parser, run
from aga.data.studies import StudyDataset
from aga.explain import explain
from aga.explain.files import private_folder, require_shown, write_explanation


def main(arguments: list[str] | None = None) -> None:
    """Write `row-<row>.png`, `.json` and `.html`."""
    parser = option_parser(__doc__)
    parser.add_argument("--row", type=int, required=True, help="row of the manifest")
    parser.add_argument("--bundle", type=Path, help="folder of the encoder; models/encoder")
    parser.add_argument("--out", type=Path, help="folder to write to; reports/explain")
    parser.add_argument(
        "--private", action="store_true", help="patients' data too, for your eyes: private/explain"
    )
    options = parser.parse_args(arguments)
    if options.private and options.out:
        parser.error("--private has a folder of its own; leave --out out")
    _, home = load(options)
    studies = StudyDataset.open(home / "data/studies")
    if not options.private:
        require_shown(studies)
    bundle = load_bundle(options.bundle or home / "models/encoder")
    (found,) = explain(bundle, studies, home / "data/cache", [options.row])
    out = private_folder(home) if options.private else options.out or home / "reports/explain"
    for path in write_explanation(out, found, note=f"Bundle {bundle.sha256[:12]}"):
        print(path)
    if options.private:
        print("Only you can open this folder; git, DVC and Ray leave it alone. Pass nothing on.")


if __name__ == "__main__":
    run(main)
