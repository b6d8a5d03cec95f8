"""What comes with a clip: its facts, how it differs from what was asked for, pictures and papers beside it."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task
from av import VideoFrame
from media_samples import mp4, mp4_of, png

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.emulator.testing import TaskRun, run_task
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipExpired,
    ClipMismatch,
    ClipTransferError,
    InvalidRequest,
)
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
REQUEST = {"model": VEO, "prompt": "p", "duration": 4}

pytestmark = pytest.mark.usefixtures("airflow_database", "connections", "no_pauses")


@pytest.fixture(params=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "deferrable")


def run(bucket: str, run_id: str = "run", **arguments: Any) -> TaskRun:
    values = {**REQUEST, "s3_bucket": bucket, "s3_key": "clip.mp4", **arguments}
    return run_task(GenerateVideoOperator(task_id="clip", **values), run_id=run_id)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was logged: Airflow's own loggers write to the standard output from version 3 on."""
    return lambda: caplog.text + "".join(capfd.readouterr())


def keys(s3: S3Client, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


# --- facts and differences ---

WRONG = [
    ("turned", {"aspect_ratio": "9:16"}, "It is 16:9 (1280x720), not 9:16."),
    ("short", {}, "It lasts 2 s, not 4 s."),
    ("small", {"resolution": "1080p"}, "It has 480 lines (854x480), not 1080."),
    ("mute", {"generate_audio": True}, "It has no sound, and generate_audio is on."),
]


@pytest.mark.parametrize(("wrong", "arguments", "words"), WRONG, ids=[each[0] for each in WRONG])
def test_a_clip_that_is_not_what_was_asked_for_is_delivered_with_a_warning(
    wrong: Any,
    arguments: dict[str, Any],
    words: str,
    deferrable: bool,
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
    said: Callable[[], str],
) -> None:
    """The difference is in the log and in the XCom, the clip is stored, and one render is billed."""
    gateway.fail_next(Fault.wrong_clip(wrong))
    done = run(bucket, deferrable=deferrable, **arguments)
    assert done.xcoms["clip"]["mismatches"] == [words]
    assert words in said()
    assert (gateway.billed, keys(s3, bucket)) == (1, ["clip.mp4"])


@pytest.mark.parametrize(("wrong", "arguments", "words"), WRONG[:2], ids=["turned", "short"])
def test_a_clip_that_is_not_what_was_asked_for_may_fail_the_task(
    wrong: Any,
    arguments: dict[str, Any],
    words: str,
    deferrable: bool,
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
) -> None:
    """Without a retry; the clip is kept, and whoever asks again finds it, and fails for free."""
    gateway.fail_next(Fault.wrong_clip(wrong))
    for run_id, bought in (("run", Bought.YES), ("run", Bought.YES), ("another", Bought.NO)):
        with pytest.raises(ClipMismatch) as caught:
            run(bucket, run_id, on_mismatch="fail", deferrable=deferrable, **arguments)
        assert words in str(caught.value)
        assert caught.value.bought is bought
        assert isinstance(caught.value, AirflowFailException)
    assert (gateway.billed, keys(s3, bucket)) == (1, ["clip.mp4"])
    assert run(bucket, **arguments).xcoms["clip"]["mismatches"] == [words]


def test_a_long_clip_with_its_index_at_the_end_fails_again(
    deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Its metadata were sent before its facts were known: found again, it is measured by ranges."""
    gateway.serve_clip(moved_to_the_end(mp4_of(9_000_000)))
    for _ in range(2):
        with pytest.raises(ClipMismatch, match="It lasts 1 s, not 4 s"):
            run(bucket, on_mismatch="fail", deferrable=deferrable)
    assert gateway.billed == 1
    assert "codegateway-facts" not in s3.head_object(Bucket=bucket, Key="clip.mp4")["Metadata"]


def moved_to_the_end(clip: bytes) -> bytes:
    """An MP4 with its index behind everything else."""
    at = clip.index(b"moov") - 4
    size = int.from_bytes(clip[at : at + 4], "big")
    return clip[:at] + clip[at + size :] + clip[at : at + size]


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": VEO, "aspect_ratio": "1:1", "resolution": "1080p", "generate_audio": True},
        {"model": SEEDANCE, "aspect_ratio": "9:21", "resolution": "480p", "duration": "4.0"},
        {"model": HAILUO, "duration": 6},
        {"model": SEEDANCE, "duration": None},
    ],
)
def test_a_right_clip_is_delivered_without_a_word(
    arguments: dict[str, Any],
    deferrable: bool,
    gateway: Emulator,
    bucket: str,
    said: Callable[[], str],
) -> None:
    """Its facts are in the XCom and in the object's metadata; another run finds the same there."""
    done = run(bucket, on_mismatch="fail", deferrable=deferrable, **arguments)
    again = run(bucket, "another", on_mismatch="fail", deferrable=deferrable, **arguments)
    assert (done.xcoms["clip"]["mismatches"], again.xcoms["clip"]["mismatches"]) == ([], [])
    assert done.xcoms["clip"]["facts"] == again.xcoms["clip"]["facts"] is not None
    assert "not what was asked for" not in said()
    json.dumps(done.xcoms)


def test_a_requester_pays_for_what_is_measured_and_put_beside(
    gateway: Emulator, s3: S3Client, bucket: str, paying: str
) -> None:
    """Also for the look at a clip whose facts are not in its metadata."""
    asked: dict[str, Any] = {"aws_conn_id": paying, "s3_extra_args": {"RequestPayer": "requester"}}
    run(bucket, poster_key=".jpg", sidecar_key=".json", **asked)
    assert set(keys(s3, bucket)) == {"clip.mp4", "clip.mp4.jpg", "clip.mp4.json"}
    gateway.serve_clip(moved_to_the_end(mp4_of(9_000_000)))
    for run_id in ("run", "another"):
        assert run(bucket, run_id, s3_key="long.mp4", **asked).xcoms["clip"]["facts"] is not None
    assert gateway.billed == 2


def test_a_clip_that_cannot_be_measured_is_delivered(
    deferrable: bool, gateway: Emulator, bucket: str, said: Callable[[], str]
) -> None:
    """Facts are none, and nothing fails after the purchase."""
    gateway.fail_next(Fault.container("webm"))
    done = run(bucket, on_mismatch="fail", deferrable=deferrable)
    assert (done.xcoms["clip"]["facts"], done.xcoms["clip"]["mismatches"]) == (None, [])
    assert "could not be read: it was not compared" in said()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("black", "Its picture is black."),
        ("frozen", "Its picture does not move."),
        ("silent", "Its sound is silence."),
    ],
)
def test_a_look_inside_finds_what_no_index_says(
    wrong: Any, words: str, deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Black, frozen and silent clips have the right size and length; decoded, they are named."""
    gateway.fail_next(Fault.wrong_clip(wrong))
    for _ in range(2):
        with pytest.raises(ClipMismatch, match=words):
            run(bucket, generate_audio=True, check_content=True, on_mismatch="fail", deferrable=deferrable)
    assert (gateway.billed, keys(s3, bucket)) == (1, ["clip.mp4"])
    assert run(bucket, generate_audio=True).xcoms["clip"]["mismatches"] == []


@pytest.mark.parametrize("model", [VEO, SEEDANCE, HAILUO])
@pytest.mark.parametrize("sound", [False, True])
def test_a_look_inside_a_right_clip_finds_nothing(
    model: str, sound: bool, gateway: Emulator, bucket: str
) -> None:
    """With and without sound, whichever model."""
    audio: dict[str, Any] = {} if model == HAILUO else {"generate_audio": sound}
    done = run(bucket, model=model, check_content=True, on_mismatch="fail", **audio)
    assert done.xcoms["clip"]["mismatches"] == []


def test_on_mismatch_is_checked_when_the_dag_is_read() -> None:
    """A misspelt value is refused before anything runs."""
    with pytest.raises(InvalidRequest, match="on_mismatch='ignore'"):
        run("b", on_mismatch="ignore")


# --- a link that is refused ---


def test_a_link_that_is_refused_again_later_is_lost(
    gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link without a known end: refused at once it may live, refused after its time it has run out."""
    gateway.serving = "raw"
    gateway.fail_next(ClipFault.web_filter(), times=3)
    for _ in range(2):
        with pytest.raises(ClipTransferError):
            run(bucket)
    assert gateway.billed == 1
    limits = replace(CodeGatewayVideoHook.limits, link_patience=0.0)
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", limits)
    assert run(bucket).xcoms["clip"]["renders_bought"] == 2
    assert gateway.billed == 2


@pytest.mark.parametrize("status", [404, 410])
def test_a_clip_that_is_gone_is_rendered_again_within_max_renders(
    status: int, deferrable: bool, gateway: Emulator, bucket: str
) -> None:
    """It is lost, and a retry does not ask for it for ever."""
    gateway.fail_next(ClipFault.status(status), times=8)
    with pytest.raises(ClipExpired, match="is gone"):
        run(bucket, deferrable=deferrable)
    assert run(bucket, deferrable=deferrable).xcoms["clip"]["renders_bought"] == 2
    assert gateway.billed == 2


# --- beside the clip ---


def picture(s3: S3Client, uri: str) -> VideoFrame:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return frames(s3.get_object(Bucket=bucket, Key=key)["Body"].read())[0]


def frames(content: bytes) -> list[VideoFrame]:
    with av.open(io.BytesIO(content), "r") as container:
        return [
            frame.reformat(format="rgb24", src_colorspace="ITU601") for frame in container.decode(video=0)
        ]


def distance(one: VideoFrame, other: VideoFrame) -> float:
    """How far two pictures are from each other, on average of all pixels and colours, of 255."""
    assert (one.width, one.height) == (other.width, other.height)
    pixels = [bytes(frame.planes[0])[::31] for frame in (one, other)]
    total: int = sum(abs(a - b) for a, b in zip(*pixels, strict=True))
    return total / len(pixels[0])


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_the_first_and_the_last_picture_are_put_beside_the_clip(
    ending: str, deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """As they are in the clip, under their own types, with their URIs in the XCom."""
    done = run(
        bucket, poster_key=f"posters/{{{{ ds }}}}{ending}", last_frame_key=ending, deferrable=deferrable
    )
    clip = done.xcoms["clip"]
    assert clip["poster"].startswith(f"s3://{bucket}/posters/20")
    assert clip["last_frame"] == f"s3://{bucket}/clip.mp4{ending}"
    inside = frames(s3.get_object(Bucket=bucket, Key="clip.mp4")["Body"].read())
    assert distance(picture(s3, clip["poster"]), inside[0]) < 1.5
    assert distance(picture(s3, clip["last_frame"]), inside[-1]) < 1.5
    head = s3.head_object(Bucket=bucket, Key=f"clip.mp4{ending}")
    assert head["ContentType"] == {".png": "image/png", ".jpg": "image/jpeg"}[ending]
    assert gateway.billed == 1


@pytest.mark.parametrize(
    ("degrees", "aspect", "size", "corner"),
    [
        (0, Fraction(1), (96, 64), (0, 0)),
        (90, Fraction(1), (64, 96), (1, 0)),
        (180, Fraction(1), (96, 64), (1, 1)),
        (270, Fraction(1), (64, 96), (0, 1)),
        (0, Fraction(2), (192, 64), (0, 0)),
        (90, Fraction(2), (64, 192), (1, 0)),
    ],
)
def test_pictures_are_turned_and_stretched_as_players_show_the_clip(
    degrees: int,
    aspect: Fraction,
    size: tuple[int, int],
    corner: tuple[int, int],
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
) -> None:
    """The next clip of a chain would begin with them. ``degrees`` to the right; the mark is at the top left."""
    gateway.serve_clip(marked_mp4(degrees, aspect))
    clip = run(bucket, poster_key=".png", last_frame_key=".jpg").xcoms["clip"]
    assert (clip["facts"]["width"], clip["facts"]["height"]) == size
    for name in ("poster", "last_frame"):
        shown = picture(s3, clip[name])
        assert (shown.width, shown.height) == size
        assert brightest_corner(shown) == corner


def marked_mp4(degrees: int, aspect: Fraction) -> bytes:
    """96 x 64 pixels in black, with a white mark at the top left, turned by its matrix alone."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        frame = VideoFrame(96, 64, "gray")
        stride = frame.planes[0].line_size
        rows = [bytes([255 * (y < 16)]) * 24 + bytes(stride - 24) for y in range(64)]
        frame.planes[0].update(b"".join(rows))
        for number in range(8):
            shown = frame.reformat(format="yuv420p")
            shown.pts, shown.time_base = number, Fraction(1, 8)
            for packet in stream.encode(shown):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    clip = bytearray(out.getvalue())
    sine, cosine = {0: (0, 1), 90: (1, 0), 180: (0, -1), 270: (-1, 0)}[degrees]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 0x4000]
    struct.pack_into(">9i", clip, clip.index(b"tkhd") + 44, *(each << 16 for each in matrix))
    return bytes(clip)


def brightest_corner(frame: VideoFrame) -> tuple[int, int]:
    """As (right, bottom)."""
    plane = frame.planes[0]
    pixels = bytes(plane)
    light = {
        (right, bottom): pixels[
            (4 if not bottom else frame.height - 5) * plane.line_size
            + 3 * (4 if not right else frame.width - 5)
        ]
        for right in (0, 1)
        for bottom in (0, 1)
    }
    return max(light, key=lambda at: light[at])


def test_a_clip_that_is_found_gets_its_pictures_too(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """Wanted later on, they are made of the stored clip, for free."""
    run(bucket)
    done = run(bucket, "another", poster_key=".jpg")
    assert (done.xcoms["clip"]["reused"], done.xcoms["clip"]["poster"]) == (
        True,
        f"s3://{bucket}/clip.mp4.jpg",
    )
    assert gateway.billed == 1


def test_clips_are_chained_by_their_last_pictures(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """The first picture of the second clip is the last one of the first."""
    first = run(bucket, last_frame_key=".png")
    second = run(bucket, s3_key="second.mp4", image=first.xcoms["clip"]["last_frame"], prompt="on it goes")
    assert second.result == "second.mp4"
    one, two = (
        frames(s3.get_object(Bucket=bucket, Key=key)["Body"].read()) for key in ("clip.mp4", "second.mp4")
    )
    assert distance(one[-1], two[0]) < 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"poster_key": "clip.mp4"}, "is the key of something else"),
        ({"poster_key": "a.jpg", "last_frame_key": "a.jpg"}, "is the key of something else"),
        ({"sidecar_key": "_codegateway/clip.mp4/request.json"}, "is in the ledger"),
        ({"poster_key": "ledger/x.jpg", "ledger_prefix": "ledger"}, "is in the ledger"),
        ({"poster_key": "a.gif"}, "does not say which format"),
        ({"last_frame_key": "pictures/"}, "is not an S3 key"),
        ({"sidecar_key": "s3://bucket"}, "lacks a bucket or a key"),
        ({"sidecar_key": "s3://Not a bucket/a.json"}, "lacks a bucket or a key"),
        ({"sidecar_key": "None"}, "is not an S3 key"),
        ({"sidecar_key": "https://example.com/a.json"}, "is not an S3 key"),
        ({"poster_key": "file:///tmp/a.jpg"}, "is not an S3 key"),
        ({"poster_key": "a\nb.jpg"}, "is not an S3 key"),
        ({"poster_key": "a\x00.jpg"}, "is not an S3 key"),
        ({"poster_key": "\ud800.jpg"}, "is not an S3 key"),
        ({"poster_key": "a" * 1021 + ".jpg"}, "1 bytes too long"),
        ({"poster_key": "." + "a" * 1014 + ".jpg"}, "3 bytes too long"),
        ({"sidecar_key": "clip.mp4/request.json", "ledger_prefix": ""}, "is in the ledger"),
        ({"sidecar_key": "_codegateway/a/1.rendered", "ledger_prefix": "ledger"}, "is in the ledger"),
        ({"sidecar_key": "s3://other/_codegateway/a/x.json"}, "is in the ledger"),
        ({"s3_key": "https://example.com/a.mp4"}, "is not an S3 key"),
    ],
)
def test_a_key_that_cannot_be_is_refused_for_free(
    arguments: dict[str, Any], words: str, deferrable: bool, gateway: Emulator, bucket: str
) -> None:
    """Before anything is bought."""
    with pytest.raises(InvalidRequest, match=words):
        run(bucket, deferrable=deferrable, **arguments)
    assert gateway.ledger == ()


@pytest.mark.parametrize(
    "argument", [{"poster_key": ".jpg"}, {"last_frame_key": ".png"}, {"check_content": True}]
)
def test_a_missing_extra_is_refused_for_free(
    argument: dict[str, Any], gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without PyAV buys no clip whose pictures it cannot make."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidRequest, match=r"airflow-provider-codegateway\[media\]"):
        run(bucket, **argument)
    assert gateway.ledger == ()
    run(bucket)


def test_a_clip_that_cannot_be_decoded_is_delivered(
    deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str, said: Callable[[], str]
) -> None:
    """What fails after the purchase is a warning; the papers are written all the same."""
    gateway.serve_clip(mp4().replace(b"avc1", b"xxxx"))
    done = run(bucket, poster_key=".jpg", sidecar_key=".json", deferrable=deferrable)
    assert done.result == "clip.mp4"
    assert done.xcoms["clip"]["poster"] is None
    assert "could not be looked at: it could not be decoded" in said()
    assert keys(s3, bucket) == ["clip.mp4", "clip.mp4.json"]


def test_a_picture_that_cannot_be_stored_fails_nothing(
    gateway: Emulator, bucket: str, said: Callable[[], str]
) -> None:
    """Neither does a decoder that takes for ever."""
    done = run(bucket, poster_key="s3://no-such-bucket/a.jpg", sidecar_key=".json")
    assert done.xcoms["clip"]["poster"] is None
    assert "could not be looked at: NoSuchBucket" in said()


def test_a_decoder_that_takes_for_ever_fails_nothing(
    gateway: Emulator, bucket: str, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up."""
    limits = replace(CodeGatewayVideoHook.limits, look_timeout=0.001)
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", limits)
    assert run(bucket, poster_key=".jpg").result == "clip.mp4"
    assert "decoding it took more than 0 s" in said()


def test_the_papers_of_a_clip_say_where_it_comes_from(
    deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Request, model, fingerprint, digest, facts and times; no image, and no query of a URL."""
    s3.put_object(Bucket=bucket, Key="in.png", Body=png())
    done = run(
        bucket,
        model=SEEDANCE,
        image=f"s3://{bucket}/in.png",
        parameters={
            "last_frame_image": "https://example.com/last.png?X-Amz-Signature=topsecret&token=secret"
        },
        sidecar_key=".json",
        deferrable=deferrable,
    )
    text = s3.get_object(Bucket=bucket, Key="clip.mp4.json")["Body"].read().decode()
    papers, clip = json.loads(text), done.xcoms["clip"]
    assert papers["request"] == {
        "model": SEEDANCE,
        "prompt": "p",
        "duration": 4,
        "image": f"sha256:{hashlib.sha256(png()).hexdigest()}",
        "last_frame_image": "https://example.com/last.png",
    }
    assert "secret" not in text
    assert {name: papers[name] for name in ("uri", "sha256", "fingerprint", "facts", "model", "bytes")} == {
        name: clip[name] for name in ("uri", "sha256", "fingerprint", "facts", "model", "bytes")
    }
    assert (papers["c2pa"], papers["cost"], papers["renders_bought"]) == (None, None, 1)
    assert papers["asked_by"] == {"dag_id": "test", "task_id": "clip", "run_id": "run", "map_index": -1}
    assert datetime.fromisoformat(papers["created"]) <= datetime.fromisoformat(papers["written"])
    assert done.events == () or "topsecret" not in json.dumps(done.events)


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_the_papers_of_a_chain_that_names_a_model_twice_have_the_request_that_was_rendered(
    refused: int, deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """By its place in the chain, and not by the model's name."""
    fallbacks = [{"model": VEO, "resolution": "1080p"}, {"model": SEEDANCE, "duration": 5}]
    for _ in range(refused):
        gateway.fail_next(Fault.status(503, retry_after=9_999))
    run(bucket, fallbacks=fallbacks, sidecar_key=".json", deferrable=deferrable)
    papers = json.loads(s3.get_object(Bucket=bucket, Key="clip.mp4.json")["Body"].read())
    rendered = [render.request for render in gateway.ledger if render.billed_at]
    assert [papers["request"]] == rendered


def test_a_function_chooses_the_keys_beside_its_clip(
    deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """It runs once, before the task defers; the worker that resumes puts everything where it said."""
    with DAG("chosen", schedule=None):

        @task.generate_video(task_id="clip", s3_bucket=bucket, deferrable=deferrable)
        def paint() -> dict[str, Any]:
            return {**REQUEST, "s3_key": "a.mp4", "poster_key": "a.jpg", "sidecar_key": "a.json"}

        operator: Any = paint()
    done = run_task(operator.operator)
    assert done.xcoms["clip"]["poster"] == f"s3://{bucket}/a.jpg"
    assert keys(s3, bucket) == ["a.jpg", "a.json", "a.mp4"]
    papers = json.loads(s3.get_object(Bucket=bucket, Key="a.json")["Body"].read())
    assert papers["request"] == {**REQUEST, "duration": "4s"}
