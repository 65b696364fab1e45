"""COVIDx: chest radiographs of several collections, told apart by COVID-19; without reports.

The lists have no header: `patient file class source`, in old versions without `source`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from aga.data.schema import Reject, Split, Study
from aga.data.sources.base import is_file
from aga.data.sources.layouts import Layout, LayoutError, require_layout, table_of
from aga.data.sources.records import missing_image
from aga.data.sources.tables import has_stray_bytes, repair_stray_bytes

# Each split's list and folder; validation came with the third version.
_LISTS: Mapping[Split, tuple[str, str]] = {
    "train": ("train*.txt", "train"),
    "validation": ("val*.txt", "val"),
    "test": ("test*.txt", "test"),
}
# Nobody says of a patient with COVID-19 whether the image shows a pneumonia, or anything.
_CLASSES: Mapping[str, Mapping[str, int | None]] = {
    "positive": {"covid_19": 1},
    "negative": {"covid_19": 0},
    "covid-19": {"covid_19": 1, "pneumonia": None, "no_finding": None},
    "pneumonia": {"covid_19": 0, "pneumonia": 1, "no_finding": 0},
    "normal": {"covid_19": 0, "pneumonia": 0, "no_finding": 1},
}


def _layout(*splits: Split) -> Layout:
    return Layout(
        "covidx",
        files=tuple(_LISTS[split][0] for split in splits),
        folders=tuple(_LISTS[split][1] for split in splits),
        images="train/, val/ and test/",
    )


_WHOLE, _OLD = _layout("train", "validation", "test"), _layout("train", "test")


class Covidx:
    """Reads COVIDx of any version, of two classes or three."""

    LICENSE: ClassVar[str] = (
        "of each collection it is made of, named in its list; "
        "https://github.com/lindawangg/COVID-Net/blob/master/docs/COVIDx.md"
    )
    CITATION: ClassVar[str] = (
        "Wang, Lin and Wong, COVID-Net: a tailored deep convolutional neural network design for "
        "detection of COVID-19 cases from chest X-ray images, Scientific Reports 10:19549 (2020), "
        "arXiv 2003.09871"
    )
    MAY_BE_SHOWN: ClassVar[bool] = False
    LAYOUTS: ClassVar[Sequence[Layout]] = (_WHOLE, _OLD)

    def studies(self, root: Path) -> Iterator[Study | Reject]:
        """Read the lists; see `Source.studies`.

        Raises:
            LayoutError: A list or a folder is missing.
        """
        layout = require_layout(root, self.LAYOUTS)
        if layout is _OLD and len(_WHOLE.missing(root)) == 1:
            raise LayoutError(root, [_WHOLE])  # half of the validation split is there
        for split, (pattern, folder) in _LISTS.items():
            if split == "validation" and layout is _OLD:
                continue
            table = table_of(root, pattern)
            with table.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _study(line, f"{table.name}:{number}", split, root / folder)


def _study(line: str, location: str, split: Split, folder: Path) -> Study | Reject:
    words = repair_stray_bytes(line).split()
    # A file's name may hold spaces: the class is looked for from the end.
    ends = [at for at in (-2, -1) if len(words) + at >= 2]
    at = next((at for at in ends if words[at].casefold() in _CLASSES), None)
    if at is None:
        detail = f"expected patient, file, class ({', '.join(_CLASSES)}) and source"
        return Reject(location, "wrong number of columns", detail)
    patient, name = words[0], " ".join(words[1:at])
    image = folder / name
    if not is_file(image):
        return missing_image(location, "file")
    # The collections number their patients each for itself.
    collection = words[-1] if at == -2 else "unknown"
    return Study(
        patient_id=f"{collection}/{patient}",
        study_id=f"{split}/{name}",
        image=image.absolute(),
        report=None,
        location=location,
        split=split,
        labels=dict(_CLASSES[words[at].casefold()]),
        repaired=has_stray_bytes(line),
    )
