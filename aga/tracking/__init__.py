"""MLflow runs that can never stop or slow a training: everything goes to a local file first.

    store.py        where runs are kept: the address, its creation, the `mlflow ui` command
    spool.py        the local file: one JSON line per event, and how far it has been sent
    writer.py       the thread that writes it, and what waits for the disk in memory
    delivery.py     a spool's lines to MLflow, in order, each once
    runs.py         what a program calls: start a run, log, finish; replay a spool
    stale.py        runs that MLflow shows as running, and nobody writes any more
    provenance.py   which code and data a run stands on

Contract: `start_run`, and every method of the `Tracker` it returns, raises nothing because of a
server, a store or a full disk; the other functions raise `TrackingError`. Numbers, settings and
hashes are logged; report text, patient identifiers and names of patients' files never are, but for
pages of data that its source declares free of patients (`Tracker.log_page`).

May import `aga.errors` and `aga.config`. MLflow is optional and imported inside functions, so that
training works where it is not installed.
"""

from aga.tracking.provenance import provenance
from aga.tracking.runs import (
    Status,
    Tracker,
    attach_artifact,
    close_children,
    is_delivered,
    replay,
    start_run,
)
from aga.tracking.spool import last_status
from aga.tracking.stale import Life, RunningRun, close_run, running_runs, write_end
from aga.tracking.store import TrackingConfig, mlflow_ui_command

__all__ = [
    "Life",
    "RunningRun",
    "Status",
    "Tracker",
    "TrackingConfig",
    "attach_artifact",
    "close_children",
    "close_run",
    "is_delivered",
    "last_status",
    "mlflow_ui_command",
    "provenance",
    "replay",
    "running_runs",
    "start_run",
    "write_end",
]
