"""Run a workflow as a job of a Ray cluster; options of the workflow stand behind `--`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from pathlib import Path

from aga.command import run
from aga.submission import RAY_LIMIT_MIB, build_package, connect, entrypoint, follow, start


def main(arguments: list[str] | None = None) -> int:
    """Pack the current folder, submit, follow; 0 where the job succeeds, 130 where stopped."""
    own = sys.argv[1:] if arguments is None else arguments
    split = own.index("--") if "--" in own else len(own)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", help="a script of workflows/, without .py")
    parser.add_argument("--address", help="the cluster's dashboard; default: RAY_ADDRESS")
    parser.add_argument(
        "--home", type=Path, default=Path(), help="the project's folder as every node mounts it"
    )
    parser.add_argument("--limit", type=float, default=RAY_LIMIT_MIB, help="MiB of the package")
    options = parser.parse_args(own[:split])
    # A shell starts what stands before `&` with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    for noisy in ("ray", "aga.submission.ray"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    project = Path.cwd()
    command = entrypoint(options.workflow, options.home.absolute(), own[split + 1 :], project)
    with tempfile.TemporaryDirectory() as scratch:
        package = build_package(project, Path(scratch) / "package.zip")
        print(f"package {package.mib:.1f} MiB, {len(package.sizes)} files; the largest:")
        print(package.table(), flush=True)
        package.check_size(options.limit)
        client = connect(options.address)
        job = start(client, command, package)
    return follow(client, job, lambda text: print(text, end="", flush=True))


if __name__ == "__main__":
    run(main)
