"""Say in plain words what is wrong with this project's folder, and what to do about it."""

from __future__ import annotations

import os

from aga.command import load_sections, option_parser, run
from aga.doctor import KeptConfig, examine, examine_jobs, repair


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; 1 where something is wrong, and stays so."""
    parser = option_parser(__doc__)
    parser.add_argument("--fix", action="store_true", help="put right what can be, then look again")
    parser.add_argument("--address", help="also look at the jobs of this cluster: http://host:8265")
    options = parser.parse_args(arguments)
    kept, home = load_sections(options, KeptConfig)
    storage = (home / kept.cluster.storage).resolve()
    findings = examine(home, storage, kept.tracking)
    if options.fix:
        for line in repair(findings):
            print(line)
        findings = examine(home, storage, kept.tracking)
    address = options.address or os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        findings += examine_jobs(address)
    for finding in sorted(findings, key=lambda finding: not finding.wrong):
        print(finding)
    return int(any(finding.wrong for finding in findings))


if __name__ == "__main__":
    run(main)
