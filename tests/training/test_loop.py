"""The loop: resuming anywhere changes no bit, epochs are chosen, divergence is explained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_runs import (
    WITHOUT_BATCH_STATISTICS,
    make_home,
    same_state,
    same_tensors,
    small_recipe,
)

from aga.errors import DataError
from aga.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from aga.training.events import CheckpointEvent, EpochEvent, Event, StepEvent
from aga.training.history import best_epoch, finished
from aga.training.loop import TrainingContext, train
from aga.training.recipe import Recipe, RunData
from aga.training.run import build_context
from aga.training.seeds import fold
from aga.training.settings import SelectConfig
from aga.training.step_metrics import DivergenceError, row_id
from aga.training.validation import MEAN_RECALL


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("training") / "home")


@pytest.fixture(autouse=True)
def _global_switches() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def context_of(home: Path, recipe: Recipe) -> TrainingContext:
    return build_context(recipe, RunData.open(home), home, torch.device("cpu"))


def through_disk(state: TrainingState, folder: Path) -> TrainingState:
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, state)
    return load_checkpoint(folder)


def run(
    context: TrainingContext, folder: Path, start: TrainingState | None = None
) -> tuple[list[Event], TrainingState]:
    """All events, and the last state as it is read back from a disk."""
    events = []
    for event in train(context, start):
        events.append(event)
        if isinstance(event, CheckpointEvent):
            last = through_disk(event.state, folder / f"{event.state.step}")
    return events, last


def test_events_come_in_order(home: Path, tmp_path: Path) -> None:
    # 28 training pairs in batches of 8: 3 steps per epoch, a checkpoint every 2 steps.
    events, state = run(context_of(home, small_recipe({"training": {"epochs": 2}})), tmp_path)
    kinds = "".join(type(event).__name__[0] for event in events)
    assert kinds == "SSCSEC" + "SCSSEC"  # steps 2 and 4; step 6 is the epoch's own checkpoint
    assert [e.step for e in events if isinstance(e, StepEvent)] == [1, 2, 3, 4, 5, 6]
    assert [e.state.step for e in events if isinstance(e, CheckpointEvent)] == [2, 3, 4, 6]
    assert state.step == 6
    assert [row["epoch"] for row in state.history] == [1, 2]
    assert state.sums == {}


def test_an_epochs_row_is_the_mean_of_its_steps(home: Path, tmp_path: Path) -> None:
    events, state = run(context_of(home, small_recipe({"training": {"epochs": 1}})), tmp_path)
    steps = [event.metrics for event in events if isinstance(event, StepEvent)]
    row = state.history[0]
    assert row["loss/train"] == pytest.approx(sum(m["loss/train"] for m in steps) / 3)
    terms = [v for n, v in row.items() if n.startswith("loss/train/")]
    assert len(terms) == 3
    assert row["loss/train"] == pytest.approx(sum(terms), rel=1e-5)
    assert {"loss/validation", MEAN_RECALL, "gradient_norm", "pairs_per_second"} <= row.keys()
    assert all(math.isfinite(value) for value in row.values())


SAMPLED = {"views": "one_per_study", "sentences": 1}


@pytest.mark.parametrize(
    "settings", [{"loader_workers": 0}, {"loader_workers": 2}, {"sampling": SAMPLED}]
)
def test_resuming_at_any_step_changes_no_bit(
    home: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    recipe = small_recipe({"checkpoint": {"every_steps": 1}, "training": settings})
    _, undisturbed = run(context_of(home, recipe), tmp_path)
    assert undisturbed.step == 9
    for step in range(1, 9):
        resumed = load_checkpoint(tmp_path / str(step))
        _, state = run(context_of(home, recipe), tmp_path / f"from-{step}", resumed)
        assert same_state(state, undisturbed), f"resumed at step {step}"


def test_what_happened_before_in_the_process_changes_no_bit(home: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"training": {"epochs": 1}})
    _, first = run(context_of(home, recipe), tmp_path / "a")
    torch.manual_seed(99)
    torch.rand(17)
    _, second = run(context_of(home, recipe), tmp_path / "b")
    assert same_state(first, second)


def test_another_seed_is_another_run(home: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"training": {"epochs": 1}})
    _, first = run(context_of(home, recipe), tmp_path / "a")
    _, second = run(context_of(home, recipe.model_copy(update={"seed": 1})), tmp_path / "b")
    assert not same_state(first, second)


def test_learns(home: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"training": {"epochs": 12}})
    _, state = run(context_of(home, recipe), tmp_path)
    assert state.history[-1]["loss/train"] < 0.9 * state.history[0]["loss/train"]


@pytest.mark.parametrize("gate", ["mlp", "fixed"])
def test_terms_of_weight_zero_and_gates_that_do_not_learn(
    home: Path, tmp_path: Path, gate: str
) -> None:
    aga = {"weights": {"contrast": 1.0, "iga": 0.0, "bcga": 0.0}, "gate": {"kind": gate}}
    recipe = small_recipe({"objective": {"aga": aga}, "training": {"epochs": 1}})
    _, state = run(context_of(home, recipe), tmp_path)
    assert [n for n in state.history[0] if n.startswith("loss/train/")] == ["loss/train/contrast"]


def test_bfloat16_encoders_keep_the_loss_close(home: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        training = {"training": {"epochs": 1, "precision": precision}}
        recipe = small_recipe(WITHOUT_BATCH_STATISTICS, training)
        _, state = run(context_of(home, recipe), tmp_path / precision)
        losses[precision] = state.history[0]["loss/train"]
        weights = [t for t in state.best.values() if t.is_floating_point()]
        assert {t.dtype for t in weights} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_the_best_epochs_weights_are_kept(home: Path, tmp_path: Path) -> None:
    events, state = run(context_of(home, small_recipe()), tmp_path)
    improved = [e.row["epoch"] for e in events if isinstance(e, EpochEvent) and e.improved]
    best = best_epoch(state.history, small_recipe().training.select)
    assert improved[-1] == best
    at_best = load_checkpoint(tmp_path / str(3 * best))
    assert all(
        torch.equal(tensor, at_best.tensors[f"network/{name}"])
        for name, tensor in state.best.items()
    )


ROWS = [{"loss/validation": v, MEAN_RECALL: -v} for v in (3.0, 1.0, 2.0, 1.0)]


@pytest.mark.parametrize(("metric", "mode"), [("loss/validation", "min"), (MEAN_RECALL, "max")])
def test_best_is_the_first_of_equals(metric: str, mode: str) -> None:
    select = SelectConfig.model_validate({"metric": metric, "mode": mode})
    assert best_epoch(ROWS, select) == 2


@pytest.mark.parametrize(
    ("patience", "rows", "expected"),
    [(0, 0, False), (0, 3, False), (0, 4, True), (1, 2, False), (1, 3, True), (2, 3, False)],
)
def test_finished(patience: int, rows: int, expected: bool) -> None:
    changes = {"epochs": 4, "patience": patience}
    select = {"select": {"metric": "loss/validation", "mode": "min"}}
    config = small_recipe({"training": changes | select}).training
    assert finished(ROWS[:rows], config) is expected


def test_patience_stops_a_run_and_it_stays_stopped(home: Path, tmp_path: Path) -> None:
    # Four validation pairs: recall at 10 is 1 from the first epoch on, and never better.
    recipe = small_recipe({"training": {"epochs": 9, "patience": 2}})
    _, state = run(context_of(home, recipe), tmp_path)
    assert [row[MEAN_RECALL] for row in state.history] == [1.0, 1.0, 1.0]
    assert list(train(context_of(home, recipe), state)) == []


def test_a_loss_that_is_no_number_names_step_terms_and_batch_and_leaves_the_state_before(
    home: Path,
) -> None:
    context = context_of(home, small_recipe())
    first = next(iter(context.batches.batches(**SECOND_BATCH))).rows.tolist()
    events = train(context)
    next(events)
    with torch.no_grad():
        next(context.network.model.parameters()).fill_(torch.nan)
    before = {n: t.clone() for n, t in context.network.state_dict().items()}
    event = next(events)
    assert isinstance(event, CheckpointEvent)
    assert event.state.step == 1
    weights = {n.removeprefix("network/"): t for n, t in event.state.tensors.items()}
    assert same_tensors({n: weights[n] for n in before}, before), "running statistics too"
    with pytest.raises(DivergenceError, match=r"step 2") as caught:
        next(events)
    told = str(caught.value)
    assert "loss/train/iga nan" in told
    assert "optimizer.learning_rate" in told
    assert f"the batch of 8 pairs {' '.join(row_id(row) for row in first)}\n" in told


SECOND_BATCH: dict[str, Any] = {
    "epoch": 0,
    "seed": 0,
    "batch_size": 8,
    "rank": 0,
    "world_size": 1,
    "start_step": 1,
    "train": True,
}


@pytest.mark.parametrize("last", [1, 3, 4])
def test_a_run_that_is_asked_to_stop_ends_with_the_step_and_goes_on_from_there(
    home: Path, tmp_path: Path, last: int
) -> None:
    """Also after the last step of an epoch: its validation is done by who goes on."""
    recipe = small_recipe({"training": {"epochs": 2}, "checkpoint": {"every_steps": 100}})
    _, undisturbed = run(context_of(home, recipe), tmp_path / "whole")
    asked = iter([False] * (last - 1) + [True])
    *_, event = train(context_of(home, recipe), None, lambda: next(asked))
    assert isinstance(event, CheckpointEvent)
    assert event.state.step == last
    assert not finished(event.state.history, recipe.training)
    start = through_disk(event.state, tmp_path / "stopped")
    _, state = run(context_of(home, recipe), tmp_path / "resumed", start)
    assert same_state(state, undisturbed)


def test_a_batch_larger_than_the_split_is_refused(home: Path) -> None:
    with pytest.raises(DataError, match=r"training\.batch_size"):
        context_of(home, small_recipe({"training": {"batch_size": 64}}))


def test_seeds_do_not_collide() -> None:
    numbers = {fold(a, b, c) for a in range(5) for b in range(50) for c in range(4)}
    assert len(numbers) == 5 * 50 * 4
    assert all(0 <= number < 2**64 for number in numbers)
