"""A DICOM file to 8-bit pixels. pydicom and its codecs are the extra `aga[data]`.

Of the file's elements only those named here are read, and none is passed on: what leaves this
module is pixels, and reasons that quote nothing of the file but its transfer syntax.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib  # before gdcm: where its copy of zlib comes first, inflating crashes the process
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8

from aga.data.pixels.codestream import frame_header
from aga.data.pixels.dicom_display import ELEMENTS, display_of, palette_colours, stored_values
from aga.data.pixels.windows import Display, Stored, WindowMode, shown

FramePolicy: TypeAlias = Literal["first", "middle", "reject"]

CODEC_MISSING = "codec missing"
UNREADABLE = "image unreadable"
SEVERAL_FRAMES = "several frames"

MAX_PIXELS = 2**26  # of a frame; above it a header is not believed
_NEEDS_PYDICOM = "pydicom is missing: pip install 'aga[data]'"
# Each transfer syntax has one decoder, wherever we run: two of them differ in the last bit of a
# lossy image, and a second try would turn damage into other damage.
_NONE_NEEDED = ""
_DECODERS = {
    "1.2.840.10008.1.2": _NONE_NEEDED,
    "1.2.840.10008.1.2.1": _NONE_NEEDED,
    "1.2.840.10008.1.2.1.99": _NONE_NEEDED,
    "1.2.840.10008.1.2.2": _NONE_NEEDED,
    "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "gdcm",
    "1.2.840.10008.1.2.4.81": "gdcm",
    "1.2.840.10008.1.2.4.90": "pillow",
    "1.2.840.10008.1.2.4.91": "pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
_UNCOMPRESSED = {syntax for syntax, decoder in _DECODERS.items() if decoder == _NONE_NEEDED}
_NATIVE_CELLS = _UNCOMPRESSED | {"1.2.840.10008.1.2.5"}  # run lengths keep a sample's cell, too
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"  # its 12-bit form has no free codec
_DEFLATED = "1.2.840.10008.1.2.1.99"
_META_START = 128 + 4 + 12  # preamble, magic, and the element that states the header's length
_INFLATED_AT_ONCE = 2**24  # bytes
_LONGEST_META = 4096  # bytes in which a header names its transfer syntax
_ELEMENTS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
]
# All that pydicom and the codecs were seen to raise on damaged files; they have no base class.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class DicomError(Exception):
    """A DICOM file gives no picture.

    Attributes:
        reason: One of the reject reasons.
        problem: What is wrong, without anything of the file's content.
    """

    def __init__(self, reason: str, problem: str) -> None:
        self.reason = reason
        self.problem = problem
        super().__init__(f"{reason}: {problem}")


@dataclass(frozen=True)
class _Frame:
    """One decoded frame: values of one channel, or colours of 8 bits, and how to show values."""

    pixels: Stored | UInt8[np.ndarray, "H W 3"]
    display: Display


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with its preamble or, as some archives write, without.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    # Without a preamble the first element is of group 2 or 8: a length, a syntax, or an identity.
    if len(head) < 8 or head[:2] not in (b"\x02\0", b"\x08\0"):
        return False
    element = int.from_bytes(head[2:4], "little")
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return element in (0, 1, 5, 8, 0x16, 0x18) and (explicit or head[6:8] == b"\0\0")


def decode_dicom(path: Path, window: WindowMode, frames: FramePolicy) -> UInt8[np.ndarray, "H W C"]:
    """Decode a DICOM file to what a viewer would show of it, in 8 bits a channel.

    Args:
        path: A DICOM file.
        window: How grey values become 8 bits; see `aga.data.pixels.windows.shown`. Colours
            stay as they are.
        frames: Which frame of several is taken, or that the file is then refused.

    Returns:
        Pixels of one channel (grey) or three (colour).

    Raises:
        DicomError: The file is damaged, its codec is missing, or it has several frames and `frames`
            refuses that.
    """
    with _quiet():
        try:
            frame = _decoded(_read(path), frames)
        except _DAMAGE as error:
            raise DicomError(UNREADABLE, "damaged or cut off") from error
    if frame.pixels.ndim == 3:
        return frame.pixels
    return shown(frame.pixels, frame.display, window)[:, :, None]


def dicom_size(path: Path) -> tuple[int, int] | None:
    """(height, width) in pixels from a DICOM file's header; None where it states none."""
    with _quiet():
        try:
            dataset = _read(path, pixels=False)
            return int(dataset.Rows), int(dataset.Columns)
        except (*_DAMAGE, DicomError):
            return None


def header_text(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Elements of a DICOM file's header as text, by name; empty where it does not state one.

    Raises:
        DicomError: The header is damaged.
    """
    with _quiet():
        try:
            header = _elements(path, names, pixels=False)
            stated = {name: header.get(name) for name in names}
            return {
                name: "" if cell is None else str(cell).strip() for name, cell in stated.items()
            }
        except _DAMAGE as error:
            raise DicomError(UNREADABLE, "damaged or cut off") from error


def codecs() -> dict[str, bool]:
    """Transfer syntaxes by name, and whether they can be decoded on this machine.

    Empty without pydicom.
    """
    try:
        from pydicom.uid import UID
    except ImportError:
        return {}
    return {UID(syntax).name: _has_decoder(syntax) for syntax in _DECODERS}


def codec_summary() -> str:
    """One line that says which transfer syntaxes cannot be decoded on this machine."""
    found = codecs()
    if not found:
        return f"DICOM files cannot be decoded here: {_NEEDS_PYDICOM}"
    missing = ", ".join(name for name, there in found.items() if not there)
    if not missing:
        return f"DICOM: all {len(found)} transfer syntaxes decode here"
    count = sum(found.values())
    return f"DICOM: {count} of {len(found)} transfer syntaxes decode here; not {missing}"


def _has_decoder(syntax: str) -> bool:
    from pydicom.pixels import get_decoder

    return _DECODERS[syntax] in (_NONE_NEEDED, *get_decoder(syntax).available_plugins)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and errors of pydicom's own: they quote values of the file."""
    try:
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise DicomError(CODEC_MISSING, _NEEDS_PYDICOM) from error
    try:
        import gdcm
    except ImportError:
        gdcm = None  # its syntaxes are then refused by name
    if gdcm is not None:
        gdcm.Trace.WarningOff()
        gdcm.Trace.ErrorOff()
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (BytesLengthException, InvalidDicomError) as error:
            raise DicomError(UNREADABLE, "damaged or cut off") from error


def _read(path: Path, *, pixels: bool = True) -> Any:
    """The elements that this module names, with a transfer syntax even where the file has none."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    names = [*_ELEMENTS, *ELEMENTS] if pixels else _ELEMENTS[:2]
    dataset = _elements(path, names, pixels=pixels)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _elements(path: Path, names: Sequence[str], *, pixels: bool) -> Any:
    import pydicom

    _refuse_bomb(path)
    return pydicom.dcmread(
        path, force=True, specific_tags=list(names), stop_before_pixels=not pixels
    )


def _refuse_bomb(path: Path) -> None:
    """Refuse a deflated file that would not fit in memory: pydicom inflates all of it at once."""
    from pydicom.filereader import read_file_meta_info

    with path.open("rb") as file:
        if _DEFLATED.encode() not in file.read(_LONGEST_META):
            return
        file.seek(_META_START + read_file_meta_info(path).get("FileMetaInformationGroupLength", 0))
        inflating, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
    while rest and size <= 4 * MAX_PIXELS:
        size += len(inflating.decompress(rest, _INFLATED_AT_ONCE))
        rest = inflating.unconsumed_tail
    if rest:
        raise DicomError(UNREADABLE, f"more than {4 * MAX_PIXELS} bytes when inflated")


def _decoded(dataset: Any, policy: FramePolicy) -> _Frame:
    from pydicom.pixels import get_decoder

    if "PixelData" not in dataset:
        raise DicomError(UNREADABLE, "no pixel data")
    syntax = dataset.file_meta.TransferSyntaxUID
    _refuse_missing_codec(dataset, syntax)
    _refuse_odd_shape(dataset)
    index = _frame_index(dataset, policy)
    if _DECODERS[syntax] == "gdcm":
        _refuse_other_stream(dataset, index)
    # Bits that are not stored are ours to take off: pydicom takes them to be the highest ones.
    pixels, found = get_decoder(syntax).as_array(
        dataset, index=index, decoding_plugin=_DECODERS[syntax], correct_unused_bits=False
    )
    kind = found["photometric_interpretation"]
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    signed = bool(dataset.PixelRepresentation) and kind != "PALETTE COLOR"
    samples = stored_values(pixels, bits, high if syntax in _NATIVE_CELLS else bits - 1, signed)
    if kind in ("MONOCHROME1", "MONOCHROME2") and samples.ndim == 2:
        return _Frame(samples, display_of(dataset, index))
    if kind == "PALETTE COLOR" and samples.ndim == 2:
        return _Frame(palette_colours(samples, dataset), Display(inverted=False))
    if kind == "RGB" and samples.ndim == 3:
        colours = np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)
        return _Frame(colours, Display(inverted=False))
    raise DicomError(UNREADABLE, "a photometric interpretation that is not read")


def _refuse_missing_codec(dataset: Any, syntax: Any) -> None:
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    if syntax not in _DECODERS or not _has_decoder(syntax):
        raise DicomError(CODEC_MISSING, name)
    if syntax == _JPEG_EXTENDED and dataset.BitsStored > 8:
        raise DicomError(CODEC_MISSING, f"{name} of more than 8 bits")


def _refuse_odd_shape(dataset: Any) -> None:
    """Sizes are checked before anything of that size is made."""
    rows, columns, samples = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    if not (0 < rows * columns <= MAX_PIXELS and samples in (1, 3)):
        raise DicomError(UNREADABLE, f"not 1 to {MAX_PIXELS} pixels of 1 or 3 samples")
    if not 1 <= dataset.BitsStored <= dataset.BitsAllocated <= 16:
        raise DicomError(UNREADABLE, "samples of more than 16 bits, or of none")


def _refuse_other_stream(dataset: Any, index: int) -> None:
    """Refuse a compressed frame that is not of the size and depth that the header states."""
    from pydicom.encaps import get_frame

    frames = int(dataset.get("NumberOfFrames") or 1)
    found = frame_header(get_frame(dataset.PixelData, index, number_of_frames=frames))
    shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    same = found is not None and (found.height, found.width, found.components) == shape
    if found is None or not same or not 2 <= found.bits <= dataset.BitsAllocated:
        raise DicomError(UNREADABLE, "a compressed frame that differs from the header")


def _frame_index(dataset: Any, policy: FramePolicy) -> int:
    count = int(dataset.get("NumberOfFrames") or 1)
    if count > 1 and policy == "reject":
        raise DicomError(SEVERAL_FRAMES, f"{count} frames, and prepare.image.frames: reject")
    return count // 2 if policy == "middle" else 0
