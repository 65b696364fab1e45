"""The training loop: a generator of events, so that whoever runs it decides where they go.

    for event in train(context, start):
        match event:
            case StepEvent(): ...        # one optimizer step is done
            case EpochEvent(): ...       # an epoch is done and validated
            case CheckpointEvent(): ...  # `event.state` is what a checkpoint must hold

A process is one of `world_size()`; all of them run this generator in step. There is no state of a
random generator to save: dropout at a step is seeded by (seed, step, rank), order and augmentation
by (seed, epoch, row), views and sentences by (seed, epoch, study). Stopping after any event and
starting again from its state gives the same weights, to the bit on a CPU. Where one process is
asked to stop, all of them do after the same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aga.collectives import rank, world_size
from aga.data.loader import EpochBatches, PairDataset
from aga.model import AlignmentModel
from aga.objectives.base import LossTerms, Objective
from aga.pairs import PairBatch
from aga.training.accumulation import accumulate
from aga.training.checkpoint import Row, TrainingState
from aga.training.events import CheckpointEvent, Clock, EpochEvent, Event
from aga.training.history import best_epoch, finished
from aga.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)
from aga.training.seeds import fold
from aga.training.settings import TrainingConfig
from aga.training.step_metrics import DivergenceError, agreed, require_finite, step_metrics
from aga.training.stopping import StopAsked
from aga.training.validation import validate


class PairNetwork(nn.Module):
    """Model and objective as one module, so that the gradients of both are averaged by DDP."""

    def __init__(self, model: AlignmentModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: PairBatch) -> LossTerms:
        """The loss of a batch."""
        losses: LossTerms = self.objective(self.model(batch))
        return losses


@dataclass(frozen=True)
class TrainingContext:
    """What a run is made of, in one process.

    Attributes:
        network: Model and objective, on `device`.
        training: The pairs to learn from.
        validation: The pairs that choose the epoch.
        config: Settings of the loop.
        optimizer: Settings of the optimizer.
        checkpoint_every: Steps between checkpoints inside an epoch.
        seed: Of everything random.
        device: Where this process computes.
    """

    network: PairNetwork
    training: PairDataset
    validation: PairDataset
    config: TrainingConfig
    optimizer: OptimizerConfig
    checkpoint_every: int
    seed: int
    device: torch.device

    @cached_property
    def batches(self) -> EpochBatches:
        """The training batches of each epoch."""
        config = self.config
        return EpochBatches(
            self.training, config.augmentation, config.sampling, config.loader_workers
        )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return self.batches.steps_per_epoch(self.config.batch_size, train=True)

    @property
    def total_steps(self) -> int:
        """Steps of the run if it does not stop early; the learning rate's schedule spans them."""
        return self.config.epochs * self.steps_per_epoch


def train(
    context: TrainingContext,
    start: TrainingState | None = None,
    stop_asked: StopAsked = lambda: False,
) -> Iterator[Event]:
    """Train from the beginning or from a state, to the last epoch or until patience runs out.

    Args:
        context: What to train.
        start: The state to go on from; None begins.
        stop_asked: Looked at in each step. Where it holds in any process, all of them end after
            that step: the last event is its checkpoint, and `finished` does not hold.

    Raises:
        DivergenceError: The loss or the gradient of a step is not finite; the event before is the
            checkpoint of the state before that step.
        DataError: The batch size does not fit the data or the number of workers.
    """
    config = context.config
    learner = _Learner(context, start, stop_asked)
    clock = Clock(config.batch_size, context.total_steps)
    while not finished(learner.history, config):
        epoch = len(learner.history)
        for batch in clock.waited_for(_training_batches(context, epoch, learner.step)):
            try:
                metrics = learner.learn(batch)
            except DivergenceError:
                yield CheckpointEvent(learner.state())
                raise
            yield clock.step_event(learner.step, epoch + 1, metrics)
            inside_epoch = learner.step % context.steps_per_epoch
            due = inside_epoch and learner.step % context.checkpoint_every == 0
            if due or learner.stopping:
                yield CheckpointEvent(learner.state())
            if learner.stopping:
                return
        yield learner.end_epoch(epoch + 1, _validated(context), clock.pairs_per_second)
        yield CheckpointEvent(learner.state())


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that the encoders run in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class _Learner:
    """The network and its optimizer, and what a run remembers between steps."""

    def __init__(
        self, context: TrainingContext, start: TrainingState | None, stop_asked: StopAsked
    ) -> None:
        self._context, self._stop_asked = context, stop_asked
        self.stopping = False
        self._optimizer = build_optimizer(context.network, context.optimizer)
        self.step = 0
        self.history: list[Row] = []
        self._best: dict[str, Tensor] = {}
        self._sums: dict[str, float] = {}
        if start is not None:
            self._restore(start)
        self._network: nn.Module = context.network
        if world_size() > 1 and context.config.micro_batch is None:
            # A weight of 0 leaves the parameters of its term without a gradient.
            self._network = DistributedDataParallel(context.network, find_unused_parameters=True)

    def learn(self, batch: PairBatch) -> dict[str, float]:
        """One optimizer step; returns the step's metrics.

        Raises:
            DivergenceError: The network is as it was before.
        """
        context, settings = self._context, self._context.optimizer
        rate = learning_rate(self.step, context.total_steps, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        before = [buffer.clone() for buffer in context.network.buffers()]
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch.to(context.device))
        norm = nn.utils.clip_grad_norm_(context.network.parameters(), settings.gradient_clip)
        metrics, self.stopping = agreed(step_metrics(losses, norm), self._stop_asked())
        try:
            require_finite(metrics, self.step + 1, batch.rows.to(context.device))
        except DivergenceError:
            for buffer, kept in zip(context.network.buffers(), before, strict=True):
                buffer.copy_(kept)
            raise
        self._optimizer.step()
        self.step += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return metrics | {"learning_rate": rate}

    def _backward(self, batch: PairBatch) -> LossTerms:
        """The loss of a batch, and its gradient, in the parameters of every worker."""
        context, size = self._context, self._context.config.micro_batch
        seed = fold(context.seed, self.step, rank())
        precision = partial(autocast, context.config.precision, context.device)
        if size is not None:
            model, objective = context.network.model, context.network.objective
            return accumulate(model, objective, batch, size, precision=precision, seed=seed)
        torch.manual_seed(seed)
        with precision():
            losses: LossTerms = self._network(batch)
        losses.total.backward()  # type: ignore[no-untyped-call]
        return losses

    def end_epoch(self, epoch: int, measured: Row, pairs_per_second: float) -> EpochEvent:
        """Close the epoch: its row of the history, and its weights if they are the best."""
        means = {name: total / self._context.steps_per_epoch for name, total in self._sums.items()}
        row: Row = {"epoch": epoch, "step": self.step, **means, **measured}
        self.history.append({**row, "pairs_per_second": pairs_per_second})
        self._sums = {}
        improved = best_epoch(self.history, self._context.config.select) == epoch
        if improved:
            weights = self._context.network.state_dict()
            self._best = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
        return EpochEvent(self.history[-1], improved)

    def state(self) -> TrainingState:
        """The run as it is; tensors share memory with the live ones."""
        weights = _prefixed("network", self._context.network.state_dict())
        moments = optimizer_tensors(self._optimizer, self._context.network)
        return TrainingState(
            step=self.step,
            tensors=weights | _prefixed("optimizer", moments),
            best=self._best,
            history=list(self.history),
            sums=dict(self._sums),
        )

    def _restore(self, start: TrainingState) -> None:
        network = self._context.network
        network.load_state_dict(_without_prefix("network", start.tensors))
        moments = _without_prefix("optimizer", start.tensors)
        load_optimizer_tensors(self._optimizer, network, moments)
        self.step, self._best = start.step, start.best
        self.history = list(start.history)
        self._sums = dict(start.sums)


def _validated(context: TrainingContext) -> dict[str, float]:
    """What the validation split says of the network."""
    _share_buffers(context.network)
    with autocast(context.config.precision, context.device):
        return validate(
            context.network.model,
            context.network.objective,
            context.validation,
            batch_size=context.config.batch_size,
            micro_batch=context.config.micro_batch,
            device=context.device,
            heartbeat_seconds=context.config.heartbeat_seconds,
        )


def _share_buffers(network: nn.Module) -> None:
    """Give every worker the first one's running statistics: its model is the one that is saved."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def _training_batches(context: TrainingContext, epoch: int, step: int) -> Iterator[PairBatch]:
    """Those of an epoch that are left after `step` steps of the run; none after its last one."""
    return context.batches.batches(
        epoch=epoch,
        seed=context.seed,
        batch_size=context.config.batch_size,
        rank=rank(),
        world_size=world_size(),
        start_step=step - epoch * context.steps_per_epoch,
        train=True,
    )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
