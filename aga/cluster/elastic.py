"""Workers that become fewer when a node is lost, and more when one comes.

Ray Train has a policy for that, which starts the workers anew with another number of them. Here it
takes only numbers that share a batch evenly, sees a lost node at once instead of within 20 s, lets
the workers save before it starts more of them, and gives up after a while where Ray waits for ever.

Ray's controller imports this, so that nothing of PyTorch is. Imports Ray, so that only whoever
starts workers imports this; its class is of a module, as Ray sends it to another process by name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from aga.cluster.stopping import end_in_order
from aga.errors import ClusterError

logger = logging.getLogger(__name__)

PATIENCE = 1200.0
"""Seconds without enough room for the fewest workers; a fixed number of them waits as long."""
SAVING_SECONDS = 60.0
ANSWER_SECONDS, LOOK_SECONDS = 5.0, 1.0


class ElasticPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """How many workers run, asked in Ray's controller.

    Args:
        scaling: With the fewest and the most workers.
        counts: Numbers of workers that share a batch evenly, rising.
        patience: Seconds to wait for room.
    """

    def __init__(self, scaling: ScalingConfig, counts: Sequence[int], patience: float) -> None:
        super().__init__(scaling)
        self._counts, self._patience = counts, patience
        self._waiting_since: float | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many as there is room for.

        Raises:
            ClusterError: There was no room for the fewest, for too long.
        """
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        if now - self._waiting_since > self._patience:
            raise ClusterError(
                "There is no room for the fewest workers",
                where="cluster.min_workers",
                got=f"{now - self._waiting_since:.0f} s without a node that would make it enough",
                expected=f"room for {self.scaling_config.min_workers}",
                fix="start more nodes, and repeat the command: it resumes from the last checkpoint",
            )
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._tell_once(now)
            time.sleep(LOOK_SECONDS)  # the controller asks again at once
        return decision

    def make_decision_for_running_worker_group(self, *state: Any, **named: Any) -> ScalingDecision:
        """Start more where there is room now, after those that run have saved."""
        self._waiting_since = None
        decision = super().make_decision_for_running_worker_group(*state, **named)
        if isinstance(decision, ResizeDecision):
            group = named["worker_group_state"]
            asked = [worker.execute_async(end_in_order, SAVING_SECONDS) for worker in group.workers]
            ray.wait(asked, num_returns=len(asked), timeout=SAVING_SECONDS)
        return decision

    def _tell_once(self, now: float) -> None:
        if now == self._waiting_since:
            fewest = self.scaling_config.min_workers
            logger.warning("waiting for room for %d worker(s), cluster.min_workers", fewest)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._counts if count <= possible), default=0)

    def _get_reserved_resources(self) -> Any:
        """Of the nodes that live now; Ray's own look at most every 20 s."""
        try:
            return ray.get(
                self._autoscaling_coordinator.get_reserved_resources.remote(
                    self._requester_id, recompute=True
                ),
                timeout=ANSWER_SECONDS,
            )
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("Ray does not say what room there is: %s", error)
            return None
