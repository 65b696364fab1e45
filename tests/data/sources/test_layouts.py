"""Layouts compared with folders, the table of sources, and packed tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from aga.data.sources import SOURCES, open_source
from aga.data.sources.layouts import Layout, LayoutError, require_layout, table_of
from aga.data.sources.tables import csv_columns, read_csv
from aga.errors import DataError, ParamsError
from aga.params import load_params

PARAMS = Path(__file__).parents[3] / "params.yaml"
SMALL = Layout("openi", {"a.csv": ("x", "y")}, files=("b/*.xml",), folders=("images",))
LARGE = Layout("openi", {"c.csv": ("z",), "d.csv": ("z",), "e.csv": ("z",)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.xml").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "DOE_JANE").mkdir()
    (tmp_path / "DOE_JANE.csv").touch()
    return tmp_path


def test_the_closest_layout_is_spoken_of_and_no_other_name_of_the_folder(root: Path) -> None:
    assert require_layout(root, [LARGE, SMALL]) is SMALL
    (root / "b/1.xml").unlink()
    with pytest.raises(LayoutError) as raised:
        require_layout(root, [LARGE, SMALL])
    told = str(raised.value)
    assert told.startswith("The raw folder has no b/*.xml\n")
    assert "2 files and 3 folders, among them a.csv, images/" in told
    assert str(SMALL) in told
    assert str(LARGE) in told
    assert "JANE" not in told.replace(str(root), "")


def test_a_missing_column_is_told_with_those_of_the_layout(root: Path) -> None:
    (root / "a.csv").write_text("x,Jane Doe\n1,2\n")  # as where a table has no header
    with pytest.raises(LayoutError, match=r"(?s)a.csv has no column y.*2 columns.* x\n") as raised:
        require_layout(root, [SMALL])
    assert "Jane" not in str(raised.value)


def test_a_folder_in_the_place_of_a_file_is_no_file(root: Path) -> None:
    (root / "a.csv").unlink()
    (root / "a.csv").mkdir()
    with pytest.raises(LayoutError, match=r"no a\.csv"):
        require_layout(root, [SMALL])


def test_a_packed_table_is_read_like_a_plain_one(root: Path) -> None:
    plain = [line.cells for line in read_csv(table_of(root, "a.csv"))]
    packed = root / "a.csv.gz"
    packed.write_bytes(gzip.compress((root / "a.csv").read_bytes()))
    (root / "a.csv").unlink()
    assert table_of(root, "a.csv") == packed
    assert [line.cells for line in read_csv(packed)] == plain
    assert require_layout(root, [SMALL]) is SMALL


@pytest.mark.parametrize("damage", [b"", b"text", b"\x1f\x8b\x08\x00"])
def test_a_packed_table_that_is_damaged_is_an_error(root: Path, damage: bytes) -> None:
    packed = root / "p.csv.gz"
    packed.write_bytes(damage)
    for read in (lambda path: list(read_csv(path)), csv_columns):
        if damage or read is not csv_columns:
            with pytest.raises(DataError, match=r"p\.csv\.gz"):
                read(packed)


def test_sources_are_opened_by_name_with_their_own_settings() -> None:
    settings = load_params(PARAMS).source
    for name, source in SOURCES.items():
        assert type(open_source(name, settings)) is source
    with pytest.raises(ParamsError, match=r"(?s)source.name.*nonsense.*mimic_cxr"):
        open_source("nonsense", settings)


def test_every_setting_of_a_source_belongs_to_one() -> None:
    settings = set(load_params(PARAMS).source.model_dump()) - {"name", "root"}
    assert settings <= set(SOURCES)
