"""Cheap scalars to watch while training, and the collapses they betray (docs/method.md, step 9)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from aga.objectives.grouping import Groups
from aga.tensors import masked_mean, normalize

COLLAPSED_STD = 0.05  # embedding spread; 1 is a uniform direction, 0 a single point
NEARLY_ALL = 0.95  # share of groups, or of thresholds' range, that counts as a collapse
INDEPENDENT = 0.02  # nats between a report's own image and another one's
COLDEST = 0.0101  # a learned temperature at its limit of 0.01
CODE_BOOK = (
    "is solved without looking at the image: other images' patches serve as well, which is usual "
    "of terms inside pairs; only the contrast then ties a report to its image"
)

_COLLAPSES = (
    ("embedding/image_std", "below", COLLAPSED_STD, "all images get nearly the same embedding"),
    ("embedding/text_std", "below", COLLAPSED_STD, "all reports get nearly the same embedding"),
    ("group/visual_full", "above", NEARLY_ALL, "nearly every token chooses every patch"),
    ("group/visual_single", "above", NEARLY_ALL, "nearly every token chooses a single patch"),
    ("group/language_full", "above", NEARLY_ALL, "nearly every patch chooses every token"),
    ("group/language_single", "above", NEARLY_ALL, "nearly every patch chooses a single token"),
    ("embedding/patch_cosine", "above", NEARLY_ALL, "the patches of an image are nearly equal"),
    ("embedding/token_cosine", "above", NEARLY_ALL, "the tokens of a report are nearly equal"),
    ("iga/image_dependence", "above", -INDEPENDENT, f"IGA {CODE_BOOK}"),
    ("bcga/image_dependence", "above", -INDEPENDENT, f"BCGA {CODE_BOOK}"),
    ("fine/image_dependence", "above", -INDEPENDENT, f"the fine term {CODE_BOOK}"),
    ("local/image_dependence", "above", -INDEPENDENT, f"the local term {CODE_BOOK}"),
    ("contrast/temperature", "below", COLDEST, "the contrast temperature is at its lower limit"),
)


@torch.no_grad()
def embedding_diagnostics(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"]
) -> dict[str, Tensor]:
    """Standard deviation of the unit embeddings over the batch, √(Σ_d var_d).

    1 when they point everywhere, 0 when all are equal; no entry for a single pair.
    """
    if len(image) < 2:
        return {}
    spread = {"embedding/image_std": image, "embedding/text_std": text}
    return {
        name: normalize(vectors).var(0, correction=0).sum().sqrt()
        for name, vectors in spread.items()
    }


@torch.no_grad()
def likeness_diagnostics(
    tokens: Float[Tensor, "B L D"], patches: Float[Tensor, "B P D"], content: Bool[Tensor, "B L"]
) -> dict[str, Tensor]:
    """Mean cosine of two tokens of one report, and of two patches of one image, over all pairs.

    That is the squared length of the mean of their unit vectors; a report without a content token
    counts as 0.
    """
    mean_token = masked_mean(tokens, content[..., None].expand_as(tokens), dim=1)
    means = {"embedding/token_cosine": mean_token, "embedding/patch_cosine": patches.mean(1)}
    return {name: mean.square().sum(-1).mean() for name, mean in means.items()}


@torch.no_grad()
def group_diagnostics(groups: Groups, content: Bool[Tensor, "B L"]) -> dict[str, Tensor]:
    """Thresholds (mean, 5 %, 95 %) and groups (mean size, share that is full or single), both ways.

    Averages run over content tokens, and over patches of reports that have a content token; all are
    0 where there is none. A group of the only element there is, is neither full nor single.
    """
    readable = content.any(-1, keepdim=True).expand_as(groups.patch_thresholds)
    patches = groups.visual_sizes.new_tensor(groups.patch_thresholds.shape[1])
    tokens = content.sum(-1, keepdim=True)
    return {
        **_threshold_diagnostics("gate/token_threshold", groups.token_thresholds, content),
        **_threshold_diagnostics("gate/patch_threshold", groups.patch_thresholds, readable),
        **_size_diagnostics("group/visual", groups.visual_sizes, patches, content),
        **_size_diagnostics("group/language", groups.language_sizes, tokens, readable),
    }


def _size_diagnostics(
    name: str,
    sizes: Int64[Tensor, "B X"],
    choices: Int64[Tensor, "..."],
    mask: Bool[Tensor, "B X"],
) -> dict[str, Tensor]:
    """Mean size, and the shares of groups of all and of one of several `choices`."""
    counts = {
        "size": sizes * mask,
        "full": mask & (choices > 1) & (sizes == choices),
        "single": mask & (choices > 1) & (sizes == 1),
    }
    queries = mask.sum().clamp(min=1)
    return {f"{name}_{key}": count.sum() / queries for key, count in counts.items()}


def _threshold_diagnostics(
    name: str, thresholds: Float[Tensor, "B X"], mask: Bool[Tensor, "B X"]
) -> dict[str, Tensor]:
    """Mean and outer percentiles without a boolean index, which would wait for the device."""
    kept = thresholds.masked_fill(~mask, torch.nan)
    low, high = kept.nanquantile(kept.new_tensor([0.05, 0.95])).nan_to_num()
    return {f"{name}_mean": kept.nanmean().nan_to_num(), f"{name}_p05": low, f"{name}_p95": high}


def collapse_warnings(diagnostics: Mapping[str, Tensor | float]) -> dict[str, str]:
    """One sentence for each collapse that the diagnostics of a step show; empty when healthy.

    Args:
        diagnostics: `LossTerms.diagnostics`, of one step or averaged over several, and where there
            are any, the values of `image_dependence`.

    Returns:
        Name of the diagnostic to the sentence.
    """
    warnings = {}
    # Another term ties words to the image: that one inside pairs does not is no collapse.
    looking = float(diagnostics.get("local_score/image_gap", 0)) > INDEPENDENT
    for name, side, bound, meaning in _COLLAPSES:
        if name not in diagnostics or (looking and meaning.endswith(CODE_BOOK)):
            continue
        value = float(diagnostics[name])
        if (value < bound) if side == "below" else (value > bound):
            warnings[name] = f"{meaning} ({name} {value:.3g} is {side} {bound:g})"
    return warnings
