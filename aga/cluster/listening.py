"""PyTorch's processes under Ray Train, whose main threads listen to SIGTERM before they train.

Ray's controller, a process of its own, imports this before it starts a worker: so nothing of
PyTorch is imported until the workers import theirs. Imports Ray, so that only whoever starts
workers imports this; its classes are of a module, as Ray sends them to other processes by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig

from aga.cluster.stopping import hear_sigterm


@dataclass
class ListeningConfig(BackendConfig):  # type: ignore[misc]
    """What stands for Ray's `TorchConfig`.

    Attributes:
        backend: Of `torch.distributed`.
    """

    backend: str

    @property
    def backend_cls(self) -> type[ListeningBackend]:
        """Of every worker."""
        return ListeningBackend

    @property
    def train_func_context(self) -> Any:
        """What Ray's own sets around the training."""
        return self.of_torch().train_func_context

    def of_torch(self) -> Any:
        """Ray's own."""
        from ray.train.torch import TorchConfig

        return TorchConfig(backend=self.backend)


class ListeningBackend(Backend):  # type: ignore[misc]
    """Ray's backend of PyTorch, and one call more in every worker."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ListeningConfig) -> None:
        """Connect the workers, which import what they train with in the meantime."""
        worker_group.execute_async(_import_training)
        own = backend_config.of_torch()
        own.backend_cls().on_start(worker_group, own)

    def on_training_start(self, worker_group: Any, backend_config: ListeningConfig) -> None:
        """Set the handler, which only a main thread may; training itself runs in another one."""
        own = backend_config.of_torch()
        own.backend_cls().on_training_start(worker_group, own)
        worker_group.execute(hear_sigterm)

    def on_shutdown(self, worker_group: Any, backend_config: ListeningConfig) -> None:
        """Disconnect the workers."""
        own = backend_config.of_torch()
        own.backend_cls().on_shutdown(worker_group, own)


def _import_training() -> None:
    import aga.cluster.worker  # noqa: F401
