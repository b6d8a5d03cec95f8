"""Real clips: H.264 in MP4 that show what they were asked for."""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av

from .media import MediaBytes, MediaUrl, first_frame
from .picture import BLACK, DARK, FPS, GREY, WHITE, Canvas, line_height, wrap

if TYPE_CHECKING:
    Packet = av.Packet[Any]
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .rules import VideoRequest

_X264 = {
    "preset": "ultrafast",
    "crf": "23",
    "g": str(FPS),
    "bf": "0",
    "threads": "1",  # so that the bytes do not depend on the machine's cores
    "x264-params": "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m",
}
_FIRST_FRAMES = ("image", "image_input", "first_frame_image")
_OPENING = FPS // 4
"""Pictures at the beginning that show the one that was sent."""
_SAMPLE_RATE = 48_000
_AAC_FRAME = 1024


_VP8 = {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0", "lag-in-frames": "0", "threads": "1"}


@dataclass(frozen=True)
class _Format:
    """What a clip is in."""

    name: str
    video: str
    video_options: dict[str, str]
    audio: str
    options: dict[str, str] = field(default_factory=dict)


_FORMATS = {
    None: _Format("mp4", "libx264", _X264, "aac", {"movflags": "+faststart"}),
    "fragmented": _Format("mp4", "libx264", _X264, "aac", {"movflags": "frag_keyframe+empty_moov"}),
    "webm": _Format("webm", "libvpx", _VP8, "libopus"),
}


@dataclass(frozen=True)
class Shape:
    """What a clip measures: pixels and whole seconds."""

    width: int
    height: int
    seconds: int
    audio: bool


def shape_of(request: VideoRequest, wrong: str | None = None) -> Shape:
    """What the clip of a request measures; where an unknown model's request is silent, 16:9, 720p, 5 s.

    :param wrong: see ``render``.
    """
    across, down = _ratio(request["aspect_ratio"])
    short = _number(request["resolution"], 720, 144, 2160)
    if wrong == "turned":
        across, down = (16, 9) if across == down else (down, across)
    if wrong == "small":
        short = 480 if short > 480 else 240
    scale = Fraction(short, min(across, down))
    return Shape(
        width=2 * round(across * scale / 2),
        height=2 * round(down * scale / 2),
        seconds=2 if wrong == "short" else _number(request["duration"], 5, 1, 60),
        audio=request["generate_audio"] is True and wrong != "mute",
    )


def render(
    request: VideoRequest, path: Path, container_name: str | None = None, wrong: str | None = None
) -> None:
    """Encode the clip of a request.

    :param path: a real file, because ``+faststart`` moves the index to its front at the end.
    :param container_name: ``webm`` or ``fragmented``; None for a usual MP4.
    :param wrong: how it differs from what was asked for; see ``Fault.wrong_clip``.
    """
    shape, form = shape_of(request, wrong), _FORMATS[container_name]
    with av.open(str(path), "w", format=form.name, options=form.options) as container:
        video = cast("av.VideoStream", container.add_stream(form.video, rate=FPS, options=form.video_options))
        video.width, video.height, video.pix_fmt = shape.width, shape.height, "yuv420p"
        audio = _add_audio(container, form) if shape.audio else None
        still = Canvas(shape.width, shape.height) if wrong == "black" else _draw(request, shape)
        if wrong == "black":
            still.fill(0, 0, shape.width, shape.height, BLACK)
        move = _stand_still if wrong in ("black", "frozen") else _draw_motion
        opening = None if wrong or container_name else _opening_of(request, shape)
        first, second = _encode_seconds(video, opening, still, move)
        loudness = 0.0 if wrong == "silent" else 0.25
        sound: Iterator[Packet] = (
            iter(()) if audio is None else _encode_tone(audio, request.fingerprint, shape.seconds, loudness)
        )
        for start in range(shape.seconds):
            for packet in _shifted(second if start else first, start, video):
                container.mux(packet)
            for packet in sound:
                container.mux(packet)
                if packet.pts is not None and packet.pts >= (start + 1) * _SAMPLE_RATE:
                    break
        for packet in sound:
            container.mux(packet)


def _add_audio(container: av.container.OutputContainer, form: _Format) -> av.AudioStream:
    audio = cast("av.AudioStream", container.add_stream(form.audio, rate=_SAMPLE_RATE))
    audio.layout = "mono"
    return audio


def _encode_seconds(
    stream: av.VideoStream, opening: Canvas | None, still: Canvas, move: Callable[[Canvas, int], None]
) -> tuple[list[Packet], list[Packet]]:
    """Encode the first second and one of those after it, each a closed group of pictures.

    A clip is the second one over and over: twelve seconds cost no more than one.

    :param opening: what the first pictures show; None where the first second is like the others.
    """
    packets: list[Packet] = []
    for number in range(FPS if opening is None else 2 * FPS):
        if opening is not None and number < _OPENING:
            picture = opening
        else:
            picture = still.copy()
            move(picture, number % FPS)
        packets += stream.encode(picture.frame(number))
    packets += stream.encode(None)
    return packets[:FPS], packets[-FPS:]


def _shifted(packets: list[Packet], seconds: int, stream: av.VideoStream) -> Iterator[Packet]:
    for original in packets:
        packet = av.Packet(bytes(original))
        packet.stream = stream
        packet.time_base = Fraction(1, FPS)
        ticks = round((original.pts or 0) * original.time_base * FPS) % FPS + seconds * FPS
        packet.pts = packet.dts = ticks
        packet.duration = 1
        packet.is_keyframe = original.is_keyframe
        yield packet


def _encode_tone(stream: av.AudioStream, key: str, seconds: int, loudness: float) -> Iterator[Packet]:
    """A tone that pulses once a second; its pitch comes from the request."""
    pitch = 300 + 20 * (int(key[:4], 16) % 16)
    one_second = array(
        "f",
        (
            loudness * (1 - n / _SAMPLE_RATE) * math.sin(2 * math.pi * pitch * n / _SAMPLE_RATE)
            for n in range(_SAMPLE_RATE)
        ),
    ).tobytes()
    samples = one_second * seconds
    for start in range(0, seconds * _SAMPLE_RATE, _AAC_FRAME):
        count = min(_AAC_FRAME, seconds * _SAMPLE_RATE - start)
        frame = av.AudioFrame("fltp", "mono", count)
        frame.planes[0].update(
            samples[4 * start : 4 * (start + count)].ljust(frame.planes[0].buffer_size, b"\0")
        )
        frame.sample_rate, frame.pts, frame.time_base = _SAMPLE_RATE, start, Fraction(1, _SAMPLE_RATE)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _opening_of(request: VideoRequest, shape: Shape) -> Canvas | None:
    """The picture that the clip is to begin with, if it is all that was sent."""
    match [(name, item) for name, items in request.media.items() for item in items]:
        case [(name, MediaBytes(data))] if name in _FIRST_FRAMES:
            canvas = Canvas(shape.width, shape.height)
            canvas.paste(first_frame(data, "image"), 0, 0, shape.width, shape.height)
            return canvas
    return None


def _draw(request: VideoRequest, shape: Shape) -> Canvas:
    canvas = Canvas(shape.width, shape.height)
    images = [
        first_frame(item.data, "video" if name == "reference_video" else "image")
        for name, items in request.media.items()
        for item in items
        if isinstance(item, MediaBytes)
    ]
    if images:
        canvas.paste(images[0], 0, 0, shape.width, shape.height)
    else:
        _draw_sky(canvas, request.fingerprint)
    _draw_thumbnails(canvas, images[1:])
    _draw_text(canvas, request, over_image=bool(images))
    return canvas


def _draw_sky(canvas: Canvas, key: str) -> None:
    angle = int(key[:4], 16) / 0xFFFF * 2 * math.pi
    u, v = round(128 + 44 * math.cos(angle)), round(128 + 44 * math.sin(angle))
    for top in range(0, canvas.height, 2):
        canvas.fill(0, top, canvas.width, top + 2, (64 + 96 * top // canvas.height, u, v))


def _draw_thumbnails(canvas: Canvas, images: list[av.VideoFrame]) -> None:
    side = min(canvas.width, canvas.height) // 10 * 2
    gap = side // 16 * 2
    for number, image in enumerate(images):
        right = canvas.width - gap - number * (side + gap)
        if right - side < 0:
            break
        canvas.fill(right - side - 4, gap - 4, right + 4, gap + side + 4, WHITE)
        canvas.paste(image, right - side, gap, right, gap + side)


def _draw_text(canvas: Canvas, request: VideoRequest, *, over_image: bool) -> None:
    """Model, prompt and parameters on a dark panel at the foot, the prompt as large as it fits."""
    short = min(canvas.width, canvas.height)
    margin = short // 48 * 2
    width = canvas.width - 2 * margin
    small = max(1, short // 360)
    track = _track_height(canvas)
    title = wrap(request.model, width, 2 * small)
    facts = wrap(_facts(request), width, small)
    prompt = request["prompt"] if isinstance(request["prompt"], str) else ""
    used = line_height(2 * small) * len(title) + line_height(small) * (len(facts) + 2) + 2 * margin + track
    room = int(canvas.height * (0.5 if over_image else 0.8)) - used
    for scale in range(max(2, short // 160), 0, -1):
        lines = wrap(prompt, width, scale)
        if len(lines) * line_height(scale) <= room:
            break
    lines = lines[: max(1, (canvas.height - used) // line_height(scale))]

    top = (canvas.height - used - len(lines) * line_height(scale)) // 2 * 2
    canvas.fill(0, max(0, top), canvas.width, canvas.height, DARK)
    y = max(0, top) + margin
    for block, size, colour in ((title, 2 * small, GREY), (lines, scale, WHITE), (facts, small, GREY)):
        for line in block:
            canvas.write(line, margin, y, size, colour)
            y += line_height(size)
        y += line_height(small)


def _facts(request: VideoRequest) -> str:
    parameters = {**request.defaults, **request.body}
    facts = [
        f"{name} {value}"
        for name, value in parameters.items()
        if name not in request.media and _is_fact(name, value)
    ]
    media = [
        f"{name} {item if isinstance(item, MediaUrl) else 'inline'}"
        for name, items in request.media.items()
        for item in items
    ]
    return " | ".join([*facts, *media])


def _is_fact(name: str, value: object) -> bool:
    return name not in ("model", "prompt") and (
        isinstance(value, int) or (isinstance(value, str) and len(value) < 40)
    )


def _track_height(canvas: Canvas) -> int:
    return min(canvas.width, canvas.height) // 48 * 2


def _draw_motion(canvas: Canvas, number: int) -> None:
    """A light that runs along the foot of the picture once a second."""
    length = canvas.width // FPS // 2 * 2
    left = canvas.width * number // FPS // 2 * 2
    canvas.fill(left, canvas.height - _track_height(canvas), left + length, canvas.height, WHITE)


def _stand_still(canvas: Canvas, number: int) -> None:
    """Nothing moves."""


def _ratio(value: Any) -> tuple[int, int]:
    across, _, down = value.partition(":") if isinstance(value, str) else ("", "", "")
    if across.isdecimal() and down.isdecimal() and 0 < int(across) <= 32 and 0 < int(down) <= 32:
        return int(across), int(down)
    return 16, 9


def _number(value: Any, default: int, low: int, high: int) -> int:
    """The number in ``6``, ``"6s"`` or ``"768P"``."""
    match = re.fullmatch(r"(\d{1,4})[a-zA-Z]?", str(value), re.ASCII)
    number = int(match[1]) if match else default
    return number if low <= number <= high else default
