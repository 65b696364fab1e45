"""A batch that does not fit into memory, in micro-batches, and yet its own loss and gradient.

An objective compares each pair with the others of the batch: the losses of micro-batches do not add
up to the loss of their batch. But only the encoders need much memory, and they take each pair by
itself. So (GradCache, arXiv 2101.06983):

    1. embed every micro-batch without a graph
    2. the loss of all embeddings, negatives of the other workers included, and its gradient with
       respect to the embeddings
    3. embed each micro-batch again, with a graph, and send its part of that gradient through it

Up to rounding, weights receive the gradient of the undivided batch; it costs a second forward pass.
Dropout drops the same features in both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from aga.collectives import world_size
from aga.errors import ParamsError
from aga.model import AlignmentModel
from aga.objectives.base import LossTerms, Objective
from aga.pairs import PairBatch, PairEmbeddings
from aga.training.seeds import fold


def accumulate(
    model: AlignmentModel,
    objective: Objective,
    batch: PairBatch,
    size: int,
    *,
    precision: Callable[[], AbstractContextManager[object]],
    seed: int,
) -> LossTerms:
    """Add the gradient of a batch's loss to the parameters, and average it over the workers.

    Args:
        model: Without batch statistics; see `check_micro_batches`.
        objective: Compares the pairs of all workers.
        batch: This worker's pairs, as many as every other worker has.
        size: Pairs of a micro-batch; the last one may be smaller.
        precision: Makes the context that forward passes run in.
        seed: Of everything random in this step and worker.

    Returns:
        The loss of the batch in this worker.
    """
    parts = batch.split(size)

    def embedded(number: int) -> PairEmbeddings:
        torch.manual_seed(fold(seed, number))
        with precision():
            pairs: PairEmbeddings = model(parts[number])
        return pairs

    with torch.no_grad():
        cached = PairEmbeddings.joined([embedded(number) for number in range(len(parts))])
    for leaf in cached.features().values():
        leaf.requires_grad_()
    torch.manual_seed(seed)
    with precision():
        losses: LossTerms = objective(cached)
    losses.total.backward()  # type: ignore[no-untyped-call]
    # An objective need not look at all of them.
    seen = {name: leaf.grad for name, leaf in cached.features().items() if leaf.grad is not None}
    gradients = {name: torch.split(gradient, size) for name, gradient in seen.items()}
    for number in range(len(parts)):
        features = embedded(number).features()
        torch.autograd.backward(
            [features[name] for name in gradients], [part[number] for part in gradients.values()]
        )
    average_gradients([*model.parameters(), *objective.parameters()])
    return losses


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every worker the mean of all workers' gradients; one that has none counts as 0."""
    if world_size() == 1:
        return
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    has_one = torch.tensor(
        [float(parameter.grad is not None) for parameter in learned], device=learned[0].device
    )
    dist.all_reduce(has_one)
    held = zip(learned, has_one.tolist(), strict=True)
    gradients = [_gradient(parameter) for parameter, holders in held if holders]
    together = parameters_to_vector(gradients)  # one message instead of hundreds
    dist.all_reduce(together)
    together /= world_size()
    vector_to_parameters(together, gradients)


def check_micro_batches(model: AlignmentModel, micro_batch: int | None) -> None:
    """Refuse micro-batches for encoders in which pairs of a batch change each other's features.

    Raises:
        ParamsError: There are layers of batch statistics.
    """
    layers = [name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    if micro_batch is not None and layers:
        raise ParamsError(
            "Micro-batches would change the loss of an encoder with batch normalisation",
            where="training.micro_batch, image_encoder",
            got=f"{len(layers)} such layers, the first of them {layers[0]}",
            expected="none: a ViT or ConvNeXt, or a network of another normalisation",
            fix="set training.micro_batch to null; or image_encoder.options to {norm_layer: "
            "groupnorm1} where the architecture takes it, or the architecture to one like "
            "resnet50_gn",
        )


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
