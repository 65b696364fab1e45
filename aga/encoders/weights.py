"""Strict reading of safetensors files: the names and shapes match exactly, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aga.errors import CheckpointError

LISTED_NAMES = 8


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: The file is missing or is not a safetensors file.
    """
    if not path.is_file():
        raise CheckpointError("A weights file is missing.", where=path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            "A weights file cannot be read.",
            where=path,
            got=error,
            expected="a complete .safetensors file; pickled weights (.pt, .bin) are never opened",
        ) from error
    return tensors


def load_strict(module: nn.Module, path: Path, ignored: Iterable[str] = (), part: str = "") -> None:
    """Copy the tensors of a safetensors file into a module of exactly these names and shapes.

    Args:
        module: Receives the values; untouched where anything differs.
        path: The safetensors file.
        ignored: Name prefixes, without the dot, that the file may hold and the module need not:
            the classifier of a pretrained network.
        part: Prefix of the module's names, dot included, in the file of a whole model; such a file
            may hold anything beside them.

    Raises:
        CheckpointError: Lists the missing and unexpected names and the differing shapes.
    """
    found = read_tensors(path)
    if part and any(name.startswith(part) for name in found):
        found = {k.removeprefix(part): v for k, v in found.items() if k.startswith(part)}
    expected = module.state_dict()
    prefixes = tuple(f"{prefix}." for prefix in ignored)
    kept = {k: v for k, v in found.items() if k in expected or not k.startswith(prefixes)}
    difference = state_difference(expected, kept)
    if difference:
        raise CheckpointError(
            "The weights do not belong to this architecture.",
            where=path,
            got="\n".join(["", *difference]),
            expected=f"the {len(expected)} tensors of {type(module).__name__}",
            fix="use the file with the architecture, options and image channels it was made for",
        )
    module.load_state_dict(kept)


def state_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One line for each kind of difference in names, shapes or types; empty where all agree."""
    shared = sorted(expected.keys() & found.keys())
    changed = [
        f"{name} {_layout(found[name])} instead of {_layout(expected[name])}"
        for name in shared
        if _layout(found[name]) != _layout(expected[name])
    ]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "other shape or type": changed,
    }
    return [f"    {kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def _layout(tensor: Tensor) -> str:
    # Half-precision files are common and widen without loss; integers and floats never mix.
    kind = "float" if tensor.dtype.is_floating_point else str(tensor.dtype).removeprefix("torch.")
    return f"{kind}{list(tensor.shape)}"


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU and contiguous, as `safetensors` wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
