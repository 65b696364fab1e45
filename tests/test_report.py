"""The page: what it says, that it loads nothing, and that it keeps patients' data to itself."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from aga.bundle import load_bundle
from aga.errors import DataError
from aga.evaluation import Metric, Metrics, write_metrics
from aga.report import ReportPageConfig
from aga.report.examples import examples
from aga.report.page import ReportInputs, build_report

SHOWN = ReportPageConfig(pairs=3, show_images=True)
WITHHELD = ReportPageConfig(pairs=3, show_images=False)
CANARY = "Xylograph <script>alert(1)</script> canary"
PATIENT = "patient-canary-77"
HISTORY = [
    {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss/train": 3.0 - epoch / 10,
        "loss/train/iga": 1.0,
        "loss/validation": 3.1 - epoch / 10,
        "retrieval/mean_recall_at_10": epoch / 10,
        "diagnostics/gate/token_threshold_mean": 0.5,
        "diagnostics/group/visual_size": 12.5,
    }
    for epoch in range(1, 5)
]
PREPARED = {
    "rows": 33,
    "used": 30,
    "splits": {
        "train": {"rows": 21, "patients": 20},
        "validation": {"rows": 3, "patients": 3},
        "test": {"rows": 6, "patients": 6},
    },
    "rejects": {"image unreadable": 1, "report empty": 1},
    "left_out": {"view not frontal": 1},
}


def rows() -> list[dict[str, object]]:
    filled = phantom_rows(30)
    for number, row in enumerate(filled):
        if row["split"] == "test":
            text = f"{CANARY} {number}. {row['text']}"
            span = [len(CANARY), len(CANARY) + 3]
            region = {"finding": "nodule", "box": [10.0, 20.0, 60.0, 70.0], "span": span}
            row |= {"text": text, "patient_id": PATIENT, "regions": [region]}
    return filled


def write_results(folder: Path) -> None:
    provenance = {"gallery_sha256": "feedbeef", "rows": 6}
    retrieval = {
        f"retrieval/{direction}/{name}{suffix}": Metric(value, 0.1, value, 0.033, 6)
        for direction in ("text_to_image", "image_to_text")
        for name, value in (("recall_at_10", 0.812), ("median_rank", 3.0))
        for suffix in ("", "_exact")
    }
    retrieval["retrieval/mean_recall_at_10"] = Metric(0.812, 0.7, 0.9, 0.25, 6)
    zero_shot = {
        "zero_shot/mean_auroc": Metric(0.876, 0.8, 0.95, 0.5, 6),
        "zero_shot/auroc/nodule": Metric(0.876, None, None, 0.5, 6),
    }
    classes = {
        "prompts_version": "phantom-v1",
        "classes": {"nodule": {"positives": 4, "negatives": 2}},
        "omitted": {"effusion": {"positives": 1, "negatives": 5}},
    }
    probe = {
        "probe/mean_auroc_at_10": Metric(0.731, 0.7, 0.8, 0.5, 6),
        "probe/auroc_at_10/nodule": Metric(0.741, 0.7, 0.8, 0.5, 6),
        "probe/mean_auroc_at_100": Metric(0.751, 0.7, 0.8, 0.5, 6),
        "probe/auroc_at_100/nodule": Metric(0.761, 0.7, 0.8, 0.5, 6),
        "probe/auroc_at_100/line": Metric(0.771, 0.7, 0.8, 0.5, 6),
    }
    grounding = {
        "grounding/word_pointing_game": Metric(0.391, 0.3, 0.4, 0.071, 6),
        "grounding/word_pointing_game/nodule": Metric(0.381, 0.3, 0.4, 0.01, 6),
        "grounding/side_accuracy": Metric(0.621, 0.5, 0.7, 0.5, 4),
        "grounding/side_accuracy/left_lung": Metric(0.611, None, None, 0.5, 4),
    }
    write_metrics(
        [
            Metrics("retrieval", retrieval, provenance),
            Metrics("zero_shot", zero_shot, provenance | classes),
            Metrics(
                "probe",
                probe,
                provenance | {"omitted": {"effusion": {}}, "not_drawn": {"10": ["line"]}},
            ),
            Metrics("grounding", grounding, provenance),
        ],
        folder,
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    home = tmp_path_factory.mktemp("home")
    studies = write_studies(home / "studies", rows(), size=32)
    write_bundle(home / "bundle", studies)
    write_results(home / "metrics")
    (home / "metrics/prepare.json").write_text(json.dumps(PREPARED))
    (home / "metrics/pretrain.json").write_text(json.dumps({"best_epoch": 3.0, "steps": 40}))
    with (home / "training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(HISTORY[0]))
        writer.writeheader()
        writer.writerows(HISTORY)
    return ReportInputs(
        metrics=home / "metrics",
        history=home / "training.csv",
        studies=home / "studies",
        cache=home / "cache",
        bundle=home / "bundle",
        provenance={"git commit": "0123abc", "model version": "aga-phantom version 7"},
    )


@pytest.fixture(scope="module")
def shown(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "reports/report.html"
    build_report(out, inputs, SHOWN)
    return out


class Text(HTMLParser):
    """What a reader sees, and every attribute that could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.loaded: list[str] = []
        self.unlabelled: list[str] = []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag == "style"
        given = dict(attrs)
        assert tag not in {"script", "link", "iframe"}, f"<{tag}> on the page"
        self.loaded += [given[name] or "" for name in ("src", "href", "srcset") if name in given]
        if tag == "img" and not given.get("alt"):
            self.unlabelled.append(str(attrs)[:80])

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.seen.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.seen).split())


def test_the_page_states_every_number(shown: Path) -> None:
    text = Text(shown.read_text()).text
    for stated in (
        "0.812",
        "[0.700, 0.900], chance 0.250, 6 pairs",
        "image unreadable 1",
        "view not frontal 1",
        "33 rows in the source, 30 used",
        "train 21 20",
        "nodule 0.876 [-, -] 0.500",
        "effusion (1 present, 5 absent)",
        "4 epochs. The model of epoch 3 was exported",
        "git commit 0123abc",
        "aga-phantom version 7",
        "gallery sha256 feedbeef",
    ):
        assert stated in text, stated


def test_the_page_loads_nothing_and_labels_its_pictures(shown: Path) -> None:
    page = shown.read_text()
    found = Text(page)
    assert {uri.partition(",")[0].partition("#")[0] for uri in found.loaded} <= {
        "", "data:image/png;base64", "data:image/svg+xml;base64",
    }  # fmt: skip
    assert found.unlabelled == []
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import", page)


def test_examples_show_reports_as_text_never_as_markup(shown: Path) -> None:
    page = shown.read_text()
    assert "<script>" not in page
    text = Text(page).text
    assert text.count("Images that its report finds") == 3
    assert "Xylograph <script>alert(1)</script> canary" in text
    assert "of the weight is inside the frame, which is 25.0 % of the image" in text
    assert PATIENT not in page


def test_nothing_of_a_patient_is_on_a_page_without_images(
    inputs: ReportInputs, tmp_path: Path
) -> None:
    """With the bundle taken away: what is not shown is not even read."""
    out = tmp_path / "report.html"
    build_report(out, replace(inputs, bundle=tmp_path / "none"), WITHHELD)
    page = out.read_text()
    build_report(out, inputs, WITHHELD)
    assert out.read_text() == page
    assert "Xylograph" not in page and PATIENT not in page
    assert "data:image/png" not in page
    text = Text(page).text
    assert "on this page, because report.show_images is false" in text
    assert "0.812" in text and "train 21 20" in text


def test_probe_and_grounding_are_tables_with_chance(shown: Path, tmp_path: Path) -> None:
    text = Text(shown.read_text()).text
    assert "10 % of the labels 100 % of the labels" in text
    assert "nodule 0.741 [0.700, 0.800], chance 0.500 0.761" in text
    assert "line 0.771 [0.700, 0.800], chance 0.500 mean of the findings 0.731" in text
    assert "too few labelled images: effusion." in text
    assert "at 10 % because no draw of patients held both kinds of image: line." in text
    assert "pointing game, word side accuracy" in text
    assert "left lung 0.611 [-, -], chance 0.500 all mentions 0.391" in text


def test_tasks_that_do_not_apply_say_why(inputs: ReportInputs, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    shutil.copytree(inputs.metrics, metrics)
    absent = [Metrics(task, {}, {"left_out": f"no {task} here"}) for task in ("probe", "grounding")]
    write_metrics(absent, metrics)
    build_report(tmp_path / "r.html", replace(inputs, metrics=metrics), WITHHELD)
    text = Text((tmp_path / "r.html").read_text()).text
    assert "The linear probe is left out: no probe here." in text
    assert "Grounding is left out: no grounding here." in text


def test_what_a_source_does_not_allow_is_not_shown_whatever_the_setting(
    inputs: ReportInputs, tmp_path: Path
) -> None:
    studies = write_studies(tmp_path / "studies", rows(), size=32, may_be_shown=False)
    assert examples(load_bundle(inputs.bundle), studies, tmp_path / "cache", 3) == []
    out = tmp_path / "report.html"
    build_report(out, replace(inputs, studies=studies.folder), SHOWN)
    page = out.read_text()
    assert "Xylograph" not in page and PATIENT not in page
    assert not [row["text"] for row in rows() if str(row["text"]) in page]
    assert "data:image/png" not in page
    assert "the source test does not declare" in Text(page).text
    assert not (tmp_path / "cache").exists()


def test_the_same_inputs_give_the_same_bytes(
    inputs: ReportInputs, shown: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    out.write_text("an older page")
    build_report(out, inputs, SHOWN)
    assert out.read_bytes() == shown.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_empty_project_gives_a_page_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    build_report(
        tmp_path / "report.html", ReportInputs(folder, folder, folder, folder, folder), SHOWN
    )
    text = Text((tmp_path / "report.html").read_text()).text
    for missing in (
        "The studies have not been prepared yet.",
        "There is no training history yet.",
        "Retrieval has not been measured yet.",
        "Zero-shot classification has not been measured yet.",
        "The linear probe has not been measured yet.",
        "Grounding has not been measured yet.",
        "There are no gate diagnostics.",
        "There is no encoder yet",
    ):
        assert missing in text


def test_damaged_files_are_named(inputs: ReportInputs, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    shutil.copytree(inputs.metrics, metrics)
    (metrics / "prepare.json").write_text("{")
    with pytest.raises(DataError, match=r"prepare\.json"):
        build_report(tmp_path / "r.html", replace(inputs, metrics=metrics), WITHHELD)
    history = tmp_path / "training.csv"
    history.write_text("epoch,loss/train\n1,low\n")
    with pytest.raises(DataError, match=r"training\.csv"):
        build_report(tmp_path / "r.html", replace(inputs, history=history), WITHHELD)
    assert not (tmp_path / "r.html").exists()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


@pytest.mark.browser
def test_the_page_in_a_browser(browser: Chrome, shown: Path) -> None:
    browser.set_window_size(1200, 900)
    browser.get_log("performance")  # what the browser loads for itself when it starts
    browser.get(shown.as_uri())
    assert browser.title == "Encoder report: test"
    assert "0.812" in browser.find_element(By.CLASS_NAME, "card").text
    assert "effusion (1 present, 5 absent)" in browser.find_element(By.ID, "zero-shot").text
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) > 10
    broken = [i.get_attribute("alt") for i in images if not i.get_property("naturalWidth")]
    assert broken == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
    browser.set_window_size(500, 900)
    assert browser.execute_script(wide) <= 0, "the page scrolls sideways on a narrow screen"
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert _requests(browser) == {shown.as_uri()}


def _requests(browser: Chrome) -> set[str]:
    """Addresses that the page asked for, data URIs apart."""
    messages: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    return {url for url in urls if not url.startswith("data:")}
