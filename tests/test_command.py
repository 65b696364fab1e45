"""How a script ends: an error in a sentence, Ctrl-C without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys
from aga.command import run
from aga.errors import DataError

def refuse():
    raise DataError("No such thing", fix="look elsewhere")

def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)

def fail():
    raise RuntimeError("a bug")

run({"refuse": refuse, "ctrl-c": press_ctrl_c, "fail": fail, "well": lambda: 3}[sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("refuse", 1, "error: No such thing\n  fix:      look elsewhere\n"),
        ("ctrl-c", 128 + signal.SIGINT, ""),
        ("well", 3, ""),
    ],
)
def test_a_script_ends_in_a_sentence(case: str, code: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, case], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, told)


def test_a_bug_keeps_its_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "fail"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
