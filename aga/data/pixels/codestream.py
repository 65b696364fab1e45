"""The frame header of a JPEG or JPEG-LS stream, read before a native decoder trusts it.

gdcm sizes its buffers by the DICOM header and fills them as the stream says. Where the two differ,
as in a damaged file, it may crash the process.
"""

from __future__ import annotations

from dataclasses import dataclass

_START = b"\xff\xd8"
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and SOF55 of JPEG-LS
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True)
class FrameHeader:
    """What a stream says of its picture: bits a sample, height and width in pixels, components."""

    bits: int
    height: int
    width: int
    components: int


def frame_header(stream: bytes) -> FrameHeader | None:
    """The frame header of a stream; None where it has none before its first scan."""
    if not stream.startswith(_START):
        return None
    place = len(_START)
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif marker in _FRAMES:
            body = stream[place + 4 : place + 10]
            if len(body) < 6:
                return None
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            return FrameHeader(body[0], height, width, body[5])
        elif marker in _WITHOUT_LENGTH:
            place += 2
        else:
            place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None
