"""Bundles as versions of a registered model."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

import aga
from aga.bundle import bundle_sha256
from aga.config import Config
from aga.errors import CheckpointError, TrackingError
from aga.tracking.store import (
    Client,
    TrackingConfig,
    experiment_id,
    open_client,
    tracking_errors,
    tracking_uri,
)

CANDIDATE = "candidate"
CHAMPION = "champion"
SHA256_TAG = "bundle_sha256"
PROMOTE = "promote a version: `dvc repro promote`"
REGISTER = "run `python workflows/register.py`; DVC does it with `dvc repro -f -s register`"

RUNTIME = (
    "jaxtyping",
    "mlflow",
    "numpy",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
"""What a machine that serves a version needs, in the versions installed here. The library itself
travels with the model: its name belongs to somebody else on the public package index."""

Version: TypeAlias = Any
"""`mlflow.entities.model_registry.ModelVersion`."""


class RegistryConfig(Config):
    """Where versions are registered.

    Attributes:
        model: Name of the registered model.
    """

    model: str = Field(pattern=r"^[\w. -]+$")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of the registered model; `models/registered.json` holds one.

    Attributes:
        model: Name of the registered model.
        version: Number of the version.
        bundle_sha256: Identity of the bundle in it.
        run_id: The MLflow run it came from.
    """

    model: str
    version: int
    bundle_sha256: str
    run_id: str

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RegisteredVersion:
        """Read what `write` wrote.

        Raises:
            TrackingError: There is no such file, or it holds something else.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrackingError(
                "No registered version is stated here.",
                where=path,
                got=error,
                fix=REGISTER,
            ) from error


def register(
    bundle_folder: Path,
    config: RegistryConfig,
    tracking: TrackingConfig,
    home: Path,
    *,
    tags: Mapping[str, str] | None = None,
) -> RegisteredVersion:
    """Make a bundle a version of the registered model, and move @candidate to it.

    A bundle that is a version already stays that version. A new version belongs to the training
    run that the bundle's metadata name; where the store has none of this name, a run is made.
    Changes MLflow's process-wide store.

    Args:
        bundle_folder: The bundle; its files are checked.
        config: The registered model.
        tracking: The store.
        home: Folder that the configuration's relative paths resolve against.
        tags: Tags of a new version, as of `provenance`. What the training run and the bundle state
            about code, settings and data goes before: these may have changed since.

    Raises:
        CheckpointError: The folder holds no bundle, or a damaged one.
        TrackingError: The store is away or refuses.
    """
    sha256 = bundle_sha256(bundle_folder)
    with tracking_errors("The bundle cannot be registered.", tracking, home):
        client = open_client(tracking, home)
        version = _find(client, config.model, sha256)
        if version is None:
            experiment = experiment_id(client, tracking, home)
            metadata = json.loads((bundle_folder / "metadata.json").read_text(encoding="utf-8"))
            run = _run_named(client, experiment, metadata.get("run"))
            all_tags = {**(tags or {}), **_trained_with(run, metadata), SHA256_TAG: sha256}
            uri = tracking_uri(tracking, home)
            model_uri = _log_model(client, uri, experiment, run, bundle_folder)
            version = _create_version(model_uri, config.model, all_tags)
        client.set_registered_model_alias(config.model, CANDIDATE, version.version)
    return RegisteredVersion(config.model, int(version.version), sha256, str(version.run_id))


def load_registered(
    config: RegistryConfig,
    tracking: TrackingConfig,
    home: Path,
    *,
    alias: str = CANDIDATE,
    version: RegisteredVersion | int | None = None,
) -> Path:
    """The bundle of a version, as a local folder, its files checked against the version.

    A bundle that is stored on this machine is used where it is: do not change the folder. One that
    comes from a server is kept in `models/downloaded` below `home`.

    Args:
        config: The registered model.
        tracking: The store.
        home: Folder that the configuration's relative paths resolve against.
        alias: Which version; without meaning where `version` is given.
        version: The version, or its number.

    Raises:
        TrackingError: There is no such version, or the store is away.
        CheckpointError: The stored files are not those that were registered.
    """
    with tracking_errors("The registered model cannot be loaded.", tracking, home):
        client = open_client(tracking, home)
        found = find_version(client, config.model, alias if version is None else version)
        folder = _local_bundle(client, tracking_uri(tracking, home), home, found)
    got, expected = bundle_sha256(folder), found.tags.get(SHA256_TAG)
    if got != expected:
        raise CheckpointError(
            "The registered bundle is not the one that was registered.",
            where=folder,
            got=got,
            expected=expected,
            fix="register the bundle again after deleting this version",
        )
    return folder


def find_version(client: Client, model: str, which: RegisteredVersion | int | str) -> Version:
    """A version as it was registered, by number, or by alias.

    Raises:
        TrackingError: There is none, or it is of another bundle: the store was made anew.
    """
    from mlflow.exceptions import MlflowException

    number = which.version if isinstance(which, RegisteredVersion) else which
    try:
        if isinstance(number, int):
            found = client.get_model_version(model, str(number))
        else:
            found = client.get_model_version_by_alias(model, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(
            "The registered model has no such version.",
            where=model,
            got=number,
            fix=PROMOTE if number == CHAMPION else REGISTER,
        ) from error
    if isinstance(which, RegisteredVersion) and found.tags.get(SHA256_TAG) != which.bundle_sha256:
        raise TrackingError(
            "The registered version is of another bundle.",
            where=f"{model}, version {number}",
            got=found.tags.get(SHA256_TAG),
            expected=which.bundle_sha256,
            fix=REGISTER,
        )
    return found


def set_tags(client: Client, version: Version, tags: Mapping[str, str]) -> set[str]:
    """Set the tags of a version that differ from what they are, and return their names."""
    new = {name: value for name, value in tags.items() if version.tags.get(name) != value}
    for name, value in new.items():
        client.set_model_version_tag(version.name, version.version, name, value)
    return set(new)


def pip_requirements() -> list[str]:
    """`RUNTIME` in the versions that are installed here; a build's suffix (`+cpu`) is left out."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in RUNTIME}
    return [f"{name}=={version}" for name, version in versions.items()]


def _find(client: Client, model: str, sha256: str) -> Version | None:
    """The version of a bundle; the oldest, should two processes have registered it at once."""
    found = client.search_model_versions(f"name = '{model}' and tags.{SHA256_TAG} = '{sha256}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _run_named(client: Client, experiment: str, name: str | None) -> Any:
    if name is None:
        return None
    runs = client.search_runs(
        [experiment], f"tags.`mlflow.runName` = '{name}'", order_by=["attributes.start_time DESC"]
    )
    return runs[0] if runs else None


def _trained_with(run: Any, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The code and settings that the run states, and the data that the bundle states."""
    of_data = {"data_sha256": "studies_sha256", "tokens_sha256": "tokens_sha256"}
    stated = {**(run.data.tags if run else {})}
    stated |= {tag: metadata[name] for tag, name in of_data.items() if name in metadata}
    names = ("git_commit", "git_dirty", "params_sha256", "data_sha256", "tokens_sha256")
    return {name: str(stated[name]) for name in names if name in stated}


def _log_model(client: Client, uri: str, experiment: str, run: Any, bundle_folder: Path) -> str:
    """Store the bundle as a model of the run; the run keeps the state and the end it had."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    run_id = run.info.run_id if run else None
    with mlflow.start_run(run_id, experiment, None if run else "register"):
        logged = mlflow.pyfunc.log_model(
            name="encoder",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"bundle": str(bundle_folder)},
            code_paths=[str(Path(aga.__file__).parent)],
            pip_requirements=pip_requirements(),
        )
    if run and run.info.end_time:
        client.set_terminated(run_id, run.info.status, run.info.end_time)
    return str(logged.model_uri)


def _create_version(model_uri: str, model: str, tags: Mapping[str, str]) -> Version:
    import mlflow

    return mlflow.register_model(model_uri, model, tags=dict(tags))


def _local_bundle(client: Client, uri: str, home: Path, version: Version) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    stored = client.get_model_version_download_uri(version.name, version.version)
    kept = home / "models" / "downloaded" / version.tags[SHA256_TAG]
    if uri.startswith("sqlite:"):
        model = Path(download_artifacts(stored, tracking_uri=uri, registry_uri=uri))
    else:
        model = kept
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                options = {"tracking_uri": uri, "registry_uri": uri}
                loaded = Path(download_artifacts(stored, dst_path=scratch, **options))
                _keep(loaded, kept)
    flavor = Model.load(str(model)).flavors["python_function"]
    return model / str(flavor["artifacts"]["bundle"]["path"])


def _keep(loaded: Path, kept: Path) -> None:
    """Move a download to its place, unless another process was quicker: the content is equal."""
    try:
        loaded.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise
