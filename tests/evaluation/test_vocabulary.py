"""Words that name findings and sides, as versioned files."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest

from aga.data.sources.phantom.facts import FINDINGS
from aga.data.sources.phantom.phrases import NOUNS, SENTENCES
from aga.errors import ParamsError
from aga.evaluation.vocabulary import load_vocabulary

WORDS = resources.files("aga.evaluation") / "words"


def test_every_clause_of_the_phantom_names_its_finding() -> None:
    vocabulary = load_vocabulary("phantom-v1")
    assert set(vocabulary.findings) == set(FINDINGS)
    for finding in FINDINGS:
        clauses = NOUNS.get(finding) or [c for section in SENTENCES[finding] for c in section]
        for clause in clauses:
            assert vocabulary.finding_spans(finding, clause.upper()), clause
            assert not vocabulary.finding_spans("unknown", clause)


def test_spans_hold_whole_words_only() -> None:
    vocabulary = load_vocabulary("phantom-v1")
    text = "Cavity. Cavitary lesion; concavity, cavityless."
    spans = vocabulary.finding_spans("cavity", text)
    assert [text[start:end] for start, end in spans] == ["Cavity", "Cavitary"]


def test_a_side_is_one_only_before_a_place_of_the_chest() -> None:
    vocabulary = load_vocabulary("covid-v1")
    text = "Left lower lobe. He left the ward. RIGHT-sided effusion, right and left lungs. Lefty."
    left, right = (vocabulary.side_spans(f"{side} lung", text) for side in ("left", "right"))
    assert left == [(0, 4), (text.index("left lungs"), text.index(" lungs"))]
    assert [text[start:end] for start, end in right] == ["RIGHT", "right"]
    assert load_vocabulary("phantom-v1").side_spans("left lung", text) == []


def test_vocabularies_are_versioned_and_hashed() -> None:
    for path in WORDS.iterdir():
        version = path.name.removesuffix(".json")
        found = load_vocabulary(version)
        assert found.version == version
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ParamsError, match="phantom-v1"):
        load_vocabulary("phantom-v0")
