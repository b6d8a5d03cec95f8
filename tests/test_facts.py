"""What came, measured and held against what was asked for."""

from __future__ import annotations

import itertools
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
from av.video.frame import VideoFrame
from hypothesis import given
from hypothesis import strategies as st
from media_samples import mp4

from airflow_provider_codegateway.clip import Facts, Marks, S3Location
from airflow_provider_codegateway.emulator import clips
from airflow_provider_codegateway.emulator.rules import VideoRequest, check
from airflow_provider_codegateway.facts import (
    Container,
    Verdict,
    differences,
    read_stored_facts,
    wanted_of,
)
from airflow_provider_codegateway.limits import Limits

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"


def walked(data: bytes, *, step: int = 4096, limits: Limits | None = None) -> Container:
    container = Container(limits or Limits())
    for at in range(0, len(data), step):
        container.feed(memoryview(data)[at : at + step])
    return container


def box(kind: bytes, content: bytes = b"", *, large: bool = False, size: int | None = None) -> bytes:
    if large:
        return struct.pack(">I4sQ", 1, kind, len(content) + 16) + content
    return struct.pack(">I4s", len(content) + 8 if size is None else size, kind) + content


FTYP, MOOV, MDAT = box(b"ftyp", b"isom\0\0\2\0"), box(b"moov", bytes(40)), box(b"mdat", bytes(1000))


# --- whole or not ---


@pytest.mark.parametrize(
    ("boxes", "verdict"),
    [
        (FTYP + MOOV + MDAT, Verdict.WHOLE),
        (FTYP + MDAT + MOOV, Verdict.WHOLE),
        (FTYP + MOOV + box(b"mdat", bytes(1000), large=True), Verdict.WHOLE),
        (FTYP + box(b"free") + MOOV + MDAT + box(b"udta") + box(b"uuid", bytes(30)), Verdict.WHOLE),
        (FTYP + MOOV + box(b"mdat", bytes(1000), size=0), Verdict.SILENT),
        (FTYP + MOOV + MDAT + bytes(40), Verdict.SILENT),
        (FTYP + MOOV + MDAT + b"abc", Verdict.SILENT),
        (FTYP + MOOV + MDAT[:-1], Verdict.CUT),
        (FTYP + MOOV, Verdict.CUT),
        (FTYP + MDAT, Verdict.CUT),
        (FTYP, Verdict.CUT),
        (FTYP + MDAT + MOOV[:-1], Verdict.CUT),
        (FTYP + box(b"mdat", bytes(1000), size=0), Verdict.CUT),
        (FTYP + MOOV + struct.pack(">I4sQ", 1, b"mdat", 1 << 40) + bytes(1000), Verdict.CUT),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_a_container_says_whether_it_is_whole(boxes: bytes, verdict: Verdict, step: int) -> None:
    """Boxes in any order, of 32 and 64 bits, up to the end of the file, with something behind them."""
    assert walked(boxes, step=step).ending().verdict is verdict


@given(
    cut=st.floats(0, 1, exclude_max=True),
    movflags=st.sampled_from(["faststart", ""]),
    size=st.integers(1, 999),
)
def test_a_real_clip_is_whole_only_at_its_end(cut: float, movflags: str, size: int) -> None:
    """Wherever it is cut and however it comes, a part of it is never taken for the whole."""
    clip = mp4(movflags=movflags)
    half = walked(clip[: int(len(clip) * cut)], step=size)
    assert half.media_type is None or half.ending().verdict is Verdict.CUT
    assert walked(clip, step=size).ending().verdict is Verdict.WHOLE


@given(cut=st.floats(0.2, 1, exclude_max=True))
def test_a_cut_among_fragments_is_never_taken_for_the_end(cut: float) -> None:
    """Fragments have an end only where an index of them follows."""
    clip = mp4(movflags="frag_keyframe+empty_moov")
    half = walked(clip[: int(len(clip) * cut)])
    assert half.media_type is None or half.ending().verdict is not Verdict.WHOLE
    assert walked(clip).ending().verdict is Verdict.WHOLE


@given(
    data=st.binary(max_size=3000),
    step=st.integers(1, 600),
    front=st.sampled_from([b"", FTYP, FTYP + b"\0\0\0"]),
)
def test_no_bytes_break_the_walk(data: bytes, step: int, front: bytes) -> None:
    """Whatever a host sends: an answer, and no exception."""
    container = walked(front + data, step=step)
    assert container.ending().verdict in Verdict
    assert container.media_type is None or container.media_type.startswith("video/")
    assert container.facts is None or container.facts.width > 0


@given(at=st.integers(0, 1500), value=st.binary(min_size=1, max_size=8))
def test_no_index_breaks_the_reading(at: int, value: bytes) -> None:
    """An index with any bytes changed has facts or none, and never an exception."""
    clip = bytearray(mp4())
    clip[at : at + len(value)] = value
    facts = walked(bytes(clip)).facts
    assert facts is None or Marks.from_metadata(marks(facts).as_metadata()).facts == facts


def several_frames(folder: Path, movflags: str) -> bytes:
    """Two seconds with a key frame in each of ten frames, so that there are several fragments."""
    path = folder / "clip.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": movflags}) as container:
        stream = container.add_stream("libx264", rate=5, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(10):
            container.mux(stream.encode(VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def boxes_of(clip: bytes) -> list[tuple[str, bytes]]:
    """The top-level boxes."""
    found, at = [], 0
    while at < len(clip):
        size, kind = struct.unpack_from(">I4s", clip, at)
        found.append((kind.decode(), clip[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize("frames", [1, 10])
def test_boxes_that_all_end_are_not_enough(frames: int, tmp_path: Path) -> None:
    """The index says where the last picture ends: what is cut between two boxes is not whole."""
    clip = several_frames(tmp_path, "faststart") if frames == 10 else mp4()
    parts = dict(boxes_of(clip))
    front, media = clip[: clip.index(parts["mdat"])], parts["mdat"][8:]
    half = len(media) // 2
    assert (
        walked(front + box(b"mdat", media[:half]) + box(b"mdat", media[half:])).ending().verdict
        is Verdict.WHOLE
    )
    for short in (
        box(b"mdat"),
        box(b"mdat", media[:half]),
        box(b"mdat", media[:half], size=0),
        box(b"mdat", size=0),
    ):
        ending = walked(front + short).ending()
        assert ending.verdict is Verdict.CUT
        assert "its pictures and sound go on to byte" in ending.words
    assert walked(front + box(b"mdat", media, size=0)).ending().verdict is Verdict.WHOLE


@pytest.mark.parametrize("movflags", ["frag_keyframe", "frag_keyframe+faststart", "frag_custom"])
def test_the_only_fragment_may_be_in_the_index(movflags: str) -> None:
    """As ffmpeg writes a clip with one key frame: it is whole, and half of it is not."""
    clip = mp4(movflags=movflags)
    assert dict(boxes_of(clip)).keys() == {"ftyp", "moov", "mdat", "mfra"}
    assert walked(clip).ending().verdict is Verdict.WHOLE
    assert walked(clip).facts is not None
    media = clip.index(b"mdat") - 4
    for cut in (clip[:media], clip[: media + 30], clip[:media] + box(b"mdat")):
        assert walked(cut).ending().verdict is Verdict.CUT
    assert walked(clip[: clip.index(b"mfra") - 4]).ending().verdict is Verdict.SILENT


@pytest.mark.parametrize("tail", [b"\n", b"\0\0\0\0", b"\r\n\r\n"])
def test_a_few_bytes_behind_fragments_cut_nothing(tail: bytes) -> None:
    """They may be the head of another fragment: the host must know."""
    clip = mp4(movflags="frag_keyframe+empty_moov")
    assert walked(clip + tail).ending().verdict is Verdict.SILENT


def test_an_index_of_nothing_is_not_a_clip() -> None:
    """A muxer that died before the first picture leaves a head without tracks."""
    for moov in (box(b"moov"), box(b"moov", box(b"mvhd", struct.pack(">12xII", 1000, 0)))):
        assert walked(FTYP + moov + MDAT).ending().words == "its index (the moov box) is empty"


def test_an_index_without_what_its_boxes_are_for_is_no_error() -> None:
    """A description of no picture, and a fragment that does not say of which track."""
    media = box(b"hdlr", bytes(8) + b"vide") + box(b"minf", box(b"stbl", box(b"stsd", bytes(8))))
    for index in (box(b"moov", box(b"trak", box(b"mdia", media))), MOOV + box(b"moof", box(b"traf"))):
        assert walked(FTYP + index + MDAT).facts is None


@pytest.mark.parametrize("left_out", [1, 5, 9])
def test_fragments_that_are_announced_must_come(left_out: int, tmp_path: Path) -> None:
    """By the segment index, by the length of all fragments, or as a fragment's head without its pictures."""
    clip = several_frames(tmp_path, "frag_keyframe+empty_moov+default_base_moof")
    parts = boxes_of(clip)
    fragments = [each for name, each in parts if name in ("moof", "mdat")]
    start, media, sizes = clip.index(fragments[0]), b"".join(fragments), list(map(len, fragments))
    cut = media[: sum(sizes[: -2 * left_out])]
    assert walked(clip[:start] + cut).ending().verdict is (Verdict.SILENT if cut else Verdict.CUT)

    index = struct.pack(">4xIIIIHH", 1, 1000, 0, 0, 0, 1) + struct.pack(">III", len(media), 2000, 0)
    whole = clip[:start] + box(b"sidx", index)
    assert walked(whole + media).ending().verdict is Verdict.SILENT
    assert "its segments go on to byte" in walked(whole + cut).ending().words or not cut

    extends = struct.pack(">4xI", 2000)
    old = dict(parts)["moov"]
    moov = old.replace(b"mvex", b"mvex" + box(b"mehd", extends))
    at = moov.index(b"mvex") - 4
    moov = moov[:at] + struct.pack(">I", struct.unpack_from(">I", moov, at)[0] + 16) + moov[at + 4 :]
    moov = struct.pack(">I", len(moov)) + moov[4:]
    told = clip[:start].replace(old, moov)
    assert walked(told + media).ending().verdict is Verdict.SILENT
    expected = "of its seconds are missing" if left_out > 5 else ""
    assert expected in walked(told + cut).ending().words

    assert (
        walked(clip[:start] + cut + media[len(cut) :][: sizes[-2 * left_out]]).ending().verdict is Verdict.CUT
    )


def test_an_index_that_is_too_long_is_not_kept() -> None:
    """Its memory is bounded; the clip is whole all the same."""
    container = walked(FTYP + box(b"moov", bytes(10_000)) + MDAT, limits=Limits(max_index_bytes=5000))
    assert (container.ending().verdict, container.facts) == (Verdict.WHOLE, None)


# --- facts ---


def marks(facts: Facts | None) -> Marks:
    return Marks(
        fingerprint="f",
        requester="r",
        model="m",
        created=None,
        render_seconds=None,
        renders_bought=1,
        facts=facts,
    )


def test_facts_survive_in_metadata() -> None:
    """As short ASCII, and only where they are facts."""
    facts = Facts(width=1280, height=720, duration=5.04, fps=24.0, codec="h264", audio=True)
    metadata = marks(facts).as_metadata()
    assert len(metadata["codegateway-facts"]) < 120
    assert Marks.from_metadata(metadata).facts == facts
    assert "codegateway-facts" not in marks(None).as_metadata()
    for broken in ("", "[]", "{", '{"width": 1}', metadata["codegateway-facts"].replace("1280", '"1280"')):
        assert Marks.from_metadata({"codegateway-facts": broken}).facts is None


def test_a_turned_picture_is_measured_as_it_is_shown() -> None:
    """A phone's matrix turns the picture by a quarter."""
    clip = mp4(128, 64)
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0x400000, 0, 0x40000000)
    at = clip.index(upright, clip.index(b"tkhd"))
    facts = walked(clip[:at] + turned + clip[at + len(turned) :]).facts
    assert facts is not None
    assert (facts.width, facts.height) == (64, 128)


@pytest.mark.parametrize("size", [1529, 20_000_000])
@pytest.mark.parametrize("movflags", ["faststart", "", "frag_keyframe+empty_moov"])
def test_a_stored_clip_is_measured_by_ranges(s3: S3Client, bucket: str, size: int, movflags: str) -> None:
    """A clip that was stored by an earlier version: few requests, wherever its index is."""
    clip = mp4(movflags=movflags)
    if size > len(clip):  # padding between the first box and the rest
        first = struct.unpack_from(">I", clip)[0]
        clip = clip[:first] + box(b"free", bytes(size)) + clip[first:]
    s3.put_object(Bucket=bucket, Key="old.mp4", Body=clip)
    asked: list[str] = []
    s3.meta.events.register("before-call.s3.GetObject", lambda **_: asked.append("x"), unique_id="count")
    try:
        facts = read_stored_facts(s3, S3Location(bucket, "old.mp4"), size=len(clip), upload_args={})
    finally:
        s3.meta.events.unregister("before-call.s3.GetObject", unique_id="count")
    assert facts == walked(clip).facts
    assert facts is not None
    assert len(asked) <= 2


def test_a_stored_object_that_is_no_mp4_has_no_facts(s3: S3Client, bucket: str) -> None:
    """One request, and no error; nor where there is no object."""
    s3.put_object(Bucket=bucket, Key="x", Body=b"\x1aE\xdf\xa3" + bytes(200_000))
    assert read_stored_facts(s3, S3Location(bucket, "x"), size=200_004, upload_args={}) is None
    assert read_stored_facts(s3, S3Location(bucket, "none"), size=200_004, upload_args={}) is None


# --- compared ---


def combinations() -> Iterator[dict[str, Any]]:
    """Requests of every model with every option that its clip depends on."""
    yield from (
        {
            "model": VEO,
            "aspect_ratio": ratio,
            "duration": duration,
            "resolution": lines,
            "generate_audio": audio,
        }
        for ratio, duration, lines, audio in itertools.product(
            (None, "16:9", "9:16", "1:1"),
            (None, "4s", "6s", "8s"),
            (None, "720p", "1080p"),
            (None, True, False),
        )
    )
    yield from (
        {
            "model": SEEDANCE,
            "aspect_ratio": ratio,
            "duration": duration,
            "resolution": lines,
            "generate_audio": audio,
        }
        for ratio, duration, lines, audio in itertools.product(
            (None, "16:9", "4:3", "1:1", "3:4", "9:16", "21:9", "9:21"),
            (None, *range(4, 13)),
            (None, "480p", "720p", "1080p"),
            (None, True, False),
        )
    )
    yield from (
        {"model": HAILUO, "duration": duration, "resolution": lines}
        for duration, lines in itertools.product((None, 6, 10), (None, "768P", "1080P"))
    )


def bodies() -> list[dict[str, Any]]:
    return [
        {"prompt": "p", **{name: value for name, value in each.items() if value is not None}}
        for each in combinations()
    ]


def measured(request: VideoRequest, path: Path, wrong: str | None = None) -> Facts | None:
    clips.render(request, path, None, wrong)
    return walked(path.read_bytes()).facts


@pytest.mark.parametrize("body", random.Random(1).sample(bodies(), 24), ids=lambda body: body["model"][:3])
def test_a_right_clip_is_no_different(body: dict[str, Any], tmp_path: Path) -> None:
    """The emulator's clip of a request, whatever the model and the options, is what was asked for."""
    facts = measured(check(body), tmp_path / "clip.mp4")
    assert facts is not None
    assert differences(facts, wanted_of(body)) == ()


def test_no_combination_of_options_is_a_false_alarm() -> None:
    """All models, shapes, lengths, resolutions and sound: more than a thousand, by what the emulator would encode."""
    count = 0
    for body in bodies():
        shape = clips.shape_of(check(body))
        facts = Facts(
            width=shape.width,
            height=shape.height,
            duration=float(shape.seconds),
            fps=24.0,
            codec="h264",
            audio=shape.audio,
        )
        assert differences(facts, wanted_of(body)) == (), body
        count += 1
    assert count > 1000


@pytest.mark.parametrize(
    ("width", "height", "ratio", "lines", "duration", "asked"),
    [
        (864, 480, "16:9", "480p", 5.04, 5),
        (1248, 704, "16:9", "720p", 5.04, 5),
        (1504, 640, "21:9", "720p", 12.04, 12),
        (1120, 832, "4:3", "720p", 4.04, 4),
        (960, 960, "1:1", "720p", 4.0, 4),
        (1920, 1088, "16:9", "1080p", 9.96, 10),
        (928, 2176, "9:21", "1080p", 10.04, 10),
        (1366, 768, None, "768P", 5.875, 6),
    ],
)
def test_sizes_that_encoders_like_are_no_difference(
    width: int, height: int, ratio: str | None, lines: str, duration: float, asked: int
) -> None:
    """Multiples of 16, as many pixels in another shape, and a length in whole frames."""
    facts = Facts(width=width, height=height, duration=duration, fps=24.0, codec="h264", audio=False)
    wanted = {"aspect_ratio": ratio, "resolution": lines, "duration": asked}
    assert differences(facts, wanted) == ()


WRONG = [
    ("turned", {"model": VEO, "aspect_ratio": "9:16"}, "It is 16:9 (1280x720), not 9:16."),
    (
        "turned",
        {"model": SEEDANCE, "aspect_ratio": "1:1", "resolution": "480p"},
        "It is 16:9 (854x480), not 1:1.",
    ),
    ("short", {"model": VEO, "duration": "6s"}, "It lasts 2 s, not 6 s."),
    ("short", {"model": SEEDANCE}, "It lasts 2 s, not 5 s."),
    ("small", {"model": VEO, "resolution": "1080p"}, "It has 480 lines (854x480), not 1080."),
    ("small", {"model": HAILUO}, "It has 480 lines (854x480), not 768."),
    ("mute", {"model": VEO, "generate_audio": True}, "It has no sound, and generate_audio is on."),
]


@pytest.mark.parametrize(("wrong", "body", "words"), WRONG)
def test_what_is_wrong_is_named(wrong: str, body: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Each in one sentence, and nothing else."""
    facts = measured(check({"prompt": "p", **body}), tmp_path / "clip.mp4", wrong)
    assert facts is not None
    assert differences(facts, wanted_of(body)) == (words,)


def test_a_picture_to_begin_with_may_give_the_shape() -> None:
    """Where the author did not ask for one; what he asked for holds."""
    facts = Facts(width=720, height=1280, duration=6.0, fps=24.0, codec="h264", audio=False)
    body = {"model": VEO, "prompt": "p", "image_input": "x"}
    assert differences(facts, wanted_of(body)) == ()
    assert differences(facts, wanted_of({**body, "aspect_ratio": "16:9"})) == (
        "It is 9:16 (720x1280), not 16:9.",
    )


@given(
    wanted=st.dictionaries(
        st.sampled_from(["aspect_ratio", "resolution", "duration", "generate_audio"]),
        st.none()
        | st.text(max_size=9)
        | st.integers()
        | st.floats()
        | st.booleans()
        | st.lists(st.integers()),
    ),
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
)
def test_no_parameter_breaks_the_comparison(wanted: dict[str, Any], width: int, height: int) -> None:
    """What cannot be understood, of a model that is not known, is not compared."""
    facts = Facts(width=width, height=height, duration=None, fps=None, codec="h264", audio=True)
    assert all(re.match(r"It (is|has|lasts) ", each) for each in differences(facts, wanted))
