"""What the linter must not let pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USES = """
def used(values: Float[np.ndarray, "N"], rows: Int64[np.ndarray, " rows"]) -> int:
    return {name}
"""


@pytest.mark.parametrize(("name", "found"), [("undefined_name", True), ("rows", False)])
def test_undefined_names_are_found_beside_jaxtypings_axes(name: str, found: bool) -> None:
    code = "import numpy as np\nfrom jaxtyping import Float, Int64\n" + USES.format(name=name)
    command = ("check", "--select", "F821", "--stdin-filename", "aga/planted.py", "-")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (name in done.stdout) == found, done.stdout + done.stderr
