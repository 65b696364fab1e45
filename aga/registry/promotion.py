"""The gate: a candidate becomes the champion if it is not worse, and people can read why."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from aga.config import Config
from aga.errors import TrackingError
from aga.registry.versions import (
    CHAMPION,
    MEASURED_ON_TAG,
    METRIC_TAG,
    RegisteredVersion,
    RegistryConfig,
    Version,
    find_version,
    set_tags,
)
from aga.tracking.store import Client, TrackingConfig, open_client, tracking_errors

log = logging.getLogger(__name__)

PREVIOUS_TAG = "promoted_over"
"""Version number of the champion before; empty where there was none."""
ROLLED_BACK_TAG = "rolled_back_at"


class PromotionConfig(Config):
    """The gate.

    Attributes:
        metric: Name of a metric of the evaluation; larger is better.
        tolerance: How much smaller than the champion's the candidate's value may be.
    """

    metric: str = Field(min_length=1)
    tolerance: float = Field(ge=0)


@dataclass(frozen=True)
class PromotionDecision:
    """What was decided about a candidate, and why.

    Attributes:
        promoted: Whether the candidate is the champion now.
        reason: Why, in words.
        metric: The gate's metric.
        candidate: Version number.
        candidate_value: Its metric.
        champion: Version number of the champion before; None where there was none.
        champion_value: Its metric; None where it was never measured.
        comparable: Whether both values were measured on the same data; None without a champion.
    """

    promoted: bool
    reason: str
    metric: str
    candidate: int
    candidate_value: float
    champion: int | None
    champion_value: float | None
    comparable: bool | None

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON."""
        return asdict(self)


def promote(
    version: RegisteredVersion | int,
    config: PromotionConfig,
    registry: RegistryConfig,
    tracking: TrackingConfig,
    home: Path,
) -> PromotionDecision:
    """Move @champion to a version if the gate's metric is not worse than the champion's.

    Without a champion, the version becomes the first. Against a champion that was measured on other
    data, or never, no comparison is fair: the version is promoted, as the champion says nothing
    about today's data, and the decision says so. A version that was rolled back stays so until a
    person deletes its tag `rolled_back_at`. Repeating a promotion changes nothing.

    Args:
        version: The candidate, or its number.
        config: The gate.
        registry: The registered model.
        tracking: The store.
        home: Folder that the configuration's relative paths resolve against.

    Raises:
        TrackingError: There is no such version, its metric was not measured or is not a number, or
            the store is away or refuses.
    """
    with tracking_errors("The candidate cannot be promoted.", tracking, home):
        client = open_client(tracking, home)
        candidate = find_version(client, registry.model, version)
        champion = _champion(client, registry.model)
        decision = _decide(candidate, champion, config)
        if decision.promoted and decision.champion != decision.candidate:
            _audit(client, candidate, decision)
            client.set_registered_model_alias(registry.model, CHAMPION, candidate.version)
    if decision.comparable is False:
        log.warning("%s", decision.reason)
    return decision


def roll_back(registry: RegistryConfig, tracking: TrackingConfig, home: Path) -> int:
    """Move @champion back to the version that was the champion before.

    Returns:
        The number of the version that is the champion now.

    Raises:
        TrackingError: There is no champion, or none before it, or the store is away.
    """
    with tracking_errors("The champion cannot be rolled back.", tracking, home):
        client = open_client(tracking, home)
        champion = find_version(client, registry.model, CHAMPION)
        previous = champion.tags.get(PREVIOUS_TAG)
        if not previous:
            raise TrackingError(
                "There was no champion before this one.",
                where=registry.model,
                got=f"version {champion.version}",
            )
        find_version(client, registry.model, int(previous))
        set_tags(client, champion, {ROLLED_BACK_TAG: _today()})
        client.set_registered_model_alias(registry.model, CHAMPION, previous)
    return int(previous)


def _champion(client: Client, model: str) -> Version | None:
    number = client.get_registered_model(model).aliases.get(CHAMPION)
    return None if number is None else find_version(client, model, int(number))


def _decide(
    candidate: Version, champion: Version | None, config: PromotionConfig
) -> PromotionDecision:
    value = _gate_value(candidate, config.metric)
    if value is None:
        raise TrackingError(
            "The candidate has no value of the gate's metric.",
            where=f"{candidate.name}, version {candidate.version}",
            expected=f"a tag {METRIC_TAG}{config.metric}",
            fix="run workflows/evaluate.py, or name a metric in promotion.metric that it measures",
        )
    best = _gate_value(champion, config.metric) if champion else None
    comparable = None if champion is None else _comparable(candidate, champion) and best is not None
    promoted, reason = _verdict(candidate, champion, value, best if comparable else None, config)
    return PromotionDecision(
        promoted=promoted,
        reason=reason,
        metric=config.metric,
        candidate=int(candidate.version),
        candidate_value=value,
        champion=int(champion.version) if champion else None,
        champion_value=best,
        comparable=comparable,
    )


def _verdict(
    candidate: Version,
    champion: Version | None,
    value: float,
    best: float | None,
    config: PromotionConfig,
) -> tuple[bool, str]:
    """Whether to promote, and why; `best` is the champion's value where it is comparable."""
    if champion is not None and champion.version == candidate.version:
        return True, "it is the champion already"
    if ROLLED_BACK_TAG in candidate.tags:
        return False, f"it was rolled back at {candidate.tags[ROLLED_BACK_TAG]}"
    if champion is None:
        return True, "there is no champion yet"
    if best is None:
        return True, (
            f"not comparable: champion version {champion.version} was not measured on the same data"
        )
    bound = best - config.tolerance
    if value >= bound:
        return True, f"{value:.4f} is not below {bound:.4f}, the champion's less the tolerance"
    return False, f"{value:.4f} is below {bound:.4f}, the champion's less the tolerance"


def _comparable(candidate: Version, champion: Version) -> bool:
    measured_on = candidate.tags.get(MEASURED_ON_TAG)
    return measured_on is not None and measured_on == champion.tags.get(MEASURED_ON_TAG)


def _gate_value(version: Version, metric: str) -> float | None:
    """The metric of a version; None where it has none that is a finite number."""
    value = float(version.tags.get(f"{METRIC_TAG}{metric}", "nan"))
    return value if math.isfinite(value) else None


def _audit(client: Client, candidate: Version, decision: PromotionDecision) -> None:
    previous = "" if decision.champion is None else str(decision.champion)
    tags = {
        PREVIOUS_TAG: previous,
        "promoted_at": _today(),
        "promotion_metric": decision.metric,
        "promotion_value": repr(decision.candidate_value),
        "promotion_reason": decision.reason,
    }
    set_tags(client, candidate, tags)


def _today() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
