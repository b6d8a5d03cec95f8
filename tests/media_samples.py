"""The smallest real image and video."""

from __future__ import annotations

import base64
import io
from functools import cache

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
def png_base64() -> str:
    return base64.b64encode(png()).decode()


@cache
def mp4_base64() -> str:
    """An MP4 of one second in one colour."""
    frame = VideoFrame(64, 64, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return base64.b64encode(file.getvalue()).decode()
