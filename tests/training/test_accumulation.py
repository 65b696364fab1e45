"""Micro-batches leave the loss of the batch and its gradient as they are, and take less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.small_runs import WITHOUT_BATCH_STATISTICS, make_home, same_state, small_recipe
from torch import Tensor

from aga.errors import ParamsError
from aga.objectives import OBJECTIVES
from aga.training.accumulation import accumulate
from aga.training.loop import PairNetwork, TrainingContext, autocast, train
from aga.training.recipe import Recipe, RunData
from aga.training.run import build_context, run_local
from aga.training.seeds import fold
from benchmarks.accumulation import (
    TOLERANCE,
    divided,
    first_step,
    first_steps,
    largest_difference,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("accumulation") / "home")


def recipe_of(objective: str, *overlays: dict) -> Recipe:
    return small_recipe(WITHOUT_BATCH_STATISTICS, {"objective": {"name": objective}}, *overlays)


def context_of(home: Path, recipe: Recipe) -> TrainingContext:
    return build_context(recipe, RunData.open(home), home, torch.device("cpu"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_undivided_batch(home: Path, objective: str) -> None:
    recipe = recipe_of(objective)
    whole = first_step(home, recipe)
    assert sum(bool(value.abs().max()) for value in whole.values()) > 20, "nothing to compare"
    for size in (1, 3, 8, 100):
        assert largest_difference(first_step(home, divided(recipe, size)), whole) < TOLERANCE


@pytest.mark.slow
def test_so_they_are_in_two_processes(home: Path) -> None:
    recipes = {name: recipe_of(name) for name in ("aga", "clip", "sparc")}
    steps = first_steps(home, {name: divided(recipe, 3) for name, recipe in recipes.items()}, 2)
    for name, step in steps.items():
        assert largest_difference(step, first_step(home, recipes[name])) < TOLERANCE, name


def test_dropout_drops_the_same_in_both_passes(home: Path) -> None:
    """The reference keeps the graph of every micro-batch: one backward through all of them."""
    recipe = recipe_of("aga", {"text_encoder": {"dropout": 0.5}})
    context = context_of(home, recipe)
    network = context.network.train()
    batch = context.training.batch(context.training.rows[:8])
    seed, size = 5, 3
    losses = accumulate(
        network.model,
        network.objective,
        batch,
        size,
        precision=lambda: autocast("fp32", context.device),
        seed=seed,
    )
    ours = gradients(network)

    parts = []
    for number, part in enumerate(batch.split(size)):
        torch.manual_seed(fold(seed, number))
        parts.append(network.model(part))
    torch.manual_seed(seed)
    expected = network.objective(type(parts[0]).joined(parts))
    expected.total.backward()
    torch.testing.assert_close(losses.total, expected.total)
    assert largest_difference(ours, gradients(network)) < TOLERANCE


def gradients(network: PairNetwork) -> dict[str, Tensor]:
    """Those there are; takes them away."""
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def kept_for_backward(home: Path, recipe: Recipe) -> int:
    """Most bytes that autograd holds at once in a step, weights left out."""
    context = context_of(home, recipe)
    weights = {p.untyped_storage().data_ptr() for p in context.network.parameters()}
    held = most = 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor = tensor
            own = tensor.untyped_storage().data_ptr() not in weights
            self.size = tensor.nbytes if own else 0
            held += self.size
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        next(iter(train(context)))
    return most


def test_the_graph_is_that_of_a_micro_batch(home: Path) -> None:
    deep = {"image_encoder": {"options": {"patch_size": 8, "embed_dim": 32, "depth": 6,
            "num_heads": 2}}}  # fmt: skip
    recipe = recipe_of("clip", deep)
    whole, parts = (kept_for_backward(home, divided(recipe, size)) for size in (None, 2))
    assert parts < whole / 3, f"{parts} of {whole} bytes, with a quarter of the pairs"


def test_a_run_in_micro_batches_resumes_to_the_bit(home: Path, tmp_path: Path) -> None:
    changes = {"text_encoder": {"dropout": 0.1}, "training": {"epochs": 2}}
    recipe = divided(recipe_of("aga", changes), 3)
    undisturbed = run_local(recipe, home)
    folder = tmp_path / "run"
    run_local(recipe, home, folder=folder)
    newest = max((folder / "checkpoints").iterdir())
    (newest / "manifest.json").unlink()
    assert same_state(run_local(recipe, home, folder=folder), undisturbed)


def test_batch_statistics_are_refused_and_other_norms_are_not(home: Path) -> None:
    with pytest.raises(ParamsError, match=r"training\.micro_batch") as caught:
        first_step(home, divided(small_recipe(), 4))
    assert "groupnorm1" in str(caught.value)
    options = {"channels": [8, 8, 16, 16], "norm_layer": "groupnorm1"}
    first_step(home, divided(small_recipe({"image_encoder": {"options": options}}), 4))
