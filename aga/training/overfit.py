"""A self-test of data and settings: are a few pairs memorised, and does it mean anything?

A network that learns at all can memorise some dozens of pairs. Where it does not, the images, the
reports or the learning rate are at fault. That alone says nothing of whether each report belongs to
its image: shuffled pairs are memorised just as well. So the second question is put to other
training pairs, of other patients: after memorising, do their reports fit their own images better
than chance would have it?
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from aga.data.sampling import SamplingConfig
from aga.data.studies import StudyDataset
from aga.errors import ParamsError
from aga.ranking import retrieval_hits
from aga.tensors import normalize
from aga.training.events import EpochEvent
from aga.training.loop import TrainingContext, autocast, train
from aga.training.recipe import Recipe, RunData
from aga.training.run import build_context
from aga.training.validation import CHUNK, MEAN_RECALL

logger = logging.getLogger(__name__)

STEPS = 240
RECALL = 0.95
"""Share of the pairs that must find each other first of all; near-perfect, not perfect."""
MARGIN = 3.0
"""Standard errors over chance; shuffled pairs exceed them once in 700 times."""
OTHERS = 512
LEAST_OTHERS = 32


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        pairs: Pairs that were to be memorised.
        images: Different prepared images among them.
        texts: Different texts among them.
        steps: Optimizer steps until they were memorised, or all there were.
        recall: Recall at 1 among them, mean of both directions, at the end.
        losses: Training loss of the first and the last epoch.
        others: Other pairs that were looked at.
        margin: By how many standard errors over chance those match; None where there are too few.
    """

    pairs: int
    images: int
    texts: int
    steps: int
    recall: float
    losses: tuple[float, float]
    others: int
    margin: float | None

    @property
    def memorised(self) -> bool:
        """Whether the pairs find each other."""
        return self.recall >= RECALL

    @property
    def passed(self) -> bool:
        """Whether they do, and others profit, as far as that can be told."""
        return self.memorised and (self.margin is None or self.margin >= MARGIN)

    def __str__(self) -> str:
        head = "PASSED" if self.passed else "FAILED"
        was = "were" if self.memorised else "were not"
        found = (
            f"{head}: the {self.pairs} pairs {was} memorised in {self.steps} steps (recall at 1 is "
            f"{self.recall:.2f}, expected {RECALL} or more; loss {self.losses[0]:.3g} to "
            f"{self.losses[1]:.3g})"
        )
        if not self.memorised:
            return f"{found}.\n{self._why_not_memorised()}"
        if self.margin is None:
            return (
                f"{found}.\nThere are too few other training pairs ({self.others}) to tell whether "
                "it carries over: shuffled reports would have passed, too."
            )
        carried = "carries over" if self.passed else "does not carry over"
        found += (
            f",\nand it {carried}: {self.others} other training pairs match {self.margin:.1f} "
            f"standard errors over chance (expected {MARGIN:.0f} or more)."
        )
        return found if self.passed else f"{found}\n{self._why_not_carried()}"

    def _why_not_memorised(self) -> str:
        return f"""What it can mean:
- Images unreadable: {self.images} of the {self.pairs} prepared images differ from each other. Are
  they blank, or cut wrongly (prepare.image)? A report page or workflows/explain.py shows them.
- Reports alike: {self.texts} of the {self.pairs} texts differ. Does prepare.report.prefer leave
  what the reports have to say, and tokenizer.max_tokens enough of it?
- Labels shuffled: equal or nearly equal images with different reports cannot all be right.
- Learning rate: where the loss hardly fell, optimizer.learning_rate is too low or too high; where
  it still falls, training longer may do, and this test is too short for these settings."""

    def _why_not_carried(self) -> str:
        return f"""What it can mean:
- Labels shuffled: pairs are memorised whether they belong together or not, and shuffled reports
  look exactly like this. Does each row name its own image? Is a column shifted, or sorted alone?
- Images unreadable: something that only tells images apart, such as a burnt-in label or noise, is
  enough to memorise them.
- Too few pairs: what {self.pairs} pairs teach may not show yet. Repeat it with
  --overfit {4 * self.pairs}."""


def overfit(recipe: Recipe, home: Path, pairs: int, device: str = "cpu") -> Verdict:
    """Train on a few training pairs until they are memorised, without augmentation, and judge.

    Nothing is written but the pixel cache: no checkpoint, no bundle, nothing tracked.

    Args:
        recipe: The settings; those of `memorising` replace some.
        home: Holds `data/studies` and `data/tokens`.
        pairs: How many.
        device: Where to compute.

    Raises:
        ParamsError: There are not so many training pairs, or fewer than 8 are asked for.
        DataError: The data are missing or damaged.
        DivergenceError: The loss is no longer a number.
    """
    data = RunData.open(home)
    available = data.studies.info.splits["train"]
    if not 8 <= pairs <= available:
        raise ParamsError(
            "This many pairs cannot be memorised",
            where="--overfit",
            got=pairs,
            expected=f"8 to {available}, the pairs of the train split",
        )
    context = build_context(memorising(recipe, pairs), data, home, torch.device(device))
    context = replace(context, validation=context.training)
    rows = context.training.rows
    step, recall, losses = _memorise(context)
    others = other_rows(data.studies, rows)
    margin = None
    if len(others) >= LEAST_OTHERS:
        margin = matching_margin(*_embed(context, others))
    texts, pixels = (data.studies.column(n).take(pa.array(rows)) for n in ("text", "pixel_sha256"))
    return Verdict(
        pairs=pairs,
        images=len(pixels.unique()),
        texts=len(texts.unique()),
        steps=step,
        recall=recall,
        losses=losses,
        others=len(others),
        margin=margin,
    )


def memorising(recipe: Recipe, pairs: int) -> Recipe:
    """The same recipe for a few pairs: as they are, in batches that they fill, enough epochs."""
    training = recipe.training
    batch_size = min(training.batch_size, pairs)
    still = dict.fromkeys(type(training.augmentation).model_fields, 0.0)
    changes = {
        "pairs": pairs,
        "batch_size": batch_size,
        "epochs": -(-STEPS // (pairs // batch_size)),
        "augmentation": training.augmentation.model_copy(update=still),
        "sampling": SamplingConfig(views="all", sentences=None),
        "patience": 0,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=changes)})


def other_rows(studies: StudyDataset, rows: Int64[np.ndarray, "N"]) -> Int64[np.ndarray, "M"]:
    """At most `OTHERS` evenly spaced training rows of patients who are not those of `rows`."""
    patients = np.array(studies.column("patient_id").to_pylist(), dtype=object)
    training = studies.rows("train")
    others = training[~np.isin(patients[training], patients[rows])]
    places = np.linspace(0, len(others) - 1, min(OTHERS, len(others))).round().astype(np.int64)
    return np.asarray(others[places])


def matching_margin(images: Float[Tensor, "N D"], texts: Float[Tensor, "N D"]) -> float:
    """How much better pairs match than chance, in standard errors of chance.

    Each image ranks all texts and each text all images; what counts is the mean rank of the own
    one. Chance is the same ranks under all permutations of the pairs, whose mean and variance are
    known exactly (Hoeffding 1951, "A combinatorial central limit theorem"): no draw, and texts or
    images that please everybody mislead nobody. 0 where all cosines are equal.
    """
    scores = (normalize(images.double()) @ normalize(texts.double()).T).cpu().numpy()
    ranks = _ranks(scores) + _ranks(scores.T).T
    expected = ranks.mean(0) + ranks.mean(1, keepdims=True) - ranks.mean()
    deviation = ranks - expected
    variance = (deviation**2).sum() / (len(ranks) - 1)
    return float(deviation.trace() / max(variance, 1e-12) ** 0.5)


def _ranks(scores: Float[np.ndarray, "N N"]) -> Float[np.ndarray, "N N"]:
    """Share of the others in a row that an element beats; ties count half."""
    below = np.array([np.searchsorted(np.sort(row), row, "left") for row in scores])
    upto = np.array([np.searchsorted(np.sort(row), row, "right") for row in scores])
    return np.asarray((below + upto - 1) / (2 * (len(scores) - 1)))


def _memorise(context: TrainingContext) -> tuple[int, float, tuple[float, float]]:
    """Steps done, recall at 1, and the first and last loss, once memorised or at the end."""
    losses: list[float] = []
    step, recall = 0, 0.0
    for event in train(context):
        if isinstance(event, EpochEvent):
            losses.append(event.row["loss/train"])
            step = int(event.row["step"])
            # Recall at 10 is cheap to have here, and never under recall at 1.
            if event.row[MEAN_RECALL] >= RECALL or step >= context.total_steps:
                recall = _recall_at_1(context)
            if recall >= RECALL:
                break
            if len(losses) % 20 == 0:
                logger.info(
                    "step %d of at most %d, loss %.4f", step, context.total_steps, losses[-1]
                )
    return step, recall, (losses[0], losses[-1])


def _recall_at_1(context: TrainingContext) -> float:
    images, texts = _embed(context, context.training.rows)
    keys = torch.from_numpy(context.training.statements).to(images.device)
    hits = [
        retrieval_hits(queries, gallery, keys, (1,), chunk=CHUNK, duplicate_aware=True)
        for queries, gallery in ((images, texts), (texts, images))
    ]
    return float(torch.stack(hits).double().mean())


@torch.no_grad()
def _embed(
    context: TrainingContext, rows: Int64[np.ndarray, "N"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    context.network.eval()
    size = context.config.batch_size
    images, texts = [], []
    for start in range(0, len(rows), size):
        batch = context.training.batch(rows[start : start + size]).to(context.device)
        with autocast(context.config.precision, context.device):
            pairs = context.network.model(batch)
        images.append(pairs.image.float())
        texts.append(pairs.text.float())
    return torch.cat(images), torch.cat(texts)
