"""The emulator's clips: real H.264 that shows what was asked for."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import httpx
import pytest

from airflow_provider_codegateway.emulator import Emulator, font

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VEO = "google/veo-3.1-fast"
SEEDANCE = "bytedance/seedance-2.0"
HAILUO = "minimax/hailuo-2.3-fast"

Colour = tuple[int, int, int]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Emulator]:
    with Emulator(extra_models=("acme/next-1",)) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def render(gateway: Emulator) -> Iterator[Callable[..., bytes]]:
    """Render a request and download its clip."""
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    with httpx.Client(timeout=60, trust_env=False) as client:

        def render(**body: Any) -> bytes:
            body = {"prompt": "A paper boat", **body}
            answer = client.post(f"{gateway.url}/v1/video/generate", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            return client.get(answer.json()["data"][0]["url"]).content

        yield render


class Clip:
    """A decoded clip."""

    def __init__(self, data: bytes) -> None:
        with av.open(io.BytesIO(data), "r") as container:
            self.seconds = Fraction(container.duration or 0, 1_000_000)
            video = container.streams.video[0]
            self.size = (video.width, video.height)
            self.codec = video.codec_context.name
            self.rate = video.average_rate
            self.audio = [stream.codec_context.name for stream in container.streams.audio]
            self.frames = [frame.reformat(format="rgb24") for frame in container.decode(video)]
        self.loudness = _loudness(data) if self.audio else 0.0

    def colour(self, x: float, y: float, frame: int = 0) -> Colour:
        """The colour of a pixel; coordinates from 0 to 1."""
        picture = self.frames[frame]
        plane = picture.planes[0]
        start = int(y * picture.height) * plane.line_size + int(x * picture.width) * 3
        red, green, blue = bytes(plane)[start : start + 3]
        return red, green, blue


def _loudness(data: bytes) -> float:
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(audio=0))
        samples = struct.unpack(f"{frame.samples}f", bytes(frame.planes[0])[: 4 * frame.samples])
    return float(max(map(abs, samples)))


def image(left: Colour, right: Colour, width: int = 64, height: int = 36) -> bytes:
    """A PNG of two colours side by side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    row = b"\0" + bytes(left) * (width // 2) + bytes(right) * (width // 2)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * height))
        + chunk(b"IEND", b"")
    )


def encoded(picture: bytes, codec: str) -> bytes:
    """A PNG as another format, or as a video of one frame."""
    with av.open(io.BytesIO(picture), "r") as container:
        frame = next(container.decode(video=0))
    sink = io.BytesIO()
    name, pixels = {
        "mjpeg": ("image2pipe", "yuvj420p"),
        "libwebp": ("webp", "yuv420p"),
        "gif": ("gif", "rgb8"),
        "bmp": ("image2pipe", "bgr24"),
        "libx264": ("mp4", "yuv420p"),
    }[codec]
    with av.open(sink, "w", format=name) as container:
        stream = container.add_stream(codec, rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
        converted = frame.reformat(format=pixels)
        converted.pts, converted.time_base = 0, Fraction(1, 24)
        container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return sink.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def near(one: Colour, other: Colour, by: int = 24) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


RED, BLUE = (230, 20, 20), (20, 20, 230)


@pytest.mark.parametrize(
    ("request_body", "size", "seconds", "audio"),
    [
        ({"model": VEO}, (1280, 720), 6, False),
        (
            {"model": VEO, "aspect_ratio": "9:16", "duration": "4s", "generate_audio": True},
            (720, 1280),
            4,
            True,
        ),
        (
            {"model": VEO, "aspect_ratio": "1:1", "resolution": "1080p", "duration": "8s"},
            (1080, 1080),
            8,
            False,
        ),
        ({"model": SEEDANCE}, (1280, 720), 5, False),
        ({"model": SEEDANCE, "resolution": "480p", "duration": 4}, (854, 480), 4, False),
        (
            {"model": SEEDANCE, "resolution": "480p", "aspect_ratio": "4:3", "duration": 12},
            (640, 480),
            12,
            False,
        ),
        (
            {"model": SEEDANCE, "resolution": "480p", "aspect_ratio": "3:4", "duration": 4},
            (480, 640),
            4,
            False,
        ),
        ({"model": SEEDANCE, "aspect_ratio": "21:9", "duration": 4}, (1680, 720), 4, False),
        ({"model": SEEDANCE, "aspect_ratio": "9:21", "duration": 4}, (720, 1680), 4, False),
        (
            {"model": SEEDANCE, "duration": 7, "generate_audio": True, "resolution": "480p"},
            (854, 480),
            7,
            True,
        ),
        ({"model": HAILUO}, (1366, 768), 6, False),
        ({"model": HAILUO, "resolution": "1080P", "duration": 1}, (1920, 1080), 1, False),
        ({"model": "acme/next-1", "duration": "2s", "resolution": "480p"}, (854, 480), 2, False),
        (
            {"model": "acme/next-1", "duration": [], "resolution": "4k", "aspect_ratio": 1},
            (1280, 720),
            5,
            False,
        ),
    ],
)
def test_shape(
    render: Callable[..., bytes],
    request_body: dict[str, Any],
    size: tuple[int, int],
    seconds: int,
    audio: bool,
) -> None:
    """A clip has exactly the size, the duration and the tracks that were asked for, at 24 frames a second."""
    data = render(**request_body)
    clip = Clip(data)
    assert (clip.codec, clip.size) == ("h264", size)
    assert clip.rate == Fraction(24)
    assert len(clip.frames) == seconds * 24
    assert clip.seconds == seconds
    assert clip.audio == (["aac"] if audio else [])
    assert (clip.loudness > 0.05) is audio


def test_starts_fast(render: Callable[..., bytes]) -> None:
    """The index stands before the media, so that a player can start on the first bytes."""
    data = render(model=VEO, generate_audio=True)
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat")


def test_same_seed_same_clip(gateway: Emulator, render: Callable[..., bytes]) -> None:
    """The same request gives the same bytes, also in another emulator; another seed gives others."""
    body = {"model": SEEDANCE, "resolution": "480p", "duration": 4, "seed": 7}
    first = render(**body)
    with Emulator() as other:
        answer = httpx.post(
            f"{other.url}/v1/video/generate",
            json={"prompt": "A paper boat", **body},
            headers={"Authorization": f"Bearer {other.api_key}"},
        )
        assert httpx.get(answer.json()["data"][0]["url"]).content == first
    assert render(**{**body, "seed": 8}) != first
    assert render(**body, prompt="Another") != first


def test_moves(render: Callable[..., bytes]) -> None:
    """Something moves."""
    clip = Clip(render(model=SEEDANCE, resolution="480p", duration=4))
    assert len({bytes(frame.planes[0]) for frame in clip.frames}) > 12


def test_prompt_is_in_the_picture(render: Callable[..., bytes]) -> None:
    """The prompt can be read off the picture, pixel by pixel."""
    clip = Clip(render(model=SEEDANCE, resolution="480p", duration=4, aspect_ratio="1:1", prompt="Wet"))
    picture = clip.frames[0]
    plane = picture.planes[0]
    pixels = bytes(plane)
    bright = [
        [pixels[y * plane.line_size + x * 3 + 1] > 200 for x in range(picture.width)]
        for y in range(picture.height - 20)  # above the light that moves
    ]
    top = next(y for y, row in enumerate(bright) if any(row))
    left = min(row.index(True) for row in bright if any(row))
    scale = 3
    seen = [
        [bright[top + row * scale + 1][left + column * scale + 1] for column in range(3 * (font.COLUMNS + 1))]
        for row in range(font.ROWS)
    ]
    drawn = [
        [
            bool(font.row_of(letter, row) >> (4 - column) & 1) if column < 5 else False
            for letter in "Wet"
            for column in range(6)
        ]
        for row in range(font.ROWS)
    ]
    assert seen == drawn


@pytest.mark.parametrize("prompt", ["日本語 🎬 café “quoted”", "word " * 400, "x" * 2000, "a\nb\tc\x00d", "​"])
@pytest.mark.parametrize("shape", ["21:9", "9:21", "1:1"])
def test_any_prompt_fits(render: Callable[..., bytes], prompt: str, shape: str) -> None:
    """No prompt is too long or too foreign to be drawn."""
    clip = Clip(render(model=SEEDANCE, resolution="480p", duration=4, aspect_ratio=shape, prompt=prompt))
    assert len(clip.frames) == 96


@pytest.mark.parametrize(
    ("model", "field"), [(VEO, "image_input"), (SEEDANCE, "image"), (HAILUO, "first_frame_image")]
)
def test_image_to_video(render: Callable[..., bytes], model: str, field: str) -> None:
    """The input image fills the picture behind the words."""
    clip = Clip(render(model=model, **{field: text(image(RED, BLUE))}))
    for frame in (0, 30, -1):
        assert near(clip.colour(0.25, 0.2, frame), RED)
        assert near(clip.colour(0.75, 0.2, frame), BLUE)


@pytest.mark.parametrize("codec", ["mjpeg", "libwebp", "gif", "bmp"])
def test_image_formats(render: Callable[..., bytes], codec: str) -> None:
    """The usual formats are images, and their colours come out right."""
    data = encoded(image(RED, BLUE, 256, 144), codec)
    clip = Clip(render(model=HAILUO, duration=1, first_frame_image=text(data)))
    assert near(clip.colour(0.25, 0.2), RED, 40)
    assert near(clip.colour(0.75, 0.2), BLUE, 40)


def test_further_media_are_shown_small(render: Callable[..., bytes]) -> None:
    """Reference images and a reference video stand in the corner of the picture."""
    green, yellow = (20, 200, 20), (230, 230, 20)
    video = encoded(image(yellow, yellow), "libx264")
    clip = Clip(
        render(
            model=SEEDANCE,
            duration=4,
            image=text(image(RED, RED)),
            reference_images=[text(image(green, green))],
            reference_video=text(video),
        )
    )
    assert near(clip.colour(0.1, 0.1), RED)
    assert near(clip.colour(0.94, 0.12), green)
    assert near(clip.colour(0.80, 0.12), yellow, 40)


def test_odd_images(render: Callable[..., bytes]) -> None:
    """An image of any size and shape can be the first frame."""
    for width, height in ((2, 1), (2, 999), (1998, 3)):
        clip = Clip(render(model=HAILUO, duration=1, first_frame_image=text(image(RED, RED, width, height))))
        assert near(clip.colour(0.5, 0.2), RED)


def test_image_by_url(render: Callable[..., bytes]) -> None:
    """An image by URL is not fetched: it changes the words in the picture."""
    body = {"model": SEEDANCE, "resolution": "480p", "duration": 4}
    assert render(**body, image="https://example.com/a.png") != render(**body)


def test_encoded_once(gateway: Emulator, render: Callable[..., bytes]) -> None:
    """Identical requests share one encoding, and each has its own link."""
    body = {"model": HAILUO, "duration": 2}
    assert render(**body) == render(**body)
    assert gateway.ledger[-1].clip != gateway.ledger[-2].clip
