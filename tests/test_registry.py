"""The registry in a real MLflow: repeatable, pickle-free, gated, and it can be taken back."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies
from mlflow import MlflowClient
from PIL import Image
from pydantic import ValidationError
from ruamel.yaml import YAML

from aga.bundle import Bundle, bundle_sha256, load_bundle, save_bundle
from aga.data.pixels.images import decode_image, prepare_image
from aga.errors import CheckpointError, TrackingError
from aga.objectives import ObjectiveConfig
from aga.registry import (
    PromotionConfig,
    RegisteredVersion,
    RegistryConfig,
    load_registered,
    promote,
    register,
    roll_back,
    set_metrics,
)
from aga.registry.versions import pip_requirements
from aga.tracking import TrackingConfig, start_run
from aga.tracking.store import open_client
from benchmarks.dicom_files import write_dicom
from benchmarks.outages import Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
TRACKING = TrackingConfig(
    uri="sqlite:///mlflow.db", artifacts="mlartifacts", experiment="tests", explain_pairs=0
)
GATE = PromotionConfig(metric="retrieval/mean_recall_at_10", tolerance=0.01)
SIZE = 32

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry home")
    open_client(TRACKING, folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("base")
    studies = write_studies(folder / "studies", phantom_rows(20), size=SIZE)
    return write_bundle(folder / "encoder", studies)


@pytest.fixture
def export(base: Bundle, tmp_path: Path) -> Export:
    """Write a bundle; other metadata, another bundle."""

    def write(**metadata: object) -> Path:
        folder = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}" / "encoder"
        save_bundle(
            folder,
            base.model,
            base.objective,
            tokenizer=base.tokenizer,
            transform=base.transform,
            metadata=metadata,
            objective_config=ObjectiveConfig(**PARAMS["objective"]),
        )
        return folder

    return write


@pytest.fixture
def model(request: pytest.FixtureRequest) -> RegistryConfig:
    """A registered model of the test's own."""
    return RegistryConfig(model=request.node.name.replace("[", " ").replace("]", "")[:100])


def client_of(home: Path) -> MlflowClient:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def aliases(home: Path, model: RegistryConfig) -> dict[str, int]:
    found = client_of(home).get_registered_model(model.model).aliases
    return {alias: int(version) for alias, version in found.items()}


def test_a_bundle_is_registered_once_however_often_it_is_tried(
    home: Path, export: Export, model: RegistryConfig
) -> None:
    first_bundle, second_bundle = export(epoch=1), export(epoch=2)
    first = register(first_bundle, model, TRACKING, home, tags={"git_commit": "c" * 40})
    assert first == RegisteredVersion(model.model, 1, bundle_sha256(first_bundle), first.run_id)
    assert aliases(home, model) == {"candidate": 1}
    second = register(second_bundle, model, TRACKING, home)
    assert second.version == 2
    assert aliases(home, model) == {"candidate": 2}

    assert register(first_bundle, model, TRACKING, home) == first
    assert aliases(home, model) == {"candidate": 1}
    versions = client_of(home).search_model_versions(f"name = '{model.model}'")
    assert len(versions) == 2
    assert client_of(home).get_model_version(model.model, "1").tags["git_commit"] == "c" * 40


def test_a_version_belongs_to_the_run_that_trained_it(
    home: Path, export: Export, model: RegistryConfig, tmp_path: Path
) -> None:
    trained = {"git_commit": "a" * 40, "git_dirty": "false", "params_sha256": "p" * 64}
    with start_run(TRACKING, home, "run-1", spool=tmp_path / "m.jsonl", tags=trained) as run:
        run.log_metrics({"loss": 1.0}, 0)
    before = client_of(home).get_run(run.run_id).info
    now = {"git_commit": "b" * 40, "data_sha256": "now", "dvc_lock_sha256": "l" * 64}
    bundle = export(run="run-1", studies_sha256="then", tokens_sha256="t" * 64)
    version = register(bundle, model, TRACKING, home, tags=now)
    assert version.run_id == run.run_id
    after = client_of(home).get_run(run.run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time)
    tags = client_of(home).get_model_version(model.model, "1").tags
    assert tags == {
        **trained,
        "data_sha256": "then",
        "tokens_sha256": "t" * 64,
        "dvc_lock_sha256": "l" * 64,
        "bundle_sha256": version.bundle_sha256,
    }


def test_a_version_loads_as_the_bundle_it_was(
    home: Path, export: Export, model: RegistryConfig, tmp_path: Path
) -> None:
    bundle = export()
    version = register(bundle, model, TRACKING, home)
    version.write(tmp_path / "models" / "registered.json")
    assert RegisteredVersion.read(tmp_path / "models" / "registered.json") == version
    by_number = load_registered(model, TRACKING, home, version=1)
    assert by_number == load_registered(model, TRACKING, home)
    assert by_number == load_registered(model, TRACKING, home, version=version)
    assert load_bundle(by_number).sha256 == version.bundle_sha256
    assert by_number.is_relative_to(home / "mlartifacts")

    (by_number / "transform.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"transform\.json"):
        load_registered(model, TRACKING, home)


def test_a_version_that_is_not_there_is_named(
    home: Path, export: Export, model: RegistryConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match="no such version"):
        load_registered(model, TRACKING, home)
    register(export(), model, TRACKING, home)
    with pytest.raises(TrackingError, match=r"(?s)no such version.*champion.*dvc repro promote"):
        load_registered(model, TRACKING, home, alias="champion")
    with pytest.raises(TrackingError, match=r"(?s)no such version.*7"):
        load_registered(model, TRACKING, home, version=7)
    stated = RegisteredVersion(model.model, 1, "0" * 64, "run")
    with pytest.raises(TrackingError, match="of another bundle"):
        load_registered(model, TRACKING, home, version=stated)
    with pytest.raises(TrackingError, match=r"register\.py"):
        RegisteredVersion.read(tmp_path / "registered.json")
    with pytest.raises(CheckpointError, match="no bundle"):
        register(tmp_path, model, TRACKING, home)


def test_a_model_name_that_cannot_be_addressed_is_refused() -> None:
    with pytest.raises(ValidationError):
        RegistryConfig(model="a/b")


def test_nothing_of_a_version_is_a_pickle(
    home: Path, export: Export, model: RegistryConfig
) -> None:
    version = register(export(), model, TRACKING, home)
    stored = load_registered(model, TRACKING, home).parents[1]
    names = {path.relative_to(stored).as_posix() for path in stored.rglob("*")}
    assert {"MLmodel", "pyfunc.py", "code/aga/bundle.py", "requirements.txt"} <= names
    assert {"artifacts/encoder/model.safetensors", "artifacts/encoder/manifest.json"} <= names
    pickles = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy")
    assert not [name for name in names if name.endswith(pickles)]
    for path in (path for path in stored.rglob("*") if path.is_file()):
        start = path.read_bytes()[:2]
        assert start[:1] != b"\x80", f"{path} begins as a pickle"
        assert start != b"PK", f"{path} begins as a torch archive"
    mlmodel = YAML(typ="safe").load(stored / "MLmodel")
    assert "python_model" not in mlmodel["flavors"]["python_function"]
    assert mlmodel["flavors"]["python_function"]["model_code_path"].endswith("pyfunc.py")
    assert version.version == 1


def test_the_requirements_are_pinned_and_name_no_package_of_somebody_else() -> None:
    requirements = dict(line.split("==") for line in pip_requirements())
    assert "aga" not in requirements
    assert {"torch", "timm", "transformers", "safetensors", "mlflow"} <= requirements.keys()
    assert not [version for version in requirements.values() if "+" in version]


SERVE = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import aga
print(json.dumps({"aga": aga.__file__, "output": model.predict(json.load(sys.stdin))}))
"""


def test_a_registered_model_embeds_images_and_texts_where_only_mlflow_loads_it(
    home: Path, base: Bundle, export: Export, model: RegistryConfig, tmp_path: Path
) -> None:
    register(export(), model, TRACKING, home)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    rows = [
        {"text": "nodule in the left upper zone"},
        {"image": base64.b64encode(file.getvalue()).decode()},
        {"text": "no effusion"},
    ]
    uri = f"sqlite:///{home / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", SERVE, uri, f"models:/{model.model}@candidate"],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert str(home / "mlartifacts") in answer["aga"]  # the source that was registered
    texts = base.embed_texts([rows[0]["text"], rows[2]["text"]])
    image = base.embed_images(pixels[None, :, :, None])
    expected = [texts[0].tolist(), image[0].tolist(), texts[1].tolist()]
    np.testing.assert_allclose(answer["output"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "row", [{}, {"image": "AAAA", "text": "both"}, {"image": "no base64!"}, {"image": "AAAA"}]
)
def test_a_row_that_cannot_be_embedded_is_refused(row: dict[str, str], base: Bundle) -> None:
    from aga.registry.pyfunc import EncoderModel

    served = EncoderModel()
    served.bundle = base
    with pytest.raises(
        Exception, match=r"row cannot be embedded|base64|cannot be decoded"
    ) as raised:
        served.predict([row])
    assert "both" not in str(raised.value)


@pytest.mark.parametrize("window", ["voi", "percentile", "mimic_jpg"])
def test_a_dicom_file_is_shown_as_the_bundle_says(
    base: Bundle, tmp_path: Path, window: str
) -> None:
    from aga.registry.pyfunc import EncoderModel

    values = (np.random.default_rng(0).beta(2, 5, (40, 30)) * 4000).astype(np.uint16)
    write_dicom(
        tmp_path / "x",
        values,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=900,
        WindowWidth=700,
    )
    served = EncoderModel()
    served.bundle = replace(base, transform=replace(base.transform, window=window))
    encoded = base64.b64encode((tmp_path / "x").read_bytes()).decode()
    found = served.predict([{"image": encoded}])
    config = base.transform.image_config.model_copy(update={"window": window})
    pixels = prepare_image(decode_image(tmp_path / "x", config), config)
    np.testing.assert_allclose(found, base.embed_images(pixels[None]), rtol=1e-5)


def test_a_server_keeps_and_gives_back_the_bundle(
    export: Export, model: RegistryConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path)
    tracking = TRACKING.model_copy(update={"uri": server.uri})
    bundle = export()
    with server:
        version = register(bundle, model, tracking, tmp_path)
        assert register(bundle, model, tracking, tmp_path) == version
        folder = load_registered(model, tracking, tmp_path, version=version.version)
    assert folder.is_relative_to(tmp_path / "models" / "downloaded")
    assert bundle_sha256(folder) == version.bundle_sha256
    kept = tmp_path / "models" / "downloaded"
    assert [path.name for path in kept.iterdir()] == [version.bundle_sha256]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=rf"(?s)cannot be loaded.*{server.port}"):
        load_registered(model, tracking, tmp_path, version=version.version)


class Gate:
    """Versions of one model with their gate metric, and the gate."""

    def __init__(self, home: Path, export: Export, model: RegistryConfig) -> None:
        self.home, self.export, self.model = home, export, model

    def version(self, value: float | None, measured_on: str = "data") -> int:
        bundle = self.export(number=len(list(self.home.iterdir())), value=str(value))
        version = register(bundle, self.model, TRACKING, self.home).version
        if value is not None:
            metrics = {GATE.metric: value, "zero_shot/mean_auroc": 0.5}
            set_metrics(version, metrics, self.model, TRACKING, self.home, measured_on=measured_on)
        return version

    def promote(self, version: int, *, accept_incomparable: bool = False):
        return promote(
            version,
            GATE,
            self.model,
            TRACKING,
            self.home,
            accept_incomparable=accept_incomparable,
        )

    def champion(self) -> int | None:
        return aliases(self.home, self.model).get("champion")

    def tags(self, version: int) -> dict[str, str]:
        return client_of(self.home).get_model_version(self.model.model, str(version)).tags


@pytest.fixture
def gate(home: Path, export: Export, model: RegistryConfig) -> Gate:
    return Gate(home, export, model)


def test_the_champion_moves_only_to_a_version_that_is_not_worse(gate: Gate) -> None:
    first, better, within, worse = (gate.version(v) for v in (0.50, 0.60, 0.591, 0.58))
    decision = gate.promote(first)
    assert decision.promoted
    assert (decision.champion, decision.comparable) == (None, None)
    assert gate.champion() == first

    decision = gate.promote(better)
    assert (decision.promoted, decision.champion, decision.champion_value) == (True, first, 0.5)
    assert decision.comparable is True
    assert gate.champion() == better

    decision = gate.promote(worse)
    assert not decision.promoted
    assert "below" in decision.reason
    assert gate.champion() == better
    assert "promoted_at" not in gate.tags(worse)

    assert gate.promote(within).promoted
    assert gate.champion() == within
    tags = gate.tags(within)
    assert tags["promoted_over"] == str(better)
    assert tags["promotion_metric"] == GATE.metric
    assert tags["promotion_value"] == "0.591"
    assert tags["promoted_at"].endswith("+00:00")
    assert json.loads(json.dumps(decision.to_json()))["candidate"] == worse


def test_promoting_the_champion_again_changes_nothing(gate: Gate) -> None:
    first, second = gate.version(0.5), gate.version(0.6)
    gate.promote(first)
    gate.promote(second)
    before = gate.tags(second)
    decision = gate.promote(second)
    assert decision.promoted
    assert "already" in decision.reason
    assert gate.tags(second) == before


def test_a_candidate_without_the_metric_is_refused(gate: Gate) -> None:
    version = gate.version(None)
    with pytest.raises(TrackingError, match=r"metric\.retrieval/mean_recall_at_10"):
        gate.promote(version)
    assert gate.champion() is None
    with pytest.raises(TrackingError, match="no value"):
        gate.promote(gate.version(float("nan")))


def test_a_champion_measured_on_other_data_stays_until_a_person_accepts_another(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = gate.version(0.4, "old data"), gate.version(0.9, "new data")
    gate.promote(old)
    decision = gate.promote(new)
    assert (decision.promoted, decision.comparable) == (False, False)
    assert "not comparable" in decision.reason
    assert "--accept-incomparable" in decision.reason
    assert "not comparable" in caplog.text
    assert gate.champion() == old

    decision = gate.promote(new, accept_incomparable=True)
    assert (decision.promoted, decision.comparable) == (True, False)
    assert gate.champion() == new
    assert gate.tags(new)["promoted_over"] == str(old)


def test_a_champion_that_was_never_measured_is_no_bar(gate: Gate) -> None:
    unmeasured, measured = gate.version(None), gate.version(0.1)
    client_of(gate.home).set_registered_model_alias(gate.model.model, "champion", str(unmeasured))
    decision = gate.promote(measured)
    assert decision.promoted
    assert "never measured" in decision.reason
    assert gate.champion() == measured


def test_what_one_task_was_measured_on_is_no_matter_of_another(gate: Gate) -> None:
    first, second = gate.version(0.5), gate.version(0.6)
    for version, prompts in ((first, "prompts 1"), (second, "prompts 2")):
        values = {"zero_shot/mean_auroc": 0.5}
        set_metrics(version, values, gate.model, TRACKING, gate.home, measured_on=prompts)
    zero_shot = PromotionConfig(metric="zero_shot/mean_auroc", tolerance=0.0)
    gate.promote(first)
    assert promote(second, zero_shot, gate.model, TRACKING, gate.home).comparable is False
    assert gate.promote(second).comparable is True


def test_the_champion_is_rolled_back_and_stays_so(gate: Gate) -> None:
    first, second = gate.version(0.5), gate.version(0.6)
    gate.promote(first)
    with pytest.raises(TrackingError, match="no champion before"):
        roll_back(gate.model, TRACKING, gate.home)
    gate.promote(second)
    assert roll_back(gate.model, TRACKING, gate.home) == first
    assert gate.champion() == first
    decision = gate.promote(second)
    assert not decision.promoted
    assert "rolled back" in decision.reason
    assert gate.champion() == first


def test_metrics_are_kept_with_the_version_and_its_run_once(gate: Gate) -> None:
    version = gate.version(0.25)
    store = (gate.model, TRACKING, gate.home)
    set_metrics(version, {GATE.metric: 0.25}, *store, measured_on="data")
    tags = gate.tags(version)
    assert float(tags[f"metric.{GATE.metric}"]) == 0.25
    assert tags["measured_on.retrieval"] == "data"
    client = client_of(gate.home)
    run_id = client.get_model_version(gate.model.model, str(version)).run_id
    history = client.get_metric_history(run_id, f"test/{GATE.metric}")
    assert [metric.value for metric in history] == [0.25]
