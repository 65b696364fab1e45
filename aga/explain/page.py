"""The maps of one pair as JSON, and as one HTML page that answers where a word or a patch points.

The page is one file and loads nothing: styles and script are inline, the image is a data URI, and a
content security policy forbids the rest and any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aga.bundle import Bundle
from aga.data.pixels.images import Box
from aga.data.studies import StudyDataset
from aga.errors import AgaError
from aga.explain.maps import METHODS, Explanation, explain
from aga.explain.pictures import image_png

if TYPE_CHECKING:
    from jinja2 import Environment

FORMAT = 1
_DIGITS, _PAGE_DIGITS = 6, 3  # of a weight


def explanation_json(found: Explanation) -> dict[str, Any]:
    """The maps of a pair with all their places, as plain values for a JSON file.

    Returns:
        `format`: 1. `row`: of the manifest. `report`: the raw report. `method` and `meaning`: what
        the weights are. `scores`: `global` and `local`. `image`: `original` and `prepared` (height,
        width), `fit`. `grid`: rows and columns of patches. `tokens_cut`: tokens beyond the model's
        longest text. `tokens`, L of them: `text`, `start` and `end` in the raw report, `word`, and
        `threshold`, null without groups. `words`, W of them: `text`, `start`, `end`, `tokens`.
        `patches`, P of them, row by row: `row`, `column`, `box` (left, top, right, bottom in pixels
        of the original image; on padding it lies outside), `threshold`. Then four maps of weights
        after the gate: `token_to_patch` [L][P], `patch_to_token` [P][L], `word_to_patch` [W][P],
        `patch_to_word` [P][W].
    """
    height, width = found.image.shape[:2]
    whole = found.whole_words
    word_of = {token: number for number, word in enumerate(whole) for token in word.tokens}
    limits = found.thresholds
    return {
        "format": FORMAT,
        "row": found.row,
        "report": found.report,
        "method": found.method,
        "meaning": METHODS[found.method],
        "scores": {"global": found.global_score, "local": found.local_score},
        "image": {
            "original": dict(zip(("height", "width"), found.original_size, strict=True)),
            "prepared": {"height": height, "width": width},
            "fit": found.fit,
        },
        "grid": dict(zip(("rows", "columns"), found.grid, strict=True)),
        "tokens_cut": found.cut,
        "tokens": [
            {
                **{"text": word.text, "start": word.start, "end": word.end, "word": word_of[i]},
                "threshold": float(limits.tokens[i]) if limits else None,
            }
            for i, word in enumerate(found.words)
        ],
        "words": [
            {"text": w.text, "start": w.start, "end": w.end, "tokens": list(w.tokens)}
            for w in whole
        ],
        "patches": [
            {
                **dict(zip(("row", "column"), divmod(i, found.grid[1]), strict=True)),
                "box": [round(edge, 2) for edge in box],
                "threshold": float(limits.patches[i]) if limits else None,
            }
            for i, box in enumerate(found.patch_boxes)
        ],
        "token_to_patch": _rounded(found.token_to_patch, _DIGITS),
        "patch_to_token": _rounded(found.patch_to_token, _DIGITS),
        "word_to_patch": _rounded(found.word_to_patch, _DIGITS),
        "patch_to_word": _rounded(found.patch_to_word, _DIGITS),
    }


def explanation_page(found: Explanation, note: str = "") -> str:
    """The HTML page of a pair.

    Args:
        found: Its maps.
        note: What else to say in its heading: the epoch, the bundle.

    Raises:
        AgaError: jinja2 is not installed.
    """
    environment = _environment()
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    picture = base64.b64encode(image_png(found.image)).decode("ascii")
    rows, columns = found.grid
    return environment.get_template("explain.html.j2").render(
        found=found,
        note=note,
        method=METHODS[found.method],
        script=script,
        script_sha256=digest,
        picture=f"data:image/png;base64,{picture}",
        cells=[(i, *divmod(i, columns)) for i in range(rows * columns)],
        segments=list(_segments(found)),
        data=_page_data(found),
    )


def explanation_pages(
    bundle: Bundle, studies: StudyDataset, cache: Path, rows: Sequence[int]
) -> dict[str, str]:
    """The pages of some pairs by file name, `row-12.html`; see `explain`.

    Raises:
        AgaError: jinja2 is not installed.
        DataError: As `explain`.
    """
    _environment()  # says what is missing before anything is computed
    found = explain(bundle, studies, cache, rows)
    return {f"row-{pair.row}.html": explanation_page(pair) for pair in found}


@cache
def _environment() -> Environment:
    if importlib.util.find_spec("jinja2") is None:
        raise AgaError(
            "The page of an explanation needs jinja2, which is not installed",
            fix="pip install 'aga[report]'",
        )
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("aga", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _script() -> str:
    """The page's script; equal bytes in each page, so that the policy can name them."""
    path = Path(__file__).parent.parent / "templates" / "explain.js"
    return path.read_text(encoding="utf-8")


def _segments(found: Explanation) -> Iterator[tuple[str, int | None]]:
    """The whole raw report in pieces, each with its place in `whole_words`; None between words."""
    done = 0
    for number, word in enumerate(found.whole_words):
        start = max(word.start, done)
        if start > done:
            yield found.report[done:start], None
        if word.end > start:
            yield found.report[start : word.end], number
        done = max(done, word.end)
    if done < len(found.report):
        yield found.report[done:], None


def _page_data(found: Explanation) -> dict[str, Any]:
    """What the script reads; places of patches are cut at the border of the original image."""
    limits = found.thresholds
    return {
        "words": [word.text for word in found.whole_words],
        "columns": found.grid[1],
        "boxes": [_inside(box, found.original_size) for box in found.patch_boxes],
        "shares": found.method != "cosine",
        "wordThresholds": [
            round(float(limits.tokens[list(word.tokens)].mean()), 3) for word in found.whole_words
        ]
        if limits
        else None,
        "patchThresholds": [round(float(limit), 3) for limit in limits.patches] if limits else None,
        "wordToPatch": _rounded(found.word_to_patch, _PAGE_DIGITS),
        "patchToWord": _rounded(found.patch_to_word, _PAGE_DIGITS),
    }


def _inside(box: Box, size: tuple[int, int]) -> list[int] | None:
    """A box in whole pixels, cut at an image of (height, width) `size`; None outside of it."""
    height, width = size
    left, right = (min(max(round(x), 0), width) for x in (box[0], box[2]))
    top, bottom = (min(max(round(y), 0), height) for y in (box[1], box[3]))
    return [left, top, right, bottom] if left < right and top < bottom else None


def _rounded(weights: np.ndarray, digits: int) -> list[list[float]]:
    """Rows of numbers of few significant digits; 0 as the shortest JSON."""
    return [[float(f"{w:.{digits}g}") if w else 0 for w in row] for row in weights.tolist()]
