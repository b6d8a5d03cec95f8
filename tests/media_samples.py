"""The smallest real image and video, and clips of any size."""

from __future__ import annotations

import base64
import io
import random
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import av
from av.video.frame import VideoFrame


@cache
def png(width: int = 16, height: int = 16, grey: int = 128) -> bytes:
    """A PNG of one colour."""
    frame = VideoFrame(width, height, "gray")
    frame.planes[0].update(bytes([grey]) * frame.planes[0].buffer_size)
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


@cache
def image(encoder: str, pix_fmt: str) -> bytes:
    """A picture with some noise, from one of ffmpeg's encoders."""
    frame = VideoFrame(64, 64, "gray")
    noise = random.Random(encoder)
    frame.planes[0].update(noise.randbytes(frame.planes[0].buffer_size))
    file = io.BytesIO()
    with av.open(file, "w", format={"gif": "gif", "libwebp": "webp"}.get(encoder, "image2pipe")) as container:
        stream = cast("av.VideoStream", container.add_stream(encoder, rate=1))
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        for packet in [*stream.encode(frame.reformat(format=pix_fmt)), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


@cache
def png_base64() -> str:
    return base64.b64encode(png()).decode()


@cache
def mp4(width: int = 64, height: int = 64, *, movflags: str = "faststart") -> bytes:
    """A whole MP4 of one second in one colour.

    :param movflags: of ffmpeg; "" leaves the index at the end.
    """
    frame = VideoFrame(width, height, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    with TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")  # a real file, because the index moves to the front at the end
        with av.open(
            str(path), "w", format="mp4", options={"movflags": movflags} if movflags else {}
        ) as container:
            stream = container.add_stream("libx264", rate=1)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        return path.read_bytes()


def mp4_base64() -> str:
    return base64.b64encode(mp4()).decode()


_PATTERN = bytes(range(251)) * 4177  # 1,048,427 bytes: no divisor of a part


@cache
def mp4_of(size: int, pattern: bytes = _PATTERN) -> bytes:
    """A whole MP4 of so many bytes: the same one, and a box of padding that differs in every part of an upload."""
    clip = mp4()
    padding = size - len(clip)
    assert padding == 0 or padding >= 8, f"an MP4 has {len(clip)} bytes, or at least 8 more, not {size}"
    if not padding:
        return clip
    return (
        clip
        + struct.pack(">I4s", padding, b"free")
        + (pattern * (padding // len(pattern) + 1))[: padding - 8]
    )
