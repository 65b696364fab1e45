"""The page of an explanation in a real browser, pointed at with mouse and keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from aga.explain import Explanation, Thresholds, Word, explanation_page
from benchmarks.browser import chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]

REPORT = "FINDINGS:\n  A nodule </script><b>in</b> the\tleft zone.\n\nIMPRESSION: Nodule."


def explanation(report: str, spans: list[tuple[int, int]], side: int) -> Explanation:
    """Weights drawn at random, one third of them not 0, on `side` x `side` patches."""
    rng = np.random.default_rng(0)
    to_patch = rng.random((len(spans), side**2))
    to_patch *= rng.random(to_patch.shape) < 1 / 3
    to_token = rng.random((side**2, len(spans)))
    to_token *= rng.random(to_token.shape) < 1 / 3
    boxes = [(x * 4.0, y * 4.0, x * 4 + 4.0, y * 4 + 4.0) for y in range(side) for x in range(side)]
    return Explanation(
        row=7,
        report=report,
        image=rng.integers(0, 256, (2 * side, 2 * side, 1), np.uint8),
        original_size=(4 * side, 4 * side),
        fit="stretch",
        words=tuple(Word(report[a:b], a, b, i) for i, (a, b) in enumerate(spans)),
        cut=0,
        grid=(side, side),
        patch_boxes=tuple(boxes),
        token_to_patch=to_patch,
        patch_to_token=to_token,
        method="groups",
        thresholds=Thresholds(np.full(len(spans), 0.5), np.full(side**2, 0.25)),
        global_score=0.5,
        local_score=0.25,
    )


SPANS = [(REPORT.index(w), REPORT.index(w) + len(w)) for w in ("A", "nodule", "in", "left", "zone")]
FOUND = explanation(REPORT, SPANS, side=6)


class Page:
    """An explanation's page; what is pointed at, and what is lit then."""

    def __init__(self, browser: webdriver.Chrome, found: Explanation, folder: Path) -> None:
        self.browser, self.found = browser, found
        self.file = folder / f"{len(found.report)}-{len(found.patch_boxes)}.html"
        self.file.write_text(explanation_page(found), encoding="utf-8")

    def open(self) -> Page:
        self.browser.get(self.file.as_uri())
        self.words = self.browser.find_elements(By.CSS_SELECTOR, ".word")
        self.patches = self.browser.find_elements(By.CSS_SELECTOR, ".patch")
        return self

    def point_at(self, element: WebElement) -> None:
        ActionChains(self.browser).move_to_element(element).perform()

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def opacities(self) -> np.ndarray:
        script = (
            "return [...document.querySelectorAll('.patch')]"
            ".map(e => Number(getComputedStyle(e).fillOpacity))"
        )
        return np.array(self.browser.execute_script(script))

    def word_weights(self) -> np.ndarray:
        script = (
            "return [...document.querySelectorAll('.word')]"
            ".map(e => Number(getComputedStyle(e).getPropertyValue('--weight')))"
        )
        return np.array(self.browser.execute_script(script))

    def status(self) -> str:
        return self.browser.find_element(By.ID, "status").text

    def shows_word(self, index: int) -> None:
        weights = self.found.word_to_patch[index]
        np.testing.assert_allclose(self.opacities(), 0.75 * weights / weights.max(), atol=2e-3)
        assert not self.word_weights().any()
        assert self.found.whole_words[index].text in self.status()
        assert f"chose {(weights > 0).sum()} of {len(weights)} patches" in self.status()

    def shows_patch(self, index: int) -> None:
        weights = self.found.patch_to_word[index]
        np.testing.assert_allclose(self.word_weights(), weights / weights.max(), atol=2e-3)
        assert not self.opacities().any()
        assert f"chose {(weights > 0).sum()} of {len(weights)} words" in self.status()

    def shows_nothing(self) -> None:
        assert not self.opacities().any()
        assert not self.word_weights().any()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> Page:
    return Page(browser, FOUND, tmp_path).open()


def heading(page: Page) -> WebElement:
    return page.browser.find_element(By.TAG_NAME, "h1")


def test_the_raw_report_is_shown_as_it_is(page: Page) -> None:
    shown = page.browser.execute_script("return document.getElementById('report').textContent")
    assert shown == REPORT
    assert [word.text for word in page.words] == ["A", "nodule", "in", "left", "zone"]
    image = page.browser.execute_script(
        "const i = document.images[0]; return [i.complete, i.naturalWidth, i.naturalHeight]"
    )
    assert image == [True, 12, 12]


def test_pointing_at_a_word_lights_its_patches_by_weight(page: Page) -> None:
    page.shows_nothing()
    for index in (1, 3):
        page.point_at(page.words[index])
        page.shows_word(index)
    page.point_at(heading(page))
    page.shows_nothing()


def test_pointing_at_the_image_lights_the_words_of_the_patch(page: Page) -> None:
    for index in (0, 14, 35):
        page.point_at(page.patches[index])
        page.shows_patch(index)
    assert "x 20 to 24, y 20 to 24" in page.status()
    page.point_at(heading(page))
    page.shows_nothing()


def test_a_click_pins_until_it_is_released(page: Page) -> None:
    page.words[1].click()
    page.point_at(page.patches[3])
    page.shows_word(1)
    assert page.words[1].get_attribute("aria-pressed") == "true"
    page.patches[14].click()
    page.point_at(page.words[2])
    page.shows_patch(14)
    page.browser.find_element(By.ID, "release").click()
    page.point_at(page.words[2])
    page.shows_word(2)
    page.words[2].click()
    page.words[2].click()
    page.point_at(heading(page))
    page.press(Keys.ESCAPE)
    assert not page.browser.find_element(By.ID, "release").is_displayed()


def test_keys_reach_every_word_and_patch(page: Page) -> None:
    page.press(Keys.TAB)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    page.shows_patch(7)
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.shows_patch(6)
    page.press(Keys.TAB)
    page.shows_word(0)
    page.press(Keys.ARROW_RIGHT)
    page.shows_word(1)
    page.press(Keys.END)
    page.shows_word(4)
    page.press(Keys.ENTER, Keys.ARROW_LEFT)
    page.shows_word(4)
    page.press(Keys.ESCAPE, Keys.HOME)
    page.shows_word(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lit_words_stay_legible(page: Page, scheme: str) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    page.open()
    page.point_at(page.patches[int(FOUND.patch_to_word.any(1).argmax())])
    # Colours as the browser paints them, whatever notation it computes.
    script = """
        const canvas = document.createElement("canvas").getContext("2d");
        const painted = (colour) => {
          canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const word = [...document.querySelectorAll(".word")].sort((a, b) =>
          b.style.getPropertyValue("--weight") - a.style.getPropertyValue("--weight"))[0];
        const paper = getComputedStyle(document.querySelector("section")).backgroundColor;
        const style = getComputedStyle(word);
        painted(paper);
        return [painted(style.backgroundColor), painted(style.color), painted(paper)];
    """
    mark, ink, paper = page.browser.execute_script(script)
    assert contrast(ink, mark) >= 4.5
    assert contrast(ink, paper) >= 7
    assert mark != paper


def contrast(one: list[int], other: list[int]) -> float:
    """As WCAG 2 defines it."""
    lighter, darker = sorted(map(luminance, (one, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: list[int]) -> float:
    parts = np.array(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_long_report_on_a_fine_grid_answers_at_once(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    report = " ".join(f"word{i}" for i in range(80))
    starts = [report.index(f"word{i}") for i in range(80)]
    spans = [(start, start + len(f"word{i}")) for i, start in enumerate(starts)]
    page = Page(browser, explanation(report, spans, side=32), tmp_path).open()
    page.point_at(page.words[79])
    page.shows_word(79)
    page.point_at(page.patches[1023])
    page.shows_patch(1023)
    assert page.file.stat().st_size < 2**21
    script = """
        const words = document.querySelectorAll(".word"), start = performance.now();
        for (const word of words)
          word.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
        return (performance.now() - start) / words.length;
    """
    assert page.browser.execute_script(script) < 50, "milliseconds per word"


def test_nothing_is_loaded_and_nothing_goes_wrong(page: Page) -> None:
    page.browser.get_log("performance")
    page.browser.get_log("browser")
    page.open()
    page.point_at(page.words[1])
    page.patches[2].click()
    assert page.browser.get_log("browser") == []
    addresses = [address for address in requested(page.browser) if not address.startswith("data:")]
    assert addresses == [page.file.as_uri()]


def requested(browser: webdriver.Chrome) -> list[str]:
    events: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    asked = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in asked]
