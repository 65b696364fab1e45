"""What a finished run leaves: its best epoch as a bundle, its numbers as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aga.bundle import save_bundle
from aga.data.loader import PairDataset
from aga.data.splitting.trained_on import TrainedOn, record_of
from aga.training.checkpoint import Row, TrainingState
from aga.training.history import best_epoch
from aga.training.recipe import Recipe, RunData
from aga.training.run import build_network
from aga.training.settings import SelectConfig


def export_bundle(
    out: Path,
    *,
    recipe: Recipe,
    data: RunData,
    home: Path,
    state: TrainingState,
    names: Mapping[str, str | None],
) -> str:
    """Write the best epoch as a bundle; repeating it writes the same bytes.

    Args:
        out: Folder of the bundle.
        recipe: The run's settings.
        data: The data it was trained on.
        home: Folder that the settings' relative paths resolve against.
        state: The run's final state.
        names: By what the run is known elsewhere; goes into the metadata.

    Returns:
        The bundle's SHA-256.
    """
    network = build_network(recipe, data, home)
    network.load_state_dict(state.best)
    best = state.history[best_epoch(state.history, recipe.training.select) - 1]
    measured = {n: v for n, v in best.items() if n.startswith(("retrieval/", "loss/validation"))}
    info = data.studies.info
    metadata: dict[str, Any] = {
        **names,
        "epoch": best["epoch"],
        "seed": recipe.seed,
        "source": info.source,
        "licence": info.licence,
        "citation": info.citation,
        "studies_sha256": info.sha256,
        "tokens_sha256": data.tokens.record.sha256,
        "metrics": {f"validation {name}": value for name, value in measured.items()},
    }
    return save_bundle(
        out,
        network.model,
        network.objective,
        objective_config=recipe.objective,
        tokenizer=data.tokens.tokenizer,
        transform=PairDataset(data.studies, data.tokens, "train", data.cache).transform,
        metadata=metadata,
        trained_on=TrainedOn.of(data.studies, started_from(recipe, home)),
    )


def started_from(recipe: Recipe, home: Path) -> list[TrainedOn | None]:
    """What the weights that training starts from had seen; None for each that does not state it.

    Raises:
        DataError: A list beside such weights is damaged.
    """
    places = (recipe.image_encoder.weights, recipe.text_encoder.path)
    return [record_of(home / place) for place in places if place is not None]


def summary(history: Sequence[Row], select: SelectConfig) -> Row:
    """The numbers of a run that are worth comparing with another run's.

    Returns:
        `epochs`, `steps` and `pairs_per_second`; `best_epoch` and its metrics of the validation
        split; `final/loss/...` of the last epoch, training and validation.
    """
    best, last = history[best_epoch(history, select) - 1], history[-1]
    kept = ("retrieval/", "loss/validation")
    return {
        "epochs": last["epoch"],
        "steps": last["step"],
        "pairs_per_second": last["pairs_per_second"],
        "best_epoch": best["epoch"],
        **{name: value for name, value in best.items() if name.startswith(kept)},
        **{f"final/{name}": value for name, value in last.items() if name.startswith("loss/")},
    }


def write_curves(path: Path, history: Sequence[Row]) -> None:
    """Write a run's history as a CSV file, one row per epoch."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(buffer.getvalue(), encoding="utf-8")
