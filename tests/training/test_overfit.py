"""The self-test of a user's data: pairs that belong together pass, shuffled ones fail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.small_runs import PARAMS, make_home, small_recipe
from fixtures.studies import phantom_rows, write_studies

from aga.data.preparing.prepare import prepare
from aga.data.schema import MANIFEST
from aga.data.sources import open_source
from aga.data.sources.phantom import generate
from aga.data.studies import INFO_FILE, MANIFEST_FILE
from aga.data.tokenizing.tokens import tokenize
from aga.errors import ParamsError
from aga.params import overlaid, read_yaml, validate
from aga.training import overfit as module
from aga.training.overfit import Verdict, matching_margin, memorising, other_rows, overfit
from aga.training.recipe import Recipe, RunData

PHANTOM = {
    "phantom": {"patients": 320, "size": 64},
    "prepare": {"image": {"size": 48}, "split": {"train": 0.94, "validation": 0.03, "test": 0.03}},
    "tokenizer": {"vocabulary": 300},
    "image_encoder": {"options": {"channels": [8, 16, 16, 32]}},
    "text_encoder": {"width": 32, "layers": 1, "heads": 2},
    "model": {"width": 32},
    "objective": {"aga": {"bcga": {"heads": 2}}},
    "training": {"threads": 1},
}
SAID = ("report", "section", "text", "text_offsets", "statement", "labels", "regions")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A phantom of a few hundred pairs, and settings that learn it in a minute."""
    home = tmp_path_factory.mktemp("phantom")
    params = validate(overlaid(read_yaml(PARAMS), PHANTOM), "the test")
    generate(home / "raw", params.phantom, params.seed)
    source = open_source("phantom", params.source)
    prepare(source, home / "raw", home / "data/studies", params.prepare, params.seed, "phantom")
    tokenize(home / "data/studies", home / "data/tokens", params.tokenizer)
    recipe = Recipe(**{name: getattr(params, name) for name in Recipe.model_fields})
    return home, recipe


def shuffle_reports(home: Path, out: Path) -> Path:
    """The same pairs with each report beside another image."""
    shutil.copytree(home / "data/studies", out / "data/studies")
    manifest = out / "data/studies" / MANIFEST_FILE
    table = pq.read_table(manifest, schema=MANIFEST)
    order = np.random.default_rng(1).permutation(len(table))
    for name in SAID:
        table = table.set_column(table.column_names.index(name), name, table[name].take(order))
    pq.write_table(table, manifest)
    info = out / "data/studies" / INFO_FILE
    info.write_text(json.dumps(json.loads(info.read_text()) | {"sha256": "0" * 64}))
    tokens = validate(overlaid(read_yaml(PARAMS), PHANTOM), "the test").tokenizer
    tokenize(out / "data/studies", out / "data/tokens", tokens)
    return out


@pytest.mark.slow
def test_pairs_that_belong_together_pass_and_nothing_is_written(
    phantom: tuple[Path, Recipe],
) -> None:
    home, recipe = phantom
    before = {path for path in home.rglob("*") if "cache" not in path.parts}
    verdict = overfit(recipe, home, 64)
    assert verdict.passed, str(verdict)
    assert verdict.recall >= 0.95
    assert verdict.others > 200
    assert "PASSED: the 64 pairs were memorised" in str(verdict)
    assert {path for path in home.rglob("*") if "cache" not in path.parts} == before


@pytest.mark.slow
def test_shuffled_reports_are_memorised_as_well_and_fail(
    phantom: tuple[Path, Recipe], tmp_path: Path
) -> None:
    home, recipe = phantom
    verdict = overfit(recipe, shuffle_reports(home, tmp_path), 64)
    assert verdict.memorised, "memorising alone would not have told"
    assert not verdict.passed
    assert "FAILED" in str(verdict)
    assert "does not carry over" in str(verdict)
    assert "Labels shuffled" in str(verdict)


def test_images_that_are_all_alike_fail_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 6)
    home = make_home(tmp_path, rows=40)
    data = RunData.open(home)
    pixels = data.studies.images(data.cache)
    file = next(data.cache.glob("*.u8"))
    file.chmod(0o600)
    file.write_bytes(pixels[:1].tobytes() * len(pixels))
    verdict = overfit(small_recipe(), home, 16)
    assert not verdict.memorised
    assert not verdict.passed
    assert "FAILED: the 16 pairs were not memorised in 6 steps" in str(verdict)
    for word in ("Images unreadable", "Reports alike", "Labels shuffled", "Learning rate"):
        assert word in str(verdict)


def test_more_pairs_than_there_are_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path, rows=40)
    for pairs in (4, 29):
        with pytest.raises(ParamsError, match="8 to 28"):
            overfit(small_recipe(), home, pairs)


def test_the_settings_are_the_recipes_but_for_what_hinders_memorising() -> None:
    recipe = small_recipe({"training": {"batch_size": 48, "patience": 2}})
    memorised = memorising(recipe, 64)
    training = memorised.training
    assert set(training.augmentation.model_dump().values()) == {0.0}
    assert (training.pairs, training.batch_size, training.patience) == (64, 48, 0)
    assert training.epochs == module.STEPS
    assert memorising(recipe, 16).training.batch_size == 16
    kept = {"training": recipe.training}
    assert memorised.model_copy(update=kept) == recipe


def test_the_other_pairs_are_of_other_patients(tmp_path: Path) -> None:
    rows = [row | {"patient_id": f"p{i // 2}"} for i, row in enumerate(phantom_rows(60))]
    studies = write_studies(tmp_path / "studies", rows)
    train = studies.rows("train")
    others = other_rows(studies, train[::4])
    patients = np.array(studies.column("patient_id").to_pylist())
    assert set(others) <= set(train)
    assert not set(patients[others]) & set(patients[train[::4]])
    assert len(other_rows(studies, train)) == 0


def test_the_margin_is_that_of_permuted_pairs() -> None:
    """Against draws: its unit is the spread of the same ranks under permutations."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(80, 4, generator=generator)
    images = torch.cat((shared, torch.randn(80, 8, generator=generator)), dim=1)
    texts = torch.cat((shared, torch.randn(80, 8, generator=generator)), dim=1)
    texts[:9] = texts[0]  # equal reports, and one that all images like
    true = matching_margin(images, texts)
    drawn = []
    for seed in range(400):
        order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
        drawn.append(matching_margin(images, texts[order]))
    assert true > 3
    assert abs(np.mean(drawn)) < 0.15
    assert np.std(drawn) == pytest.approx(1, abs=0.1)
    assert matching_margin(torch.ones(40, 3), torch.ones(40, 3)) == 0


PASSED = Verdict(64, 64, 60, 98, 1.0, (10.0, 1.5), 512, 12.9)


@pytest.mark.parametrize(
    ("change", "passed", "words"),
    [
        ({}, True, ["PASSED", "carries over", "12.9"]),
        ({"margin": 1.3}, False, ["FAILED", "were memorised", "shuffled", "--overfit 256"]),
        ({"margin": None, "others": 5}, True, ["too few other", "would have passed"]),
        ({"recall": 0.5, "images": 1}, False, ["were not memorised", "1 of the 64"]),
    ],
)
def test_the_verdict_says_what_it_means(
    change: dict[str, object], passed: bool, words: list[str]
) -> None:
    verdict = replace(PASSED, **change)  # type: ignore[arg-type]
    assert verdict.passed is passed
    for word in words:
        assert word in str(verdict)
