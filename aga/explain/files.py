"""An explanation as files: `row-12.png`, `row-12.json` and `row-12.html`."""

from __future__ import annotations

import json
from pathlib import Path

from aga.data.studies import StudyDataset
from aga.errors import DataError
from aga.explain.maps import Explanation
from aga.explain.page import explanation_json, explanation_page
from aga.explain.pictures import sheet_png

PRIVATE = Path("private/explain")
_IGNORED_BY = (".gitignore", ".dvcignore", ".rayignore")


def require_shown(studies: StudyDataset) -> None:
    """Refuse data whose images and reports may not leave `data/`.

    Raises:
        DataError: The source does not declare that they may.
    """
    if not studies.info.may_be_shown:
        raise DataError(
            "The source does not declare that its images and reports may be shown",
            where=studies.folder,
            got=studies.info.source,
            fix=f"for your own eyes, give --private: it writes into {PRIVATE}/, a folder that only "
            "you can open and that git, DVC and Ray leave alone",
        )


def private_folder(home: Path) -> Path:
    """Make `private/explain` below `home`: open to its owner alone, ignored by git, DVC and Ray."""
    folder = home / PRIVATE
    for part in (folder.parent, folder):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.chmod(0o700)  # it may have been there before
        for name in _IGNORED_BY:
            (part / name).write_text("*\n", encoding="utf-8")
    return folder


def write_explanation(folder: Path, found: Explanation, note: str = "") -> list[Path]:
    """Write the three files of a pair, readable by their owner alone; returns their paths.

    Args:
        folder: Made where it does not exist.
        found: The pair's maps.
        note: What the page's heading says besides: which bundle.

    Raises:
        AgaError: jinja2 is not installed.
    """
    document = json.dumps(explanation_json(found), ensure_ascii=False, separators=(",", ":"))
    contents = {
        "png": sheet_png(found),
        "json": f"{document}\n".encode(),
        "html": explanation_page(found, note).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, content in contents.items():
        path = folder / f"row-{found.row}.{suffix}"
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_bytes(content)
        paths.append(path)
    return paths
