"""What the stages' command lines share: options, params, the log, errors a person can read."""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aga.errors import AgaError

if TYPE_CHECKING:
    from aga.params import Params
    from aga.settings import Checked


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows where the params and the project's folder are; never values."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--home", type=Path, help="folder of relative paths; default: the params'")
    return parser


def load(options: argparse.Namespace) -> tuple[Params, Path]:
    """The validated params, and the absolute folder that their relative paths start from."""
    from aga.params import load_params  # with every component: seconds that `--help` need not wait

    return load_params(options.params), _home(options)


def load_sections(options: argparse.Namespace, schema: type[Checked]) -> tuple[Checked, Path]:
    """The same of some sections only: whoever needs no component need not wait for them all."""
    from aga.settings import read_sections

    return read_sections(options.params, schema), _home(options)


def _home(options: argparse.Namespace) -> Path:
    home: Path = options.home or options.params.parent
    return home.resolve()


def write_json(path: Path, values: object) -> None:
    """Write a metrics file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` to the end of the process; an error of the user's is one message."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        status = main()
        sys.stdout.flush()
    except AgaError as error:
        with suppress(BrokenPipeError):
            sys.stdout.flush()  # the error is the last thing told, where both go to one place
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # who pressed Ctrl-C knows where
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush
        sys.exit(128 + signal.SIGPIPE)  # as other tools end before `head`
    sys.exit(status)


def _nobody_reads() -> bool:
    """Whether the reader of our output is gone, and not that of another pipe of ours."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in reader.poll(0))
