"""One module per raw layout, each a `Source`: raw rows in, `Study` or `Reject` out.

To add one: write its module with a config class and a class that follows `base.Source`, name it in
`SourceConfig` and `open_source`, and give it a block in `params.yaml`. Imports: `aga.errors`,
`aga.config`, and `aga.data.schema` and `aga.data.images` of the layer above; never `prepare`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aga.config import Config
from aga.data.sources.base import Source
from aga.data.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.sources.phantom import Phantom, PhantomConfig
from aga.errors import ParamsError

SourceName = Literal["phantom", "covid_chestxray", "manifest"]


class SourceConfig(Config):
    """Where the raw pairs come from.

    Attributes:
        name: Which layout.
        root: The raw folder, relative to the params file's folder.
    """

    name: SourceName
    root: str = Field(min_length=1)


def open_source(
    name: str,
    phantom: PhantomConfig,  # noqa: ARG001 (all sources are asked for in the same way)
    covid_chestxray: CovidChestxrayConfig,
    manifest: ManifestConfig,
) -> Source:
    """The source of a name, with its own config; the phantom's layout describes itself.

    Raises:
        ParamsError: There is no such source.
    """
    if name == "phantom":
        return Phantom()
    if name == "covid_chestxray":
        return CovidChestxray(covid_chestxray)
    if name == "manifest":
        return Manifest(manifest)
    raise ParamsError(
        "There is no such source",
        where="source.name",
        got=name,
        expected="phantom, covid_chestxray or manifest",
    )
