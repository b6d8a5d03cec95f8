"""What the index of an MP4 says of its tracks: pure, from the bytes of ``moov`` and ``moof``."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from airflow_provider_codegateway.clip import Facts

_CODECS = {
    **dict.fromkeys(("avc1", "avc2", "avc3", "avc4"), "h264"),
    **dict.fromkeys(("hvc1", "hev1", "dvh1", "dvhe"), "hevc"),
    "av01": "av1",
    "vp08": "vp8",
    "vp09": "vp9",
    "mp4v": "mpeg4",
    **dict.fromkeys(("apcn", "apch", "apcs", "apco", "ap4h", "ap4x"), "prores"),
}


@dataclass
class _Track:
    """One track, as far as its index says."""

    number: int = 0
    handler: str = ""
    width: int = 0
    height: int = 0
    codec: str = ""
    timescale: int = 0
    ticks: int = 0
    samples: int = 0
    shown_ticks: int = 0
    """How long it is played, in ticks of the movie."""
    fragment_default: int = 0
    """Ticks of a sample of a fragment that does not say."""
    end: int = 0
    """Where its last sample ends in the file; 0 where that is not known."""


@dataclass
class Index:
    """The tracks of an MP4, whose index comes in one piece or with each fragment."""

    is_fragmented: bool = False
    _announced_ticks: int = 0
    """How long all fragments are together, in ticks of the movie."""
    _timescale: int = 0
    _tracks: list[_Track] = field(default_factory=list)
    _is_read: bool = False
    _is_broken: bool = False

    def add(self, kind: bytes, content: bytes) -> None:
        """Take up the content of a ``moov`` or a ``moof``. What cannot be read leaves no facts, and no error."""
        try:
            if kind == b"moov":
                self._add_movie(content)
                self._is_read = bool(self._timescale) or not content
            else:
                self._add_fragment(content)
        except (struct.error, ValueError, IndexError, RecursionError):
            self._is_broken = True

    @property
    def is_empty(self) -> bool:
        """Whether it came in one piece, and has nothing to play."""
        return self._is_read and not self.is_fragmented and not any(each.samples for each in self._tracks)

    @property
    def has_samples(self) -> bool:
        """Whether it has something to play by itself, without its fragments."""
        return not self._is_broken and any(each.samples for each in self._tracks)

    @property
    def end(self) -> int:
        """The byte of the file at which the last sample ends, as far as that is known."""
        return 0 if self._is_broken else max((each.end for each in self._tracks), default=0)

    @property
    def knows_its_end(self) -> bool:
        """Whether that is known of all tracks."""
        return self.end > 0 and all(each.end for each in self._tracks if each.samples)

    def missing_seconds(self) -> float:
        """How many of the announced seconds the fragments do not bring. A little of it is rounding."""
        came = max((each.ticks / each.timescale for each in self._tracks if each.timescale), default=0.0)
        announced = self._announced_ticks / self._timescale if self._timescale else 0.0
        return 0.0 if self._is_broken else announced - came

    def facts(self) -> Facts | None:
        """What is known of the picture, and whether there is sound."""
        picture = max(
            (each for each in self._tracks if each.handler == "vide" and each.width and each.height),
            key=lambda each: each.samples,
            default=None,
        )
        if self._is_broken or picture is None:
            return None
        seconds = picture.ticks / picture.timescale if picture.timescale else 0.0
        shown = picture.shown_ticks / self._timescale if self._timescale else 0.0
        duration = shown or seconds
        return Facts(
            width=picture.width,
            height=picture.height,
            duration=round(duration, 3) if duration else None,
            fps=round(picture.samples / seconds, 3) if seconds and picture.samples else None,
            codec=picture.codec,
            audio=any(each.handler == "soun" and each.samples for each in self._tracks),
        )

    def _add_movie(self, moov: bytes) -> None:
        for kind, content in _boxes(moov):
            if kind == b"mvhd":
                _, self._timescale, _ = _times(content)
            elif kind == b"trak":
                self._tracks.append(_read_track(content))
            elif kind == b"mvex":
                self.is_fragmented = True
                for inner, default in _boxes(content):
                    if inner == b"mehd":
                        layout = ">4xQ" if default[0] == 1 else ">4xI"
                        self._announced_ticks = _known(*struct.unpack_from(layout, default))
                    if inner == b"trex":
                        number, _, duration = struct.unpack_from(">4xIII", default)
                        for track in self._tracks:
                            if track.number == number:
                                track.fragment_default = duration
        if self.is_fragmented:
            # Some muxers write how long the first fragment was.
            for track in self._tracks:
                track.shown_ticks = 0
                track.ticks = track.ticks if track.samples else 0

    def _add_fragment(self, moof: bytes) -> None:
        for kind, content in _boxes(moof):
            if kind == b"traf":
                self._add_run(content)

    def _add_run(self, traf: bytes) -> None:
        boxes = list(_boxes(traf))
        header = next(content for kind, content in boxes if kind == b"tfhd")
        (flags, number) = struct.unpack_from(">II", header)
        track = next((each for each in self._tracks if each.number == number), None)
        if track is None:
            return
        default = track.fragment_default
        if flags & 0x08:
            at = 8 + (8 if flags & 0x01 else 0) + (4 if flags & 0x02 else 0)
            (default,) = struct.unpack_from(">I", header, at)
        for kind, content in boxes:
            if kind == b"trun":
                flags, count = struct.unpack_from(">II", content)
                track.samples += count
                track.ticks += _run_ticks(content, flags & 0xFFFFFF, count, default)


def _run_ticks(trun: bytes, flags: int, count: int, default: int) -> int:
    if not flags & 0x100:
        return count * default
    at = 8 + (4 if flags & 0x01 else 0) + (4 if flags & 0x04 else 0)
    step = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
    if at + count * step > len(trun):
        raise ValueError("a run that is cut off")
    return sum(struct.unpack_from(">I", trun, at + number * step)[0] for number in range(count))


def _read_track(trak: bytes) -> _Track:
    track = _Track()
    is_turned = False
    for kind, content in _boxes(trak):
        if kind == b"tkhd":
            track.number, track.shown_ticks, is_turned = _read_header(content)
        elif kind == b"mdia":
            _read_media(content, track)
    if is_turned:
        track.width, track.height = track.height, track.width
    return track


def _read_header(tkhd: bytes) -> tuple[int, int, bool]:
    """Number and duration of a track, and whether it is shown lying on its side."""
    if tkhd[0] == 1:
        number, duration = struct.unpack_from(">20xI4xQ", tkhd)
        at = 36
    else:
        number, duration = struct.unpack_from(">12xI4xI", tkhd)
        at = 24
    a, b, _, c, d = struct.unpack_from(">16xiiiii", tkhd, at)
    return number, _known(duration), abs(b) > abs(a) and abs(c) > abs(d)


def _read_media(mdia: bytes, track: _Track) -> None:
    for kind, content in sorted(
        _boxes(mdia), key=lambda box: box[0] == b"minf"
    ):  # which needs to know the handler
        if kind == b"mdhd":
            _, track.timescale, track.ticks = _times(content)
        elif kind == b"hdlr":
            track.handler = content[8:12].decode("latin-1")
        elif kind == b"minf":
            for inner, table in _boxes(content):
                if inner == b"stbl":
                    _read_samples(table, track)


def _read_samples(stbl: bytes, track: _Track) -> None:
    for kind, content in _boxes(stbl):
        if kind == b"stsd" and track.handler == "vide":
            _read_picture(content, track)
        elif kind == b"stts":
            (entries,) = struct.unpack_from(">4xI", content)
            pairs = list(struct.iter_unpack(">II", content[8 : 8 + 8 * entries]))
            if len(pairs) != entries:
                raise ValueError("a table that is cut off")
            track.samples = sum(count for count, _ in pairs)
            # By the samples: a header may be off, and of an empty table it says nothing.
            track.ticks = sum(count * ticks for count, ticks in pairs) or track.ticks
    with suppress(struct.error, LookupError, ValueError):  # tables that say nothing of use
        track.end = _end_of_samples(dict(_boxes(stbl)))


def _end_of_samples(tables: dict[bytes, bytes]) -> int:
    """Where the last chunk of samples ends: it begins at an offset, and has so many samples of so many bytes."""
    offsets = _numbers(tables[b"co64"], "Q") if b"co64" in tables else _numbers(tables[b"stco"], "I")
    size, count = struct.unpack_from(">4xII", tables[b"stsz"])
    if size == 1:  # old sound of QuickTime: a sample is not a byte, whatever this says
        return 0
    sizes = None if size else _numbers(tables[b"stsz"][4:], "I")
    runs = list(struct.iter_unpack(">III", tables[b"stsc"][8:]))
    last = max(range(len(offsets)), key=offsets.__getitem__)
    first_sample = 0
    for (first, samples, _), following in zip(
        runs, [*(run[0] for run in runs[1:]), len(offsets) + 1], strict=True
    ):
        if first <= last + 1 < following:
            first_sample += (last + 1 - first) * samples
            in_chunk = min(samples, count - first_sample)
            return offsets[last] + (
                size * in_chunk if sizes is None else sum(sizes[first_sample:][:in_chunk])
            )
        first_sample += (following - first) * samples
    return 0


def _numbers(table: bytes, kind: str) -> Sequence[int]:
    """A table's numbers, after how many there are."""
    (count,) = struct.unpack_from(">4xI", table)
    return struct.unpack_from(f">{count}{kind}", table, 8)


def end_of_segments(sidx: bytes) -> int:
    """How many bytes after a segment index its segments end; 0 where it cannot be read."""
    try:
        at = 28 if sidx[0] == 1 else 20
        (offset,) = struct.unpack_from(">Q" if sidx[0] == 1 else ">I", sidx, at - (8 if sidx[0] == 1 else 4))
        (count,) = struct.unpack_from(">2xH", sidx, at)
        if at + 4 + 12 * count > len(sidx):
            return 0
        parts = struct.unpack_from(">" + "I8x" * count, sidx, at + 4)
    except (struct.error, IndexError):
        return 0
    return offset + sum(each & 0x7FFFFFFF for each in parts) if parts else 0


def _read_picture(stsd: bytes, track: _Track) -> None:
    kind, content = next(_boxes(stsd[8:]))
    name = kind.decode("latin-1").strip()
    track.codec = _CODECS.get(name, name)
    width, height = struct.unpack_from(">24xHH", content)
    across = down = 1
    for inner, ratio in _boxes(content[78:]):
        if inner == b"pasp":
            across, down = struct.unpack_from(">II", ratio)
    track.width = round(width * across / down) if across and down else width
    track.height = height


def _times(header: bytes) -> tuple[int, int, int]:
    """Version, timescale and duration of ``mvhd`` and ``mdhd``."""
    if header[0] == 1:
        timescale, duration = struct.unpack_from(">20xIQ", header)
    else:
        timescale, duration = struct.unpack_from(">12xII", header)
    return header[0], timescale, _known(duration)


def _known(duration: int) -> int:
    """All ones mean that it is not known."""
    return 0 if duration in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else duration


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes in a box. Four zeros may end a list of QuickTime's."""
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, at + 8)
            head = 16
        elif not size:
            size = len(content) - at
        if size < head or at + size > len(content):
            raise ValueError("a box that is longer than the one around it")
        yield kind, content[at + head : at + size]
        at += size
