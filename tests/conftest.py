"""What every test shares: run-time shape checks, golden files, offline defaults, skip reasons."""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

# Before any library reads them: no telemetry, no network, one thread for reproducible sums.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Every shape and type in a signature of the library is checked at run time, in all tests.
install_import_hook("aga", "shape_checks.checked")

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden/*.json from what the code gives now; review the diff",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A busy machine is no failure of a property.
    hypothesis.settings.register_profile("aga", deadline=None)
    hypothesis.settings.load_profile("aga")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {"realdata": _no_realdata(), "browser": _no_browser()}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_realdata() -> str | None:
    folder = os.environ.get("AGA_REALDATA")
    if not folder:
        return "AGA_REALDATA is not set: the folder of real radiographs"
    return None if Path(folder).is_dir() else f"AGA_REALDATA is not a folder: {folder}"


def _no_browser() -> str | None:
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a JSON-able object with `tests/golden/<name>.json`; --update-golden writes it.

    With `rtol`, numbers may differ by so much of themselves: no two processors round alike.
    """

    def compare(name: str, value: object, rtol: float = 0.0) -> None:
        path = GOLDEN / f"{name}.json"
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.is_file():
            pytest.fail(f"{path} is missing: run with --update-golden and review it")
        stored = path.read_text(encoding="utf-8")
        if stored != text and not _near(json.loads(stored), json.loads(text), rtol):
            lines = difflib.unified_diff(
                stored.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=1
            )
            pytest.fail(f"{path.name} differs (--update-golden accepts):\n" + "\n".join(lines))

    return compare


def _near(one: object, other: object, rtol: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=rtol)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(_near(a, b, rtol) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return all(_near(value, other[key], rtol) for key, value in one.items())
    return one == other
