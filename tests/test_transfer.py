"""Clip URL → S3: byte for byte or not at all."""

from __future__ import annotations

import gc
import gzip
import hashlib
import itertools
import logging
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clip_server import Answer, ClipServer
from hypothesis import given
from hypothesis import strategies as st
from media_samples import mp4, mp4_of

from airflow_provider_codegateway.clip import Facts, S3Location
from airflow_provider_codegateway.exceptions import ClipExpired, ClipTransferError, InvalidRequest
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.net import tls_context
from airflow_provider_codegateway.transfer import StoredClip, Transfer, require_upload_args
from airflow_provider_codegateway.transfer.upload import PartBody, PartCutter, Upload, UploadTarget

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KIB, MIB = 1024, 1024 * 1024
KEY = "out/clip.mp4"
ODD_WRITES = (1, 700_001, 7, 65_536, 99_991)


HASTY = Limits(first_backoff=0.0, max_backoff=0.0)
FACTS = Facts(width=64, height=64, duration=1.0, fps=1.0, codec="h264", audio=False)


def transfer_from(url: str, s3: S3Client, bucket: str, *, limits: Limits = HASTY, **options: Any) -> Transfer:
    target = S3Location(bucket, KEY)
    return Transfer(
        url, s3=s3, target=target, metadata=lambda facts: {"model": "veo"}, limits=limits, **options
    )


def bring(server: ClipServer, s3: S3Client, bucket: str, **options: Any) -> StoredClip:
    return transfer_from(server.url, s3, bucket, **options).run()


def assert_stored(s3: S3Client, bucket: str, clip: bytes, stored: StoredClip) -> None:
    s3_object = s3.get_object(Bucket=bucket, Key=KEY)
    assert s3_object["Body"].read() == clip
    assert (s3_object["ContentType"], s3_object["Metadata"]) == ("video/mp4", {"model": "veo"})
    assert (stored.bytes, stored.sha256) == (len(clip), hashlib.sha256(clip).hexdigest())
    assert stored.facts == FACTS
    assert_no_open_upload(s3, bucket)


def assert_no_open_upload(s3: S3Client, bucket: str) -> None:
    assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def assert_nothing(s3: S3Client, bucket: str) -> None:
    assert s3.list_objects_v2(Bucket=bucket).get("Contents", []) == []
    assert_no_open_upload(s3, bucket)


def bring_nothing(server: ClipServer, s3: S3Client, bucket: str, **options: Any) -> ClipTransferError:
    with pytest.raises(ClipTransferError) as caught:
        bring(server, s3, bucket, **options)
    assert_nothing(s3, bucket)
    assert "topsecret" not in str(caught.value)
    return caught.value


# --- whole clips ---

SIZES = [2_000, 5 * MIB - 1, 8 * MIB, 8 * MIB + 1, 100 * MIB]


@pytest.mark.parametrize(
    ("size", "chunked"), [*((size, False) for size in SIZES), *((size, True) for size in SIZES[:-1])]
)
def test_clip_arrives_byte_for_byte(s3: S3Client, bucket: str, size: int, chunked: bool) -> None:
    """A clip of any size arrives as it is, from writes of any size, with type, metadata, size and SHA-256."""
    clip = mp4_of(size)
    with ClipServer(clip, Answer(chunked=chunked), writes=ODD_WRITES) as server:
        stored = bring(server, s3, bucket)
    assert_stored(s3, bucket, clip, stored)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_broken_download_goes_on_where_it_stopped(s3: S3Client, bucket: str, size: int, reset: bool) -> None:
    """After 3 broken connections the clip is whole, and was not downloaded from the start again."""
    clip = mp4_of(size)
    breaks = [Answer(cut=size // 4, reset=reset) for _ in range(3)]
    with ClipServer(clip, *breaks, writes=ODD_WRITES) as server:
        stored = bring(server, s3, bucket)
    assert_stored(s3, bucket, clip, stored)
    assert len(server.requests) == 4
    for request in server.requests[1:]:
        assert ("range" in request.headers) == ("if-range" in request.headers)
    if not reset:
        assert [r.headers.get("range") for r in server.requests[1:]] == [
            f"bytes={size // 4 * turn}-" for turn in (1, 2, 3)
        ]


@pytest.mark.parametrize(("size", "creations"), [(8 * MIB, 0), (8 * MIB + 1, 1)])
def test_clip_of_one_part_needs_no_multipart_upload(
    s3: S3Client, bucket: str, size: int, creations: int
) -> None:
    """A clip that fits in one part is one PutObject; a longer one is a multipart upload."""
    calls: list[str] = []
    s3.meta.events.register("before-call.s3", lambda model, **_: calls.append(model.name), unique_id="count")
    try:
        with ClipServer(mp4_of(size)) as server:
            bring(server, s3, bucket)
    finally:
        s3.meta.events.unregister("before-call.s3", unique_id="count")
    assert calls.count("CreateMultipartUpload") == creations
    assert calls.count("PutObject") == 1 - creations


def test_older_object_is_replaced(s3: S3Client, bucket: str) -> None:
    """What lay at the key before is replaced by the whole clip."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=b"old")
    clip = mp4_of(9 * MIB)
    with ClipServer(clip) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


# --- what is not stored ---


@pytest.mark.parametrize(
    "body", [b"", b"\x00", b"<html>" * 100, b"x" * (20 * MIB)], ids=["empty", "1-byte", "html", "20-MiB"]
)
def test_what_is_no_mp4_is_refused(s3: S3Client, bucket: str, body: bytes) -> None:
    """Neither nothing nor something else becomes an object, whatever its size."""
    with ClipServer(body) as server:
        error = bring_nothing(server, s3, bucket)
    assert "no bytes" in str(error) if not body else "not a video" in str(error)


@pytest.mark.parametrize(("size", "claimed"), [(MIB, 1), (MIB, 1000), (8 * MIB, 1), (9 * MIB, 1000)])
@pytest.mark.parametrize("kind", ["cut", "transport stream"])
def test_length_that_is_too_long_is_never_believed(
    s3: S3Client, bucket: str, size: int, claimed: int, kind: str
) -> None:
    """Where the clip itself cannot tell, that ends in an error after a bounded number of requests."""
    packet = b"\x47" + bytes(187)
    body = mp4_of(size)[:-100] if kind == "cut" else packet * (size // len(packet))
    lie = Answer(length=len(body) + claimed)
    with ClipServer(body, *[lie] * 50) as server:
        bring_nothing(server, s3, bucket)
    assert len(server.requests) < 20


@pytest.mark.parametrize("then", [Answer(status=503), Answer(cut=0, ignore_range=True)])
def test_what_follows_the_media_is_not_given_up_for_another_failure(
    s3: S3Client, bucket: str, then: Answer
) -> None:
    """Cut at the end of a box, and then a failure of another kind: the third connection brings the rest."""
    clip = mp4_of(2_000)
    with ClipServer(clip, Answer(cut=len(mp4())), then, etag="") as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert len(server.requests) == 3


def test_a_part_of_another_clip_does_not_go_on(s3: S3Client, bucket: str) -> None:
    """A host without ETags, whose replica has another clip of the same length."""
    old, new = mp4_of(9_000), mp4_of(9_000, bytes(range(1, 250)))
    with ClipServer(new, Answer(body=old, cut=4_000), etag="") as server:
        server.last_modified = "Mon, 02 Nov 2026 10:00:00 GMT"
        part = raw(
            b"HTTP/1.1 206 Partial",
            b"Content-Range: bytes 4000-8999/9000",
            b"Last-Modified: Tue, 03 Nov 2026 10:00:00 GMT",
            body=new[4_000:],
        )
        server.answers.extend([part, Answer(body=new)])
        assert_stored(s3, bucket, new, bring(server, s3, bucket))


@pytest.mark.parametrize("kind", ["mp4", "transport stream"])
def test_a_part_that_does_not_say_which_is_not_taken_for_the_whole(
    s3: S3Client, bucket: str, kind: str
) -> None:
    """206 without Content-Range, in answer to a request for the rest."""
    packet = b"\x47" + bytes(187)
    clip = mp4_of(4_000) if kind == "mp4" else packet * 40
    part = raw(b"HTTP/1.1 206 Partial", b"Content-Length: 1000", b'ETag: "one"', body=clip[-1000:])
    with ClipServer(clip, Answer(cut=len(clip) - 1000), part) as server:
        stored = bring(server, s3, bucket)
    assert stored.bytes == len(clip)
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == clip


def test_failed_transfer_leaves_the_older_object(s3: S3Client, bucket: str) -> None:
    """An object that was at the key survives a transfer that fails in the middle."""
    s3.put_object(Bucket=bucket, Key=KEY, Body=b"old")
    with (
        ClipServer(mp4_of(20 * MIB), Answer(cut=17 * MIB), Answer(status=418)) as server,
        pytest.raises(ClipTransferError, match="answered 418"),
    ):
        bring(server, s3, bucket)
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == b"old"
    assert_no_open_upload(s3, bucket)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_any_exception_aborts_the_upload(
    s3: S3Client, bucket: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that falls on the caller in mid-download, as a signal's does, leaves nothing behind."""
    taken = 0
    filled = Upload.filled

    def interrupted(self: Upload, count: int) -> None:
        nonlocal taken
        taken += count
        if taken > 18 * MIB:
            raise kind
        filled(self, count)

    monkeypatch.setattr(Upload, "filled", interrupted)
    with ClipServer(mp4_of(20 * MIB)) as server, pytest.raises(kind):
        bring(server, s3, bucket)
    assert_nothing(s3, bucket)


@pytest.mark.parametrize("size", [MIB, 20 * MIB])
def test_cancelling_ends_a_silent_download(s3: S3Client, bucket: str, size: int) -> None:
    """Another thread ends a transfer that waits for its host, and nothing is left."""
    hold = threading.Event()
    with ClipServer(mp4_of(size), Answer(hold=hold)) as server, ThreadPoolExecutor(1) as thread:
        transfer = transfer_from(server.url, s3, bucket)
        running = thread.submit(transfer.run)
        assert server.asked.wait(10)
        transfer.stop()
        with pytest.raises(ClipTransferError, match="cancelled"):
            running.result()
        hold.set()
    assert_nothing(s3, bucket)


# --- whole or not ---

CLOSED = Answer(length=None)
"""A body that ends with its connection: nothing but the container says whether it is whole."""


@pytest.mark.parametrize("size", [2_000, MIB, 20 * MIB])
@pytest.mark.parametrize("part", [0.0001, 0.3, 0.999])
def test_half_a_clip_of_unknown_length_is_never_stored(
    s3: S3Client, bucket: str, size: int, part: float
) -> None:
    """A host without Content-Length that hangs up in the middle, and goes on from there, brings the whole clip."""
    clip = mp4_of(size)
    cut = Answer(length=None, cut=int(size * part))
    with ClipServer(clip, cut, CLOSED) as server:
        if cut.cut:
            assert_stored(s3, bucket, clip, bring(server, s3, bucket))
            assert server.requests[1].headers["range"] == f"bytes={cut.cut}-"
        else:
            bring_nothing(server, s3, bucket)


@pytest.mark.parametrize("size", [4_000, 20 * MIB])
@pytest.mark.parametrize("etag", ['"one"', ""], ids=["ranges", "no ranges"])
def test_a_clip_that_stays_cut_is_not_stored(s3: S3Client, bucket: str, size: int, etag: str) -> None:
    """Whether the half is all that there is, or each connection ends there: an error after a second look."""
    half = mp4_of(size)[: size // 2]
    with ClipServer(half, *[CLOSED] * 9, etag=etag) as server:
        error = bring_nothing(server, s3, bucket)
    assert "is not whole: its free box goes on" in str(error)
    assert len(server.requests) < 5


@pytest.mark.parametrize("claimed", [1, 1000])
def test_a_length_that_is_too_short_is_not_believed(s3: S3Client, bucket: str, claimed: int) -> None:
    """A host that announces and sends less than there is is asked for the rest."""
    clip = mp4_of(MIB)
    lie = Answer(length=MIB - claimed, cut=MIB - claimed)
    with ClipServer(clip, lie) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


@pytest.mark.parametrize(
    "answer", [CLOSED, Answer(chunked=True), Answer()], ids=["closed", "chunked", "length"]
)
@pytest.mark.parametrize("movflags", ["faststart", "", "frag_keyframe+empty_moov"])
def test_a_whole_clip_is_known_without_a_length(
    s3: S3Client, bucket: str, answer: Answer, movflags: str
) -> None:
    """Index first, index last and fragments: the container is enough, and its facts are the same."""
    clip = mp4(movflags=movflags)
    with ClipServer(clip, answer) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert len(server.requests) == 1


@pytest.mark.parametrize("first", [b"styp", b"free", b"skip", b"wide"])
def test_an_mp4_may_begin_with_any_box(s3: S3Client, bucket: str, first: bytes) -> None:
    """What begins with another box than `ftyp` is an MP4 all the same."""
    clip = mp4()[:4] + first + mp4()[8:]
    with ClipServer(clip, CLOSED) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


TS = (b"\x47" + bytes(187)) * 20


@pytest.mark.parametrize(
    ("clip", "media_type"),
    [
        (mp4()[:8] + b"qt  " + mp4()[12:], "video/quicktime"),
        (b"\x1aE\xdf\xa3\x87\x42\x82\x84webm" + b"\x18S\x80g\x10\x00\x10\x00" + bytes(0x1000), "video/webm"),
        (b"\x1aE\xdf\xa3\x8b\x42\x82\x88matroska" + b"\x18S\x80g\xff" + bytes(0x1000), "video/x-matroska"),
        (b"RIFF" + (2004).to_bytes(4, "little") + b"AVI " + bytes(2000), "video/x-msvideo"),
        (TS, "video/mp2t"),
    ],
    ids=["mov", "webm", "mkv", "avi", "ts"],
)
def test_other_videos_are_stored_as_what_they_are(
    s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture, clip: bytes, media_type: str
) -> None:
    """What was paid for is kept, under its own type and with a warning."""
    with ClipServer(clip) as server:
        stored = bring(server, s3, bucket)
    s3_object = s3.get_object(Bucket=bucket, Key=KEY)
    assert s3_object["Body"].read() == clip
    assert (s3_object["ContentType"], stored.media_type) == (media_type, media_type)
    assert media_type in caplog.text


@pytest.mark.parametrize(
    "clip",
    [
        b"\x1aE\xdf\xa3\x87\x42\x82\x84webm" + b"\x18S\x80g\x10\x00\x10\x00" + bytes(0x800),
        b"RIFF" + (2004).to_bytes(4, "little") + b"AVI " + bytes(1000),
        TS,
    ],
    ids=["webm", "avi", "ts"],
)
def test_half_of_another_video_is_not_stored(s3: S3Client, bucket: str, clip: bytes) -> None:
    """Where the container says that something is missing; and where neither it nor the host says anything."""
    closed = replace(CLOSED, ignore_range=True)
    with ClipServer(clip, *[closed] * 9, etag="") as server:
        error = bring_nothing(server, s3, bucket)
    assert "ended twice" in str(error)


def test_a_video_without_an_end_of_its_own_is_whole_where_a_range_tells_how_long_it_is(
    s3: S3Client, bucket: str
) -> None:
    """Its host gives no length with the whole, and a total with a part."""
    with ClipServer(TS, CLOSED, etag="") as server:
        assert bring(server, s3, bucket).bytes == len(TS)
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=0-"]


@pytest.mark.parametrize("resumed", [False, True], ids=["at once", "after a break"])
def test_the_end_of_a_piece_is_not_that_of_the_clip(s3: S3Client, bucket: str, resumed: bool) -> None:
    """A part of unknown total has a length: its own. A video without an end of its own is not whole by that."""
    half = TS[: len(TS) // 2]
    begin = len(half) // 2 if resumed else 0

    def piece(at: int) -> Answer:
        body = half[at:]
        head = f"Content-Range: bytes {at}-{len(half) - 1}/*\r\nContent-Length: {len(body)}\r\n"
        return Answer(raw=f"HTTP/1.1 206 X\r\n{head}\r\n".encode() + body)

    first = [Answer(cut=begin)] if resumed else []
    with ClipServer(TS, *first, *[piece(0)] * 9, etag="") as server:
        bring_nothing(server, s3, bucket)


def test_a_rest_that_brings_nothing_new_is_not_the_end(s3: S3Client, bucket: str) -> None:
    """Less than what was asked for again to be compared."""
    short = b"HTTP/1.1 206 X\r\nContent-Range: bytes 0-99/*\r\nContent-Length: 100\r\n\r\n" + TS[:100]
    with ClipServer(TS, Answer(cut=len(TS) // 2), *[Answer(raw=short)] * 9, etag="") as server:
        bring_nothing(server, s3, bucket)


def test_a_host_that_says_that_nothing_follows_is_believed(s3: S3Client, bucket: str) -> None:
    """A video whose container does not say where it ends, without a length: a range behind its end tells."""
    end = Answer(status=416, headers={"Content-Range": f"bytes */{len(TS)}"})
    with ClipServer(TS, CLOSED, end) as server:
        assert bring(server, s3, bucket).bytes == len(TS)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b'{"error": "gone"}', "JSON"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
    ],
)
@pytest.mark.parametrize("padding", [0, 9 * MIB])
def test_pages_and_errors_are_no_clips(
    s3: S3Client, bucket: str, body: bytes, words: str, padding: int
) -> None:
    """What came in place of a video is named, and never stored."""
    with ClipServer(body + b" " * padding) as server:
        assert words in str(bring_nothing(server, s3, bucket))


# --- resuming ---


def test_changed_clip_is_taken_from_its_start(s3: S3Client, bucket: str) -> None:
    """When the ETag changes between connections, parts and SHA-256 begin anew; no old byte is stored."""
    old, new = mp4_of(30 * MIB), mp4_of(21 * MIB, b"new")
    with ClipServer(old, Answer(cut=26 * MIB), Answer(body=new, etag='"two"')) as server:
        assert_stored(s3, bucket, new, bring(server, s3, bucket))


def test_server_without_ranges_is_asked_from_the_start(s3: S3Client, bucket: str) -> None:
    """A host that answers 200 to a Range is read from byte 0."""
    clip = mp4_of(20 * MIB)
    answers = [Answer(cut=18 * MIB), Answer(ignore_range=True, cut=MIB), Answer(ignore_range=True)]
    with ClipServer(clip, *answers) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


@pytest.mark.parametrize(
    "wrong",
    [
        Answer(content_range="bytes 5-9/100"),
        Answer(content_range="nonsense"),
        Answer(status=416),
        Answer(headers={"ETag": '"other"'}),
    ],
    ids=["range", "nonsense", "416", "etag"],
)
def test_another_range_than_asked_for_is_not_used(s3: S3Client, bucket: str, wrong: Answer) -> None:
    """A partial answer that does not fit what is there is dropped, and the clip is read from its start."""
    clip = mp4_of(20 * MIB)
    with ClipServer(clip, Answer(cut=10 * MIB), wrong) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert "range" not in server.requests[2].headers


@pytest.mark.parametrize(
    ("etag", "last_modified", "condition", "begin"),
    [
        ('"strong"', None, '"strong"', 9 * MIB),
        ('W/"weak"', None, None, 9 * MIB - 4 * KIB),
        ("", None, None, 9 * MIB - 4 * KIB),
        (
            "",
            "Sat, 01 Nov 2025 10:00:00 GMT",
            "Sat, 01 Nov 2025 10:00:00 GMT",
            9 * MIB,
        ),
    ],
)
def test_a_resume_is_bound_to_a_strong_validator_or_compared(
    s3: S3Client, bucket: str, etag: str, last_modified: str | None, condition: str | None, begin: int
) -> None:
    """Range goes with If-Range, a strong ETag or a date; without either the last bytes are asked for again."""
    clip = mp4_of(10 * MIB)
    with ClipServer(clip, Answer(cut=9 * MIB), etag=etag) as server:
        server.last_modified = last_modified
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert server.requests[1].headers.get("if-range") == condition
    assert server.requests[1].headers["range"] == f"bytes={begin}-"
    assert len(server.requests) == 2


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
@pytest.mark.parametrize("cut", [5 * MIB, 40 * KIB, 1])
def test_two_clips_are_never_mixed(s3: S3Client, bucket: str, etag: str, cut: int) -> None:
    """Another replica has another clip of the same length, and nothing in its head tells them apart."""
    first, second = mp4_of(10 * MIB), mp4_of(10 * MIB, bytes(range(7, 255)) * 4000)
    with ClipServer(first, Answer(cut=cut), Answer(body=second), etag=etag) as server:
        assert_stored(s3, bucket, second, bring(server, s3, bucket))


def test_a_host_that_always_answers_in_pieces_is_asked_piece_by_piece(s3: S3Client, bucket: str) -> None:
    """Some delivery networks give a mebibyte at a time, also to who asked for all."""
    clip = mp4_of(3 * MIB)

    def piece(at: int) -> Answer:
        body = clip[at : at + MIB]
        head = f"Content-Range: bytes {at}-{at + MIB - 1}/{len(clip)}\r\nContent-Length: {len(body)}\r\n"
        return Answer(raw=f'HTTP/1.1 206 X\r\nETag: "one"\r\n{head}\r\n'.encode() + body)

    pieces = [piece(at) for at in range(0, len(clip), MIB)]
    with ClipServer(clip, *pieces) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert [request.headers.get("range") for request in server.requests] == [
        None,
        f"bytes={MIB}-",
        f"bytes={2 * MIB}-",
    ]


def test_progress_renews_the_resumes(s3: S3Client, bucket: str) -> None:
    """Any number of breaks is gone on from, as long as each connection brings something."""
    clip = mp4_of(MIB)
    breaks = [Answer(cut=32 * KIB) for _ in range(3 * LIMITS.max_failures)]
    with ClipServer(clip, *breaks) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


def test_small_pieces_before_resets_count(s3: S3Client, bucket: str) -> None:
    """A host that resets each connection after a few KiB is gone on from too."""
    clip = mp4_of(200 * KIB)
    breaks = [Answer(cut=20 * KIB, reset=True) for _ in range(4)]
    with ClipServer(clip, *breaks) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


@pytest.mark.parametrize(
    "answer", [Answer(cut=0), Answer(status=503), Answer(status=429), Answer(status=500)]
)
def test_failures_without_progress_are_bounded(s3: S3Client, bucket: str, answer: Answer) -> None:
    """A host that brings nothing, or answers 5xx or 429, is asked again a bounded number of times."""
    with ClipServer(mp4_of(MIB), *[answer] * 50) as server:
        error = bring_nothing(server, s3, bucket)
    assert len(server.requests) == LIMITS.max_failures + 1
    assert not isinstance(error, ClipExpired)
    assert f"127.0.0.1:{server.url.split(':')[2].split('/')[0]}/clips/one.mp4" in str(error)


def test_host_that_recovers_is_enough(s3: S3Client, bucket: str) -> None:
    """503 in the middle of a clip keeps what is there: the next request goes on."""
    clip = mp4_of(20 * MIB)
    with ClipServer(clip, Answer(cut=10 * MIB), Answer(status=503), Answer(status=429)) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert server.requests[3].headers["range"] == f"bytes={10 * MIB}-"


def test_nobody_listens(s3: S3Client, bucket: str) -> None:
    """A refused connection is a bounded number of tries and then an error that names the host."""
    with ClipServer(b"") as server:
        url = server.url
    with pytest.raises(ClipTransferError, match=r"Connection refused") as caught:
        transfer_from(url, s3, bucket).run()
    assert "topsecret" not in str(caught.value)


# --- refusals and redirects ---

DENIED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
FUTURE = {"Date": formatdate(time.time() + 7200, usegmt=True)}
FAR_FUTURE = {"Date": "Fri, 01 Jan 2100 00:00:00 GMT"}


@pytest.mark.parametrize("status", [400, 401, 403])
def test_expiry_is_told_by_the_servers_clock(s3: S3Client, bucket: str, status: int) -> None:
    """A refusal after `expires_at`, by the Date of the answer, means that the link has run out."""
    in_an_hour = time.time() + 3600
    with ClipServer(b"no", Answer(status=status, headers=FUTURE)) as server, pytest.raises(ClipExpired):
        bring(server, s3, bucket, expires_at=in_an_hour)
    for headers in ({}, FAR_FUTURE):  # whose clock is years off is not believed
        with ClipServer(b"no", Answer(status=status, headers=headers)) as server:
            error = bring_nothing(server, s3, bucket, expires_at=in_an_hour)
        assert not isinstance(error, ClipExpired)
        assert str(status) in str(error)


@pytest.mark.parametrize(
    "words",
    [
        DENIED,
        b'<?xml version="1.0"?>\n<Error xmlns="http://doc.s3.example/2006"><Code>RequestExpired</Code></Error>',
        b"<Error><Code>ExpiredRequest</Code><Message>Request has expired</Message></Error>",
        b'{"Code":"AccessDenied","RequestId":"0a","HostId":"1b","Message":"Request has expired","EC":"0003"}',
    ],
)
def test_expiry_is_told_by_the_body(words: bytes, s3: S3Client, bucket: str) -> None:
    """A store's "Request has expired" means that the link has run out, with no `expires_at` at all."""
    with ClipServer(words, Answer(status=403)) as server, pytest.raises(ClipExpired) as caught:
        bring(server, s3, bucket)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("status", [404, 410])
def test_a_link_that_is_gone_is_lost(s3: S3Client, bucket: str, status: int) -> None:
    """Told so each time it asks, over some seconds, the download gives the clip up."""
    with (
        ClipServer(b"no", *[Answer(status=status)] * (LIMITS.max_absences + 1)) as server,
        pytest.raises(ClipExpired, match="is gone") as caught,
    ):
        bring(server, s3, bucket, expires_at=time.time() + 3600)
    assert "topsecret" not in str(caught.value)
    assert_nothing(s3, bucket)


@pytest.mark.parametrize("status", [404, 410])
def test_a_clip_that_is_not_there_yet_is_waited_for(s3: S3Client, bucket: str, status: int) -> None:
    """A delivery network may say so of a fresh clip for seconds: another render would be paid for in vain."""
    clip = mp4_of(20_000)
    with ClipServer(clip, *[Answer(status=status)] * 3) as server:
        bring(server, s3, bucket, expires_at=time.time() + 3600)
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == clip


def test_one_not_found_after_other_failures_does_not_lose_the_clip(s3: S3Client, bucket: str) -> None:
    """A host that is down, and says "not found" in between, has not said that the clip is gone."""
    answers = [*[Answer(status=503)] * 5, Answer(status=404)]
    with ClipServer(mp4_of(20_000), *answers) as server:
        error = bring_nothing(server, s3, bucket, expires_at=time.time() + 3600)
    assert not isinstance(error, ClipExpired)


def test_an_etag_that_no_header_can_hold_is_not_sent_back(s3: S3Client, bucket: str) -> None:
    """The download that broke begins again."""
    clip = mp4_of(20_000)
    odd = '"gr\u00f6\u00dfe"'
    with ClipServer(clip, Answer(cut=len(clip) // 2, etag=odd)) as server:
        bring(server, s3, bucket)
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == clip


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
@pytest.mark.parametrize("expires_in", [None, 3600.0])
def test_a_web_filter_knows_nothing_of_the_link(
    s3: S3Client, bucket: str, status: int, expires_in: float | None
) -> None:
    """A foreign page that says "session has expired" costs no clip: the link may live."""
    page = b"<!DOCTYPE html>\n<html><body>Your session has expired</body></html>"
    expires_at = None if expires_in is None else time.time() + expires_in
    with ClipServer(page, Answer(status=status)) as server:
        error = bring_nothing(server, s3, bucket, expires_at=expires_at)
    assert not isinstance(error, ClipExpired)


@pytest.mark.parametrize(
    "body",
    [
        DENIED,
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>ExpiredToken</Code><Message>x</Message></Error>',
        b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature not valid"
        b" in the specified time frame</AuthenticationErrorDetail></Error>",
    ],
    ids=["S3", "token", "Azure"],
)
def test_a_store_says_itself_that_a_link_has_run_out(s3: S3Client, bucket: str, body: bytes) -> None:
    """In its XML, whatever the gateway said of the link's end."""
    with ClipServer(body, Answer(status=403)) as server, pytest.raises(ClipExpired):
        bring(server, s3, bucket, expires_at=time.time() + 3600)


def test_link_that_expires_in_mid_download(s3: S3Client, bucket: str) -> None:
    """A resume that is refused because the link ran out aborts the upload and says so."""
    refusal = Answer(status=403, body=DENIED, ignore_range=True)
    with (
        ClipServer(mp4_of(30 * MIB), Answer(cut=20 * MIB), refusal) as server,
        pytest.raises(ClipExpired),
    ):
        bring(server, s3, bucket)
    assert_nothing(s3, bucket)


def test_redirects_are_followed(s3: S3Client, bucket: str) -> None:
    """Five redirects are followed, relative ones too."""
    hops = [Answer(status=code, headers={"Location": f"/{code}?next"}) for code in (301, 302, 303, 307, 308)]
    clip = mp4_of(2_000)
    with ClipServer(clip, *hops) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert server.requests[-1].path == "/308?next"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([Answer(status=302, headers={"Location": "/again"})] * 6, "more than 5"),
        ([Answer(status=302)], "without a Location"),
        ([Answer(status=302, headers={"Location": "file:///etc/passwd?topsecret"})], "not an http or https"),
    ],
)
def test_bad_redirects_are_refused(s3: S3Client, bucket: str, answers: list[Answer], words: str) -> None:
    """Too many redirects, one to nowhere, and one that leaves HTTP are errors."""
    with ClipServer(mp4_of(2_000), *answers) as server:
        assert words in str(bring_nothing(server, s3, bucket))


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The certificate of the tests, trusted by this process."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_context.cache_clear()
    yield certificate
    tls_context.cache_clear()


def test_redirect_from_https_to_http_is_refused(s3: S3Client, bucket: str, trusted: Path) -> None:
    """What began encrypted does not go on in the clear."""
    elsewhere = Answer(status=302, headers={"Location": "http://clips.example/?topsecret"})
    with ClipServer(b"", elsewhere, certificate=trusted) as server:
        assert "from https to http" in str(bring_nothing(server, s3, bucket))


def test_redirect_from_https_to_http_is_followed_where_it_is_allowed(
    s3: S3Client, bucket: str, trusted: Path
) -> None:
    """With {"http_links": "allow"} in the connection."""
    with ClipServer(CLIP) as plain:
        elsewhere = Answer(status=302, headers={"Location": plain.url})
        with ClipServer(b"", elsewhere, certificate=trusted) as server:
            assert_stored(s3, bucket, CLIP, bring(server, s3, bucket, allows_http=True))


@pytest.mark.parametrize("location", ["/clips/été.mp4?s=a%2Fb", "/clips/%C3%A9t%C3%A9.mp4?s=a%2Fb"])
def test_a_redirect_is_followed_as_a_browser_does(s3: S3Client, bucket: str, location: str) -> None:
    """Raw UTF-8 is percent-encoded once, and what is encoded already stays as it is."""
    clip = mp4_of(2_000)
    with ClipServer(clip, Answer(status=302, headers={"Location": location})) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert server.requests[-1].path == "/clips/%C3%A9t%C3%A9.mp4?s=a%2Fb"


@pytest.mark.parametrize("size", [2_000, 20 * MIB])
def test_a_clip_comes_over_tls(s3: S3Client, bucket: str, trusted: Path, size: int) -> None:
    """Byte for byte, too."""
    clip = mp4_of(size)
    with ClipServer(clip, certificate=trusted) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(trickle="head"),
        Answer(trickle="body"),
        Answer(chunked=True, trickle=b"5;x"),
        Answer(chunked=True, trickle=b"5\r\n12345\r\n0\r\nX"),
        Answer(raw=b"HTTP/1.1 103 Early Hints\r\n\r\n", trickle="head"),
    ],
    ids=["head", "body", "chunk extension", "trailer", "hints"],
)
def test_a_host_that_trickles_is_given_up(s3: S3Client, bucket: str, answer: Answer) -> None:
    """A byte now and then is no progress, whatever it belongs to."""
    limits = Limits(first_backoff=0, max_backoff=0, speed_window=0.2)
    with ClipServer(mp4_of(MIB), *[answer] * 9) as server:
        error = bring_nothing(server, s3, bucket, limits=limits)
    assert "sends less than 16 KiB a second" in str(error)


def raw(*lines: bytes, body: bytes) -> Answer:
    return Answer(raw=b"\r\n".join((*lines, b"Connection: close", b"", b"")) + body)


CLIP = mp4_of(2_000)


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"HTTP/1.1 200 OK", b"Bad Header: 1", b"garbage", b": x", b"X: a\x00b", b"Y: a\x1bb", body=CLIP),
        raw(b"HTTP/2 200", b"Content-Length: 2000", body=CLIP),
        raw(b"HTTP/1.1 200 \xff\x00", b"Content-Length: 2000", b"Content-Length: 2000", body=CLIP),
        raw(b"HTTP/1.1 200 OK", b"Content-Length: 2000, 2000", body=CLIP),
        raw(b"HTTP/1.1 200 OK", b"Content-Length: 2000", b"Content-Length: 5", body=CLIP),
        raw(b"HTTP/1.1 200 OK", b"Content-Length: -1", body=CLIP),
        raw(b"HTTP/1.1 200 OK", b"Transfer-Encoding: identity", body=CLIP),
        raw(
            b"HTTP/1.1 200 OK",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: chunked",
            body=b"7d0\r\n" + CLIP + b"\r\n0\r\n\r\n",
        ),
        raw(b"HTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK", b"Bad Header: 1", body=CLIP),
        raw(b"HTTP/1.1 200 OK", b"X: " + b"a" * 60_000, body=CLIP),
        Answer(status=201),
        Answer(status=203),
        Answer(status=226),
        Answer(status=206, content_range="bytes 0-1999/2000"),
        raw(b"HTTP/1.1 206 Partial", b"Content-Length: 2000", body=CLIP),
    ],
)
def test_a_clip_is_stored_however_its_host_writes_heads(s3: S3Client, bucket: str, answer: Answer) -> None:
    """It is paid for: what HTTP does not allow is read as far as it can be."""
    with ClipServer(CLIP, answer) as server:
        assert_stored(s3, bucket, CLIP, bring(server, s3, bucket))
    assert len(server.requests) == 1


@pytest.mark.parametrize("is_labelled", [True, False])
@pytest.mark.parametrize("size", [2_000, 9 * MIB])
def test_a_clip_that_its_host_packed_is_unpacked(
    s3: S3Client, bucket: str, size: int, is_labelled: bool
) -> None:
    """Though nobody asked for gzip; also where the download goes on after a break."""
    clip, label = mp4_of(size), {"Content-Encoding": "gzip"} if is_labelled else {}
    packed = gzip.compress(clip, mtime=0)
    answers = [Answer(headers=label, cut=len(packed) // 2), Answer(headers=label)]
    with ClipServer(packed, *answers) as server:
        assert_stored(s3, bucket, clip, bring(server, s3, bucket))
    assert len(server.requests) == 2


def test_a_clip_that_was_packed_in_two_pieces_is_whole(s3: S3Client, bucket: str) -> None:
    """Gzip files may be joined."""
    with ClipServer(gzip.compress(CLIP[:900]) + gzip.compress(CLIP[900:])) as server:
        assert_stored(s3, bucket, CLIP, bring(server, s3, bucket))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (gzip.compress(mp4_of(2_000) + b" " * 200_000_000, 9), "unpacks to more than a video does"),
        (gzip.compress(mp4_of(2_000))[:20] + b"\xff" * 2_000, "cannot be unpacked"),
        (gzip.compress(mp4_of(MIB))[:-900], "not whole"),
        (gzip.compress((b"\x47" + bytes(187)) * 9_000)[:-20], "whose end is missing"),
        (b"\x1f\x8b\x08\x00", "whose end is missing"),
    ],
    ids=["bomb", "damaged", "half", "half of a stream", "head"],
)
def test_what_is_packed_and_no_video_is_not_stored(
    s3: S3Client, bucket: str, body: bytes, words: str
) -> None:
    """Within bounds."""
    with ClipServer(body) as server:
        assert words in str(bring_nothing(server, s3, bucket))


def test_a_length_that_is_too_long_twice_is_not_believed(s3: S3Client, bucket: str) -> None:
    """The clip itself says that it is whole."""
    wrong = Answer(length=3_000, ignore_range=True)
    with ClipServer(CLIP, *[wrong] * 9) as server:
        assert_stored(s3, bucket, CLIP, bring(server, s3, bucket))
    assert len(server.requests) == 2


def test_a_host_may_begin_the_body_long_after_the_head(s3: S3Client, bucket: str) -> None:
    """Silence is not a trickle."""
    limits = Limits(first_backoff=0, max_backoff=0, speed_window=0.2)
    with ClipServer(CLIP, Answer(pause=0.5)) as server:
        assert_stored(s3, bucket, CLIP, bring(server, s3, bucket, limits=limits))
    assert len(server.requests) == 1


def test_the_credentials_of_a_link_go_to_its_host_alone(s3: S3Client, bucket: str) -> None:
    """As a browser does: Basic authentication, and none for the host that it redirects to."""
    with (
        ClipServer(CLIP) as elsewhere,
        ClipServer(b"", Answer(status=302, headers={"Location": elsewhere.url})) as server,
    ):
        url = server.url.replace("http://", "http://user:p%40ss@")
        assert_stored(s3, bucket, CLIP, transfer_from(url, s3, bucket).run())
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"
    assert "authorization" not in elsewhere.requests[0].headers


@pytest.mark.parametrize(
    "url", ["ftp://h/x?topsecret", "file:///etc/passwd", "https:///x", "x", "http://[::1/x"]
)
def test_only_http_urls_are_taken(s3: S3Client, url: str) -> None:
    """Other URLs are refused before anything is sent."""
    with pytest.raises(ClipTransferError, match="not an http or https URL") as caught:
        transfer_from(url, s3, "none")
    assert "topsecret" not in str(caught.value)


def test_nothing_secret_is_sent_or_logged(
    s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The clip's host gets no credentials, and no log line at any level has the URL's query."""
    caplog.set_level(logging.DEBUG)
    with ClipServer(mp4_of(9 * MIB), Answer(cut=MIB), Answer(status=503)) as server:
        bring(server, s3, bucket)
    assert all(not {"authorization", "cookie"} & request.headers.keys() for request in server.requests)
    assert "The download of http://127.0.0.1" in caplog.text
    assert "topsecret" not in caplog.text


# --- S3 ---


def test_missing_bucket_is_named(s3: S3Client) -> None:
    """An S3 refusal names operation, object and S3's code."""
    with ClipServer(mp4_of(2_000)) as server, pytest.raises(ClipTransferError) as caught:
        bring(server, s3, "no-such-bucket-here")
    assert "PutObject of s3://no-such-bucket-here/out/clip.mp4 (NoSuchBucket" in str(caught.value)


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload", "CreateMultipartUpload"])
def test_s3_failure_aborts_the_upload(s3: S3Client, bucket: str, operation: str) -> None:
    """When S3 fails one of the calls, the upload is aborted; the error names call and permission."""
    from botocore.exceptions import ClientError

    def fail(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, operation)

    s3.meta.events.register(f"before-send.s3.{operation}", fail, unique_id="fail")
    try:
        with ClipServer(mp4_of(40 * MIB)) as server:
            error = bring_nothing(server, s3, bucket)
    finally:
        s3.meta.events.unregister(f"before-send.s3.{operation}", unique_id="fail")
    assert f"S3 refused {operation}" in str(error)
    assert "s3:PutObject" in str(error)


def test_failed_abort_does_not_hide_the_failure(
    s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When the abort fails too, it is logged, and the first failure is raised."""
    from botocore.exceptions import EndpointConnectionError

    def fail(**_: Any) -> None:
        raise EndpointConnectionError(endpoint_url="http://s3.example")

    s3.meta.events.register("before-send.s3.AbortMultipartUpload", fail, unique_id="fail")
    try:
        with (
            ClipServer(mp4_of(20 * MIB), Answer(cut=18 * MIB), Answer(status=418)) as server,
            pytest.raises(ClipTransferError, match="answered 418"),
        ):
            bring(server, s3, bucket)
    finally:
        s3.meta.events.unregister("before-send.s3.AbortMultipartUpload", unique_id="fail")
    assert "could not be aborted" in caplog.text
    for upload in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]:
        s3.abort_multipart_upload(Bucket=bucket, Key=KEY, UploadId=upload["UploadId"])


@pytest.mark.parametrize("size", [2_000, 9 * MIB])
def test_extra_args_go_to_the_calls_that_take_them(s3: S3Client, bucket: str, size: int) -> None:
    """Each extra argument reaches every call that has it, and no other."""
    sent: dict[str, dict[str, Any]] = {}
    s3.meta.events.register(
        "provide-client-params.s3",
        lambda params, model, **_: sent.update({model.name: params}),
        unique_id="see",
    )
    try:
        with ClipServer(mp4_of(size)) as server:
            extra = {"StorageClass": "STANDARD", "ChecksumAlgorithm": "SHA256", "CacheControl": "no-cache"}
            bring(server, s3, bucket, upload_args=extra)
    finally:
        s3.meta.events.unregister("provide-client-params.s3", unique_id="see")
    opening = "PutObject" if size < 8 * MIB else "CreateMultipartUpload"
    assert extra.items() <= sent[opening].items()
    assert extra.keys().isdisjoint(sent["HeadObject"])
    if size > 8 * MIB:
        assert sent["UploadPart"]["ChecksumAlgorithm"] == "SHA256"
        assert "StorageClass" not in sent["UploadPart"]


def test_what_is_not_an_answer_of_s3_is_named(s3: S3Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login page with 200 in place of the store: no raw KeyError after a render was paid."""
    target = UploadTarget(s3, S3Location("b", "k"), lambda _: {}, {})
    monkeypatch.setattr(s3, "create_multipart_upload", lambda **_: {})
    monkeypatch.setattr(s3, "upload_part", lambda **_: {})
    with pytest.raises(ClipTransferError, match="answered without UploadId, so not by S3"):
        target.create({})
    with pytest.raises(ClipTransferError, match="answered without ETag, so not by S3"):
        target.upload_part("u", 1, PartBody([], threading.Event()))


def test_what_boto3_takes_is_not_refused(s3: S3Client) -> None:
    """A customer's key as bytes, which boto3 encodes by itself; and what one of the two calls takes alone."""
    require_upload_args(s3, {"SSECustomerKey": b"k" * 32, "SSECustomerAlgorithm": "AES256"})
    require_upload_args(s3, {"ChecksumAlgorithm": "CRC32", "ChecksumType": "COMPOSITE"})
    with pytest.raises(InvalidRequest, match="Invalid type for parameter SSECustomerKey") as error:
        require_upload_args(s3, {"SSECustomerKey": 5_551_234})
    assert "5551234" not in str(error.value)


@pytest.mark.parametrize("name", ["StorageKlass", "Body", "Metadata", "ChecksumCRC32", "UploadId"])
def test_unknown_extra_arg_is_refused(s3: S3Client, name: str) -> None:
    """An argument that cannot be passed on is named before anything is sent."""
    with pytest.raises(InvalidRequest, match=name):
        require_upload_args(s3, {name: "x", "ACL": "private"})


def test_customer_key_is_in_no_message(s3: S3Client, bucket: str) -> None:
    """What botocore says of a malformed parameter names it, and does not quote it."""
    with ClipServer(mp4_of(2_000)) as server:
        error = bring_nothing(server, s3, bucket, upload_args={"SSEKMSKeyId": ["topsecret"]})
    assert "SSEKMSKeyId" in str(error)


def test_clip_longer_than_s3_takes_is_refused(s3: S3Client, bucket: str) -> None:
    """More parts than S3 allows are an error, not a truncated clip."""
    with ClipServer(mp4_of(17 * MIB)) as server:
        assert "limit" in str(bring_nothing(server, s3, bucket, limits=Limits(max_parts=2)))


class Nowhere(UploadTarget):
    """Keeps nothing: the S3 of the tests is in this process, and has its objects in memory."""

    def call(self, operation: str, **arguments: Any) -> dict[str, str]:
        return {"UploadId": "u", "ETag": "e"}


def test_an_upload_that_has_ended_holds_no_blocks(s3: S3Client) -> None:
    """Also before Python next looks for cycles: a triggerer may end hundreds of uploads until then."""
    left = memoryview(mp4_of(20 * MIB))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        with Upload(Nowhere(s3, S3Location("b", "k"), lambda _: {}, {}), LIMITS) as upload:
            while left:
                room = upload.room()
                count = min(len(room), len(left))
                room[:count] = left[:count]
                upload.filled(count)
                left = left[count:]
            del room
            upload.finish()
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert most >= 8 * MIB
    assert kept < MIB


# --- cutting ---


@given(
    block=st.integers(1, 4),
    blocks=st.integers(1, 4),
    runs=st.lists(st.lists(st.binary(max_size=20), max_size=12), min_size=1, max_size=4),
)
def test_parts_are_the_stream(block: int, blocks: int, runs: list[list[bytes]]) -> None:
    """Whatever the reads, and after restarts at any point: parts of one size, a last one, no byte else."""
    parts: list[bytes] = []
    cutter = PartCutter(
        blocks, take=lambda: memoryview(bytearray(block)), hand_on=lambda part: parts.append(b"".join(part))
    )
    for number, reads in enumerate(runs):
        if number:
            cutter.restart()
            parts.clear()
        for read in reads:
            left = read
            while left:
                room = cutter.room()
                count = min(len(room), len(left))
                room[:count] = left[:count]
                cutter.filled(count)
                left = left[count:]
    rest = b"".join(cutter.rest())
    assert b"".join(parts) + rest == b"".join(itertools.chain(*runs[-1:]))
    assert all(len(part) == block * blocks for part in parts)
    assert len(rest) <= block * blocks
    assert rest or not parts


@given(sizes=st.lists(st.just(4), max_size=3), last=st.integers(0, 4), start=st.integers(0, 20))
def test_body_reads_as_a_file_does(sizes: list[int], last: int, start: int) -> None:
    """From any place, all reads of a body together are the rest of its part, after a seek once more."""
    content = bytes(range(sum(sizes) + last))
    blocks = [memoryview(content[at : at + 4]) for at in range(0, len(content), 4)]
    body = PartBody(blocks, threading.Event())
    assert len(body) == len(content)
    for _ in range(2):
        assert body.seek(start) == body.tell() == start
        assert b"".join(iter(lambda: bytes(body.read(1)), b"")) == content[start:]
    body.seek(start)
    assert body.read() == content[start:]
    assert body.seek(0, 2) == len(content)
