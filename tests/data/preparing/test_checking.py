"""A look through a raw folder: what is counted, and when one error says it all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_folders import Rows

from aga.data.preparing.checking import look_through
from aga.data.preparing.prepare import PrepareConfig
from aga.data.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from aga.data.sources.manifest import Manifest
from aga.data.sources.openi import Openi
from aga.errors import DataError


@pytest.fixture
def root(raw_rows: Callable[[int], Rows], save_manifest: Callable[[Rows], Path]) -> Path:
    rows = raw_rows(6)
    rows[1]["text"] = "FINDINGS: Clear lungs on both sides \ufffd."
    rows[2]["text"] = "FINDINGS: ___"
    return save_manifest(rows)


def test_rows_and_reports_are_counted(
    root: Path, manifest_source: Manifest, prepare_config: PrepareConfig
) -> None:
    (root / "images/0.png").write_text("no image")
    found = look_through(manifest_source, root, prepare_config)
    assert (found.rows, found.usable) == (6, 4)
    assert found.reasons == {"image unreadable": 1, "report empty": 1}
    assert sum(found.reports.values()) == 6
    assert found.reports["report empty"] == 1
    assert (found.repaired, found.lost) == (0, 1)
    assert next(found.lines()) == "6 rows, 4 of them usable"
    found.refuse_without_files(root, "manifest")


def test_no_image_at_all_is_one_error(
    root: Path, manifest_source: Manifest, prepare_config: PrepareConfig
) -> None:
    shutil.rmtree(root / "images")
    found = look_through(manifest_source, root, prepare_config)
    with pytest.raises(
        DataError, match=r"(?s)images of the source are not there.*6 images.*#manifest"
    ):
        found.refuse_without_files(root, "manifest")


@pytest.mark.realdata
def test_real_reports_are_counted_though_no_image_is_there(prepare_config: PrepareConfig) -> None:
    root = Path(os.environ["AGA_REALDATA"]) / "iu_xray"
    found = look_through(Openi(), root, prepare_config)
    assert sum(found.reports.values()) == 3851
    assert found.reports["report empty"] == 25
    assert (found.rows, found.usable) == (7466, 0)
    with pytest.raises(DataError, match="images/images_normalized"):
        found.refuse_without_files(root, "openi")


@pytest.mark.realdata
def test_every_real_row_is_accounted_for_and_the_lost_are_counted(
    prepare_config: PrepareConfig,
) -> None:
    root = Path(os.environ["AGA_REALDATA"]) / "covid-chestxray"
    source = CovidChestxray(CovidChestxrayConfig(min_characters=40))
    found = look_through(source, root, prepare_config)
    assert found.rows == 751 == found.usable + len({reject.location for reject in found.bad})
    assert (found.repaired, found.lost) == (0, 6)
