"""The model registry: a bundle becomes a version, a gate decides which version is the champion.

    versions.py    register a bundle, find and load a version
    measured.py    the numbers measured of a version, kept with it
    promotion.py   move @champion, or refuse to; move it back
    pyfunc.py      what MLflow runs when it serves a version; only MLflow imports it

Contract: a version is an MLflow model without any pickle: the bundle's files, and this library's
source beside them. It is identified by the bundle's SHA-256, so registering is repeatable. Aliases
are for people and services (`models:/<model>@champion`); the line itself uses version numbers.

May import `aga.bundle` and what lies below it; not `aga.training` or `aga.evaluation`. MLflow is
optional and imported inside functions, but for `pyfunc.py`.
"""

from aga.registry.measured import set_metrics
from aga.registry.promotion import PromotionConfig, PromotionDecision, promote, roll_back
from aga.registry.versions import (
    CANDIDATE,
    CHAMPION,
    RegisteredVersion,
    RegistryConfig,
    load_registered,
    register,
)

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "PromotionConfig",
    "PromotionDecision",
    "RegisteredVersion",
    "RegistryConfig",
    "load_registered",
    "promote",
    "register",
    "roll_back",
    "set_metrics",
]
