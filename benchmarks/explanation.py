"""Pointing at the word "nodule" lights patches inside the nodule's box, in a real browser.

Needs a bundle of the phantom and `data/studies` of it. Each of the first ten test pairs with a
nodule that its report names is explained, its page opened in headless Chromium, the pointer moved
to the word; what the page then lights most strongly is compared with the known box.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from aga.bundle import load_bundle
from aga.data.studies import StudyDataset
from aga.evaluation.heat import patches_inside
from aga.explain import Explanation, explain, explanation_page
from benchmarks.browser import chromium
from benchmarks.rows import write_rows

WORD = "nodule"
CASES = 10
LIMIT = 8
LIT = """
    return [...document.querySelectorAll(".patch")].map(
      patch => [Number(patch.dataset.patch), Number(getComputedStyle(patch).fillOpacity)]);
"""


def main() -> int:
    """Point at each case's word, and count the cases whose strongest patch is in the box."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path.cwd(), help="holds data/studies")
    parser.add_argument("--bundle", type=Path, help="folder of the encoder; models/encoder of home")
    parser.add_argument("--check", action="store_true", help=f"exit 1 under {LIMIT} of {CASES}")
    options = parser.parse_args()
    home = options.home.resolve()
    studies = StudyDataset.open(home / "data/studies")
    bundle = load_bundle(options.bundle or home / "models/encoder")
    cases = dict(nodules(studies))
    found = explain(bundle, studies, home / "data/cache", list(cases))
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        rows = [measured(browser, Path(folder), pair, cases[pair.row]) for pair in found]
    hits = sum(bool(row["inside"]) for row in rows)
    chance = sum(float(str(row["area"])) for row in rows)
    bundle_row = {"bundle_sha256": bundle.sha256, "inside": hits, "of": len(rows)}
    print(write_rows("explanation", [bundle_row, *rows]))
    print(f"inside the nodule's box: {hits} of {len(rows)}; by chance {chance:.1f}")
    return int(options.check and (hits < LIMIT or len(rows) < CASES))


def nodules(studies: StudyDataset) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The first test rows whose report names a nodule at a known place, with that region."""
    rows = studies.rows("test")
    table = studies.manifest.take(pa.array(rows)).select(["row", "report", "regions"])
    kept = 0
    for record in table.to_pylist():
        for region in record["regions"] or []:
            named = region["span"] and record["report"][slice(*region["span"])]
            if region["finding"] == "nodule" and named and WORD in named.casefold():
                yield record["row"], region
                kept += 1
                break
        if kept == CASES:
            return


def measured(
    browser: webdriver.Chrome, folder: Path, found: Explanation, region: Mapping[str, Any]
) -> dict[str, object]:
    """Point at the word of one case."""
    page = folder / f"row-{found.row}.html"
    page.write_text(explanation_page(found), encoding="utf-8")
    browser.get(page.as_uri())
    start, end = region["span"]
    numbers = [
        number
        for number, word in enumerate(found.whole_words)
        if start <= word.start < end and WORD in word.text.casefold()
    ]
    inside = of_box(found, region)
    area = float(round(inside.mean(), 4))
    row: dict[str, object] = {"row": found.row, "inside": False, "area": area}
    if not numbers:  # the model's longest text ends before the word
        return row | {"patch": None}
    word = browser.find_element(By.CSS_SELECTOR, f'.word[data-word="{numbers[0]}"]')
    ActionChains(browser).move_to_element(word).perform()
    patch, opacity = max(browser.execute_script(LIT), key=lambda lit: lit[1])
    return row | {"patch": patch, "inside": bool(opacity > 0 and inside[patch])}


def of_box(found: Explanation, region: Mapping[str, Any]) -> Bool[np.ndarray, " P"]:
    """The patches of the box, as the evaluation counts them; of any, by chance, the share."""
    boxes = np.array(found.patch_boxes).reshape(*found.grid, 4)
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    centres = middles[:, 0, 1], middles[0, :, 0]
    return patches_inside(tuple(region["box"]), centres, found.original_size)


if __name__ == "__main__":
    sys.exit(main())
