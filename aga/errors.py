"""Errors a user can act on: what is wrong, where, what was found and expected, what to do."""

from __future__ import annotations


class AgaError(Exception):
    """Base of every error that `aga` raises for a user's input or environment.

    Args:
        what: One sentence that names the problem.
        where: The file, key, row or address concerned. Never report text or a patient's name.
        got: What was found.
        expected: What would have been right.
        fix: The next step for the user.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        details = {"where": where, "got": got, "expected": expected, "fix": fix}
        known = {name: value for name, value in details.items() if value is not None}
        lines = [f"  {name + ':':<10}{value}" for name, value in known.items()]
        super().__init__("\n".join([what, *lines]))


class ParamsError(AgaError):
    """A key or value in params.yaml, a preset or an override is wrong."""


class DataError(AgaError):
    """Raw data, study shards or token shards cannot be used as they are."""


class CheckpointError(AgaError):
    """A checkpoint or a bundle is missing, damaged, or belongs to other data or another config."""


class TrackingError(AgaError):
    """The MLflow tracking store or model registry refused a request."""


class ClusterError(AgaError):
    """The nodes of a cluster differ, or cannot do what the settings ask of them."""
