"""Whether a clip is whole, by its container: read as the bytes pass by, without keeping them.

Each container is a row of elements that say how long they are. A walker reads their heads and skips the rest; only
the index of an MP4, a few KiB, is kept for its facts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from airflow_provider_codegateway.clip import Facts
from airflow_provider_codegateway.facts.tracks import Index, end_of_segments
from airflow_provider_codegateway.limits import LIMITS, Limits


class Verdict(Enum):
    """What a container says of its end."""

    WHOLE = auto()
    CUT = auto()
    """Something is missing."""
    SILENT = auto()
    """It does not say. Whoever brought the bytes must know that these were all."""


@dataclass(frozen=True)
class Ending:
    """What a container says of its end, and in words what is missing."""

    verdict: Verdict
    words: str = ""


_SNIFFED = 512
"""Bytes that show what a container is."""


class Container:
    """A clip's bytes, in order and in pieces of any size.

    :param limits: ``max_index_bytes``: a longer index of an MP4 is not kept, and has no facts.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._head = bytearray()
        self._index = Index()
        self._walker: _Elements | None = None
        self.media_type: str | None = None
        """What it is, such as ``video/mp4``, as far as the bytes tell; None if it is not a video."""

    def feed(self, data: memoryview) -> None:
        """Take up the next bytes."""
        if missing := _SNIFFED - len(self._head):
            # Each time anew: a clip may be shorter than what shows its kind.
            self._head += data[:missing]
            data = data[missing:]
            self._recognise(bytes(self._head))
        if self._walker is not None:
            self._walker.feed(data)

    def _recognise(self, head: bytes) -> None:
        self.media_type = _kind(head, _MAGIC)
        self._index = Index()
        match self.media_type:
            case "video/mp4" | "video/quicktime":
                self._walker = _Boxes(self._index, self._limits.max_index_bytes)
            case "video/webm" | "video/x-matroska":
                self._walker = _Ebml()
            case "video/x-msvideo":
                self._walker = _Riff()
            case _:
                self._walker = None
                return
        self._walker.feed(memoryview(head))

    @property
    def is_refused(self) -> bool:
        """Whether the first bytes are those of something else than a video."""
        return len(self._head) == _SNIFFED and self.media_type is None

    @property
    def is_empty(self) -> bool:
        """Whether there were no bytes."""
        return not self._head

    @property
    def has_index(self) -> bool:
        """Whether it is of the kinds that have facts."""
        return isinstance(self._walker, _Boxes)

    @property
    def looks_like(self) -> str:
        """In words, what it is if it is not a video."""
        return _kind(bytes(self._head), _OTHERS) or "of a kind that is not known"

    @property
    def facts(self) -> Facts | None:
        """What its index says, if these were all bytes; None where it says nothing."""
        return self._index.facts()

    @property
    def early_facts(self) -> Facts | None:
        """The facts, where no byte that is still to come can change them."""
        return None if self._index.is_fragmented else self.facts

    def skip(self) -> int:
        """Leave out the rest of an element that is open and not needed for the facts. How many bytes that is."""
        return self._walker.skip() if isinstance(self._walker, _Boxes) else 0

    def ending(self) -> Ending:
        """What the container says, if the bytes end here. More may follow."""
        return Ending(Verdict.SILENT) if self._walker is None else self._walker.ending()


# What it is.

_FIRST_BOXES = (
    rb"ftyp|styp|moov|moof|mdat|free|skip|wide|pnot|uuid|sidx|ssix|pdin|emsg|prft|mfra|meta|udta|junk"
)
_MAGIC = (
    (rb"....ftypqt  ", "video/quicktime"),
    (rb"....(?:" + _FIRST_BOXES + rb")", "video/mp4"),
    (rb"\x1a\x45\xdf\xa3.{0,60}?\x42\x82.{1,8}?webm", "video/webm"),
    (rb"\x1a\x45\xdf\xa3", "video/x-matroska"),
    (rb"RIFF....AVI ", "video/x-msvideo"),
    (rb"\x47.{187}\x47.{187}\x47", "video/mp2t"),
    (rb"\0\0\x01\xba", "video/mpeg"),
    (rb"OggS", "video/ogg"),
    (rb"FLV\x01", "video/x-flv"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
)
_OTHERS = (
    (rb"(?i:(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|body|!--))", "an HTML page"),
    (rb"(?:\xef\xbb\xbf)?\s*<", "XML"),
    (rb"(?:\xef\xbb\xbf)?\s*[{\[]", "JSON"),
    (rb"\x1f\x8b", "compressed by gzip"),
)


def _kind(head: bytes, kinds: Iterable[tuple[bytes, str]]) -> str | None:
    return next((kind for pattern, kind in kinds if re.match(pattern, head, re.DOTALL)), None)


# How each is walked.


def _cut(why: str) -> Ending:
    return Ending(Verdict.CUT, why)


class _Elements:
    """Walks a row of elements: a head of a few bytes, then so many bytes to skip or to keep.

    A container tells by ``_open`` what a head means, and by ``ending`` whether it is whole.
    """

    _HEAD: ClassVar[int]
    """Bytes of a head, unless what it says makes it longer."""

    def __init__(self) -> None:
        self._at = 0
        self._head = bytearray()
        self._head_size = self._HEAD
        self._left = 0
        """Bytes of the element that is open."""
        self._rest_is_anything = False
        """The rest of the bytes, however many, belong to the element that is open, or to none."""

    def feed(self, data: memoryview) -> None:
        """Take up the next bytes."""
        while data:
            if self._rest_is_anything:
                count = len(data)
                self._at += count
                self._pass(data)
            elif self._left:
                count = min(self._left, len(data))
                self._at += count
                self._left -= count
                self._pass(data[:count])
                if not self._left:
                    self._close()
            else:
                count = min(self._head_size - len(self._head), len(data))
                self._at += count
                self._head += data[:count]
                if len(self._head) == self._head_size:
                    self._open(bytes(self._head))
            data = data[count:]

    def _begin(self, size: int | None) -> None:
        """An element's head is read; so many bytes of it follow. None: all that come."""
        self._head.clear()
        self._head_size = self._HEAD
        self._left = size or 0
        self._rest_is_anything = size is None
        if size == 0:
            self._close()

    def ending(self) -> Ending:
        """What the container says, if the bytes end here. More may follow."""
        raise NotImplementedError

    def _open(self, head: bytes) -> None:
        raise NotImplementedError

    def _pass(self, data: memoryview) -> None:
        """Bytes of the element that is open."""

    def _close(self) -> None:
        """The element that is open has ended."""


class _Boxes(_Elements):
    """MP4 and QuickTime (ISO/IEC 14496-12): a size in 4 bytes, a type, perhaps a size in 8 bytes."""

    _HEAD = 8
    _KEPT = frozenset({b"moov", b"moof", b"sidx"})
    _ROUNDING = 1.0
    """Seconds of fragments that may be missing."""

    def __init__(self, index: Index, max_index_bytes: int) -> None:
        super().__init__()
        self._index = index
        self._max_index_bytes = max_index_bytes
        self._type = b""
        self._last = b""
        self._ended: set[bytes] = set()
        self._kept: bytearray | None = None
        self._segments_end = 0

    def _open(self, head: bytes) -> None:
        size, self._type = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 8:
            self._head_size = 16
            return
        if size == 1:
            (size,) = struct.unpack(">Q", head[8:])
        if not _is_type(self._type) or (size and size < len(head)):
            self._type = b""
            self._begin(None)
            return
        self._kept = bytearray() if self._type in self._KEPT and size <= self._max_index_bytes else None
        self._begin(size - len(head) if size else None)

    def _pass(self, data: memoryview) -> None:
        if self._kept is None:
            return
        if len(self._kept) + len(data) > self._max_index_bytes:
            self._kept = None
        else:
            self._kept += data

    def skip(self) -> int:
        """Leave out the rest of a box, if it is not kept. How many bytes that is."""
        count = 0 if self._kept is not None else self._left
        if count:
            self._at += count
            self._left = 0
            self._close()
        return count

    def _close(self) -> None:
        self._ended.add(self._type)
        self._last = self._type
        kept, self._kept = self._kept, None
        if kept is not None and self._type == b"sidx":
            self._segments_end = max(self._segments_end, self._at + end_of_segments(bytes(kept)))
        elif kept is not None:
            self._index.add(self._type, bytes(kept))

    def ending(self) -> Ending:
        """Whole: all boxes have ended, and the index and the media are there."""
        if self._left:
            name = self._type.decode("latin-1").strip()
            return _cut(f"its {name} box goes on to byte {self._at + self._left:,}")
        there = self._ended | ({self._type} if self._rest_is_anything else set())
        if b"moov" not in there:
            return _cut("its index (the moov box) is missing")
        # Some muxers put what could be the first fragment into the index: of a short clip there is no other.
        if self._index.is_fragmented and (b"moof" in there or not self._index.has_samples):
            return self._ending_of_fragments(there)
        if b"mdat" not in there:
            return _cut("its media (the mdat box) are missing")
        if self._index.is_empty:
            return _cut("its index (the moov box) is empty")
        if self._index.end > self._at:
            return _cut(f"its pictures and sound go on to byte {self._index.end:,}")
        is_open = self._rest_is_anything or self._head
        if self._index.is_fragmented and self._last != b"mfra":
            return Ending(Verdict.SILENT)  # another fragment could follow
        return Ending(Verdict.SILENT if is_open and not self._index.knows_its_end else Verdict.WHOLE)

    def _ending_of_fragments(self, there: set[bytes]) -> Ending:
        # Zeros or a line break may end the file, and may be the head of another fragment: the host must know.
        if self._head.strip(b"\0\r\n\t ") or b"moof" not in there or self._last == b"moof":
            return _cut("its last fragment is missing")
        if self._segments_end > self._at:
            return _cut(f"its segments go on to byte {self._segments_end:,}")
        if (missing := self._index.missing_seconds()) > self._ROUNDING:
            return _cut(f"{missing:.1f} of its seconds are missing")
        # Any of its fragments could be the last one, but for the index that some muxers write at the end.
        return Ending(Verdict.WHOLE if self._last == b"mfra" and not self._head else Verdict.SILENT)


def _is_type(name: bytes) -> bool:
    return all(0x20 <= byte <= 0x7E or byte == 0xA9 for byte in name)


class _Ebml(_Elements):
    """WebM and Matroska (RFC 8794): an id of 1 to 4 bytes, a size of 1 to 8, each saying how long it is."""

    _HEAD = 1
    _SEGMENT = b"\x18\x53\x80\x67"

    def __init__(self) -> None:
        super().__init__()
        self._has_segment = False

    def _open(self, head: bytes) -> None:
        id_length = _vint_length(head[0])
        size_length = _vint_length(head[id_length]) if len(head) > id_length else 1
        self._head_size = id_length + size_length
        if len(head) < self._head_size:
            return
        self._has_segment |= head[:id_length] == self._SEGMENT
        unknown = (1 << 7 * size_length) - 1
        size = int.from_bytes(head[id_length:], "big") & unknown
        is_element = id_length <= 4 and size_length <= 8
        self._begin(size if is_element and size != unknown else None)

    def ending(self) -> Ending:
        """Whole: the segment, which is the media, has ended. Many live recordings do not say where."""
        if not self._has_segment:
            return _cut("its media (the Segment) are missing")
        if self._left:
            return _cut(f"its Segment goes on to byte {self._at + self._left:,}")
        return Ending(Verdict.WHOLE if not self._head and not self._rest_is_anything else Verdict.SILENT)


def _vint_length(first: int) -> int:
    return 9 - first.bit_length()


class _Riff(_Elements):
    """AVI: chunks of a name and a size in 4 bytes, padded to an even size."""

    _HEAD = 8

    def _open(self, head: bytes) -> None:
        name, size = struct.unpack("<4sI", head)
        self._begin(None if name != b"RIFF" or size in (0, 0xFFFFFFFF) else size + size % 2)

    def ending(self) -> Ending:
        """Whole: all chunks have ended. One that was written to a pipe does not say where."""
        if self._left > 1:  # the padding of the last one is often left out
            return _cut(f"its RIFF chunk goes on to byte {self._at + self._left:,}")
        return Ending(Verdict.SILENT if self._rest_is_anything or self._head else Verdict.WHOLE)
