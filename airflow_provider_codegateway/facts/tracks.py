"""What the index of an MP4 says of its tracks: pure, from the bytes of ``moov`` and ``moof``."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
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
                self._add_movie(memoryview(content))
                self._is_read = bool(self._timescale) or not content
            else:
                for traf in _find(memoryview(content), b"traf"):
                    self._add_run(traf)
        except (struct.error, ValueError, IndexError, StopIteration):
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

    def _add_movie(self, moov: memoryview) -> None:
        for kind, content in _boxes(moov):
            if kind == b"mvhd":
                self._timescale, _ = _times(content)
            elif kind == b"trak":
                self._tracks.append(_read_track(content))
            elif kind == b"mvex":
                self.is_fragmented = True
                self._add_defaults(content)
        if self.is_fragmented:
            # Some muxers write how long the first fragment was.
            for track in self._tracks:
                track.shown_ticks = 0
                track.ticks = track.ticks if track.samples else 0

    def _add_defaults(self, mvex: memoryview) -> None:
        for header in _find(mvex, b"mehd"):
            layout = ">4xQ" if header[0] == 1 else ">4xI"
            self._announced_ticks = _known(*struct.unpack_from(layout, header))
        for default in _find(mvex, b"trex"):
            number, duration = struct.unpack_from(">4xI4xI", default)
            for track in self._tracks:
                if track.number == number:
                    track.fragment_default = duration

    def _add_run(self, traf: memoryview) -> None:
        header = _find(traf, b"tfhd")[0]
        flags, number = struct.unpack_from(">II", header)
        track = next((each for each in self._tracks if each.number == number), None)
        if track is None:
            return
        default = track.fragment_default
        if flags & 0x08:
            at = 8 + (8 if flags & 0x01 else 0) + (4 if flags & 0x02 else 0)
            (default,) = struct.unpack_from(">I", header, at)
        for run in _find(traf, b"trun"):
            flags, count = struct.unpack_from(">II", run)
            track.samples += count
            track.ticks += _run_ticks(run, flags, count, default)


def _run_ticks(trun: memoryview, flags: int, count: int, default: int) -> int:
    if not flags & 0x100:
        return count * default
    at = 8 + (4 if flags & 0x01 else 0) + (4 if flags & 0x04 else 0)
    step = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
    if at + count * step > len(trun):
        raise ValueError("a run that is cut off")
    return sum(ticks for (ticks,) in struct.iter_unpack(f">I{step - 4}x", trun[at : at + count * step]))


def _read_track(trak: memoryview) -> _Track:
    track = _Track()
    is_turned = False
    for header in _find(trak, b"tkhd"):
        layout = ">20xI4xQ16x5i" if header[0] == 1 else ">12xI4xI16x5i"
        track.number, shown_ticks, a, b, _, c, d = struct.unpack_from(layout, header)
        track.shown_ticks = _known(shown_ticks)
        is_turned = abs(b) > abs(a) and abs(c) > abs(d)  # it is shown lying on its side
    for header in _find(trak, b"mdia", b"mdhd"):
        track.timescale, track.ticks = _times(header)
    for header in _find(trak, b"mdia", b"hdlr"):
        track.handler = bytes(header[8:12]).decode("latin-1")
    for table in _find(trak, b"mdia", b"minf", b"stbl"):
        _read_samples(table, track)
    if is_turned:
        track.width, track.height = track.height, track.width
    return track


def _read_samples(stbl: memoryview, track: _Track) -> None:
    if track.handler == "vide":
        for description in _find(stbl, b"stsd"):
            _read_picture(description, track)
    for times in _find(stbl, b"stts"):
        (entries,) = struct.unpack_from(">4xI", times)
        pairs = list(struct.iter_unpack(">II", times[8 : 8 + 8 * entries]))
        if len(pairs) != entries:
            raise ValueError("a table that is cut off")
        track.samples = sum(count for count, _ in pairs)
        # By the samples: a header may be off, and of an empty table it says nothing.
        track.ticks = sum(count * ticks for count, ticks in pairs) or track.ticks
    with suppress(struct.error, LookupError, ValueError):  # tables that say nothing of use
        track.end = _end_of_samples(dict(_boxes(stbl)))


def _end_of_samples(tables: Mapping[bytes, memoryview]) -> int:
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


def _numbers(table: memoryview, kind: str) -> Sequence[int]:
    """A table's numbers, after how many there are."""
    (count,) = struct.unpack_from(">4xI", table)
    return struct.unpack_from(f">{count}{kind}", table, 8)


def end_of_segments(sidx: bytes) -> int:
    """How many bytes after a segment index its segments end; 0 where it cannot be read."""
    try:
        layout = ">20xQ2xH" if sidx[0] == 1 else ">16xI2xH"
        offset, count = struct.unpack_from(layout, sidx)
        parts = struct.unpack_from(">" + "I8x" * count, sidx, struct.calcsize(layout))
    except (struct.error, IndexError):
        return 0
    return offset + sum(each & 0x7FFFFFFF for each in parts) if parts else 0


def _read_picture(stsd: memoryview, track: _Track) -> None:
    kind, content = next(_boxes(stsd[8:]))
    name = kind.decode("latin-1").strip()
    track.codec = _CODECS.get(name, name)
    width, height = struct.unpack_from(">24xHH", content)
    across = down = 1
    for ratio in _find(content[78:], b"pasp"):
        across, down = struct.unpack_from(">II", ratio)
    track.width = round(width * across / down) if across and down else width
    track.height = height


def _times(header: memoryview) -> tuple[int, int]:
    """Timescale and duration of ``mvhd`` and ``mdhd``."""
    timescale, duration = struct.unpack_from(">20xIQ" if header[0] == 1 else ">12xII", header)
    return timescale, _known(duration)


def _known(duration: int) -> int:
    """All ones mean that it is not known."""
    return 0 if duration in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else duration


def _find(content: memoryview, *path: bytes) -> list[memoryview]:
    """The contents of all boxes at a path, in their order."""
    found = [content]
    for name in path:
        found = [inner for each in found for kind, inner in _boxes(each) if kind == name]
    return found


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
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
