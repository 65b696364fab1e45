"""Time, peak memory and FLOPs of every objective, forward and backward, against B, L and P.

Every objective reads the same random embeddings. `gloria_whole` is GLoRIA vectorised as its
equation stands, all combinations of images and reports at once; `gloria` is the library's, in
blocks. Times are medians over rounds in which each objective has its turn, so that what else the
machine does falls on all alike; compare ratios. Peak memory is what a process of its own needs
above its inputs. `--check` exits 1 where a limit on the ratios is missed.

    python -m benchmarks.objectives --check                   rows, and docs/objectives-memory.svg
    python -m benchmarks.objectives --compile --patches 196   with torch.compile beside
    python -m benchmarks.objectives --device cuda
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib as mpl
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aga.encoders.image import ImageEncoderConfig
from aga.encoders.text import TextEncoderConfig
from aga.model import AlignmentModel, ModelConfig
from aga.objectives import OBJECTIVES, build_objective, pairwise
from aga.objectives.base import LossTerms
from aga.pairs import PairBatch, PairEmbeddings
from aga.params import Overlay, overlaid, read_yaml, validate
from benchmarks.rows import write_rows

mpl.use("svg")
from matplotlib import pyplot as plt

PROJECT = Path(__file__).parent.parent
PLOT = PROJECT / "docs/objectives-memory.svg"
MIB = 2**20
WORDS = 1000

# "aga" is as params.yaml has it: all parts, and `iga.max_patches` patches of an image ask; in
# "aga_all" every patch asks.
VARIANTS: Mapping[str, Overlay] = {
    **{name: {"name": name} for name in OBJECTIVES},
    "aga_no_bcga": {"name": "aga", "aga": {"weights": {"bcga": 0.0}}},
    "aga_all": {"name": "aga", "aga": {"iga": {"max_patches": None}}},
    "aga_dependence": {
        "name": "aga",
        "aga": {"weights": {"iga": 0.0, "bcga": 0.0, "dependence": 1.0}},
    },
    "gloria_whole": {"name": "gloria"},
}
WHOLE = frozenset({"gloria_whole"})
HEAD = {"batch": 32, "tokens": 96, "patches": 196, "width": 256}  # of a step of ViT-S/16 and BERT


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch: pairs B, tokens L, patches P, joint width D."""

    batch: int
    tokens: int
    patches: int
    width: int


@dataclass(frozen=True)
class Limit:
    """What a quotient of two objectives may be at most."""

    quantity: str
    objective: str
    reference: str
    most: float


LIMITS = (
    Limit("seconds", "aga_no_bcga", "sparc", 2.5),
    Limit("seconds", "aga", "sparc", 4.0),
    Limit("seconds", "aga", "gloria", 1 / 5),
    Limit("seconds", "aga", "gloria_whole", 1 / 5),
    Limit("peak_mib", "aga", "gloria_whole", 1 / 5),
)
GROWTH = 1.1  # of peak memory with P: the slope in logarithms, where P is large; 1 is linear
HEAD_SHARE = 0.10
GROWING = ("aga", "aga_all", "aga_no_bcga")


def _attention_flop(query: Sequence[int], key: Sequence[int], *rest: object, **more: object) -> int:
    """Two products of equally wide queries, keys and values."""
    del rest, more
    return 4 * math.prod(query) * key[-2]


def _attention_backward_flop(
    above: Sequence[int], query: Sequence[int], key: Sequence[int], *rest: object, **more: object
) -> int:
    """Five products: the scores anew, and the gradients of weights, values, queries and keys."""
    del above, rest, more
    return 10 * math.prod(query) * key[-2]


def _product_flop(
    total: Sequence[int], left: Sequence[int], right: Sequence[int], **others: object
) -> int:
    del total, others
    return 2 * math.prod(left) * right[-1]


UNCOUNTED = {  # by PyTorch's counter
    torch.ops.aten.baddbmm_: _product_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


def main() -> int:
    """Measure, print, write the rows and the plot; 1 where a limit is missed and checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--objectives", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[96])
    parser.add_argument("--patches", type=int, nargs="+", default=[196, 1024])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--growth", type=int, nargs="*", default=[49, 196, 576, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names, device = options.objectives, torch.device(options.device)
    rows: list[dict[str, Any]] = []
    for batch in options.batch:
        for tokens in options.tokens:
            for patches in options.patches:
                shape = Shape(batch, tokens, patches, options.width)
                rows += costs(names, shape, device, options.rounds, compiled=options.compile)
    grown = list(growth(options.batch[0], options.tokens[0], options.width, options.growth, device))
    share = head_share(device, options.rounds)
    found = [*limited(rows), *linear(grown), share]
    for row in found:
        print(f"{row['limit']}: {row['found']:.3f}, at most {row['most']:.3f}")
    name = "objectives" if device.type == "cpu" else f"objectives-{device.type}"
    print(write_rows(name, [*rows, *grown, *found]))
    if grown and device.type == "cpu":
        plot(grown)
    missed = [row for row in found if not row["found"] <= row["most"]]
    return int(options.check and (bool(missed) or not found))


def objective(name: str, width: int, device: torch.device) -> nn.Module:
    """An objective under the project's params.yaml."""
    values = overlaid(read_yaml(PROJECT / "params.yaml"), {"objective": VARIANTS[name]})
    params = validate(values, PROJECT / "params.yaml")
    torch.manual_seed(0)
    module = build_objective(params.objective, width).to(device)
    return Whole(module) if name in WHOLE else module


class Whole(nn.Module):
    """An objective that scores all combinations of its batch at once.

    Args:
        inner: The objective.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pairs: PairEmbeddings) -> LossTerms:
        """The losses of the objective."""
        with patch.object(pairwise, "BLOCK", sys.maxsize):
            losses: LossTerms = self.inner(pairs)
        return losses


def embeddings(shape: Shape, device: torch.device) -> PairEmbeddings:
    """Random embeddings of pairs whose reports hold L/2 to L tokens, in four sentences."""
    draw = torch.Generator().manual_seed(0)

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=draw).to(device).requires_grad_()

    lengths = torch.randint(shape.tokens // 2, shape.tokens + 1, (shape.batch, 1), generator=draw)
    lengths[0] = shape.tokens
    places = torch.arange(shape.tokens)
    content = places < lengths
    ids = torch.randint(WORDS, (shape.batch, shape.tokens), generator=draw)
    sentences = (4 * places // lengths).where(content, -1)
    return PairEmbeddings(
        patches=leaf(shape.batch, shape.patches, shape.width),
        tokens=leaf(shape.batch, shape.tokens, shape.width),
        image=leaf(shape.batch, shape.width),
        text=leaf(shape.batch, shape.width),
        content_mask=content.to(device),
        token_ids=ids.to(device),
        sentences=sentences.to(device),
    )


def step(module: Callable[..., Any], pairs: PairEmbeddings) -> None:
    """Forward and backward; gradients are made anew, as a training step does."""
    forget(module, pairs)
    module(pairs).total.backward()
    if pairs.patches.is_cuda:
        torch.cuda.synchronize()


def forget(module: Callable[..., Any], pairs: PairEmbeddings) -> None:
    """Drop the gradients."""
    leaves = (pairs.patches, pairs.tokens, pairs.image, pairs.text)
    for value in (*leaves, *getattr(module, "parameters", tuple)()):
        value.grad = None


def costs(
    names: Sequence[str], shape: Shape, device: torch.device, rounds: int, *, compiled: bool
) -> list[dict[str, Any]]:
    """A row for each objective, and for each compiled one: time, FLOPs and peak memory."""
    pairs = embeddings(shape, device)
    modules: dict[tuple[str, bool], Callable[..., Any]] = {
        (name, False): objective(name, shape.width, device) for name in names
    }
    if compiled:
        plain = [objective(name, shape.width, device) for name in names]
        modules |= {
            (name, True): torch.compile(module) for name, module in zip(names, plain, strict=True)
        }
    calls = {key: partial(step, module, pairs) for key, module in modules.items()}
    seconds = timed(calls, rounds)
    rows = []
    for (name, is_compiled), module in modules.items():
        row = {
            "objective": name,
            **vars(shape),
            "device": device.type,
            "compiled": is_compiled,
            "seconds": round(seconds[name, is_compiled], 4),
        }
        if not is_compiled:
            with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
                step(module, pairs)
            row["gflop"] = round(counter.get_total_flops() / 1e9, 2)
            row["peak_mib"] = peak(name, shape, device)
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def timed(calls: Mapping[Any, Callable[[], None]], rounds: int) -> dict[Any, float]:
    """Median seconds of each call, taking turns; the first round does not count."""
    taken: dict[Any, list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                taken[key].append(time.perf_counter() - start)
    return {key: statistics.median(found) for key, found in taken.items()}


def peak(name: str, shape: Shape, device: torch.device) -> float | None:
    """MiB that a step needs above its inputs; on a CPU in a process of its own, under Linux."""
    if device.type == "cuda":
        module, pairs = objective(name, shape.width, device), embeddings(shape, device)
        step(module, pairs)
        forget(module, pairs)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(module, pairs)
        return round((torch.cuda.max_memory_allocated() - before) / MIB, 1)
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(resident, name, shape, torch.get_num_threads()).result()


def resident(name: str, shape: Shape, threads: int) -> float:
    """The highest resident memory of a step minus that before it, MiB."""
    torch.set_num_threads(threads)
    module = objective(name, shape.width, torch.device("cpu"))
    step(module, embeddings(replace(shape, batch=4, patches=49), torch.device("cpu")))
    pairs = embeddings(shape, torch.device("cpu"))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    step(module, pairs)
    return round((_status("VmHWM") - before) / 1024, 1)


def _status(field: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def growth(
    batch: int, tokens: int, width: int, patches: Iterable[int], device: torch.device
) -> Iterable[dict[str, Any]]:
    """Peak memory of AGA and of SPARC against the number of patches."""
    for name in (*GROWING, "sparc"):
        for count in patches:
            shape = Shape(batch, tokens, count, width)
            row = {"objective": name, **vars(shape), "peak_mib": peak(name, shape, device)}
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)
            yield row


def head_share(device: torch.device, rounds: int) -> dict[str, Any]:
    """AGA's part of a training step of a ViT-S/16 and a BERT of six layers."""
    shape = Shape(**HEAD)
    config = ModelConfig(width=shape.width, projection="mlp", positions="none")
    model = AlignmentModel(
        ImageEncoderConfig(
            architecture="vit_small_patch16_224", options={}, weights=None, patch_layer=-1
        ),
        TextEncoderConfig(path=None, width=384, layers=6, heads=6, dropout=0.0),
        config,
        channels=3,
        image_size=(224, 224),
        vocabulary=WORDS,
        pad_id=0,
        max_tokens=shape.tokens,
    ).to(device)
    pairs, module = embeddings(shape, device), objective("aga", shape.width, device)
    batch = PairBatch(
        images=torch.randn(shape.batch, 3, 224, 224, device=device),
        token_ids=pairs.token_ids,
        attention_mask=pairs.content_mask,
        content_mask=pairs.content_mask,
        sentences=pairs.sentences,
        rows=torch.arange(shape.batch, device=device),
    )

    def encode() -> None:
        model.zero_grad()
        found = model(batch)
        ones = [found.patches, found.tokens, found.image, found.text]
        torch.autograd.backward([x.sum() for x in ones])
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = timed({"encoders": encode, "head": lambda: step(module, pairs)}, rounds)
    return {
        "limit": "AGA's head over its encoders, ViT-S/16 and BERT of 6 layers, B = 32",
        **{f"{name}_seconds": round(value, 4) for name, value in seconds.items()},
        "found": round(seconds["head"] / seconds["encoders"], 4),
        "most": HEAD_SHARE,
    }


def limited(rows: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """The quotient of each limit, for every shape at which both objectives were measured."""
    table = {
        (row["objective"], row["batch"], row["tokens"], row["patches"]): row
        for row in rows
        if not row["compiled"]
    }
    for limit in LIMITS:
        for (name, *shape), row in table.items():
            reference = table.get((limit.reference, *shape))
            if name != limit.objective or not reference or not reference[limit.quantity]:
                continue
            where = "B = {}, L = {}, P = {}".format(*shape)
            yield {
                "limit": f"{limit.quantity} of {name} over {limit.reference}, {where}",
                "found": round(row[limit.quantity] / reference[limit.quantity], 4),
                "most": limit.most,
            }


def linear(rows: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """How AGA's peak memory grows over the upper half of the numbers of patches."""
    for name in GROWING:
        points = [(r["patches"], r["peak_mib"]) for r in rows if r["objective"] == name]
        points = [(count, peak_mib) for count, peak_mib in points if peak_mib]
        if len(points) < 2:
            continue
        (few, low), (many, high) = points[len(points) // 2], points[-1]
        yield {
            "limit": f"growth of {name}'s peak memory from P = {few} to {many}; linear is 1",
            "found": round(math.log(high / low) / math.log(many / few), 4),
            "most": GROWTH,
        }


def plot(rows: Sequence[Mapping[str, Any]]) -> None:
    """Peak memory against the number of patches, with a straight line through AGA's last point."""
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for name in dict.fromkeys(row["objective"] for row in rows):
        points = [(r["patches"], r["peak_mib"]) for r in rows if r["objective"] == name]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    last = [r for r in rows if r["objective"] == "aga"][-1]
    line = [(r["patches"], last["peak_mib"] * r["patches"] / last["patches"]) for r in rows]
    axis.plot(*zip(*sorted(set(line)), strict=True), linestyle=":", color="grey", label="linear")
    axis.set(xlabel="patches P", ylabel="peak memory of a step, MiB")
    axis.set_title("B = {batch}, L = {tokens}, D = {width}".format(**last))
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
