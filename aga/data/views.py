"""Which images of a study are used: projections by one set of names, and the choice among them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

from aga.config import Config

View: TypeAlias = Literal["PA", "AP", "frontal", "lateral", "oblique", "other"]
# From the one that stands best for a study. What is not named is mostly frontal.
PREFERENCE: tuple[View | None, ...] = ("PA", "AP", "frontal", None, "oblique", "lateral", "other")
FRONTAL = frozenset({"PA", "AP", "frontal"})

NOT_FRONTAL, NO_VIEW, ANOTHER = "view not frontal", "view unknown", "another view of the study"
LEFT_OUT = frozenset({NOT_FRONTAL, NO_VIEW, ANOTHER})
"""Reasons of rows with which nothing is wrong: they are listed, but no reject counts them."""

_UNKNOWN = frozenset(
    {"", "unknown", "unk", "na", "nan", "none", "null", "todo", "not specified", "unspecified"}
)
_WORDS: dict[View, frozenset[str]] = {
    "PA": frozenset({"pa", "posteroanterior", "posterior"}),
    "AP": frozenset({"ap", "anteroposterior", "anterior"}),
    "frontal": frozenset({"frontal", "front", "frontale"}),
    "lateral": frozenset({"lateral", "lat", "ll", "rl", "l", "seitlich", "profil", "perfil"}),
    "oblique": frozenset({"oblique", "obl", "lao", "rao", "lpo", "rpo"}),
}
_PHRASES: dict[str, View] = {"后前": "PA", "前后": "AP", "正位": "frontal", "侧位": "lateral"}
_DECUBITUS = frozenset({"decubitus", "lld", "rld", "decub"})  # the beam is frontal


class ViewsConfig(Config):
    """Which images of a study are used.

    Attributes:
        keep: All of them; the frontal ones; or the one that stands best for the study: PA before AP
            before other frontal views, then what is not named, then the others; of equals the first
            that can be used.
        unknown: Whether images whose view the source does not name are kept, as if they might be
            what is asked for, or left out.
    """

    keep: Literal["all", "frontal", "one_per_study"]
    unknown: Literal["keep", "leave_out"]


def normal_view(name: str | None) -> View | None:
    """The projection that a source's words name: `AP Supine` is `AP`, `LL` is `lateral`.

    `frontal` is of unknown direction; `other` is named but none of these, or several in one image;
    None is not named.
    """
    folded = (name or "").casefold().replace(".", "")
    if " ".join(re.findall(r"\w+", folded)) in _UNKNOWN:
        return None
    words = set(re.findall(r"[^\W\d_]+", re.sub(r"(postero|antero)[ -]", r"\1", folded)))
    named = {view for view, all_ in _WORDS.items() if words & all_}
    named |= {view for phrase, view in _PHRASES.items() if phrase in folded}
    if words & _DECUBITUS:
        named.discard("lateral")
    if len(named) > 1:
        named.discard("frontal")
    if named == {"PA", "AP"}:
        return "frontal"
    return named.pop() if len(named) == 1 else "other"


def view_problem(name: str | None, config: ViewsConfig) -> tuple[str, str] | None:
    """Why an image is not used, seen on its own: (reason, detail), or None where it is."""
    view = normal_view(name)
    if view is None:
        wanted = config.unknown == "keep"
        return None if wanted else (NO_VIEW, "prepare.views.unknown leaves it out")
    if config.keep == "frontal" and view not in FRONTAL:
        return NOT_FRONTAL, f"{view}, and prepare.views.keep asks for frontal ones"
    return None


def stand_for_their_study(rows: Iterable[tuple[int, str, View | None]]) -> frozenset[int]:
    """The rows that stand best for their study.

    Args:
        rows: Number, study and view of each row that can be used, in the source's order.

    Returns:
        The numbers of those chosen, one of each study.
    """
    best: dict[str, tuple[int, int]] = {}
    for number, study, view in rows:
        rank = (PREFERENCE.index(view), number)
        best[study] = min(best.get(study, rank), rank)
    return frozenset(number for _, number in best.values())
