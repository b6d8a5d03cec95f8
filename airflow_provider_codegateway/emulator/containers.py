"""Clips that do not begin as an MP4 usually does."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENCODED = ("webm", "fragmented")
"""Those that must be encoded; the others are an MP4 whose boxes are named or ordered in another way."""


def beginning_with(box: str, mp4: bytes) -> bytes:
    """An MP4 of the same length that begins with another box, and plays all the same.

    :raises ValueError: it is to begin with ``moov``, and has none.
    """
    if box != "moov":
        # Nobody needs what `ftyp` says to play a clip, and the offsets in `moov` stay true.
        return mp4[:4] + box.encode() + mp4[8:]
    parts = list(_boxes(mp4))
    if b"moov" not in (part[4:8] for part in parts[:2]):
        raise ValueError("only an MP4 whose index comes first can begin with moov")
    # No offset changes where what changes places lies before the media.
    return b"".join([parts[1], parts[0], *parts[2:]])


def media_of(read: Callable[[int, int], bytes], size: int) -> tuple[tuple[int, int], ...]:
    """Where the media and the padding of an MP4 lie; nowhere, if it is none.

    :param read: the bytes from an offset on, so many of them.
    """
    found, at = [], 0
    while at + 8 <= size:
        length, kind = struct.unpack(">I4s", read(at, 8))
        if length < 8 or at + length > size:
            break
        if kind in (b"mdat", b"free"):
            found.append((at + 8, at + length))
        at += length
    return tuple(found)


def _boxes(mp4: bytes) -> Iterator[bytes]:
    at = 0
    while at + 8 <= len(mp4):
        (size,) = struct.unpack_from(">I", mp4, at)
        end = at + size if size >= 8 else len(mp4)
        yield mp4[at:end]
        at = end
