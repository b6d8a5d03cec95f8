"""What kinds of media there are, and how bytes show which one they are."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["image", "video"]


MIB = 1024 * 1024
MAX_BYTES = 20 * MIB
"""Bytes of one input at most, by default, before base64."""

FORMATS: dict[Kind, str] = {
    "image": "PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC, AVIF",
    "video": "MP4, MOV, WebM, MKV, AVI",
}


_MAGIC: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), media_type)
    for pattern, media_type in (
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBP", "image/webp"),
        # "BM" alone would be found in much text: also the reserved zeros, and the size of a known header.
        (rb"BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "image/bmp"),
        (rb"II\*\0|MM\0\*", "image/tiff"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", "image/heic"),
        (rb"....ftypM4[ABP] ", "audio/mp4"),
        (rb"....ftypqt  ", "video/quicktime"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1a\x45\xdf\xa3.{,60}?webm", "video/webm"),
        (rb"\x1a\x45\xdf\xa3", "video/x-matroska"),
        (rb"RIFF....AVI ", "video/x-msvideo"),
    )
)


def media_type(data: bytes) -> str | None:
    """The media type that the first bytes show, or None."""
    return next((media_type for magic, media_type in _MAGIC if magic.match(data)), None)


def is_whole(data: bytes) -> bool:
    """Whether an image reaches the end that its format marks. What has no such mark counts as whole."""
    match media_type(data):
        case "image/jpeg":
            return _reaches_jpeg_end(data)
        case "image/png":
            return _reaches_png_end(data)
        case "image/webp":
            return len(data) >= 8 + int.from_bytes(data[4:8], "little")
        case "image/bmp":
            return len(data) >= int.from_bytes(data[2:6], "little")
        case "image/heic" | "image/avif":
            return _reaches_box_end(data)
    return True


_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""In the picture itself a marker is told from data by what follows its first byte."""


def _reaches_jpeg_end(data: bytes) -> bool:
    # Segment by segment: the preview that cameras put into one of them has an end of its own.
    at = 2
    while match := _JPEG_MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == 0xD9:
            return True
        if marker != 0x01:
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def _reaches_png_end(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IEND":
            return end <= len(data)
        at = end
    return False


def _reaches_box_end(data: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 0:  # to the end, wherever that is
            return True
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size < head:
            return False
        at += size
    return at == len(data)


def shown_size(count: int) -> str:
    """A number of bytes, for a message."""
    return f"{count / MIB:g} MiB" if count >= MIB else f"{count:,} bytes"


def article(kind: Kind) -> str:
    """The kind with its article."""
    return "an image" if kind == "image" else "a video"
