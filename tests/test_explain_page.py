"""The JSON of an explanation, its page as text, its files, and who may write them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.bundles import write_bundle
from fixtures.studies import write_studies
from test_explain import OFFSETS, RAW, TEXT

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.explain import Explanation, explain, explanation_json, explanation_page, explanation_pages
from aga.explain.files import write_explanation

ROOT = Path(__file__).parent.parent
CRAFTED = "Nodule </script><script>alert(1)</script> & <b>bold</b> seen."
ROWS = [
    {"text": TEXT, "report": RAW, "text_offsets": OFFSETS, "split": "test", "height": 200},
    {"text": CRAFTED, "split": "train"},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    studies = write_studies(home / "data/studies", ROWS, size=32)
    write_bundle(home / "models/encoder", studies)
    (home / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return home


@pytest.fixture(scope="module")
def studies(home: Path) -> StudyDataset:
    return StudyDataset.open(home / "data/studies")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, studies: StudyDataset) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("models") / "bundle", studies)


@pytest.fixture(scope="module")
def found(bundle: Bundle, studies: StudyDataset, home: Path) -> list[Explanation]:
    return explain(bundle, studies, home / "data/cache", [0, 1])


def test_json_has_both_maps_with_offsets_and_boxes(found: list[Explanation]) -> None:
    document = json.loads(json.dumps(explanation_json(found[0])))
    assert document["format"] == 1
    for kind in ("tokens", "words"):
        assert all(RAW[w["start"] : w["end"]] == w["text"] for w in document[kind])
    for index, token in enumerate(document["tokens"]):
        assert index in document["words"][token["word"]]["tokens"]
        assert 0 < token["threshold"] < 1
    patches = document["patches"]
    assert document["grid"]["rows"] * document["grid"]["columns"] == len(patches)
    boxes = np.array([patch["box"] for patch in patches])
    assert np.allclose(boxes, found[0].patch_boxes, atol=0.01)
    assert document["image"]["original"] == {"height": 200, "width": 100}
    for name in ("token_to_patch", "patch_to_token", "word_to_patch", "patch_to_word"):
        weights = np.array(document[name])
        np.testing.assert_allclose(weights, getattr(found[0], name), rtol=1e-5)
    assert document["scores"] == {
        "global": found[0].global_score,
        "local": found[0].local_score,
    }


def test_the_page_shows_the_raw_report_and_runs_no_script_of_a_report(
    found: list[Explanation],
) -> None:
    page = explanation_page(found[1], note="Epoch 3")
    assert "<b>" not in page
    assert page.count("<script") == 2, "the data and the page's own"
    assert "alert(1)" not in page.partition("<script")[0].replace("alert</span>", "")
    assert "Epoch 3" in page
    assert "http" not in page.replace("http-equiv", ""), "no address to load from"


def test_pages_of_a_training_are_named_by_row(
    bundle: Bundle, studies: StudyDataset, home: Path, found: list[Explanation]
) -> None:
    pages = explanation_pages(bundle, studies, home / "data/cache", [1, 0])
    assert list(pages) == ["row-1.html", "row-0.html"]
    assert pages["row-0.html"] == explanation_page(found[0])


def test_a_report_without_a_content_token_has_a_page_and_a_sheet(
    bundle: Bundle, tmp_path: Path
) -> None:
    studies = write_studies(tmp_path / "studies", [{"text": " ", "split": "train"}], size=32)
    (found,) = explain(bundle, studies, tmp_path, [0])
    assert found.whole_words == ()
    assert [path.suffix for path in write_explanation(tmp_path, found)] == [
        ".png",
        ".json",
        ".html",
    ]


def test_jinja2_is_needed_by_the_page_alone(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None; import aga.explain\n"
        "from aga.errors import AgaError\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "try: aga.explain.explanation_pages(None, None, None, [])\n"
        "except AgaError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "aga[report]" in done.stdout


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "workflows/explain.py", "--params", str(home / "params.yaml"), *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_three_files(home: Path) -> None:
    done = command(home, "--row", "1")
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (home / "reports/explain").iterdir())
    assert written == ["row-1.html", "row-1.json", "row-1.png"]
    missing = command(home, "--row", "7")
    assert missing.returncode == 1
    assert "no such row" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_what_may_not_be_shown_is_refused_or_kept_private(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "data").mkdir(parents=True)
    write_studies(own / "data/studies", ROWS, size=32, may_be_shown=False)
    (own / "params.yaml").write_bytes((home / "params.yaml").read_bytes())
    arguments = ("--row", "0", "--bundle", str(home / "models/encoder"))
    refused = command(own, *arguments)
    assert refused.returncode == 1
    assert "--private" in refused.stderr
    assert not (own / "reports").exists()
    assert "nodule" not in refused.stderr, "no report text in messages"

    done = command(own, *arguments, "--private")
    assert done.returncode == 0, done.stderr
    assert "Only you" in done.stdout
    folder = own / "private/explain"
    for part in (folder, folder.parent):
        assert part.stat().st_mode & 0o777 == 0o700
        for name in (".gitignore", ".dvcignore", ".rayignore"):
            assert (part / name).read_text() == "*\n"
    files = sorted(folder.glob("row-0.*"))
    assert [path.suffix for path in files] == [".html", ".json", ".png"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    subprocess.run(["git", "init", "-q"], cwd=own, check=True)
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall", "private"],
        cwd=own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert status.stdout == ""
    both = command(own, *arguments, "--private", "--out", str(own / "elsewhere"))
    assert both.returncode == 2
