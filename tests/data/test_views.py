"""View names of real sources, and which images of a study are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_folders import Rows

from aga.data.preparing.checking import check
from aga.data.preparing.prepare import PrepareConfig, PrepareSummary, prepare
from aga.data.sources.manifest import Manifest
from aga.data.studies import StudyDataset
from aga.data.views import (
    ANOTHER,
    NO_VIEW,
    NOT_FRONTAL,
    PREFERENCE,
    View,
    ViewsConfig,
    normal_view,
    stand_for_their_study,
    view_problem,
)
from aga.errors import DataError

NAMES: dict[View | None, list[str | None]] = {
    "PA": ["PA", "pa", "P.A.", "PA erect", "Postero-anterior", "Frontal PA", "后前位"],
    "AP": ["AP", "AP Supine", "AP AXIAL", "AP LLD", "AP_horizontal", "a.p. portable", "AP Erect"],
    "frontal": ["Frontal", "FRONTAL", "胸部正位", "AP/PA"],
    "lateral": ["LATERAL", "LL", "L", "Lateral", "XTABLE LATERAL", "left lateral", "侧位"],
    "oblique": ["LAO", "RPO", "Oblique"],
    "other": ["SWIMMERS", "Axial", "PA and lateral", "left lateral decubitus", "antrum", "胃窦"],
    None: [None, "", " ", "?", "unknown", "UNK", "N/A", "not specified"],
}


@pytest.mark.parametrize(
    ("name", "view"), [(name, view) for view, names in NAMES.items() for name in names]
)
def test_view_names_of_sources(name: str | None, view: View | None) -> None:
    if name == "N/A":
        assert normal_view(name) in (None, "other")
    else:
        assert normal_view(name) == view


@given(st.text(max_size=12) | st.none())
def test_any_name_has_a_view(name: str | None) -> None:
    assert normal_view(name) in PREFERENCE


def test_what_is_left_out_of_itself() -> None:
    reasons = {
        (keep, unknown): [
            (view_problem(name, ViewsConfig(keep=keep, unknown=unknown)) or (None,))[0]
            for name in ("PA", "LL", "", "x")
        ]
        for keep in ("all", "frontal", "one_per_study")
        for unknown in ("keep", "leave_out")
    }
    assert reasons == {
        ("all", "keep"): [None] * 4,
        ("all", "leave_out"): [None, None, NO_VIEW, None],
        ("frontal", "keep"): [None, NOT_FRONTAL, None, NOT_FRONTAL],
        ("frontal", "leave_out"): [None, NOT_FRONTAL, NO_VIEW, NOT_FRONTAL],
        ("one_per_study", "keep"): [None] * 4,
        ("one_per_study", "leave_out"): [None, None, NO_VIEW, None],
    }


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(PREFERENCE)), max_size=20))
def test_the_best_view_stands_for_its_study_and_the_first_of_equals(
    rows: list[tuple[str, View | None]],
) -> None:
    numbered = [(7 * number, study, view) for number, (study, view) in enumerate(rows)]
    chosen = stand_for_their_study(numbered)
    by_number = {number: (study, view) for number, study, view in numbered}
    assert sorted(by_number[number][0] for number in chosen) == sorted({s for s, _ in rows})
    for number in chosen:
        study, view = by_number[number]
        for other, of, seen in numbered:
            if of == study and other != number:
                better, worse = PREFERENCE.index(view), PREFERENCE.index(seen)
                assert better < worse or (better == worse and number < other)


# --- in the stage

Prepare = Callable[..., PrepareSummary]


@pytest.fixture
def run(
    tmp_path: Path,
    raw_rows: Callable[[int], Rows],
    save_manifest: Callable[[Rows], Path],
    manifest_source: Manifest,
    prepare_config: PrepareConfig,
) -> Prepare:
    """Prepares 40 rows of 20 studies; the views of a study's two rows in turn."""

    def run(*views: tuple[str, str], keep: str, unknown: str = "keep") -> PrepareSummary:
        rows = raw_rows(40)
        for number, row in enumerate(rows):
            row["view"] = views[number // 2 % len(views)][number % 2]
            row["study_id"] = f"S{number // 2}"
            row["text"] = rows[number - number % 2]["text"]
        root = save_manifest(rows)
        (root / "images/8.png").write_text("damaged")
        chosen = ViewsConfig.model_validate({"keep": keep, "unknown": unknown})
        config = prepare_config.model_copy(update={"views": chosen})
        assert {reject.reason for reject in check(manifest_source, root, config)} <= {
            "image unreadable"
        }
        return prepare(manifest_source, root, tmp_path / "studies", config, 0, "manifest")

    return run


def test_all_views(run: Prepare, tmp_path: Path) -> None:
    summary = run(("PA erect", "LL"), ("", "antrum"), keep="all")
    assert (summary.used, summary.left_out) == (39, {})
    assert summary.views == {"PA": 9, "lateral": 10, "other": 10, "unknown": 10}
    manifest = StudyDataset.open(tmp_path / "studies").manifest
    assert manifest["view"].to_pylist()[:4] == ["PA", "lateral", None, "other"]
    assert manifest["view_name"].to_pylist()[:4] == ["PA erect", "LL", None, "antrum"]


def test_frontal_views_are_used_and_the_others_listed(run: Prepare, tmp_path: Path) -> None:
    summary = run(("PA", "LL"), ("", "Lateral"), keep="frontal", unknown="leave_out")
    assert summary.views == {"PA": 9}
    assert summary.left_out == {NOT_FRONTAL: 20, NO_VIEW: 10}
    assert summary.rejects == {"image unreadable": 1}, "of 10 rows, within the half allowed"
    assert summary.rows == 40 == summary.used + 31
    listed = pq.read_table(tmp_path / "studies/rejects.parquet").to_pylist()
    assert len(listed) == 31
    assert listed[0] == {
        "location": "pairs.csv:4",
        "column": "view",
        "reason": NOT_FRONTAL,
        "detail": "lateral, and prepare.views.keep asks for frontal ones",
    }


def test_one_view_stands_for_each_study(run: Prepare, tmp_path: Path) -> None:
    summary = run(("LL", "PA"), ("AP", "PA"), ("PA", "?"), keep="one_per_study")
    assert (summary.used, summary.views) == (20, {"PA": 20})
    assert summary.left_out == {ANOTHER: 19}
    study_ids = StudyDataset.open(tmp_path / "studies").manifest["study_id"].to_pylist()
    assert study_ids == [f"S{number}" for number in range(20)]


def test_another_view_stands_in_for_a_damaged_one(run: Prepare, tmp_path: Path) -> None:
    """The PA of study 4 cannot be read."""
    summary = run(("PA", "LL"), keep="one_per_study")
    assert summary.views == {"PA": 19, "lateral": 1}
    table = StudyDataset.open(tmp_path / "studies").manifest
    assert table["view"].to_pylist().index("lateral") == 4


def test_leaving_out_every_row_is_an_error_of_the_settings(run: Prepare) -> None:
    with pytest.raises(DataError, match=r"(?s)leaves out every row.*40 view not frontal"):
        run(("antrum", "corpus"), keep="frontal")
