"""The numbers that were measured of a version, kept with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aga.registry.versions import RegisteredVersion, RegistryConfig, find_version, set_tags
from aga.tracking.spool import now
from aga.tracking.store import TrackingConfig, open_client, tracking_errors

METRIC_TAG = "metric."
MEASURED_ON_TAG = "measured_on."


def set_metrics(
    version: RegisteredVersion | int,
    metrics: Mapping[str, float],
    config: RegistryConfig,
    tracking: TrackingConfig,
    home: Path,
    *,
    measured_on: str,
) -> None:
    """Keep measured numbers with a version, as tags `metric.<name>`, and with its run.

    Repeating it with the same numbers changes nothing. In the run the names begin with `test/`,
    apart from those of the validation split.

    Args:
        version: The version, or its number.
        metrics: Value by name.
        config: The registered model.
        tracking: The store.
        home: Folder that the configuration's relative paths resolve against.
        measured_on: What all of them were measured on: hashes of the data, and of prompts. Numbers
            of anything else are not comparable. Kept once per task.

    Raises:
        TrackingError: There is no such version, or the store is away or refuses.
    """
    from mlflow.entities import Metric

    with tracking_errors("The metrics cannot be stored with the model.", tracking, home):
        client = open_client(tracking, home)
        found = find_version(client, config.model, version)
        tags = {f"{METRIC_TAG}{name}": repr(float(value)) for name, value in metrics.items()}
        tags |= {measured_on_tag(name): measured_on for name in metrics}
        new = set_tags(client, found, tags)
        entries = [
            Metric(f"test/{name}", value, now(), 0)
            for name, value in metrics.items()
            if f"{METRIC_TAG}{name}" in new
        ]
        if entries:
            client.log_batch(found.run_id, metrics=entries)


def measured_on_tag(metric: str) -> str:
    """The tag that says what the metrics of a task, the first part of the name, stand on."""
    return MEASURED_ON_TAG + metric.partition("/")[0]
