# make demo [PRESET=tiny] [ROOT=folder]   raw pairs -> registered, measured encoder -> report
# make test                               lint, types, layers, size gate, every test
# make test-fast                          the quick tests
# make mutants                            every mistake planted in the objectives is caught by a test
# make lint                               lint, types, layers, size gate
# make format                             let ruff fix what it can
# make lock                               write requirements.lock anew from pyproject.toml

PYTHON ?= python3
PRESET ?= tiny
ROOT ?=
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1

.PHONY: demo test test-fast mutants lint format lock

demo: $(READY)
	@python workflows/demo.py --preset $(PRESET) $(if $(ROOT),--root $(ROOT))

test: lint
	@pytest

test-fast: $(READY)
	@pytest -m "not slow and not browser"

mutants: $(READY)
	@python -m benchmarks.mutants --check

lint: $(READY)
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports
	@python tools/style_metrics.py aga workflows --top 3 --fail-on 'fn_p95<=30' 'fn_max<=60' \
	  'args_max<=8' 'file_max<=350' 'typed_pct>=100' 'documented_pct>=90' 'cycles<=0'

format: $(READY)
	@ruff check --fix .
	@ruff format .

# The environment is made anew when what it should hold has changed, so it is never stale.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name it with make PYTHON=..."; exit 1; }
	@echo "making $(VENV) from requirements.lock: two minutes or more"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

lock:
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet -e '.[dev]' setuptools
	@$(VENV)/bin/pip freeze --all --exclude-editable --exclude pip > requirements.lock
	@touch $(READY)
