"""Looks into a clip: decodes it and compares it with what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FPS = 24
LARGEST_DISTANCE = 3.0
"""Of 255: how far a picture may be from what two encodings made of it."""


class WrongClip(Exception):
    """A clip is not what was asked for."""


@dataclass(frozen=True)
class Shape:
    """What a clip measures, by decoding every frame of it."""

    width: int
    height: int
    seconds: float
    audio_seconds: float | None

    def __str__(self) -> str:
        sound = "with sound" if self.audio_seconds else "silent"
        return f"{self.width}x{self.height}, {self.seconds:g} s, {sound}"


def measure(path: Path) -> Shape:
    """Decode a clip.

    :raises WrongClip: it cannot be decoded, or has no picture.
    """
    frames = samples = 0
    width = height = rate = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode():
                if isinstance(frame, av.VideoFrame):
                    frames += 1
                    width, height = frame.width, frame.height
                elif isinstance(frame, av.AudioFrame):
                    samples += frame.samples
                    rate = frame.sample_rate
    except av.FFmpegError as error:
        raise WrongClip(f"{path.name} cannot be decoded: {error}") from error
    if not frames:
        raise WrongClip(f"{path.name} has no picture.")
    return Shape(width, height, frames / FPS, samples / rate if rate else None)


def check(path: Path, asked: Mapping[str, Any]) -> Shape:
    """Decode a clip and compare it with the operator's arguments; one that was not set is the model's choice.

    :raises WrongClip: naming every difference.
    """
    shape = measure(path)
    wrong: list[str] = []
    if asked.get("duration"):
        seconds = int(str(asked["duration"]).rstrip("s"))
        if shape.seconds != seconds:
            wrong.append(f"{shape.seconds:g} s instead of {seconds} s")
        if shape.audio_seconds and abs(shape.audio_seconds - seconds) > 0.1:
            wrong.append(f"{shape.audio_seconds:.2f} s of sound instead of {seconds} s")
    if asked.get("resolution"):
        lines = int(str(asked["resolution"]).lower().rstrip("p"))
        if min(shape.width, shape.height) != lines:
            wrong.append(f"{min(shape.width, shape.height)} lines instead of {lines}")
    if asked.get("aspect_ratio"):
        across, down = map(int, str(asked["aspect_ratio"]).split(":"))
        # Encoders want even numbers of pixels.
        if abs(shape.width * down - shape.height * across) > 2 * max(across, down):
            wrong.append(f"{shape.width}x{shape.height} instead of {asked['aspect_ratio']}")
    audio = str(asked.get("generate_audio")).lower() == "true"
    if audio != (shape.audio_seconds is not None):
        wrong.append(f"{'no sound' if audio else 'sound'} instead of {'sound' if audio else 'none'}")
    if wrong:
        raise WrongClip(f"{path.name} has {', '.join(wrong)}.")
    return shape


def first_picture(path: Path) -> av.VideoFrame:
    """The first picture of a clip."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def last_picture(path: Path) -> av.VideoFrame:
    """The last one."""
    with av.open(str(path)) as container:
        *_, last = container.decode(video=0)
        return last


def distance(one: av.VideoFrame, other: av.VideoFrame) -> float:
    """How far two pictures of one size are from each other, on average of all pixels and colours, of 255."""
    pixels = [bytes(frame.reformat(format="rgb24").planes[0]) for frame in (one, other)]
    differences: list[int] = [abs(a - b) for a, b in zip(*pixels, strict=True)]
    return sum(differences) / len(differences)
