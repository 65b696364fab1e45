"""One module per raw layout, each a `Source`: raw rows in, `Study` or `Reject` out.

To add one: write its module with a class that follows `base.Source`, and name it in `SOURCES`. If
it has settings, its config class becomes a field of `SourceConfig` and gets a block under `source`
in `params.yaml`. Its section of docs/data.md, a fixture and a golden table are asked for by
tests/data/sources/test_every_source.py. Imports: `aga.errors`, `aga.config`, and of `aga.data` the
schema and the readers of images; never `prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from aga.config import Config
from aga.data.schema import Reject, Study
from aga.data.sources.base import Source
from aga.data.sources.chexpert import Chexpert
from aga.data.sources.chexpert_plus import ChexpertPlus, ChexpertPlusConfig
from aga.data.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from aga.data.sources.covidx import Covidx
from aga.data.sources.dicom_folder import DicomFolder, DicomFolderConfig
from aga.data.sources.layouts import LayoutError, resembling
from aga.data.sources.manifest import Manifest, ManifestConfig
from aga.data.sources.mimic_cxr import MimicCxr, MimicCxrConfig
from aga.data.sources.nih14 import Nih14
from aga.data.sources.openi import Openi
from aga.data.sources.phantom import Phantom
from aga.data.sources.roco import Roco
from aga.data.sources.rsna import Rsna
from aga.data.sources.siim import Siim
from aga.errors import ParamsError

SOURCES: Mapping[str, type[Source]] = {
    "chexpert": Chexpert,
    "chexpert_plus": ChexpertPlus,
    "covid_chestxray": CovidChestxray,
    "covidx": Covidx,
    "dicom_folder": DicomFolder,
    "manifest": Manifest,
    "mimic_cxr": MimicCxr,
    "nih14": Nih14,
    "openi": Openi,
    "phantom": Phantom,
    "roco": Roco,
    "rsna": Rsna,
    "siim": Siim,
}


def _known(name: str) -> str:
    if name not in SOURCES:
        raise ValueError(f"there is no such source; allowed: {', '.join(SOURCES)}")
    return name


class SourceConfig(Config):
    """Where the raw pairs come from, and the settings of the sources that have any.

    Attributes:
        name: Which source.
        root: The raw folder, relative to the params file's folder.
        chexpert_plus: Which labels are used.
        covid_chestxray: Which rows are used.
        dicom_folder: How reports find their images.
        manifest: Which table holds the rows.
        mimic_cxr: Whose labels are read.
    """

    name: Annotated[str, AfterValidator(_known)]
    root: str = Field(min_length=1)
    chexpert_plus: ChexpertPlusConfig
    covid_chestxray: CovidChestxrayConfig
    dicom_folder: DicomFolderConfig
    manifest: ManifestConfig
    mimic_cxr: MimicCxrConfig


def open_source(name: str, settings: SourceConfig) -> Source:
    """The source of a name, with its own settings where it has any.

    Args:
        name: A key of `SOURCES`; need not be that of `settings`.
        settings: The settings of all sources.

    Raises:
        ParamsError: There is no such source.
    """
    if name not in SOURCES:
        raise ParamsError(
            "There is no such source", where="source.name", got=name, expected=", ".join(SOURCES)
        )
    source: Callable[..., Source] = SOURCES[name]
    config = getattr(settings, name, None)
    return source() if config is None else source(config)


def read_studies(source: Source, root: Path) -> Iterator[Study | Reject]:
    """The rows of `root`; where it is not the source's, the error says whose layout it has.

    Raises:
        LayoutError: `root` has no layout of this source.
    """
    try:
        yield from source.studies(root)
    except LayoutError as error:
        own = {layout.source for layout in error.layouts}
        others = (one for name, one in SOURCES.items() if name not in own)
        known = (layout for one in others for layout in one.LAYOUTS)
        raise LayoutError(error.root, error.layouts, resembling(root, known)) from None
