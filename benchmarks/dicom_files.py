"""Synthetic DICOM files of every kind, for the tests and for `benchmarks.fuzz`."""

from __future__ import annotations

import zlib  # noqa: F401 (before gdcm: see aga.data.pixels.dicom)
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

NATIVE = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big_endian": "1.2.840.10008.1.2.2",
}
COMPRESSED = {
    "rle": gdcm.TransferSyntax.RLELossless,
    "jpeg": gdcm.TransferSyntax.JPEGBaselineProcess1,
    "jpeg_extended": gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    "jpeg_lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "jpeg_lossless_1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpeg_ls": gdcm.TransferSyntax.JPEGLSLossless,
    "jpeg_2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "jpeg_2000_lossy": gdcm.TransferSyntax.JPEG2000,
}


def write_dicom(path: Path, words: np.ndarray, **elements: Any) -> None:
    """Write a DICOM file.

    Args:
        path: Where.
        words: Samples as they lie in the file, bits that are not stored included: height x width,
            x 3 for colours, or frames x height x width with `NumberOfFrames`.
        elements: By keyword, over those that follow from `words`. `syntax` names one of `NATIVE`.
    """
    syntax = UID(NATIVE[elements.pop("syntax", "explicit")])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    colour = words.ndim == 3 and "NumberOfFrames" not in elements
    dataset.Rows, dataset.Columns = words.shape[:2] if colour else words.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * words.dtype.itemsize
    dataset.BitsStored = elements.get("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(words.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    big = not syntax.is_little_endian
    dataset.PixelData = (words.byteswap() if big else words).tobytes()
    dataset["PixelData"].VR = "OW" if words.dtype.itemsize == 2 else "OB"
    dataset.save_as(path, enforce_file_format=True)


def transcode(path: Path, syntax: str) -> bool:
    """Compress a DICOM file in place; False where the codec cannot hold its samples."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(COMPRESSED[syntax]))
    if not reader.Read():
        return False
    change.SetInput(reader.GetImage())
    if not change.Change():
        return False
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    return bool(writer.Write())


def table(first: int, entries: np.ndarray, bits: int) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    signed = "SS" if first < 0 else "US"
    item.add(pydicom.DataElement(0x00283002, signed, [len(entries) % 2**16, first, bits]))
    item.add(pydicom.DataElement(0x00283006, "OW", entries.astype("<u2").tobytes()))
    return item
