"""The library trains where Ray, MLflow and DVC are not installed: a GPU box with only torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from fixtures.studies import phantom_rows, write_studies

pytestmark = pytest.mark.slow

PLATFORMS = ("ray", "mlflow", "mlflow-skinny", "mlflow-tracing", "dvc")
TRAINING = """
import sys
from pathlib import Path
import aga, aga.training.loop
from aga.data.tokenizing.tokens import tokenize
from aga.params import load_params
from aga.training.recipe import Recipe
from aga.training.run import run_local

home, params = Path(sys.argv[1]), load_params(Path(sys.argv[2]))
tokenize(home / "data/studies", home / "data/tokens", params.tokenizer)
recipe = Recipe(**{name: getattr(params, name) for name in Recipe.model_fields})
training = recipe.training.model_copy(update={"epochs": 1, "batch_size": 8, "threads": 1})
state = run_local(recipe.model_copy(update={"training": training}), home)
assert state.step == 35 // 8, state.step
loaded = {name.partition(".")[0] for name in sys.modules}
print("imported:", *sorted(loaded & {"ray", "mlflow", "dvc"}))
for platform in ("ray", "mlflow", "dvc"):
    try:
        __import__(platform)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{platform} is installed: this environment proves nothing")
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has all installed packages but the three platforms."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    hidden = {"ray", "mlflow", "dvc"}
    for name in PLATFORMS:
        files = importlib.metadata.files(name) or []
        hidden |= {file.parts[0] for file in files if file.parts[0].endswith(".dist-info")}
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.name not in hidden:
            (packages / entry.name).symlink_to(entry)
    return folder / "bin/python"


def test_training_needs_none_of_the_platforms(bare_python: Path, tmp_path: Path) -> None:
    write_studies(tmp_path / "data/studies", phantom_rows(50), size=32)
    params = Path(__file__).parent.parent / "params.yaml"
    done = subprocess.run(
        [bare_python, "-c", TRAINING, tmp_path, params],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "imported:"


def imported_by(module: str) -> set[str]:
    """The packages that are there after a module is."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_aga_imports_no_platform() -> None:
    assert not imported_by("aga") & {"ray", "mlflow", "dvc", "torch"}


@pytest.mark.parametrize(
    ("module", "not_needed"),
    [
        ("workflows.submit", {"ray", "torch", "pydantic"}),
        ("workflows.doctor", {"ray", "mlflow", "torch"}),
        # Ray's controller, which every start of a run waits for, needs no part of the training.
        ("aga.cluster.listening", {"timm", "transformers", "mlflow"}),
    ],
)
def test_who_waits_for_an_import_needs_it(module: str, not_needed: set[str]) -> None:
    assert not imported_by(module) & not_needed
