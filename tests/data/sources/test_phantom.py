"""The phantom: what its pictures show and its reports say is what its truth claims."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

import aga.evaluation
from aga.data.schema import Reject, Study
from aga.data.sources.phantom import Phantom, PhantomConfig, generate
from aga.data.sources.phantom.anatomy import Anatomy, Look
from aga.data.sources.phantom.drawing import Picture, draw_picture
from aga.data.sources.phantom.facts import (
    ALL_FACTS,
    FINDINGS,
    Fact,
    draw_facts,
    labels_of,
    statement_of,
)
from aga.data.sources.phantom.phrases import NEGATIONS
from aga.data.sources.phantom.reports import write_report
from aga.errors import DataError

PROBABILITIES = (0.15, 0.45, 0.3, 0.1)
EVERY_FACT = [fact for facts in ALL_FACTS.values() for fact in facts]
SEEDS = st.integers(0, 2**31 - 1)
FEW, MANY = settings(max_examples=20, deadline=None), settings(deadline=None)
IN_LUNG = ("nodule", "opacity", "consolidation", "cavity", "calcification")
MARGIN = 6  # pixels by which a soft border may go beyond its box
# How a reader who does not know the templates recognises a finding.
NAMES = {
    "nodule": "nodule",
    "opacity": "opacity",
    "consolidation": "consolidation",
    "cavity": "cavit",
    "calcification": "calcifi",
    "effusion": "effusion",
    "pneumothorax": "pneumothorax",
    "cardiomegaly": "cardiomegaly|enlarged",
    "line": "central (line|venous catheter)",
}
PROMPTS = Path(aga.evaluation.__file__).parent / "prompts" / "phantom-v1.json"


def config(**changes: object) -> PhantomConfig:
    values: dict[str, object] = {
        "patients": 12,
        "studies_per_patient": (0.5, 0.5),
        "size": 64,
        "findings_per_study": PROBABILITIES,
        "noise": 0.03,
        "corrupt_fraction": 0.0,
    }
    return PhantomConfig.model_validate(values | changes)


def facts_and_rng(seed: int) -> tuple[tuple[Fact, ...], np.random.Generator]:
    rng = np.random.default_rng(seed)
    return draw_facts(rng, PROBABILITIES), rng


def picture(seed: int, *facts: Fact, noise: float = 0.0) -> Picture:
    rng = np.random.default_rng(seed)
    return draw_picture(Anatomy.draw(rng), Look.draw(rng), facts, size=192, noise=noise)


def sentences(text: str) -> list[str]:
    body = text.rsplit("FINDINGS: ", maxsplit=1)[-1].replace("\n\nIMPRESSION:", "")
    return [part.strip().lower() for part in body.split(".") if part.strip()]


def facts_read(sentence: str) -> Fact | None:
    """What one sentence states, by its words alone."""
    if re.match("no |there is no ", sentence):
        return None
    names = [finding for finding, name in NAMES.items() if re.search(name, sentence)]
    if not names:
        return None
    assert len(names) == 1, sentence

    def word(options: str) -> str:
        found = set(re.findall(rf"\b({options})\b", sentence))
        assert len(found) <= 1, sentence
        return found.pop() if found else ""

    return Fact(names[0], word("left|right"), word("upper|mid|lower"), word("small|large"))


def fact_of_prompt(prompt: str) -> Fact:
    """What a prompt states; every sentence of it must state the same."""
    (fact,) = {facts_read(part) for part in sentences(prompt)}
    assert fact is not None
    return fact


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "phantom"
    generate(root, config(), seed=7)
    return root


class TestFacts:
    @given(SEEDS)
    @MANY
    def test_no_finding_twice_and_no_cell_twice(self, seed: int) -> None:
        facts, _ = facts_and_rng(seed)
        cells = [cell for fact in facts for cell in fact.cells]
        assert len(cells) == len(set(cells))
        assert len({fact.finding for fact in facts}) == len(facts)

    @given(SEEDS)
    @MANY
    def test_statement_ignores_order_and_tells_facts_apart(self, seed: int) -> None:
        facts, _ = facts_and_rng(seed)
        other, _ = facts_and_rng(seed + 1)
        assert statement_of(facts) == statement_of(facts[::-1])
        assert (statement_of(facts) == statement_of(other)) == (set(facts) == set(other))

    def test_normals_share_one_key(self) -> None:
        assert statement_of(()) == "normal"

    def test_counts_follow_their_probabilities(self) -> None:
        counts = [len(draw_facts(np.random.default_rng(i), PROBABILITIES)) for i in range(2000)]
        shares = np.bincount(counts, minlength=4) / len(counts)
        assert shares == pytest.approx(PROBABILITIES, abs=0.04)

    def test_every_fact_is_drawn(self) -> None:
        drawn = {f for i in range(3000) for f in draw_facts(np.random.default_rng(i), (0.0, 1.0))}
        assert drawn == set(EVERY_FACT)


class TestPictures:
    @pytest.mark.parametrize("fact", EVERY_FACT, ids=lambda fact: fact.key)
    def test_a_finding_changes_the_picture_in_its_box_only(self, fact: Fact) -> None:
        for seed in range(3):
            shown = picture(seed, fact)
            changed = np.abs(shown.pixels.astype(float) - picture(seed).pixels)
            left, top, right, bottom = shown.boxes[fact.finding]
            inside = changed[top:bottom, left:right]
            assert inside.sum() > 0.9 * changed.sum()
            assert np.percentile(inside, 95) > 20  # grey levels: it can be seen
            assert min(right - left, bottom - top) >= 8
            margin = 6
            changed[
                max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin
            ] = 0
            assert changed.max() < 12

    @pytest.mark.parametrize("fact", EVERY_FACT, ids=lambda fact: fact.key)
    def test_the_patients_left_is_on_the_images_right(self, fact: Fact) -> None:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            Anatomy.draw(rng)
            middle = 96 * (1 + Look.draw(rng).shift[0])
            left, _, right, _ = picture(seed, fact).boxes[fact.finding]
            centre = (left + right) / 2
            if fact.side:
                assert (centre > middle) == (fact.side == "left")

    @given(SEEDS, st.sampled_from(IN_LUNG))
    @FEW
    def test_zones_are_in_order(self, seed: int, finding: str) -> None:
        heights = [
            np.mean(picture(seed, Fact(finding, "right", zone)).boxes[finding][1::2])
            for zone in ("upper", "mid", "lower")
        ]
        assert heights[0] < heights[1] - 10 < heights[2] - 20

    @pytest.mark.parametrize("finding", ["effusion", "pneumothorax"])
    def test_large_is_larger_than_small(self, finding: str) -> None:
        def area(seed: int, size: str) -> int:
            shown = picture(seed, Fact(finding, "left", size=size))
            left, top, right, bottom = shown.boxes[finding]
            return (right - left) * (bottom - top)

        small, large = ([area(seed, size) for seed in range(6)] for size in ("small", "large"))
        assert min(large) > 1.2 * max(small)

    @given(SEEDS)
    @FEW
    def test_findings_do_not_move_each_other(self, seed: int) -> None:
        facts, _ = facts_and_rng(seed)
        heart = tuple(fact for fact in facts if fact.finding == "cardiomegaly")
        together = picture(seed, *facts).boxes
        for fact in facts:
            alone = picture(seed, *{fact, *heart}).boxes
            assert together[fact.finding] == alone[fact.finding]

    def test_equal_input_equal_pixels_and_noise_differs_by_look(self) -> None:
        first, again, other = (picture(seed, noise=0.03).pixels for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_pictures_use_the_grey_scale_without_burning_out(self) -> None:
        pixels = np.stack([picture(seed, noise=0.03).pixels for seed in range(10)])
        assert pixels.min() < 20 and np.percentile(pixels, 99) < 255
        assert pixels.std(axis=(1, 2)).min() > 25


class TestReports:
    @given(SEEDS)
    @MANY
    def test_spans_state_their_finding_with_its_details(self, seed: int) -> None:
        facts, rng = facts_and_rng(seed)
        report = write_report(facts, "PA", True, rng)
        impression = report.text.index("IMPRESSION")
        assert set(report.spans) == {fact.finding for fact in facts}
        for fact in facts:
            before, after = report.spans[fact.finding]
            assert before[1] < impression < after[0]
            for start, end in (before, after):
                assert facts_read(report.text[start:end].lower()) == fact

    @given(SEEDS)
    @MANY
    def test_a_report_states_all_facts_and_nothing_else(self, seed: int) -> None:
        facts, rng = facts_and_rng(seed)
        report = write_report(facts, "AP", False, rng)
        read = {fact for part in sentences(report.text) if (fact := facts_read(part))}
        assert read == set(facts)

    @given(SEEDS)
    @MANY
    def test_present_findings_are_never_denied(self, seed: int) -> None:
        facts, rng = facts_and_rng(seed)
        said = sentences(write_report(facts, "PA", True, rng).text)
        present = {fact.finding for fact in facts}
        denials = {
            text for names, texts in NEGATIONS.items() if present & {*names} for text in texts
        }
        assert not denials & set(said)

    @given(SEEDS)
    @MANY
    def test_no_absent_finding_is_denied_twice_in_a_section(self, seed: int) -> None:
        facts, rng = facts_and_rng(seed)
        report = write_report(facts, "PA", True, rng)
        for section in report.text.split("FINDINGS: ")[1].split("IMPRESSION: "):
            said = sentences(section)
            denied = [
                finding
                for names, texts in NEGATIONS.items()
                if any(text in said for text in texts)
                for finding in names
            ]
            assert len(denied) == len(set(denied))

    def test_equal_facts_are_told_in_many_words(self) -> None:
        facts = (Fact("nodule", "left", "upper"), Fact("effusion", "right", size="large"))
        texts = {write_report(facts, "PA", True, np.random.default_rng(i)).text for i in range(50)}
        assert len(texts) > 45
        read = {
            statement_of({f for s in sentences(text) if (f := facts_read(s))}) for text in texts
        }
        assert read == {"effusion|right|large;nodule|left|upper"}

    def test_only_some_absent_findings_are_denied(self) -> None:
        texts = [write_report((), "PA", True, np.random.default_rng(i)).text for i in range(50)]
        shares = [np.mean([name in text for text in texts]) for name in ("pneumothorax", "nodule")]
        assert min(shares) > 0.05 and max(shares) < 0.7

    def test_vocabulary_is_small(self) -> None:
        words: set[str] = set()
        for seed in range(600):
            facts, rng = facts_and_rng(seed)
            words.update(re.findall(r"\w+", write_report(facts, "PA", True, rng).text.lower()))
        assert 60 < len(words) < 400


class TestGenerate:
    def test_bytes_do_not_depend_on_the_number_of_processes(self, tmp_path: Path) -> None:
        settings = config(patients=90, corrupt_fraction=0.1)
        for workers in (1, 2):
            generate(tmp_path / str(workers), settings, seed=3, workers=workers)
        assert digest(tmp_path / "1") == digest(tmp_path / "2")

    def test_another_seed_gives_other_studies(self, root: Path, tmp_path: Path) -> None:
        generate(tmp_path / "other", config(), seed=8)
        ours, others = digest(root), digest(tmp_path / "other")
        images = [name for name in ours.keys() & others.keys() if name.endswith(".png")]
        assert images and all(ours[name] != others[name] for name in images)

    def test_studies_of_a_patient_share_anatomy_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[Anatomy, Look]] = []

        def spy(anatomy: Anatomy, look: Look, *facts: object, **settings: object) -> Picture:
            seen.append((anatomy, look))
            return draw_picture(anatomy, look, *facts, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr("aga.data.sources.phantom.generator.draw_picture", spy)
        generate(tmp_path / "raw", config(studies_per_patient=(0, 1), patients=6), seed=1)
        anatomies, looks = zip(*seen, strict=True)
        assert anatomies[0::2] == anatomies[1::2]
        assert len(set(anatomies)) == 6 and len(set(looks)) == 12
        assert len(set(digest(tmp_path / "raw" / "images").values())) == 12

    def test_an_error_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("aga.data.sources.phantom.generator._damage", fail)
        with pytest.raises(RuntimeError):
            generate(tmp_path / "raw", config(patients=2), seed=0)
        assert list(tmp_path.iterdir()) == []

    def test_replaces_a_phantom_but_no_other_folder(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.txt").write_text("years of work")
        with pytest.raises(DataError, match="not a phantom"):
            generate(mine, config(patients=2), seed=0)
        assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
        for patients in (3, 2):
            generate(tmp_path / "raw", config(patients=patients, studies_per_patient=(1,)), seed=0)
            assert len(list((tmp_path / "raw" / "images").iterdir())) == patients

    def test_damaged_rows_are_as_many_as_asked_and_of_every_kind(self, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        generate(raw, config(patients=40, studies_per_patient=(1,), corrupt_fraction=0.2), seed=5)
        truth = [json.loads(line) for line in (raw / "truth.jsonl").read_text().splitlines()]
        damaged = {row["study_id"]: row["damage"] for row in truth if "damage" in row}
        assert sorted(damaged.values()) == sorted(
            ["truncated image", "text file as image", "empty report", "missing image"] * 2
        )
        for study, damage in damaged.items():
            image, report = raw / "images" / f"{study}.png", raw / "reports" / f"{study}.txt"
            assert (report.read_text() == "") == (damage == "empty report")
            assert image.exists() == (damage != "missing image")
            if "image" in damage:
                with pytest.raises(OSError), Image.open(image) as file:
                    file.load()
        undamaged = [row["study_id"] for row in truth if row["study_id"] not in damaged]
        for study in undamaged:
            with Image.open(raw / "images" / f"{study}.png") as file:
                file.load()


class TestReader:
    def test_reads_every_row_with_its_truth(self, root: Path) -> None:
        rows = list(Phantom().studies(root))
        assert len(rows) == len((root / "studies.csv").read_text().splitlines()) - 1
        for number, row in enumerate(rows, start=2):
            assert isinstance(row, Study)
            assert row.location == f"studies.csv:{number}"
            assert row.image.is_absolute() and row.image.is_file()
            assert row.view in ("PA", "AP")
            read = {fact for part in sentences(row.report) if (fact := facts_read(part))}
            assert row.statement == statement_of(read)
            assert row.labels == labels_of(read)
            for region in row.regions:
                assert region.span is not None
                stated = facts_read(row.report[slice(*region.span)].lower())
                assert stated is not None and stated.finding == region.finding
                left, top, right, bottom = region.box
                assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            mentions = [region.finding for region in row.regions]
            assert sorted(mentions) == sorted([fact.finding for fact in read] * 2)

    @pytest.mark.parametrize("name", ["studies.csv", "truth.jsonl", "images", "reports"])
    def test_names_what_the_layout_lacks(self, root: Path, tmp_path: Path, name: str) -> None:
        for entry in root.iterdir():
            if entry.name != name:
                (tmp_path / entry.name).symlink_to(entry)
        with pytest.raises(DataError, match=re.escape(name)):
            list(Phantom().studies(tmp_path))

    def test_names_the_columns_expected_and_found(self, root: Path, tmp_path: Path) -> None:
        generate(tmp_path / "raw", config(patients=1), seed=0)
        table = tmp_path / "raw" / "studies.csv"
        table.write_text(table.read_text().replace("patient_id", "patient", 1))
        with pytest.raises(
            DataError, match=r"no column patient_id(.|\n)*patient_id, study_id, image"
        ):
            list(Phantom().studies(tmp_path / "raw"))

    def test_rejects_rows_that_cannot_be_used(self, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        generate(raw, config(patients=5, studies_per_patient=(1,)), seed=0)
        (raw / "images" / "p000002-s1.png").unlink()
        (raw / "reports" / "p000003-s1.txt").unlink()
        lines = (raw / "truth.jsonl").read_text().splitlines()
        (raw / "truth.jsonl").write_text("\n".join(lines[:3] + lines[4:]))
        table = (raw / "studies.csv").read_text().splitlines()
        (raw / "studies.csv").write_text("\n".join([*table[:5], "p000005,p000005-s1"]))
        rows = list(Phantom().studies(raw))
        assert isinstance(rows[0], Study)
        assert [(row.location, row.reason) for row in rows if isinstance(row, Reject)] == [
            ("studies.csv:3", "image missing"),
            ("studies.csv:4", "report missing"),
            ("studies.csv:5", "truth missing"),
            ("studies.csv:6", "wrong number of columns"),
        ]

    def test_names_the_line_of_unreadable_truth(self, tmp_path: Path) -> None:
        generate(tmp_path / "raw", config(patients=1), seed=0)
        (tmp_path / "raw" / "truth.jsonl").write_text("{}\n")
        with pytest.raises(DataError, match=r"truth\.jsonl:1"):
            list(Phantom().studies(tmp_path / "raw"))


class TestConfig:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("patients", 0),
            ("studies_per_patient", (0.5, 0.4)),
            ("findings_per_study", (1.5, -0.5)),
            ("findings_per_study", ()),
            ("size", 8),
            ("noise", -0.1),
            ("corrupt_fraction", 1.1),
            ("patient", 3),
        ],
    )
    def test_refuses_wrong_values(self, key: str, value: object) -> None:
        with pytest.raises(ValidationError, match=key):
            config(**{key: value})


class TestPrompts:
    def test_prompts_speak_of_their_finding_as_reports_do(self) -> None:
        prompts = json.loads(PROMPTS.read_text())
        assert prompts["version"] == "phantom-v1"
        assert tuple(prompts["classes"]) == FINDINGS
        words: set[str] = set()
        for seed in range(600):
            facts, rng = facts_and_rng(seed)
            words.update(re.findall(r"\w+", write_report(facts, "PA", True, rng).text.lower()))
        for finding, kinds in prompts["classes"].items():
            assert {fact.finding for fact in map(fact_of_prompt, kinds["positive"])} == {finding}
            assert set(re.findall(r"\w+", " ".join(kinds["positive"]).lower())) <= words
            for prompt in kinds["negative"]:
                said = sentences(prompt)
                assert set(NEGATIONS[finding,]) & set(said)
                assert not any(facts_read(part) for part in said)

    def test_positive_prompts_cover_sides_and_zones_evenly(self) -> None:
        for finding, kinds in json.loads(PROMPTS.read_text())["classes"].items():
            stated = [fact_of_prompt(prompt) for prompt in kinds["positive"]]
            places = [(fact.side, fact.zone) for fact in stated]
            assert set(places) == {(fact.side, fact.zone) for fact in ALL_FACTS[finding]}
            assert len({places.count(place) for place in places}) == 1
