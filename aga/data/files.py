"""Folders that appear whole or not at all, and disk errors a user can act on."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from aga.errors import DataError

_LIBRARIES = (
    "numpy",
    "pillow",
    "pyarrow",
    "tokenizers",
    "pydicom",
    "python-gdcm",
    "pylibjpeg-openjpeg",
    "ImageHash",
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(DataError):
    """There was no room for what was to be written."""


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Build a folder beside `out` and put it in `out`'s place when the block ends well.

    If the block raises, the half-built folder is removed and `out` stays as it was. What a killed
    process left behind is removed at the next start.

    Args:
        out: The folder to create or replace.

    Yields:
        An empty folder on the same file system as `out`.

    Raises:
        DataError: The disk is full.
    """
    building = out.with_name(f".{out.name}.partial")
    replaced = out.with_name(f".{out.name}.replaced")
    with disk_errors(out):
        try:
            if replaced.exists() and not out.exists():  # killed between the two renames below
                replaced.rename(out)
            for leftover in (building, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
            building.mkdir(parents=True)
            yield building
            if out.exists():
                out.rename(replaced)
            building.rename(out)
        finally:
            for leftover in (building, replaced):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def working_folder(out: Path, key: str) -> Iterator[Path]:
    """A folder beside `out` for finished pieces of it, which a killed or failed run leaves behind.

    The next run with the same key finds them; another key's are removed. They are also removed when
    the block ends well, or when the disk is full.

    Args:
        out: What is being made.
        key: Stands for all that decides what the pieces are, but for their own content.

    Yields:
        The folder. It holds what it held when the last run with this key ended.
    """
    work = out.with_name(f".{out.name}.work")
    folder = work / key
    for other in work.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    done = False
    try:
        with disk_errors(out):
            yield folder
        done = True
    except DiskFullError:
        done = True
        raise
    finally:
        if done or not any(folder.iterdir()):
            shutil.rmtree(work)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn "no space left on device" into an error that names the place and the space left."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFullError(
            "The disk is full; nothing was written",
            where=where,
            got=_free_space(where),
            fix="free some space, or choose another folder, and run the same command again",
        ) from error


def _free_space(path: Path) -> str:
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    return f"{shutil.disk_usage(place).free / 2**20:.1f} MiB free"


def sha256_of(*parts: str) -> str:
    """One hash of several texts; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()


@cache
def code_sha256() -> str:
    """Of the code of this package, and of the versions of the libraries that it decodes with.

    What was made by other code is not taken for what this code would make.
    """
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return sha256_of(*(file.read_text(encoding="utf-8") for file in files), *_versions())


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield name
