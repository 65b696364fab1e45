"""The bundle: exact round trip, self-contained, strict, and refused when anything was changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from aga.bundle import MANIFEST, Bundle, bundle_sha256, load_bundle, save_bundle
from aga.data.tokenizing.tokenizer import encode, trained_tokenizer
from aga.data.transforms import ImageTransform
from aga.encoders.image import ImageEncoderConfig
from aga.encoders.text import TextEncoderConfig
from aga.errors import CheckpointError, DataError
from aga.model import AlignmentModel, ModelConfig
from aga.objectives import ObjectiveConfig, build_objective

ROOT = Path(__file__).parents[1]
PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
TEXTS = [
    "small nodule in the left upper zone",
    "no effusion",
    "the heart is enlarged; there is a line in the right atrium and no pneumothorax",
    "qqq zzz",
    "right lower zone consolidation",
]
METADATA = {
    "source": "phantom",
    "licence": "CC0",
    "citation": "none",
    "metrics": {"retrieval/mean_recall_at_10": 0.5},
}
SIZE, MAX_TOKENS, WIDTH = (32, 48), 12, 16


def objective_config(name: str = "aga") -> ObjectiveConfig:
    return ObjectiveConfig(**{**PARAMS["objective"], "name": name})


def export(folder: Path, name: str = "aga", text_path: Path | None = None) -> Bundle:
    """Save a small model with random weights; returns what was saved."""
    tokenizer = trained_tokenizer(TEXTS[:3] * 20, 60, True, MAX_TOKENS)
    torch.manual_seed(0)
    model = AlignmentModel(
        ImageEncoderConfig(
            architecture="resnet10t",
            options={"channels": [8, 16, 24, 32]},
            weights=None,
            patch_layer=2,
        ),
        TextEncoderConfig(
            path=text_path and str(text_path), width=16, layers=1, heads=2, dropout=0.1
        ),
        ModelConfig(width=WIDTH, projection="mlp", positions="none"),
        channels=1,
        image_size=SIZE,
        vocabulary=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        max_tokens=MAX_TOKENS,
    )
    objective = build_objective(objective_config(name), WIDTH)
    for parameter in objective.parameters():
        parameter.data.add_(0.01)
    model.encode_images(torch.randn(4, 1, *SIZE))  # moves the running statistics from their start
    model.eval()
    transform = ImageTransform(*SIZE, 1, (0.4,), (0.2,), "pad", "grey", "voi", "first")
    sha256 = save_bundle(
        folder,
        model,
        objective,
        objective_config=objective_config(name),
        tokenizer=tokenizer,
        transform=transform,
        metadata=METADATA,
    )
    return Bundle(model, objective.eval(), tokenizer, transform, METADATA, sha256)


def images(count: int = len(TEXTS)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 1), np.uint8)


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("bundle") / "encoder"
    return folder, export(folder)


@pytest.fixture
def copy(saved: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """The bundle in a folder that a test may damage."""
    return Path(shutil.copytree(saved[0], tmp_path / "encoder"))


def reseal(folder: Path) -> None:
    """Make the manifest agree with changed files, as someone who edits a bundle on purpose."""
    stated = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in json.loads((folder / MANIFEST).read_text())
    }
    (folder / MANIFEST).write_text(json.dumps(stated))


@pytest.mark.parametrize("name", ["aga", "clip"])
def test_round_trip_is_bit_identical(tmp_path: Path, name: str) -> None:
    before = export(tmp_path / "encoder", name)
    after = load_bundle(tmp_path / "encoder")
    assert equal(before.model, after.model)
    assert equal(before.objective, after.objective)
    assert not after.model.training
    assert not after.objective.training
    assert torch.equal(before.embed_images(images()), after.embed_images(images()))
    assert torch.equal(before.embed_texts(TEXTS), after.embed_texts(TEXTS))
    pairs, again = (bundle.embed_pairs(images(), TEXTS) for bundle in (before, after))
    assert all(torch.equal(getattr(pairs, k), v) for k, v in vars(again).items())
    assert torch.equal(before.objective(pairs).total, after.objective(again).total)
    assert (after.transform, after.metadata) == (before.transform, before.metadata)
    assert after.sha256 == before.sha256 == bundle_sha256(tmp_path / "encoder")


def test_exporting_again_gives_the_same_bytes(saved: tuple[Path, Bundle], tmp_path: Path) -> None:
    export(tmp_path / "encoder")
    files = [path for path in saved[0].rglob("*") if path.is_file()]
    assert len(files) >= 9
    for path in files:
        assert path.read_bytes() == (tmp_path / "encoder" / path.relative_to(saved[0])).read_bytes()
    assert load_bundle(tmp_path / "encoder").sha256 == saved[1].sha256


def test_files_are_those_documented(saved: tuple[Path, Bundle]) -> None:
    assert {path.name for path in saved[0].iterdir()} == {
        "README.md",
        "config.json",
        "manifest.json",
        "metadata.json",
        "model.safetensors",
        "objective.safetensors",
        "tokenizer",
        "transform.json",
    }


def test_a_model_of_a_folder_needs_the_folder_no_more(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / "private" / "bert")
    before = export(tmp_path / "encoder", text_path=tmp_path / "private" / "bert")
    shutil.rmtree(tmp_path / "private")
    after = load_bundle(tmp_path / "encoder")
    assert torch.equal(before.embed_texts(TEXTS), after.embed_texts(TEXTS))
    written = b"".join(p.read_bytes() for p in (tmp_path / "encoder").rglob("*") if p.is_file())
    assert str(tmp_path).encode() not in written


OFFLINE = """
import os, sys
import aga.bundle

def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class"):
        raise SystemExit(f"{event} {args}")

sys.addaudithook(guard)
bundle = aga.bundle.load_bundle(aga.bundle.Path(sys.argv[1]))
print(bundle.embed_texts(["no effusion"])[0].tolist())
"""


def test_loads_in_a_fresh_process_without_network_or_pickle(saved: tuple[Path, Bundle]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(saved[0])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = saved[1].embed_texts(["no effusion"])[0]
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected)


def test_embeddings_have_length_one_and_ignore_the_batch_size(saved: tuple[Path, Bundle]) -> None:
    bundle = load_bundle(saved[0])
    for embed, items in ((bundle.embed_images, images()), (bundle.embed_texts, TEXTS)):
        together = embed(items)
        assert together.shape == (len(TEXTS), WIDTH)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))
        torch.testing.assert_close(embed(items, batch_size=2), together)
    pairs = bundle.embed_pairs(images(), TEXTS)
    parts = bundle.embed_pairs(images(), TEXTS, batch_size=2)
    for name in ("patches", "tokens", "image", "text"):
        torch.testing.assert_close(getattr(parts, name), getattr(pairs, name))
    rows = encode(bundle.tokenizer, TEXTS, bundle.model.architecture.max_tokens)
    assert parts.sentences.equal(pairs.sentences)
    for numbers, row in zip(pairs.sentences.tolist(), rows, strict=True):
        assert numbers == row.sentences + [-1] * (len(numbers) - len(row.sentences))
    torch.testing.assert_close(
        torch.nn.functional.normalize(pairs.image, dim=1), bundle.embed_images(images())
    )
    assert not pairs.image.requires_grad


def test_images_may_be_tensors_or_read_only_arrays(saved: tuple[Path, Bundle]) -> None:
    array = images()
    array.flags.writeable = False
    tensor = torch.from_numpy(images())
    assert torch.equal(saved[1].embed_images(array), saved[1].embed_images(tensor))


def test_content_is_words_only(saved: tuple[Path, Bundle]) -> None:
    bundle = saved[1]
    tokens = bundle.tokenize(TEXTS)
    token_ids, attention, content = tokens.token_ids, tokens.attention_mask, tokens.content_mask
    special = {bundle.tokenizer.cls_token_id, bundle.tokenizer.sep_token_id}
    assert token_ids.shape[1] <= MAX_TOKENS
    for ids, kept, words in zip(token_ids.tolist(), attention, content, strict=True):
        expected = [bool(k) and i not in special for i, k in zip(ids, kept, strict=True)]
        assert words.tolist() == expected
    unknown = token_ids == bundle.tokenizer.unk_token_id
    assert unknown.any()
    assert content[unknown].all()


def test_images_of_another_size_are_refused(saved: tuple[Path, Bundle]) -> None:
    with pytest.raises(DataError, match="size"):
        saved[1].embed_images(np.zeros((1, 48, 32, 1), np.uint8))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/tokenizer.json", "README.md"])
def test_a_flipped_bit_is_refused_by_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"{name} \\(changed\\)"):
        load_bundle(copy)


def test_missing_and_added_files_are_refused_by_name(copy: Path) -> None:
    (copy / "objective.safetensors").unlink()
    (copy / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        load_bundle(copy)
    assert "objective.safetensors (missing)" in str(caught.value)
    assert "tokenizer/added_tokens.json (not of the bundle)" in str(caught.value)


def test_a_folder_without_a_readable_manifest_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no bundle"):
        load_bundle(tmp_path / "absent")
    (copy / MANIFEST).write_text('{"config.json": ')
    with pytest.raises(CheckpointError, match=r"(?s)manifest is damaged.*manifest\.json"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("text_projection.0.weight"), ["missing", "text_projection.0.weight"]),
        (lambda s: s.update(extra=torch.zeros(1)), ["unexpected", "extra"]),
        (
            lambda s: s.update({"text_projection.2.bias": torch.zeros(3)}),
            ["text_projection.2.bias", "[3]", f"[{WIDTH}]"],
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_other_weights_are_refused_with_a_key_difference(
    copy: Path, change: Callable[[dict[str, torch.Tensor]], object], words: list[str]
) -> None:
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors")
    reseal(copy)
    with pytest.raises(CheckpointError) as caught:
        load_bundle(copy)
    assert all(word in str(caught.value) for word in [*words, "model.safetensors"])


def test_another_format_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": 2}))
    reseal(copy)
    with pytest.raises(CheckpointError, match="another version"):
        load_bundle(copy)


def test_saving_replaces_a_bundle_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"torn")
    before = export(copy)
    assert load_bundle(copy).sha256 == before.sha256
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other than a bundle"):
        export(other)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_failed_save_leaves_the_old_bundle(copy: Path, saved: tuple[Path, Bundle]) -> None:
    bundle = saved[1]
    with pytest.raises(TypeError):
        save_bundle(
            copy,
            bundle.model,
            bundle.objective,
            objective_config=objective_config(),
            tokenizer=bundle.tokenizer,
            transform=bundle.transform,
            metadata={"metrics": object()},
        )
    assert bundle_sha256(copy) == bundle.sha256
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_the_model_card_states_origin_and_quality(saved: tuple[Path, Bundle]) -> None:
    card = (saved[0] / "README.md").read_text()
    for words in (
        "Source: phantom",
        "Licence: CC0",
        "retrieval/mean_recall_at_10 | 0.5",
        "no patient data",
        "Intended use",
        "resnet10t",
    ):
        assert words in card


def test_only_the_objective_in_use_is_shipped(tmp_path: Path) -> None:
    """Another objective's settings may change, or come to be, without making bundles unreadable."""
    export(tmp_path / "bundle", "clip")
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["objective"] == {"name": "clip", "settings": {"temperature": 0.07}}
