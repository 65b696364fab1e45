"""Pages of a few validation pairs after each epoch, while their words learn where to look.

What a page looks like is not known here: `workflows/pretrain.py` hands in the function that makes
them. They show images and reports, so there are none of data that may not be shown.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from aga.bundle import Bundle
from aga.data.studies import StudyDataset
from aga.errors import AgaError
from aga.tracking import Tracker
from aga.training.loop import TrainingContext
from aga.training.recipe import RunData

logger = logging.getLogger(__name__)

MakePages: TypeAlias = Callable[[Bundle, StudyDataset, Path, Sequence[int]], Mapping[str, str]]
"""Pages by file name, of manifest rows; also gets the folder of the pixel cache."""


def name_of(make: MakePages | None) -> str | None:
    """What names a function of a module to another process: `module:function`."""
    return make and f"{make.__module__}:{make.__qualname__}"


def named(name: str | None) -> MakePages | None:
    """The function that `name_of` named; its module must be importable here."""
    return pkgutil.resolve_name(name) if name else None


class EpochPages:
    """Makes the same pairs' pages after each epoch, and hands them to the tracker.

    Nothing of it changes the training or can end it: the network is only read, and where a page
    cannot be made there is one warning and no further page.

    Args:
        make: Makes the pages; None makes none.
        context: The run; its network is explained as it then is.
        data: The run's data.
        count: How many pairs.
        tracker: Gets `explain/epoch-003/row-12.html`.
    """

    def __init__(
        self,
        make: MakePages | None,
        context: TrainingContext,
        data: RunData,
        count: int,
        tracker: Tracker,
    ) -> None:
        self._make = make if data.studies.info.may_be_shown else None
        self._data, self._tracker = data, tracker
        self._network = context.network
        self._transform = context.training.transform
        self.rows = explained_rows(context, count)

    def log(self, epoch: int) -> None:
        """Make the pages of an epoch that has just ended."""
        if self._make is None or not self.rows:
            return
        self._network.eval()
        bundle = Bundle(
            model=self._network.model,
            objective=self._network.objective,
            tokenizer=self._data.tokens.tokenizer,
            transform=self._transform,
            metadata={"epoch": epoch},
            sha256="",
        )
        try:
            pages = self._make(bundle, self._data.studies, self._data.cache, self.rows)
        except (AgaError, OSError, RuntimeError) as error:
            logger.warning("no pages of the validation pairs, the run goes on: %s", error)
            self._make = None
            return
        for name, page in pages.items():
            self._tracker.log_page(f"explain/epoch-{epoch:03}/{name}", page)


def explained_rows(context: TrainingContext, count: int) -> list[int]:
    """Manifest rows of `count` validation pairs that say different things, evenly spaced."""
    _, first = np.unique(context.validation.statements, return_index=True)
    first = np.sort(first)
    places = np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(np.int64)
    return [int(row) for row in context.validation.rows[first[places]]]
