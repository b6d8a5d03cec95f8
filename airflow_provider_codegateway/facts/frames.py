"""Looks into a clip: its first and last picture, whether anything is to be seen and heard, whether it bears C2PA.

Run as a script, in a process of its own: a file that crashes ffmpeg, or keeps it busy for ever, must not take down
the task whose clip is stored. It knows nothing of this package, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

_SMALL = (160, 90)
"""Pixels of the pictures that are compared with each other."""
_STEP = 3
"""Of so many pictures one is looked at. No whole second is a multiple of it at 25 or 50 a second, nor half of 24."""
_BLACK_MEAN, _BLACK_PIXEL = 8, 40
"""Of 255: a picture with less on average, and nowhere more than the other, is black."""
_STILL = 3
"""Of 255: what an encoder alone changes in a picture that stands still."""
_SILENT = 33
"""Of 32,768: -60 dB."""


def look(job: dict[str, Any]) -> dict[str, Any]:
    """Do what a job asks for.

    :param job: ``clip`` (a path); ``poster`` and ``last_frame`` (paths of the pictures to make, ``.png`` or JPEG);
        ``content`` and ``c2pa`` (whether to look for those). All but the first may be absent.
    :return: ``found`` (sentences) and ``c2pa`` (None if that cannot be told).
    """
    result: dict[str, Any] = {"found": [], "c2pa": None}
    if job.get("poster"):
        _write(_as_shown(next(_pictures(job["clip"])), job["clip"]), job["poster"])
    if job.get("last_frame"):
        _write(_as_shown(_last_picture(job["clip"]), job["clip"]), job["last_frame"])
    if job.get("content"):
        result["found"] = [*_seen(job["clip"]), *_heard(job["clip"])]
    if job.get("c2pa"):
        result["c2pa"] = _bears_c2pa(job["clip"], job["media_type"])
    return result


def _pictures(path: str) -> Iterator[Any]:
    import av

    with av.open(path) as container:
        yield from container.decode(video=0)


def _last_picture(path: str) -> Any:
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        if stream.duration and stream.time_base:
            # To the picture before the last second from which decoding can begin.
            start = stream.start_time or 0
            at = start + stream.duration - int(1 / stream.time_base)
            container.seek(max(start, at), stream=stream)
            last = max(container.decode(stream), key=_when, default=None)
            if last is not None:
                return last
    *_, last = _pictures(path)
    return last


def _when(frame: Any) -> int:
    return -1 if frame.pts is None else int(frame.pts)


def _rgb(frame: Any) -> Any:
    """In RGB, by the colours that the clip declares; those of HD where it declares none, as players do."""
    from av.video.reformatter import Colorspace

    declared = {1: "ITU709", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
    assumed = "ITU709" if max(frame.width, frame.height) >= 1280 else "ITU601"
    space = Colorspace[declared.get(int(frame.colorspace), assumed)]
    return frame.reformat(format="rgb24", src_colorspace=space)


def _as_shown(frame: Any, path: str) -> Any:
    """In RGB, turned as players turn it, and with square pixels."""
    import av

    with av.open(path) as container:
        aspect = cast(Any, container.streams.video[0]).sample_aspect_ratio or Fraction(1)
    picture = _rgb(frame)
    if aspect != 1:
        picture = picture.reformat(width=max(1, round(picture.width * aspect)))
    filters = _TURNS.get(frame.rotation % 360, ())
    if not filters:
        return picture
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1)
    )
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
    picture.pts = 0
    graph.vpush(picture)
    return graph.vpull()


_TURNS = {
    90: (("transpose", "cclock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "clock"),),
}
"""By the degrees that a picture is to be turned to the left."""


def _write(picture: Any, path: str) -> None:
    import av

    is_png = path.endswith(".png")
    # At the finest: a last frame may be the first of the next clip.
    options = {} if is_png else {"qmin": "1", "qmax": "2"}
    if not is_png:
        picture = picture.reformat(format="yuvj444p", dst_color_range="JPEG", dst_colorspace="ITU601")
    with av.open(path, "w", format="image2", options={"update": "1"}) as file:
        stream = cast(Any, file.add_stream("png" if is_png else "mjpeg", rate=1, options=options))
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.format.name
        picture.pts, picture.time_base = 0, Fraction(1)
        for packet in [*stream.encode(picture), *stream.encode(None)]:
            file.mux(packet)


def _seen(path: str) -> list[str]:
    first: bytes | None = None
    is_black, moves = True, False
    for number, frame in enumerate(_pictures(path)):
        if number % _STEP:
            continue
        small = frame.reformat(*_SMALL, format="gray", dst_color_range="JPEG")
        plane = small.planes[0]
        rows = bytes(plane)
        pixels = b"".join(
            rows[at : at + _SMALL[0]] for at in range(0, plane.line_size * _SMALL[1], plane.line_size)
        )
        is_black &= sum(pixels) < _BLACK_MEAN * len(pixels) and max(pixels) < _BLACK_PIXEL
        first = first or pixels
        moves |= any(abs(one - other) > _STILL for one, other in zip(first, pixels, strict=True))
        if moves and not is_black:
            return []
    return ["Its picture is black."] if is_black else ["Its picture does not move."]


def _heard(path: str) -> list[str]:
    import av

    with av.open(path) as container:
        if not container.streams.audio:
            return []
        resampler = av.AudioResampler(format="s16", layout="mono")
        for frame in container.decode(audio=0):
            for each in resampler.resample(frame):
                samples = array("h", bytes(each.planes[0])[: 2 * each.samples])
                if samples and max(max(samples), -min(samples)) > _SILENT:
                    return []
    return ["Its sound is silence."]


def _bears_c2pa(path: str, media_type: str) -> bool | None:
    try:
        import c2pa
    except ImportError:
        return None
    try:
        with open(path, "rb") as clip, c2pa.Reader(media_type, clip):
            return True
    except c2pa.C2paError as error:
        return False if "ManifestNotFound" in f"{type(error).__name__} {error}" else None


if __name__ == "__main__":
    print(json.dumps(look(json.loads(sys.stdin.read()))))
