"""The type checker that `conftest.py` puts on every function of `aga`: beartype, allowing Self."""

from __future__ import annotations

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# beartype refuses `Self` on a method whose class it does not decorate, and jaxtyping decorates
# methods one by one; the other hints of such a method are still checked. An int passes for a
# float, as it does for mypy.
checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True))
