"""What comes with a clip: its facts, how it differs from what was asked for, pictures and papers beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from media_samples import mp4_of

from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.emulator.testing import TaskRun, run_task
from airflow_provider_codegateway.exceptions import Bought, ClipMismatch, InvalidRequest
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


def test_a_clip_that_cannot_be_measured_is_delivered(
    deferrable: bool, gateway: Emulator, bucket: str, said: Callable[[], str]
) -> None:
    """Facts are none, and nothing fails after the purchase."""
    gateway.fail_next(Fault.container("webm"))
    done = run(bucket, on_mismatch="fail", deferrable=deferrable)
    assert (done.xcoms["clip"]["facts"], done.xcoms["clip"]["mismatches"]) == (None, [])
    assert "could not be read: it was not compared" in said()


def test_on_mismatch_is_checked_when_the_dag_is_read() -> None:
    """A misspelt value is refused before anything runs."""
    with pytest.raises(InvalidRequest, match="on_mismatch='ignore'"):
        run("b", on_mismatch="ignore")
