"""Content codings that nobody asked for."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1024 * 1024


def encode(content: bytes, encoding: str, *, size: int, filler: bytes) -> tuple[bytes, dict[str, str]]:
    """The content as it is sent, and the headers that say so, or keep quiet about it.

    :param size: what a bomb unpacks to.
    :param filler: one byte, of which a bomb consists behind the content.
    """
    match encoding:
        case "gzip":
            return gzip.compress(content), {"content-encoding": "gzip"}
        case "gzip_unlabelled":
            return gzip.compress(content), {}
        case "bomb":
            return gzip.compress(_bomb(content, size, filler)), {"content-encoding": "gzip, gzip"}
    return content, {"content-encoding": "x-acme"}


def _bomb(content: bytes, size: int, filler: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    packed = [packer.compress(content)]
    packed += [packer.compress(piece) for piece in _pieces(size - len(content), filler)]
    return b"".join([*packed, packer.flush()])


def _pieces(size: int, filler: bytes) -> Iterator[bytes]:
    piece = filler * _PIECE
    for at in range(0, size, _PIECE):
        yield piece[: size - at]
