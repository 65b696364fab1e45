"""The printed `mlflow ui` command in a real browser: a run, its charts, its model, its report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait
from test_explain_browser import FOUND

from aga.explain import explanation_page
from aga.registry import PromotionConfig, RegistryConfig, promote, register, set_metrics
from aga.tracking import TrackingConfig, attach_artifact, mlflow_ui_command, start_run
from benchmarks.outages import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TRACKING = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="phantom", explain_pairs=0
)
MODEL = RegistryConfig(model="phantom-encoder")
METRIC = "retrieval/mean_recall_at_10"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1200",
)


class Page:
    """The MLflow page in a browser."""

    def __init__(self, browser: webdriver.Chrome, address: str, run_id: str) -> None:
        self.browser, self.address, self.run_id = browser, address, run_id

    def open(self, path: str) -> None:
        self.browser.get(f"{self.address}/#/{path}")

    def text(self) -> str:
        """The visible text, with single spaces between words."""
        text = self.browser.execute_script("return document.body.innerText")
        return " ".join(str(text).split())

    def count(self, selector: str) -> int:
        return int(
            self.browser.execute_script(
                "return document.querySelectorAll(arguments[0]).length", selector
            )
        )

    def shows(self, *words: str) -> None:
        """Wait until the page shows all of these words."""
        try:
            WebDriverWait(self.browser, 90, 0.5).until(
                lambda _: all(w in self.text() for w in words)
            )
        except TimeoutException:
            pytest.fail(f"expected {words} on {self.browser.current_url}:\n{self.text()}")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A store as the line leaves it, shown by the printed command."""
    home = tmp_path_factory.mktemp("home")
    with start_run(TRACKING, home, "phantom-run-1", spool=home / "metrics.jsonl") as run:
        for step in range(20):
            run.log_metrics({"loss/train": 2 / (step + 1), "loss/validation": 1.0}, step)
        run.log_page("explain/epoch-001/row-7.html", explanation_page(FOUND))
    bundle = write_bundle(
        home / "encoder", write_studies(home / "studies", phantom_rows(20), size=32)
    )
    assert bundle.sha256
    version = register(home / "encoder", MODEL, TRACKING, home).version
    set_metrics(version, {METRIC: 0.875}, MODEL, TRACKING, home, measured_on="d")
    gate = PromotionConfig(metric=METRIC, tolerance=0.0)
    assert promote(version, gate, MODEL, TRACKING, home).promoted
    (home / "report.html").write_text("<!doctype html><h1>Quality of the encoder</h1>")
    attach_artifact(TRACKING, home, str(run.run_id), home / "report.html", "reports")

    command = shlex.split(mlflow_ui_command(TRACKING, home))
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    with Server(tmp_path_factory.mktemp("elsewhere"), command) as server:
        browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
        try:
            yield Page(browser, server.uri, str(run.run_id))
        finally:
            browser.quit()


def test_the_experiment_lists_the_run(page: Page) -> None:
    page.open("experiments/1/runs")
    page.shows("phantom-run-1")


def test_the_run_has_its_metrics_and_their_charts(page: Page) -> None:
    page.open(f"experiments/1/runs/{page.run_id}")
    page.shows("phantom-run-1", "loss/train")
    page.open(f"experiments/1/runs/{page.run_id}/model-metrics")
    page.shows("loss/train", "loss/validation")
    WebDriverWait(page.browser, 60, 0.5).until(lambda _: page.count(".js-plotly-plot .trace") >= 2)


def test_the_model_has_a_version_with_both_aliases_and_its_metric(page: Page) -> None:
    page.open(f"models/{MODEL.model}")
    page.shows("Version 1", "@ candidate", "@ champion")
    page.open(f"models/{MODEL.model}/versions/1")
    page.shows("promotion_metric", METRIC, "0.875")


def test_the_report_is_an_artifact_of_the_run(page: Page) -> None:
    page.open(f"experiments/1/runs/{page.run_id}/artifacts/reports/report.html")
    page.shows("reports", "report.html")
    page.browser.switch_to.frame(
        WebDriverWait(page.browser, 60).until(
            lambda browser: browser.find_element("tag name", "iframe")
        )
    )
    page.shows("Quality of the encoder")


def test_the_page_of_an_explained_pair_works_among_the_artifacts(page: Page) -> None:
    page.browser.get("about:blank")  # the frame of the test before would still be there
    page.open(f"experiments/1/runs/{page.run_id}/artifacts/explain/epoch-001/row-7.html")
    page.browser.switch_to.frame(
        WebDriverWait(page.browser, 60).until(
            lambda browser: browser.find_element("tag name", "iframe")
        )
    )
    page.shows("which patches each word chose")
    word = page.browser.find_element("css selector", '.word[data-word="1"]')
    ActionChains(page.browser).move_to_element(word).perform()
    assert page.count(".patch.lit") == (FOUND.word_to_patch[1] > 0).sum()
