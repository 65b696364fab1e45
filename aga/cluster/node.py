"""What a node of a cluster must see and have for a run, asked of each before any data load.

Runs on every node as a small task: nothing here imports torch or Ray. `inspect` gathers facts; the
checks are functions of facts. `aga.cluster.survey` is what sends the one and collects the other.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import platform
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aga
from aga.errors import ClusterError

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "ray", "numpy", "timm", "transformers")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
NCCL_BYTES = 2**30
TOKEN_SECONDS = 10.0
"""How long a node looks for the others' tokens: network file systems show a new file late."""
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class NodeFacts:
    """What one node reports.

    Attributes:
        name: Host name and address, for messages.
        versions: Of Python, the packages that compute, and the library's own code.
        data: Path of each file that a run reads first, and its SHA-256; None where it is not there.
        shared_memory: Bytes free in /dev/shm; None where the system has none.
        tracking_error: Why the MLflow server cannot be reached; None where it can, or is none.
    """

    name: str
    versions: Mapping[str, str]
    data: Mapping[str, str | None]
    shared_memory: int | None
    tracking_error: str | None


def inspect(data: Sequence[Path], tracking_uri: str) -> NodeFacts:
    """Gather a node's facts; run on it."""
    return NodeFacts(
        name=node_name(),
        versions=versions(),
        data={str(path): _sha256(path) for path in data},
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        tracking_error=unreachable(tracking_uri),
    )


def node_name() -> str:
    """What a person calls this node."""
    return socket.gethostname()


def versions() -> dict[str, str]:
    """Versions of what takes part in computing, on this node."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found | {"aga": library_sha256()[:10]}


def library_sha256() -> str:
    """Hash of every Python file of the library, with its place in it."""
    root = Path(aga.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def unreachable(tracking_uri: str) -> str | None:
    """Why a server's address takes no connection; None where it does, or for a local store."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https") or address.hostname is None:
        return None
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return str(error)
    return None


def write_token(folder: Path, token: str, patience: float) -> str | None:
    """Leave this node's token in a folder that another one has made; why it cannot, or None.

    The folder is waited for, and never made: where the storage is not mounted it would come to be
    on this node's own disk, and stay there below the mount.
    """
    deadline = time.monotonic() + patience
    try:
        while not folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.2)
        (folder / token).touch()
    except OSError as error:
        return error.strerror or str(error)
    return None


def missing_tokens(folder: Path, tokens: Sequence[str], patience: float) -> list[str]:
    """The tokens that this node does not see after at most `patience` seconds."""
    deadline = time.monotonic() + patience
    while missing := [token for token in tokens if not (folder / token).exists()]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    return missing


def check_exchange(
    storage: Path, refused: Mapping[str, str | None], missing: Mapping[str, Sequence[str]]
) -> None:
    """Check that all nodes write to, and read from, one storage folder.

    Args:
        storage: The folder.
        refused: Node to why it could not write its token; None where it could.
        missing: Node to the nodes whose tokens it does not see.

    Raises:
        ClusterError: They do not; the message has a line per node.
    """
    lines = [f"    {name}: cannot write, {why}" for name, why in refused.items() if why]
    lines += [
        f"    {name}: does not see what was written on {', '.join(others)}"
        for name, others in missing.items()
        if others
    ]
    if lines:
        raise ClusterError(
            "The nodes do not share the storage folder\n" + "\n".join(lines),
            where=storage,
            fix="set cluster.storage to a folder that every node mounts under the same path",
        )


def check_data(nodes: Sequence[NodeFacts], here: Mapping[str, str | None]) -> None:
    """Check that every node reads the data that this machine reads.

    Raises:
        ClusterError: A file is missing on a node, or differs.
    """
    lines = [
        f"    {node.name}: {path} {'differs' if node.data[path] else 'is not there'}"
        for node in nodes
        for path, sha256 in here.items()
        if node.data[path] != sha256
    ]
    if lines:
        raise ClusterError(
            "The nodes do not have the data of this machine\n" + "\n".join(lines),
            where="data/studies, data/tokens",
            fix="name with --home a project folder that every node mounts under the same path",
        )


def check_versions(nodes: Sequence[NodeFacts]) -> None:
    """Check that all nodes compute with the same software.

    Raises:
        ClusterError: They do not; the message has a row for each package that differs.
    """
    rows = [[name, *(node.versions[name] for node in nodes)] for name in nodes[0].versions]
    skewed = [row for row in rows if len(set(row[1:])) > 1]
    if skewed:
        raise ClusterError(
            "The nodes have different software\n"
            + _table([["", *(n.name for n in nodes)], *skewed]),
            where="the Python environment of the nodes",
            fix="install requirements.lock on every node; aga: submit with workflows/submit.py, "
            "whose package carries the code",
        )


def warn_of_shared_memory(nodes: Sequence[NodeFacts]) -> None:
    """Tell which nodes have less shared memory than NCCL asks for, where several GPUs train there.

    Only warned of: how much it takes depends on the GPUs and their links.
    """
    for node in nodes:
        if node.shared_memory is not None and node.shared_memory < NCCL_BYTES:
            logger.warning(
                "%s has %.0f MiB free in %s; NCCL's manual asks for 1 GiB where several GPUs of a "
                "node talk to each other. If the workers fail at their first step, give the "
                "container more: --shm-size=1g; in Kubernetes an emptyDir of medium Memory",
                node.name,
                node.shared_memory / 2**20,
                SHARED_MEMORY,
            )


def warn_of_tracking(nodes: Sequence[NodeFacts], tracking_uri: str) -> None:
    """Tell which nodes do not reach the MLflow server; the run goes on, and is sent later."""
    for node in nodes:
        if node.tracking_error:
            logger.warning(
                "%s does not reach tracking.uri %s (%s): the run goes on, and what it logs is kept "
                "in its spool",
                node.name,
                tracking_uri,
                node.tracking_error,
            )


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("    " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
