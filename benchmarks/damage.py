"""Whole files of every format that is read, and ways to damage them. All draws are seeded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.dicom_files import COMPRESSED, NATIVE, table, transcode, write_dicom

Damage = Callable[[bytes, np.random.Generator], bytes]
SIDE = 48  # pixels of the whole images
_PIXEL_DATA = b"\xe0\x7f\x10\0"  # its tag
NONSENSE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def whole_dicoms(folder: Path) -> list[bytes]:
    """One file of every transfer syntax at hand, and of each way to show values."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
    colours = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    path, files = folder / "whole.dcm", []
    for syntax in NATIVE:
        write_dicom(path, grey, BitsStored=12, syntax=syntax, WindowCenter=2000, WindowWidth=900)
        files.append(path.read_bytes())
    for syntax in COMPRESSED:
        for words in (grey, grey.astype(np.uint8), colours):
            write_dicom(path, words, BitsStored=12 if words is grey else 8)
            if transcode(path, syntax):
                files.append(path.read_bytes())
    entries = np.arange(4096) * 16
    lut = {
        "ModalityLUTSequence": [table(0, entries, 16)],
        "VOILUTSequence": [table(5, entries, 16)],
    }
    write_dicom(path, grey, BitsStored=12, PixelPaddingValue=0, **lut)
    files.append(path.read_bytes())
    palette = {
        f"{name}PaletteColorLookupTable{part}": [256, 0, 16] if part == "Descriptor" else bytes(512)
        for name in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    }
    write_dicom(path, colours[..., 0], PhotometricInterpretation="PALETTE COLOR", **palette)
    files.append(path.read_bytes())
    write_dicom(path, np.stack([grey] * 4), BitsStored=12, NumberOfFrames=4)
    files.append(path.read_bytes())
    return files


def whole_images(kind: str) -> list[bytes]:
    """PNG or JPEG files of every mode that medical images come in."""
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (SIDE, SIDE)).astype(np.uint16))
    modes = ("1", "L", "LA", "P", "RGB", "RGBA") if kind == "PNG" else ("L", "RGB", "CMYK")
    pictures = [colours.convert(mode) for mode in modes] + ([deep] if kind == "PNG" else [])
    options: list[dict[str, bool]] = [{}] if kind == "PNG" else [{}, {"progressive": True}]
    files = []
    for picture in pictures:
        for option in options:
            file = io.BytesIO()
            picture.save(file, kind, **option)
            files.append(file.getvalue())
    return files


def whole_table(rows: int) -> bytes:
    """A manifest of `rows` rows whose images are `0.png`, `1.png` and so on."""
    lines = ["patient_id,study_id,image,text,view,split,labels"]
    splits = ("train", "train", "train", "validation", "test")
    for row in range(rows):
        text = f'"FINDINGS: opacity {row} is seen, and ""no"" effusion.\nIMPRESSION: Pneumonia."'
        lines.append(f'P{row},S{row},{row}.png,{text},PA,{splits[row % 5]},"{{""opacity"": 1}}"')
    return ("\n".join(lines) + "\n").encode()


def damages_of_files() -> dict[str, Damage]:
    """By name, what can happen to a file of any format."""
    return {
        "cut": lambda data, rng: data[: rng.integers(0, len(data))],
        "one bit": lambda data, rng: _overwritten(data, rng, 1, _one_bit),
        "some bytes": lambda data, rng: _overwritten(
            data, rng, int(rng.integers(2, 40)), _any_byte
        ),
        "header": lambda data, rng: _number(data, rng, min(len(data), 700)),
        "number": lambda data, rng: _number(data, rng, len(data)),
        "hole": _hole,
        "repeated": _repeated,
        "noise after": lambda data, rng: data[: rng.integers(1, 300)] + rng.bytes(2000),
        "noise": lambda _, rng: rng.bytes(int(rng.integers(0, 3000))),
        "noise, dicom": lambda _, rng: bytes(128) + b"DICM" + rng.bytes(2000),
        "tail": lambda data, rng: data + rng.bytes(500),
    }


def damages_of_dicoms() -> dict[str, Damage]:
    """By name, what can happen to a DICOM file; of a compressed one, to the stream's own header."""
    return damages_of_files() | {"stream": _in_stream, "stream again": _in_stream}


def damages_of_tables() -> dict[str, Damage]:
    """By name, what happens to CSV tables between a hospital and us."""
    return damages_of_files() | {
        "quote": lambda data, rng: _inserted(data, rng, b'"'),
        "comma": lambda data, rng: _inserted(data, rng, b",,"),
        "nul": lambda data, rng: _inserted(data, rng, bytes(3)),
        "return": lambda data, rng: _inserted(data, rng, b"\r"),
        "latin-1": lambda data, rng: _inserted(data, rng, "é".encode("latin-1") * 3),
        "utf-16": lambda data, _: data.decode("utf-8", "replace").encode("utf-16"),
        "column": _without_column,
        "long cell": lambda data, rng: _inserted(data, rng, b"x" * 2_000_000),
        "path": lambda data, _: data.replace(b"0.png", b"../" * 2000 + b"\xff\n", 1),
        "bomb": lambda data, _: data.replace(b"{", b"[" * 100_000, 1),
    }


def damaged(
    files: list[bytes], damages: dict[str, Damage], count: int, rng: np.random.Generator
) -> Iterator[bytes]:
    """`count` damaged files, all kinds of damage in turn, some of them damaged twice."""
    ways = list(damages.values())
    for number in range(count):
        data = ways[number % len(ways)](files[int(rng.integers(len(files)))], rng)
        if rng.random() < 0.2 and len(data) > 1:
            data = ways[int(rng.integers(len(ways)))](data, rng)
        yield data


def _overwritten(
    data: bytes,
    rng: np.random.Generator,
    count: int,
    change: Callable[[int, np.random.Generator], int],
) -> bytes:
    out = bytearray(data)
    for place in rng.integers(0, max(len(out), 1), count if out else 0):
        out[place] = change(out[place], rng)
    return bytes(out)


def _in_stream(data: bytes, rng: np.random.Generator) -> bytes:
    start = max(data.find(_PIXEL_DATA), 0) + 32
    header = start + int(rng.integers(1, 120))
    return data[:start] + _overwritten(data[start:header], rng, 3, _any_byte) + data[header:]


def _one_bit(byte: int, rng: np.random.Generator) -> int:
    return byte ^ (1 << int(rng.integers(8)))


def _any_byte(_: int, rng: np.random.Generator) -> int:
    return int(rng.integers(256))


def _number(data: bytes, rng: np.random.Generator, within: int) -> bytes:
    """A 16- or 32-bit number somewhere, replaced by one that no file means."""
    size = int(rng.choice([2, 4]))
    value = int(rng.choice(NONSENSE)) % 2 ** (8 * size)
    place = int(rng.integers(0, max(within - size, 1)))
    number: bytes = value.to_bytes(size, "little" if rng.random() < 0.7 else "big")
    return b"".join((data[:place], number, data[place + size :]))


def _hole(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(0, max(len(data), 1))), int(rng.integers(1, 200))
    return data[:start] + data[start + length :]


def _repeated(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(0, max(len(data), 1))), int(rng.integers(1, 200))
    return data[: start + length] + data[start:]


def _inserted(data: bytes, rng: np.random.Generator, what: bytes) -> bytes:
    place = int(rng.integers(0, max(len(data), 1)))
    return data[:place] + what + data[place:]


def _without_column(data: bytes, rng: np.random.Generator) -> bytes:
    header, _, rest = data.partition(b"\n")
    names = header.split(b",")
    names[int(rng.integers(len(names)))] = b"other"
    return b",".join(names) + b"\n" + rest
