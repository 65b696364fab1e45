"""Endoscopies with reports in Chinese, from a table in two encodings to explained characters."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.small_runs import small_params, small_recipe
from PIL import Image

from aga.bundle import Bundle, load_bundle
from aga.data.preparing.prepare import PrepareConfig, PrepareSummary, prepare
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.studies import StudyDataset
from aga.data.text.cleaning import DEID
from aga.data.tokenizing.tokens import TokenizerConfig, TokenSummary, tokenize
from aga.explain import explain
from aga.training.export import export_bundle
from aga.training.recipe import RunData
from aga.training.run import run_local

STUDIES = 40
SETTINGS = {
    "prepare": {
        "image": {"size": 32, "mode": "rgb"},
        "report": {
            "prefer": ["检查所见+诊断意见", "诊断意见", "whole"],
            "deidentified": "token",
            "min_characters": 4,
        },
    },
    "tokenizer": {"vocabulary": 200, "max_tokens": 64},
    "objective": {"name": "aga"},
    "training": {
        "epochs": 2,
        "batch_size": 8,
        "sampling": {"views": "one_per_study", "sentences": 2},
    },
}
PLACES, FINDINGS = ("胃窦", "胃体", "食管", "十二指肠"), ("溃疡", "息肉", "充血水肿", "糜烂")


@dataclass(frozen=True)
class Line:
    """What the line made."""

    studies: StudyDataset
    summary: PrepareSummary
    tokens: TokenSummary
    steps: int
    bundle: Bundle
    home: Path


def report(draw: random.Random) -> str:
    """Two sections, numbered findings, sentences of full-width marks, and a name taken out."""
    place, finding = draw.choice(PLACES), draw.choice(FINDINGS)
    size = f"{draw.randint(1, 9)}.{draw.randint(1, 9)}cm"
    seen = f"1、{place}见一{finding}，大小约{size}。2、余黏膜光滑！由___检查。"  # noqa: RUF001
    return f"患者：___\n检查所见：{seen}\n诊断意见：{place}{finding}"  # noqa: RUF001


def write_table(root: Path) -> None:
    """Two images of each study; every other study was saved by a program that writes GB18030."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    lines = [b"patient_id,study_id,image,view,text"]
    for study in range(STUDIES):
        text = report(draw)
        for view in ("胃窦", ""):
            image = f"{len(lines)}.png"
            pixels = noise.integers(0, 60, (40, 30, 3)) + np.array([180, 90, 80])
            Image.fromarray(pixels.astype(np.uint8)).save(root / image)
            line = f'P{study},S{study},{image},{view},"{text}"'
            lines.append(line.encode("gb18030" if study % 2 else "utf-8"))
    (root / "pairs.csv").write_bytes(b"\n".join(lines))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    home = tmp_path_factory.mktemp("home")
    root = home / "raw"
    root.mkdir()
    write_table(root)
    params = small_params(SETTINGS)
    source = Manifest(ManifestConfig(table="pairs.csv", not_utf8="gb18030"))
    folder = home / "data/studies"
    config = PrepareConfig.model_validate(params["prepare"])
    summary = prepare(source, root, folder, config, 0, "manifest")
    tokenizer = TokenizerConfig.model_validate(params["tokenizer"])
    tokens = tokenize(folder, home / "data/tokens", tokenizer)
    recipe = small_recipe(SETTINGS)
    state = run_local(recipe, home)
    data = RunData.open(home)
    export_bundle(home / "bundle", recipe=recipe, data=data, home=home, state=state, names={})
    return Line(data.studies, summary, tokens, state.step, load_bundle(home / "bundle"), home)


def test_every_row_is_used_and_its_encoding_counted(line: Line) -> None:
    assert (line.summary.rows, line.summary.used) == (2 * STUDIES, 2 * STUDIES)
    assert line.summary.sections == {"检查所见+诊断意见": 2 * STUDIES}
    assert line.summary.repaired_rows == STUDIES
    assert line.summary.views == {"other": STUDIES, "unknown": STUDIES}
    texts = line.studies.column("text").to_pylist()
    assert not any(mark in text for text in texts for mark in ("1、", "2、", "检查所见", "\ufffd"))
    assert line.tokens.unknown_share["train"] == 0


def test_characters_are_words_and_full_width_marks_end_sentences(line: Line) -> None:
    shard = pq.read_table(line.home / "data/tokens/tokens-00000.parquet").slice(0, 1)
    (row,) = shard.to_pylist()
    text = line.studies.column("text")[0].as_py()
    pieces: dict[int, str] = {}
    for number, start, end in zip(row["sentences"], row["starts"], row["ends"], strict=True):
        pieces[number] = pieces.get(number, "") + (text[start:end] if start >= 0 else "")
    del pieces[-1]
    assert "".join(pieces.values()) == text.replace(" ", "")
    assert [piece[-1] for piece in pieces.values()][:3] == ["。", "！", "。"]  # noqa: RUF001
    assert len(pieces) == 4


def test_an_epoch_has_a_pair_for_each_study(line: Line) -> None:
    studies = len(line.studies.rows("train")) // 2
    assert studies == 28
    assert line.steps == 2 * (studies // 8)


def test_a_bundle_explains_characters_at_their_places_in_the_raw_report(line: Line) -> None:
    rows = [0, 1, 5, 2 * STUDIES - 1]
    for found in explain(line.bundle, line.studies, line.home / "cache", rows):
        spans = [(word.start, word.end) for word in found.words]
        assert spans == sorted(spans)
        assert [found.report[start:end] for start, end in spans] == [
            "___" if word.text == DEID else word.text for word in found.words
        ]
        assert [word.text for word in found.words].count(DEID) == 1
        joined = "".join(word.text for word in found.words)
        assert any(finding in joined for finding in FINDINGS)
        assert joined.count("cm") == 1
        assert torch.isfinite(torch.from_numpy(found.token_to_patch.copy())).all()
        place = found.report.index("见一")
        assert found.words_in(place, place + 2).sum() == 2
