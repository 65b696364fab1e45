"""1, 2 and 4 real gloo processes under DDP: one loss, one gradient, whatever their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from aga.collectives import gather_padded, gather_with_gradient, own_rows, rank, world_size
from aga.objectives import OBJECTIVES, ObjectiveConfig, build_objective
from aga.pairs import PairEmbeddings

PAIRS, PATCHES, TOKENS, WIDTH = 8, 5, 6, 8


class _Encoder(nn.Module):
    """Linear layers instead of encoders, and the objective: all that DDP has to average."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.patches = nn.Linear(3, WIDTH)
        self.tokens = nn.Linear(3, WIDTH)
        self.objective = build_objective(config, WIDTH)

    def forward(self, images: Tensor, texts: Tensor, content: Tensor, ids: Tensor) -> Tensor:
        patches, tokens = self.patches(images), self.tokens(texts)
        image, text = patches.mean(1).tanh(), tokens.mean(1).tanh()
        more = rank()  # each process has a longest report of its own
        tokens = pad(tokens, (0, 0, 0, more), value=9.0)
        content, ids = pad(content, (0, more)), pad(ids, (0, more))
        pairs = PairEmbeddings(patches, tokens, image, text, content, ids, sentences=ids)
        return self.objective(pairs).total


def _batch() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([6, 2, 0, 1, 5, 3, 6, 4])
    return [
        torch.randn(PAIRS, PATCHES, 3, generator=generator),
        torch.randn(PAIRS, TOKENS, 3, generator=generator),
        torch.arange(TOKENS) < lengths[:, None],
        torch.randint(0, 3, (PAIRS, TOKENS), generator=generator),
    ]


def _loss_and_gradients(config: ObjectiveConfig, *, parallel: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = _Encoder(config)
    with torch.no_grad():  # gates that are off their start
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    local = PAIRS // world_size()
    batch = [x[rank() * local : (rank() + 1) * local] for x in _batch()]
    # The wrapper must outlive the backward pass: it is what averages.
    wrapped = DistributedDataParallel(model) if parallel else model
    loss = wrapped(*batch)
    loss.backward()
    mean = loss.detach().clone()
    if parallel:
        dist.all_reduce(mean)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"loss": mean / world_size(), **gradients}


def _uneven() -> dict[str, Tensor]:
    """What is gathered of reports that are longer from process to process, and its gradient."""
    tokens = torch.full((2, rank() + 1, 3), 1.0 + rank(), requires_grad=True)
    gathered, mask = gather_padded(tokens, tokens.detach()[..., 0] > 0)
    weight = (rank() + 1) * torch.arange(gathered.numel()).float().reshape(gathered.shape)
    (gathered * weight).sum().backward()
    found = {"tokens": gathered.detach(), "mask": mask, "own": own_rows(tokens)}
    return {**found, "gradient": tokens.grad}


def _process(number: int, count: int, folder: str, configs: dict[str, str]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=count)
    for name, text in configs.items():
        config = ObjectiveConfig.model_validate(json.loads(text))
        found = _loss_and_gradients(config, parallel=True)
        save_file(found, f"{folder}/{name}-{number}.safetensors")
    slices = gather_with_gradient(torch.full((2, 1), float(rank())))
    save_file({"rows": slices, **_uneven()}, f"{folder}/gathered-{number}.safetensors")
    dist.destroy_process_group()


def _configs() -> dict[str, ObjectiveConfig]:
    from ruamel.yaml import YAML

    values = YAML(typ="safe").load(Path(__file__).parents[1] / "params.yaml")["objective"]
    aga = {**values["aga"], "bcga": {**values["aga"]["bcga"], "heads": 2}}
    sigmoid = {**aga, "contrast": {"form": "sigmoid", "temperature": 0.2, "bias": -3.0}}
    inside = {**aga, "weights": {**aga["weights"], "contrast": 0.0}}
    depending = {**aga, "weights": {**aga["weights"], "dependence": 1.0}}
    depending["dependence"] = {**aga["dependence"], "block": 2}  # divides every process's pairs
    variants = {"sigmoid": sigmoid, "inside": inside, "dependence": depending}
    cases = {case: ("aga", block) for case, block in variants.items()}
    cases |= {name: (name, aga) for name in OBJECTIVES}
    return {
        case: ObjectiveConfig.model_validate({**values, "name": name, "aga": block})
        for case, (name, block) in cases.items()
    }


@pytest.mark.parametrize("count", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_one_loss_and_one_gradient(
    tmp_path: Path, count: int
) -> None:
    configs = _configs()
    texts = {name: config.model_dump_json() for name, config in configs.items()}
    torch.multiprocessing.spawn(_process, (count, str(tmp_path), texts), nprocs=count)
    for name, config in configs.items():
        expected = _loss_and_gradients(config, parallel=False)
        for number in range(count):
            found = load_file(tmp_path / f"{name}-{number}.safetensors")
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                worst = (found[key] - value).abs().max().item()
                assert worst <= 1e-6 * max(1.0, value.abs().max().item()), (name, number, key)
    for number in range(count):
        found = load_file(tmp_path / f"gathered-{number}.safetensors")
        assert found["rows"][:, 0].tolist() == [float(r) for r in range(count) for _ in range(2)]
        assert found["own"].tolist() == [2 * number, 2 * number + 1]
        _check_uneven(found, number, count)


def _check_uneven(found: dict[str, Tensor], number: int, count: int) -> None:
    """Row `r` has `r + 1` tokens of value `r + 1`, then padding; gradients come from everywhere."""
    lengths = torch.arange(1, count + 1).repeat_interleave(2)
    there = torch.arange(count) < lengths[:, None]
    assert found["mask"].equal(there)
    assert found["tokens"].equal((lengths[:, None] * there)[..., None].expand(-1, -1, 3).float())
    weight = torch.arange(found["tokens"].numel()).float().reshape(found["tokens"].shape)
    expected = sum(range(1, count + 1)) * weight[2 * number : 2 * number + 2, : number + 1]
    assert found["gradient"].equal(expected)


def test_one_process_gathers_nothing() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1
    assert rank() == 0
    assert gather_with_gradient(rows) is rows
    tokens, mask = torch.randn(3, 4, 2), torch.ones(3, 4).bool()
    assert all(a is b for a, b in zip(gather_padded(tokens, mask), (tokens, mask), strict=True))
