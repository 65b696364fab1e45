"""How many workers a run has, what each needs, and where they save."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from aga.config import Config


class ClusterConfig(Config):
    """The workers and where they save.

    Attributes:
        workers: Number of processes; they share each batch.
        min_workers: With so few a run begins, and goes on while nodes are away; as many as there is
            room for up to `workers`. None waits for all of them.
        cpus_per_worker: CPUs that Ray sets aside for each.
        gpus_per_worker: GPUs for each.
        storage: Folder of the runs; every node must reach it under the same path.
        max_failures: How often workers that died are started again.
    """

    workers: Annotated[int, Field(gt=0)]
    min_workers: Annotated[int, Field(gt=0)] | None
    cpus_per_worker: Annotated[int, Field(gt=0)]
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)]
    storage: str
    max_failures: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} must not exceed workers {self.workers}"
            )
        return self

    @property
    def fewest(self) -> int:
        """The number of workers that there must be room for."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def resources_per_worker(self) -> dict[str, int]:
        """What one worker needs, in Ray's words."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
