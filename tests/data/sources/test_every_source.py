"""What is asked of every source, on a small folder in its owner's layout."""

from __future__ import annotations

import csv
import gzip
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from trees import TREES, Tree

from aga.data.preparing.checking import check
from aga.data.schema import Reject
from aga.data.sources import SOURCES, open_source, read_studies
from aga.data.sources.base import Source
from aga.data.sources.layouts import resembling
from aga.data.sources.tables import csv_columns
from aga.data.studies import StudyDataset
from aga.data.tokenizing.tokenizer import trained_tokenizer
from aga.errors import DataError
from aga.params import apply_overlay, load_params
from workflows import prepare, tokenize_reports

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")


@pytest.fixture(params=sorted(TREES))
def tree(request: pytest.FixtureRequest) -> Tree:
    return TREES[request.param]


@pytest.fixture
def raw(tree: Tree, tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    tree.build(root)
    return root


@pytest.fixture
def home(tree: Tree, raw: Path) -> Path:
    """A folder with params that read the tree in a second."""
    shutil.copy(ROOT / "params.yaml", raw.parent)
    overlay = {
        "source": {"name": tree.source, "root": "raw", **tree.settings},
        "prepare": {
            "image": {"size": 16},
            "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
        },
        "tokenizer": {"vocabulary": 200},
    }
    if not tree.reports:  # nothing to train a tokenizer on
        trained_tokenizer(["No effusion."], 50, True, 80).save_pretrained(raw.parent / "tokenizer")
        overlay["tokenizer"] = {"path": "tokenizer"}
    apply_overlay(raw.parent / "params.yaml", overlay)
    return raw.parent


def source_at(home: Path) -> Source:
    settings = load_params(home / "params.yaml").source
    return open_source(settings.name, settings)


def start(home: Path, *options: str) -> int:
    return prepare.main(["--params", str(home / "params.yaml"), *options])


class Here:
    """Workers that work in this process: a folder of five studies is not worth another."""

    count = 1

    def call(self, function, *arguments):
        return function(*arguments)


def rejects_at(home: Path) -> set[Reject]:
    """The rows that cannot be used, as `prepare --check` finds them."""
    config = load_params(home / "params.yaml").prepare
    return set(check(source_at(home), home / "raw", config, Here()))


def files_of(root: Path) -> Iterator[Path]:
    yield from (path for path in sorted(root.rglob("*")) if path.is_file())


def test_every_source_has_a_tree_and_a_section_of_the_documentation() -> None:
    assert {tree.source for tree in TREES.values()} == set(SOURCES)
    headings = {line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")}
    assert set(SOURCES) <= headings
    for name, source in SOURCES.items():
        assert f"| `{name}` |" in PAGE
        assert source.LICENSE.strip()
        assert source.CITATION.strip()
        assert isinstance(source.MAY_BE_SHOWN, bool)
        assert all(layout.source == name for layout in source.LAYOUTS)


def test_the_rows_are_those_of_the_golden_table(
    request: pytest.FixtureRequest, home: Path, golden
) -> None:
    rows = []
    for row in read_studies(source_at(home), home / "raw"):
        cells = asdict(row)
        if not isinstance(row, Reject):
            cells["image"] = row.image.relative_to(home / "raw").as_posix()
        rows.append(
            {name: cell for name, cell in cells.items() if cell not in (None, (), {}, False)}
        )
    golden(f"rows-{request.node.callspec.params['tree']}", rows)
    assert 3 <= len({row["study_id"] for row in rows if "study_id" in row}) <= 8


def test_the_folder_goes_through_the_line(home: Path, tree: Tree) -> None:
    assert start(home) == 0
    tokenize_reports.main(["--params", str(home / "params.yaml")])
    assert any((home / "data/tokens").iterdir())
    dataset = StudyDataset.open(home / "data/studies")
    assert dataset.info.source == tree.source
    assert (dataset.column("report").null_count == 0) == tree.reports
    assert dataset.info.licence == SOURCES[tree.source].LICENSE


def test_a_file_that_is_gone_is_named(home: Path, tree: Tree) -> None:
    """A file of the layout stops with its name and the page; one of a row is that row's reject."""
    before = rejects_at(home)
    for file in files_of(home / "raw"):
        name = file.relative_to(home / "raw").as_posix()
        file.rename(home / "aside")
        if name in tree.optional:
            assert rejects_at(home) == before
        else:
            try:
                told = rejects_at(home) - before
                assert told, name
                assert all(reject.reason.endswith(" missing") for reject in told), told
            except DataError as error:
                first, *_, last = str(error).split("\n")
                parts = first.replace(".csv", ".csv*").split()
                assert any(file.match(part) for part in parts), error
                assert f"docs/data.md#{tree.source}" in last
        (home / "aside").rename(file)


def test_a_column_that_is_gone_is_named_with_the_page(home: Path, tree: Tree) -> None:
    """Whatever column is not read may go; every other stops with its name."""
    before = list(read_studies(source_at(home), home / "raw"))
    named = 0
    for table in files_of(home / "raw"):
        if table.name.endswith((".csv", ".csv.gz")):
            whole = table.read_bytes()
            for column in csv_columns(table):
                rename_column(table, column)
                try:
                    rows = list(read_studies(source_at(home), home / "raw"))
                    assert rows == before or column in tree.optional, column
                except DataError as error:
                    first, *_, last = str(error).split("\n")
                    assert f"has no column {column}" in first
                    assert f"docs/data.md#{tree.source}" in last
                    named += 1
                table.write_bytes(whole)
    assert named >= tree.columns


def test_a_folder_without_images_is_one_error(home: Path, tree: Tree) -> None:
    for file in files_of(home / "raw"):
        if file.suffix in (".png", ".jpg", ".jpeg", ".dcm") or file.name.startswith("IM"):
            file.unlink()
    with pytest.raises(DataError, match=r"images|image") as raised:
        start(home, "--check")
    assert f"docs/data.md#{tree.source}" in str(raised.value)


def test_a_layout_is_known_for_its_source_and_no_other(home: Path, tree: Tree) -> None:
    layouts = [layout for source in SOURCES.values() for layout in source.LAYOUTS]
    known = [tree.source] if SOURCES[tree.source].LAYOUTS else []
    assert resembling(home / "raw", layouts) == known
    for name, other in SOURCES.items():
        if name != tree.source and other.LAYOUTS and known:
            opened = open_source(name, load_params(home / "params.yaml").source)
            with pytest.raises(DataError, match=f"the folder looks like {tree.source}"):
                list(read_studies(opened, home / "raw"))


def rename_column(table: Path, column: str) -> None:
    opened = gzip.open if table.suffix == ".gz" else open
    with opened(table, "rt", newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    with opened(table, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f"not_{name}" if name.strip() == column else name for name in header])
        writer.writerows(rows)
