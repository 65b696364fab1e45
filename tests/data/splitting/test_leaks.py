"""Planted leaks are refused: when data are prepared, at the start of training and of evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from PIL import Image
from raw_folders import Rows
from ruamel.yaml import YAML

from aga.bundle import load_bundle, save_bundle
from aga.data.preparing.prepare import PrepareConfig, prepare
from aga.data.schema import MANIFEST
from aga.data.sources.manifest import Manifest
from aga.data.splitting.id_list import IdList
from aga.data.splitting.leaks import (
    Leak,
    LeakConfig,
    Side,
    describe,
    find_leaks,
    leaks_within,
    refuse_known,
    refuse_leaks,
    shared_reports,
)
from aga.data.splitting.patients import HeldOut
from aga.data.splitting.trained_on import TrainedOn
from aga.data.studies import MANIFEST_FILE, StudyDataset
from aga.errors import DataError
from aga.evaluation import EvaluationConfig, evaluate
from aga.objectives import ObjectiveConfig
from workflows import evaluate as evaluate_workflow
from workflows import leakcheck, pretrain, tune_gates

NOTHING = LeakConfig(lists={}, elsewhere=[], against=[])
ROOT = Path(__file__).parents[3]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
Save = Callable[[Rows], Path]


@pytest.fixture
def raw(raw_rows: Callable[[int], Rows], tmp_path: Path) -> Rows:
    """Forty patients of two studies, smooth images that a mirror does not leave alike."""
    rows = raw_rows(80)
    for number, row in enumerate(rows):
        coarse = np.random.default_rng(number).integers(0, 256, (10, 12), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "raw" / str(row["image"]))
    return rows


def mirrored(folder: Path, source: object, name: str) -> str:
    picture = Image.open(folder / str(source))
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / name, quality=60)
    return name


class ThisProcess:
    """Works where it is called: no process to start for a few rows."""

    count = 1

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)


@pytest.fixture
def prepared(
    raw: Rows, save_manifest: Save, manifest_source: Manifest, prepare_config: PrepareConfig
) -> Callable[..., StudyDataset]:
    def make(out: Path, rows: Rows | None = None, **more: object) -> StudyDataset:
        config = prepare_config.model_copy(
            update={"image": prepare_config.image.model_copy(update={"size": 64})}
        )
        split = config.split.model_copy(update=more.pop("split", {}))
        config = config.model_copy(update={"split": split})
        root = save_manifest(rows or raw)
        prepare(manifest_source, root, out, config, 0, "manifest", ThisProcess(), **more)  # type: ignore[arg-type]
        return StudyDataset.open(out)

    return make


def tamper(studies: StudyDataset, row: int, **cells: object) -> StudyDataset:
    """Change cells of the manifest behind the library's back."""
    table = studies.manifest.to_pylist()
    table[row] |= cells
    path = studies.folder / MANIFEST_FILE
    pq.write_table(pa.Table.from_pylist(table, schema=MANIFEST), path)
    return StudyDataset.open(studies.folder)


def first_of(studies: StudyDataset, split: str) -> int:
    return int(studies.rows(split)[0])  # type: ignore[arg-type]


# When data are prepared


def test_a_near_duplicate_links_patients_when_data_are_prepared(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    clean = prepared(tmp_path / "clean")
    assert leaks_within(clean) == []
    split_of = dict(
        zip(*(clean.column(n).to_pylist() for n in ("patient_id", "split")), strict=True)
    )
    one = next(row for row in raw if split_of[row["patient_id"]] == "train")
    other = next(row for row in raw if split_of[row["patient_id"]] == "test")
    other["image"] = mirrored(tmp_path / "raw", one["image"], "images/copy.jpg")
    linked = prepared(tmp_path / "linked")
    split_of = dict(
        zip(*(linked.column(n).to_pylist() for n in ("patient_id", "split")), strict=True)
    )
    assert split_of[one["patient_id"]] == split_of[other["patient_id"]]
    assert leaks_within(linked) == []


def test_given_splits_that_leak_are_refused_when_data_are_prepared(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    for number, row in enumerate(raw):
        row["split"] = ("train", "train", "validation", "test")[number // 2 % 4]
    prepared(tmp_path / "clean")
    image = raw[6]["image"]  # of the test split
    raw[6]["image"] = mirrored(tmp_path / "raw", raw[0]["image"], "images/copy.jpg")
    with pytest.raises(DataError, match=r"(?s)same image is in two.*near duplicate.*train"):
        prepared(tmp_path / "near")
    ignored = prepared(tmp_path / "near", split={"near_duplicates": "ignore"})
    refuse_leaks(ignored, NOTHING, tmp_path)
    raw[6]["image"] = raw[0]["image"]
    with pytest.raises(DataError, match="same image is in two"):
        prepared(tmp_path / "same")
    raw[6]["image"], raw[6]["patient_id"] = image, raw[0]["patient_id"]
    with pytest.raises(DataError, match="patient in two splits"):
        prepared(tmp_path / "patient")
    assert not (tmp_path / "patient").exists()


def test_listed_patients_are_never_learned_from(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    plain = prepared(tmp_path / "plain")
    learned = plain.column("patient_id")[first_of(plain, "train")].as_py()
    ids = IdList("mine", 0, {"all": ["an image"]}, [learned])
    ids.write(tmp_path / "lists/mine.json")
    config = LeakConfig(lists={"lists/mine.json": ids.sha256}, elsewhere=[], against=[])
    with pytest.raises(DataError, match=r"(?s)test list are learned from.*2 rows.*leaks.lists"):
        refuse_leaks(plain, config, tmp_path)
    held_out = prepared(tmp_path / "held out", held_out=[HeldOut("mine", frozenset({learned}))])
    refuse_leaks(held_out, config, tmp_path)
    tested = held_out.column("patient_id").take(held_out.rows("test")).to_pylist()
    assert tested == [learned, learned]  # both of its images, not only one that is listed
    wrong = LeakConfig(lists={"lists/mine.json": "0" * 64}, elsewhere=[], against=[])
    with pytest.raises(DataError, match="another one"):
        refuse_leaks(held_out, wrong, tmp_path)
    lists = [HeldOut("mine", frozenset({learned})), HeldOut("other.json", frozenset({"17"}))]
    with pytest.raises(DataError, match=r"(?s)No row is of .*other.json.*leaks.elsewhere"):
        prepared(tmp_path / "none", held_out=lists)
    lists[1] = replace(lists[1], elsewhere=True)
    meant = prepared(tmp_path / "meant", held_out=lists)
    assert meant.info.sha256 == held_out.info.sha256


def test_a_listed_patient_in_two_given_splits_is_tested(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    for number, row in enumerate(raw):
        row["split"] = ("train", "train", "validation", "test")[number // 2 % 4]
    raw[1]["split"] = "test"
    raw[6]["image"] = raw[0]["image"]  # in the test split, of another patient
    listed = [HeldOut("mine", frozenset({str(raw[0]["patient_id"])}))]
    with pytest.raises(DataError, match=r"(?s)patient in two splits.*keep_test"):
        prepared(tmp_path / "unlisted")
    studies = prepared(tmp_path / "listed", held_out=listed)
    tested = set(studies.column("patient_id").take(studies.rows("test")).to_pylist())
    assert {raw[0]["patient_id"], raw[6]["patient_id"]} <= tested
    assert leaks_within(studies) == []
    assert studies.info.rows == len(raw)


def test_what_two_official_splits_share_is_kept_in_the_stricter_one(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    """A patient, an image and a near duplicate, in either order; nothing else is lost."""
    for number, row in enumerate(raw):
        row["split"] = ("train", "train", "validation", "test")[number // 2 % 4]
    raw[6]["image"] = raw[0]["image"]  # test, and before it train
    raw[8]["image"], raw[8]["text"] = raw[7]["image"], raw[7]["text"]  # test, and then train
    raw[12]["image"] = mirrored(tmp_path / "raw", raw[10]["image"], "images/copy.jpg")
    raw[3]["split"] = "validation"  # of a patient in train
    keep = {"conflicts": "keep_test"}
    with pytest.raises(DataError, match="patient in two splits"):
        prepared(tmp_path / "refused")
    studies = prepared(tmp_path / "kept", split=keep)
    assert leaks_within(studies) == []
    rejects = pq.read_table(tmp_path / "kept/rejects.parquet").to_pylist()
    lost = {(one["location"], one["reason"]) for one in rejects}
    assert lost == {
        (f"pairs.csv:{2 + 2 * row}", reason)
        for row, reason in {
            0: "image in two splits",
            2: "patient in two splits",
            8: "image in two splits",
            10: "image in two splits",
        }.items()
    }
    details = {one["location"]: one["detail"] for one in rejects}
    assert details["pairs.csv:22"] == "in train; pairs.csv:26 has a near duplicate in validation"
    assert studies.info.rows == len(raw) - 4
    assert len(studies.images(tmp_path / "cache")) == studies.info.rows
    again = prepared(tmp_path / "again", split=keep)
    assert again.info.sha256 == studies.info.sha256


# At the start of training


PLANTED = {
    "same patient": "patient_id",
    "same study": "study_id",
    "same image": "pixel_sha256",
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize(
    "sides", [("train", "test"), ("train", "validation"), ("validation", "test")]
)
def test_planted_identities_are_refused(kind: str, sides: tuple[str, str], tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "studies", phantom_rows(60))
    refuse_leaks(studies, NOTHING, tmp_path)
    learned, tested = (first_of(studies, split) for split in sides)
    value = studies.column(PLANTED[kind])[learned].as_py()
    leaky = tamper(studies, tested, **{PLANTED[kind]: value})
    assert Leak(kind, learned, tested) in leaks_within(leaky)
    with pytest.raises(DataError, match=rf"{kind}: 1 rows, {tested} \(as {learned}\)") as error:
        refuse_leaks(leaky, NOTHING, tmp_path)
    assert value not in str(error.value)


def test_a_planted_near_duplicate_is_refused(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    raw[6]["image"] = mirrored(tmp_path / "raw", raw[0]["image"], "images/copy.jpg")
    studies = prepared(tmp_path / "studies")
    other = "test" if studies.column("split")[0].as_py() != "test" else "train"
    for row in (6, 7):
        studies = tamper(studies, row, split=other)
    with pytest.raises(DataError, match=r"near duplicate: 1 rows, \d+ \(as \d+\)"):
        refuse_leaks(studies, NOTHING, tmp_path)


@pytest.mark.parametrize("stage", [pretrain, tune_gates, evaluate_workflow])
def test_the_stages_begin_with_the_check(stage: ModuleType, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    studies = write_studies(tmp_path / "data/studies", phantom_rows(60))
    patient = studies.column("patient_id")[first_of(studies, "train")].as_py()
    tamper(studies, first_of(studies, "test"), patient_id=patient)
    with pytest.raises(DataError, match=r"(?s)Two splits share what.*same patient: 1 rows"):
        stage.main(["--params", str(tmp_path / "params.yaml")])


def test_what_another_folder_tests_is_not_learned(
    prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    studies = prepared(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    config = LeakConfig(lists={}, elsewhere=[], against=["two"])
    refuse_leaks(studies, config, tmp_path)  # its test split is that of the other
    row = first_of(studies, "train")
    two = tamper(StudyDataset.open(tmp_path / "two"), row, split="test")
    with pytest.raises(
        DataError, match=r"(?s)in the test split of two.*same patient: 1.*same image"
    ):
        refuse_leaks(studies, config, tmp_path)
    assert find_leaks(Side.of(two, "test"), Side.of(studies, "test"))
    with pytest.raises(DataError, match="no prepared studies"):
        refuse_leaks(studies, LeakConfig(lists={}, elsewhere=[], against=["three"]), tmp_path)


@pytest.mark.parametrize(
    ("sources", "compared"),
    [
        (("test", "test"), True),
        (("test", "other"), False),
        (("nih14", "rsna"), True),
        (("chexpert_plus", "chexpert"), True),
    ],
)
def test_identifiers_are_compared_where_one_issuer_gave_them(
    tmp_path: Path, sources: tuple[str, str], compared: bool
) -> None:
    sides = []
    for seed, source in enumerate(sources):
        folder = tmp_path / str(seed)
        write_studies(folder, phantom_rows(20), size=32, seed=seed)
        info = (folder / "dataset.json").read_text()
        (folder / "dataset.json").write_text(
            info.replace('"source": "test"', f'"source": "{source}"')
        )
        sides.append(Side.of(StudyDataset.open(folder), "train"))
    found = {leak.kind for leak in find_leaks(*sides)}
    assert found == ({"same patient", "same study"} if compared else set())
    assert shared_reports(sides[0], sides[1]) > 0


def test_leakcheck_counts_and_exits(
    prepared: Callable[..., StudyDataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = prepared(tmp_path / "one")
    folder = str(tmp_path / "one")
    assert leakcheck.main(["--train", folder]) == 0
    assert capsys.readouterr().out == "nothing is shared\n"
    assert leakcheck.main(["--train", folder, "--against", folder]) == 1
    out = capsys.readouterr().out
    rows = len(studies.rows("train")) + len(studies.rows("validation"))
    assert f"same patient: {rows} rows, " in out and f"same image: {rows} rows, " in out
    assert not any(patient in out.split() for patient in studies.column("patient_id").to_pylist())


def test_a_long_list_is_cut() -> None:
    lines = describe([Leak("same image", number, number + 7) for number in range(7)])
    assert lines == ["same image: 7 rows, 7 (as 0), 8 (as 1), 9 (as 2), 10 (as 3), 11 (as 4), ..."]


# At the start of evaluation


def test_a_bundle_remembers_what_it_was_trained_on(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    studies = prepared(tmp_path / "one")
    record = TrainedOn.of(studies)
    record.save(tmp_path / "record.safetensors")
    again = TrainedOn.load(tmp_path / "record.safetensors")
    for name in ("pixels", "words", "learned", "own"):
        assert np.array_equal(getattr(again, name), getattr(record, name))
    assert again.studies_sha256 == studies.info.sha256
    assert again.seen(studies, "test") == {} and again.seen(studies, "validation") == {}
    written = (tmp_path / "record.safetensors").read_bytes()
    assert len(written) < 2000 + 60 * studies.info.rows
    for patient in studies.column("patient_id").to_pylist():
        assert patient.encode() not in written.split(b"\0")

    row = first_of(studies, "train")
    moved = tamper(studies, row, split="test")
    patient = studies.column("patient_id")[row].as_py()
    others = [n for n, p in enumerate(studies.column("patient_id").to_pylist()) if p == patient]
    assert again.seen(moved, "test") == {"same image": [row], "same patient": [row]}
    # Another image of the same patient: known by the image that was trained on.
    moved = tamper(tamper(studies, row, split="train"), max(others), split="test")
    assert again.seen(moved, "test")["same patient"] == [max(others)]
    with pytest.raises(DataError, match=r"(?s)trained on what the test split holds.*same patient"):
        refuse_known(again, moved, "test")


def test_copies_of_what_a_bundle_was_trained_on_are_known(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    record = TrainedOn.of(prepared(tmp_path / "one"))
    for number, row in enumerate(raw):
        row["patient_id"], row["split"] = (
            f"other {number}",
            ("train", "validation", "test")[number % 3],
        )
        row["study_id"] = f"study {number}"
        row["image"] = mirrored(tmp_path / "raw", row["image"], f"images/copy{number}.jpg")
    copies = prepared(tmp_path / "two")
    seen = record.seen(copies, "test")
    assert set(seen) == {"near duplicate"}
    assert len(seen["near duplicate"]) >= 0.5 * copies.info.splits["test"]


def test_what_a_bundle_does_not_state_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studies = write_studies(tmp_path / "studies", phantom_rows(30), size=32)
    record = TrainedOn.of(studies)
    refuse_known(record, studies, "test")
    assert not caplog.messages
    refuse_known(None, studies, "test")
    refuse_known(replace(record, complete=False), studies, "test")
    assert [message.split(" had seen")[0] for message in caplog.messages] == [
        "The bundle does not state what it",
        "The bundle does not state what the weights that its training began with",
    ]
    planted = tamper(studies, first_of(studies, "train"), split="test")
    with pytest.raises(DataError, match="trained on what"):
        refuse_known(replace(record, complete=False), planted, "test")


def test_near_duplicates_of_what_starting_weights_had_seen_are_known(
    raw: Rows, prepared: Callable[..., StudyDataset], tmp_path: Path
) -> None:
    """Also in the very dataset that was trained on last, whose own images are not asked again."""
    first = prepared(tmp_path / "one")
    for number, row in enumerate(raw):
        row["patient_id"], row["study_id"] = f"other {number}", f"study {number}"
        row["image"] = mirrored(tmp_path / "raw", row["image"], f"images/copy{number}.jpg")
    second = prepared(tmp_path / "two")
    alone, both = TrainedOn.of(second), TrainedOn.of(second, [TrainedOn.of(first)])
    assert alone.seen(second, "test") == {}
    assert len(both.seen(second, "test")["near duplicate"]) >= 0.3 * second.info.splits["test"]
    assert len(both.pixels) == len(alone.pixels) + len(TrainedOn.of(first).pixels)
    again = TrainedOn.of(second, [alone])
    assert len(again.pixels) == len(alone.pixels) and again.own.all()
    assert TrainedOn.of(second, [None]).complete is False


def test_evaluation_refuses_what_the_bundle_knows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studies = write_studies(tmp_path / "studies", phantom_rows(60), size=32)
    bundle = write_bundle(tmp_path / "bundle", studies)
    assert bundle.trained_on is None
    config = EvaluationConfig.model_validate(PARAMS["evaluation"])
    evaluate(bundle, studies, tmp_path / "cache", config, seed=0)
    assert caplog.text.count("does not state what it had seen") == 1
    save_bundle(
        tmp_path / "remembers",
        bundle.model,
        bundle.objective,
        objective_config=ObjectiveConfig(**PARAMS["objective"]),
        tokenizer=bundle.tokenizer,
        transform=bundle.transform,
        metadata={},
        trained_on=TrainedOn.of(studies),
    )
    remembers = load_bundle(tmp_path / "remembers")
    planted = tamper(studies, first_of(studies, "train"), split="test")
    with pytest.raises(DataError, match=r"(?s)trained on what the test split holds.*same image: 1"):
        evaluate(remembers, planted, tmp_path / "cache", config, seed=0)
