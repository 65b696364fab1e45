"""Ray's trainer, with workers that may become fewer and more, and an end at Ctrl-C.

Imports Ray, so that only whoever starts workers imports this. What begins with an underscore is
Ray's own, without a promise to stay: tests of elastic workers and of Ctrl-C would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from aga.cluster.elastic import PATIENCE, ElasticPolicy


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray's, but for these two things.

    Args:
        counts: As of `ElasticPolicy`, which is used where there is a range of workers.
        settings: As of Ray's.
    """

    def __init__(self, *arguments: Any, counts: Sequence[int], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._counts = counts
        self._controller: Any = None

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            given["scaling_policy"] = ElasticPolicy(self.scaling_config, self._counts, PATIENCE)
        return super()._initialize_and_run_controller(**given)

    def fit(self) -> Any:
        """Ray's; Ctrl-C, and SIGTERM where no step is waited for, end the workers first."""
        try:
            return super().fit()
        except (KeyboardInterrupt, SystemExit):
            if self._controller is not None:
                ray.kill(self._controller)  # and with it the workers, which are its own
            raise

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C a KeyboardInterrupt.

        Ray's own handler waits for its controller, which answers nobody while it waits for room for
        the workers, minutes long; a third one it ends with exit code 0.
        """
        self._controller = controller
