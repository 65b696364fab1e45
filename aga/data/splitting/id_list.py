"""A list of identifiers as a file that is known by its hash: no text, no pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aga.errors import DataError


@dataclass(frozen=True)
class IdList:
    """Identifiers by class or split.

    Attributes:
        name: Which list.
        seed: What it was drawn with.
        ids: Class or split to the identifiers of images, sorted.
        patients: Everyone of whom nothing may be learned where this list is the test set, sorted.
    """

    name: str
    seed: int
    ids: Mapping[str, Sequence[str]]
    patients: Sequence[str]

    @property
    def sha256(self) -> str:
        """Of the content: equal lists, equal hash."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self._content(), "sha256": self.sha256}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, sha256: str | None = None) -> IdList:
        """Read what `write` wrote.

        Args:
            path: The file.
            sha256: What its hash must be; None asks that it be the one that the file states.

        Raises:
            DataError: The file is missing, is no id list, or is not the one with this hash.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            stated = values.pop("sha256")
            found = cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "There is no id list in this file",
                where=path,
                got=type(error).__name__,
                fix="write it with `python workflows/id_lists.py`",
            ) from error
        if found.sha256 != (sha256 or stated):
            raise DataError(
                "The id list is another one",
                where=path,
                got=f"SHA-256 {found.sha256}",
                expected=sha256 or stated,
                fix="build it again with the same table and seed, or correct leaks.lists",
            )
        return found

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "ids": {group: list(ids) for group, ids in self.ids.items()},
            "patients": list(self.patients),
        }
