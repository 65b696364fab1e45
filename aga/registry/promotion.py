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
from aga.registry.measured import METRIC_TAG, measured_on_tag
from aga.registry.versions import (
    CHAMPION,
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
ACCEPT = "to accept it nevertheless: `python workflows/promote.py --accept-incomparable`"


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
        comparable: Whether both values were measured on the same data, and with the same prompts;
            None without a champion.
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
    *,
    accept_incomparable: bool = False,
) -> PromotionDecision:
    """Move @champion to a version if the gate's metric is not worse than the champion's.

    Without a champion, or after one that was never measured, the version becomes it. With one that
    was measured on other data no comparison is fair: the version is refused, and the decision says
    what a person can do. A version that was rolled back stays so until a person deletes its tag
    `rolled_back_at`. Repeating a promotion changes nothing.

    Args:
        version: The candidate, or its number.
        config: The gate.
        registry: The registered model.
        tracking: The store.
        home: Folder that the configuration's relative paths resolve against.
        accept_incomparable: Promote it although the champion was measured on other data.

    Raises:
        TrackingError: There is no such version, its metric was not measured or is not a number, or
            the store is away or refuses.
    """
    with tracking_errors("The candidate cannot be promoted.", tracking, home):
        client = open_client(tracking, home)
        candidate = find_version(client, registry.model, version)
        champion = _champion(client, registry.model)
        decision = _decide(candidate, champion, config, accept_incomparable)
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
    candidate: Version, champion: Version | None, config: PromotionConfig, accept: bool
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
    comparable = None
    if champion is not None:
        comparable = best is not None and _same_data(candidate, champion, config.metric)
    promoted, reason = _verdict(
        candidate, champion, (value, best), config, comparable=comparable, accept=accept
    )
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
    values: tuple[float, float | None],
    config: PromotionConfig,
    *,
    comparable: bool | None,
    accept: bool,
) -> tuple[bool, str]:
    """Whether to promote, and why; `values` are the candidate's and the champion's."""
    value, best = values
    if champion is not None and champion.version == candidate.version:
        return True, "it is the champion already"
    if ROLLED_BACK_TAG in candidate.tags:
        return False, f"it was rolled back at {candidate.tags[ROLLED_BACK_TAG]}"
    if champion is None:
        return True, "there is no champion yet"
    if best is None:
        return True, f"champion version {champion.version} was never measured by this metric"
    if not comparable:
        reason = f"not comparable: champion version {champion.version} was measured on other data"
        return accept, f"{reason}; {'accepted nevertheless' if accept else ACCEPT}"
    bound = best - config.tolerance
    verb = "is not" if value >= bound else "is"
    reason = f"{value:.4f} {verb} below {bound:.4f}, the champion's less the tolerance"
    return value >= bound, reason


def _same_data(candidate: Version, champion: Version, metric: str) -> bool:
    tag = measured_on_tag(metric)
    measured_on = candidate.tags.get(tag)
    return measured_on is not None and measured_on == champion.tags.get(tag)


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
