"""PyTorch's processes under Ray Train, whose main threads listen to SIGTERM before they train.

Imports Ray, so that only whoever starts workers imports this; its classes are of a module, as Ray
sends them to other processes by name.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig

from aga.training.stopping import hear_sigterm


class ListeningBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's backend of PyTorch, and one call more in every worker."""

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set the handler, which only a main thread may; training itself runs in another one."""
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(hear_sigterm)


class ListeningConfig(TorchConfig):  # type: ignore[misc]
    """`TorchConfig` of that backend."""

    @property
    def backend_cls(self) -> type[ListeningBackend]:
        """Of every worker."""
        return ListeningBackend
