"""One damaged image, examined in a worker process that ends itself when it takes too long."""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path

from aga.data.preparing.examine import examine
from aga.data.preparing.parts import Recipe
from aga.data.schema import Reject, Study

LIMIT_S = 20.0
REPORT = "FINDINGS: An opacity is seen."


def probe(path: Path, recipe: Recipe) -> tuple[str, str, float, float]:
    """Examine one image in this process: reason and detail, or two empty strings; seconds; MiB.

    A process that is over the time limit ends itself.
    """
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    start = time.perf_counter()
    study = Study("P", "S", path, REPORT, "one")
    found = examine(study, recipe.image, recipe.report, recipe.views)
    seconds = time.perf_counter() - start
    faulthandler.cancel_dump_traceback_later()
    reason = (found.reason, found.detail) if isinstance(found, Reject) else ("", "")
    return (*reason, seconds, peak_mib())


def peak_mib() -> float:
    """The most memory that this program held; `getrusage` would count what ran before `exec`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
