"""The base of every configuration class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen, strict record of settings; each component keeps its own beside its code.

    No field has a default: `params.yaml` holds every value. An unknown key is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
