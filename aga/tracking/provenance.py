"""Which code, settings and data a run or a model version stands on, as tags."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path


def provenance(home: Path) -> dict[str, str]:
    """Tags that say what is checked out and prepared in a project folder.

    Args:
        home: The project's folder. It need not be a git checkout, and nothing need be there yet.

    Returns:
        Those that are known of: `git_commit`, `git_dirty` (`true` where files differ from the
        commit, `dvc.lock` apart, which a run of the line writes itself), `params_sha256`,
        `dvc_lock_sha256` (of the files), `data_sha256`, `tokens_sha256` (as the datasets state
        them).
    """
    tags = _git(home)
    for name, file in {"params_sha256": "params.yaml", "dvc_lock_sha256": "dvc.lock"}.items():
        if (home / file).is_file():
            tags[name] = hashlib.sha256((home / file).read_bytes()).hexdigest()
    datasets = {
        "data_sha256": home / "data" / "studies" / "dataset.json",
        "tokens_sha256": home / "data" / "tokens" / "tokens.json",
    }
    for name, path in datasets.items():
        if path.is_file():
            tags[name] = str(json.loads(path.read_text(encoding="utf-8"))["sha256"])
    return tags


def _git(home: Path) -> dict[str, str]:
    commit = _git_output(home, "rev-parse", "HEAD")
    written = (":!dvc.lock", ":!benchmarks/results")  # by what runs, and no code
    status = _git_output(home, "status", "--porcelain", "--", ".", *written)
    if commit is None or status is None:
        return {}
    return {"git_commit": commit, "git_dirty": str(bool(status)).lower()}


def _git_output(home: Path, *arguments: str) -> str | None:
    """What git prints; None where it is not installed or knows no commit here."""
    command = ["git", "--no-optional-locks", "-C", str(home), *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
