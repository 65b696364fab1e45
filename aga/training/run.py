"""A run: built from its settings, begun or resumed in this process, its checkpoints kept.

`run_local` is the whole of it where there is one process and no Ray: a GPU box, a benchmark.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn

import aga
from aga.collectives import rank, world_size
from aga.config import Config
from aga.data.loader import PairDataset
from aga.data.studies import StudyDataset
from aga.data.tokenizing.tokens import TokenDataset
from aga.encoders.image import ImageEncoderConfig
from aga.encoders.text import TextEncoderConfig
from aga.errors import CheckpointError
from aga.model import AlignmentModel, ModelConfig
from aga.objectives import ObjectiveConfig, build_objective, collapse_warnings
from aga.training.checkpoint import (
    CheckpointConfig,
    Row,
    TrainingState,
    load_checkpoint,
    newest_good,
    only_writer,
    save_next,
)
from aga.training.events import CheckpointEvent, EpochEvent, StepEvent
from aga.training.loop import PairNetwork, TrainingConfig, TrainingContext, fold, train
from aga.training.optimizer import OptimizerConfig
from aga.training.preflight import check_batches
from aga.training.validation import LOSS, MEAN_RECALL

logger = logging.getLogger(__name__)

STUDIES, TOKENS, CACHE = Path("data/studies"), Path("data/tokens"), Path("data/cache")
TRAINING_CODE = (
    "collectives.py",
    "data",
    "encoders",
    "model.py",
    "objectives",
    "pairs.py",
    "ranking.py",
    "tensors.py",
    "training",
)
WRITER_PATIENCE = 15.0  # seconds: a killed worker's successor may start before it is quite gone
LogMetrics: TypeAlias = Callable[[Row, int], None]


class Recipe(Config):
    """The settings that a run's result depends on, and how often it is saved."""

    seed: Annotated[int, Field(ge=0)]
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig

    def identity(self, data: RunData, home: Path) -> str:
        """Ten hex digits that differ where settings, data, code or pretrained weights differ.

        What changes no weight is left out, so that it may change between two starts of one run.
        Pretrained files count by their content, not by their place.

        Raises:
            CheckpointError: Pretrained files are not there.
        """
        settings = self.model_dump(mode="json", exclude={"checkpoint"})
        for idle in ("loader_workers", "heartbeat_seconds"):
            del settings["training"][idle]
        for part, key in (("image_encoder", "weights"), ("text_encoder", "path")):
            if (place := settings[part][key]) is not None:
                settings[part][key] = _content_sha256(home / place, f"{part}.{key}")
        values = [settings, data.studies.info.sha256, data.tokens.record.sha256, code_sha256()]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def code_sha256() -> str:
    """Hash of the library's code that weights depend on: after an edit a run is another run.

    Without it, an edited objective would find the old run finished and export its old weights.
    """
    library = Path(aga.__file__).parent
    digest = hashlib.sha256()
    for part in TRAINING_CODE:
        place = library / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(library)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _content_sha256(place: Path, setting: str) -> str:
    """Hash of a file, or of all files of a folder and their names."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) or [place]
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                "Pretrained weights are missing", where=path, fix=f"correct {setting}"
            )
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(place)}\0{own}\0".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class RunData:
    """The datasets of a project's folder.

    Attributes:
        studies: The prepared studies.
        tokens: Their tokens.
        cache: Folder for the uncompressed pixels.
    """

    studies: StudyDataset
    tokens: TokenDataset
    cache: Path

    @classmethod
    def open(cls, home: Path) -> RunData:
        """The datasets below `home`.

        Raises:
            DataError: They are missing, damaged, do not belong together, or lack reports.
        """
        studies = StudyDataset.open(home / STUDIES)
        studies.require_reports("train", "validation")
        return cls(studies, TokenDataset.open(home / TOKENS, studies), home / CACHE)


@dataclass
class Listener:
    """Who hears of a run's progress; by default nobody but the log.

    Attributes:
        log_metrics: Gets metrics and their step, in the first worker only: those of single steps as
            `step/<name>` at each heartbeat, those of the history's rows at each epoch's end.
        end_epoch: Gets each epoch's row, in every worker.
    """

    log_metrics: LogMetrics = field(default=lambda _metrics, _step: None)
    end_epoch: Callable[[Row], None] = field(default=lambda _row: None)


def run_local(
    recipe: Recipe, home: Path, *, folder: Path | None = None, device: str = "cpu"
) -> TrainingState:
    """Train in this process, without Ray.

    Sets the process's number of threads, its random seed and, on a CPU, deterministic algorithms.

    Args:
        recipe: The settings; relative paths resolve against `home`.
        home: Holds `data/studies` and `data/tokens`.
        folder: Where checkpoints go, and are resumed from; None keeps none.
        device: Where to compute.

    Returns:
        The final state: `best` are the weights of the best epoch, `history` the rows of all.

    Raises:
        DataError: The data are missing or do not fit the settings.
        DivergenceError: The loss is no longer a number.
        CheckpointError: `folder` is in use, or holds no usable checkpoint.
    """
    context = build_context(recipe, RunData.open(home), home, torch.device(device))
    return follow(context, recipe.checkpoint, folder, Listener())


def build_context(
    recipe: Recipe, data: RunData, home: Path, device: torch.device
) -> TrainingContext:
    """Everything a process trains with, the same in every process; see `run_local`."""
    network = build_network(recipe, data, home)
    splits, block = data.studies.info.splits, network.objective.block
    check_batches(splits, recipe.training, world_size(), block)
    torch.set_num_threads(recipe.training.threads)
    # On a GPU it would cost speed, and kernels without a deterministic form would remain.
    torch.use_deterministic_algorithms(device.type == "cpu")
    pairs = recipe.training.pairs
    sample = None if pairs is None else (pairs, recipe.seed)
    training = PairDataset(data.studies, data.tokens, "train", data.cache, sample=sample)
    validation = PairDataset(
        data.studies, data.tokens, "validation", data.cache, training.transform
    )
    if device.type == "cuda" and world_size() > 1:
        # Batch statistics of the global batch, so that the number of workers changes nothing.
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    context = TrainingContext(
        network=network.to(device),
        training=training,
        validation=validation,
        config=recipe.training,
        optimizer=recipe.optimizer,
        checkpoint_every=recipe.checkpoint.every_steps,
        seed=recipe.seed,
        device=device,
    )
    context.batches.check_batch_size(recipe.training.batch_size, world_size())
    return context


def build_network(recipe: Recipe, data: RunData, home: Path) -> PairNetwork:
    """Model and objective with the weights that training starts from, on the CPU."""
    torch.manual_seed(fold(recipe.seed))
    image = data.studies.info.image
    model = AlignmentModel(
        recipe.image_encoder.resolved(home),
        recipe.text_encoder.resolved(home),
        recipe.model,
        channels=image.channels,
        image_size=(image.height, image.width),
        vocabulary=len(data.tokens.tokenizer),
        pad_id=data.tokens.tokenizer.pad_token_id,
        max_tokens=data.tokens.record.max_tokens,
    )
    return PairNetwork(model, build_objective(recipe.objective, model.width))


def follow(
    context: TrainingContext, checkpoint: CheckpointConfig, folder: Path | None, listener: Listener
) -> TrainingState:
    """Begin or resume a run in all its processes at once, and see it to its end.

    Args:
        context: What to train.
        checkpoint: How many checkpoints to keep.
        folder: The run's folder, the same one for all processes; None saves nothing.
        listener: Who hears of it.

    Returns:
        The final state.
    """
    leader = rank() == 0
    with ExitStack() as held:
        if folder and leader:
            held.enter_context(only_writer(folder, WRITER_PATIENCE))
        state = _agreed_start(folder) if folder else None
        if state and leader:
            logger.info("resuming at step %d of %d", state.step, context.total_steps)
        heartbeat = _Heartbeat(context.config.heartbeat_seconds, context.total_steps)
        known_collapses: set[str] = set()
        for event in train(context, state):
            match event:
                case StepEvent() if leader and heartbeat.due():
                    heartbeat.beat(event)
                    listener.log_metrics(step_row(event), event.step)
                case EpochEvent(row):
                    if leader:
                        _announce_epoch(event, context.config)
                        _warn_of_collapses(row, known_collapses)
                        listener.log_metrics(row, int(row["step"]))
                    listener.end_epoch(row)
                case CheckpointEvent(state):
                    if folder and leader:
                        save_next(folder, state, checkpoint.keep)
    assert state is not None, "a finished run has a last state"  # noqa: S101
    return state


def step_row(event: StepEvent) -> dict[str, float]:
    """A step's metrics and speed as they are tracked: beside the epochs' means, not among them."""
    speed = {
        "pairs_per_second": event.pairs_per_second,
        "data_wait_fraction": event.data_wait_fraction,
    }
    return {f"step/{name}": value for name, value in {**event.metrics, **speed}.items()}


def _agreed_start(folder: Path) -> TrainingState | None:
    """The state to resume from: the first process chooses, so that all take the same one."""
    chosen = [newest_good(folder) if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(chosen, src=0)
    return load_checkpoint(chosen[0]) if chosen[0] else None


class _Heartbeat:
    """A line of progress every so many seconds, the first one at the first step."""

    def __init__(self, seconds: float, total_steps: int) -> None:
        self._seconds, self._total_steps = seconds, total_steps
        self._last = -seconds

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def beat(self, event: StepEvent) -> None:
        self._last = time.monotonic()
        logger.info(
            "epoch %d  step %d/%d  loss %.4f  %.0f pairs/s  data wait %.0f %%  ETA %s",
            event.epoch,
            event.step,
            self._total_steps,
            event.metrics["loss/train"],
            event.pairs_per_second,
            100 * event.data_wait_fraction,
            timedelta(seconds=round(event.eta_seconds)),
        )


def _announce_epoch(event: EpochEvent, config: TrainingConfig) -> None:
    row = event.row
    logger.info(
        "epoch %d/%d  loss %.4f  validation loss %.4f  mean R@10 %.3f%s",
        row["epoch"],
        config.epochs,
        row["loss/train"],
        row[LOSS],
        row[MEAN_RECALL],
        "  best so far" if event.improved else "",
    )


def _warn_of_collapses(row: Row, known: set[str]) -> None:
    """Tell of each collapse when it is first seen; `known` holds those that were told."""
    prefix = "diagnostics/"
    watched = {n.removeprefix(prefix): v for n, v in row.items() if n.startswith(prefix)}
    for name, warning in collapse_warnings(watched).items():
        if name not in known:
            logger.warning("epoch %d: %s", row["epoch"], warning)
            known.add(name)
