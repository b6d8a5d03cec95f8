"""Runs in which gateway, clip host and S3 misbehave at random, and processes are killed.

Each run goes on until Airflow would stop: with a clip, or with an error that fails the task. Then the bucket and the
emulator's bill are held against what the runs said.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, get_args

import crash_runner
import pytest
from crash_runner import HASTY, KEY, MODEL, Ended, Job
from media_samples import mp4_of
from s3_proxy import Rule, S3Proxy, S3Request, Verdict

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.emulator.faults import Encoding, OddShape
from airflow_provider_codegateway.emulator.responses import Source
from airflow_provider_codegateway.exceptions import Bought

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

RUNS = int(os.environ.get("CODEGATEWAY_CHAOS", "12"))
SEED = int(os.environ.get("CODEGATEWAY_SEED", "1"))
RETRIES = 12
RETRIED = {
    "GatewayUnavailable",
    "StorageUnavailable",
    "RenderOutcomeUnknown",
    "ClipTransferError",
    "ClipExpired",
}
"""Errors after which Airflow tries again."""

SMALL, LARGE = mp4_of(300_000), mp4_of(9_000_000)

GATEWAY_FAULTS: tuple[Fault | ClipFault, ...] = (
    *(Fault.status(code) for code in (429, 503)),
    *(Fault.status(code, billed=billed) for code in (500, 502, 504) for billed in (False, True)),
    Fault.foreign("envoy"),
    Fault.foreign("heroku"),
    Fault.foreign("rate_limiter", billed=True),
    Fault.redirect(),
    Fault.cut_upload(413),
    Fault.cut_upload(None),
    Fault.reset_before(),
    Fault.reset_after(),
    Fault.hang(),
    Fault.truncated_body(),
    Fault.html(),
    Fault.html(502),
    Fault.no_url("missing"),
    Fault.no_url("error"),
    Fault.no_url("job", code=202),
    *(Fault.whole_json(then) for then in ("length", "chunk", "reset", "held")),
    *(Fault.odd_answer(shape) for shape in get_args(OddShape)),
    *(Fault.encoded(encoding, size=2**24) for encoding in get_args(Encoding)),
    *(Fault.hostile_text(shape) for shape in ("nul", "surrogate", "nested", "header")),
    Fault.leading_whitespace(),
    Fault.early_expiry(0),
)
CLIP_FAULTS: tuple[Fault | ClipFault, ...] = (
    ClipFault.break_after(0),
    ClipFault.break_after(100_000),
    ClipFault.break_after(200_000, reset=True),
    ClipFault.status(403),
    ClipFault.status(500),
    ClipFault.status(503),
    ClipFault.hang(),
    ClipFault.wrong_length(),
    ClipFault.changed(),
    ClipFault.no_ranges(),
    ClipFault.html(),
    ClipFault.json(),
    ClipFault.web_filter(),
    ClipFault.status(404),
    ClipFault.no_length(0),
    ClipFault.no_length(100_000),
    ClipFault.no_length(200_000, framing="http_1_0"),
    ClipFault.no_length(100_000, framing="chunked"),
    ClipFault.wrong_length(-1_000),
    ClipFault.redirect(),
    ClipFault.utf8_redirect(),
)
FALLBACKS = ("bytedance/seedance-2.0", "minimax/hailuo-2.3-fast")
VERDICTS = (Verdict.DROP, Verdict.LOSE)


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_endpoint) as server:
        yield server


def bad_days(chance: random.Random) -> Rule:
    """S3 breaks off a few of the requests, wherever they come."""
    left = chance.choice((0, 0, 1, 2, 4))

    def rule(request: S3Request) -> Verdict:
        nonlocal left
        if left and chance.random() < 0.2:
            left -= 1
            return chance.choice(VERDICTS)
        return Verdict.PASS

    return rule


def run_once(job: Job, *, killed_after: float | None) -> Ended:
    process, connection = crash_runner.start(job)
    if killed_after is not None:
        wait([process.sentinel], timeout=killed_after)
        process.kill()
    return crash_runner.finish(process, connection)


@pytest.mark.parametrize("fallbacks", [(), FALLBACKS], ids=["one model", "chain"])
@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
def test_whatever_goes_wrong_a_run_ends_in_a_whole_clip_or_tells_the_truth_about_money(
    seed: int,
    fallbacks: tuple[str, ...],
    gateway: Emulator,
    proxy: S3Proxy,
    s3: S3Client,
    s3_credentials: dict[str, str],
    bucket: str,
) -> None:
    """Nothing is bought without a trace, no half clip is stored, and nothing unexplained is left behind."""
    chance = random.Random(seed)
    clip = chance.choice((SMALL, SMALL, LARGE))
    gateway.serve_clip(clip)
    gateway.render_seconds = chance.choice((0.0, 0.0, 0.3))
    kinds: tuple[tuple[Fault | ClipFault, ...], ...] = (GATEWAY_FAULTS, CLIP_FAULTS)
    for faults in kinds:
        for _ in range(chance.choice((0, 1, 2, 3))):
            gateway.fail_next(chance.choice(faults))
    job = Job(
        gateway_url=gateway.url,
        api_key=gateway.api_key,
        s3_endpoint=proxy.url,
        s3_credentials=s3_credentials,
        bucket=bucket,
        max_renders=chance.choice((1, 2, 3)),
        claim_seconds=3.0,
        deadline=3.0,
        limits=replace(HASTY, read_timeout=1.0, first_backoff=0.01, max_backoff=0.1, transfer_timeout=20.0),
    )
    if fallbacks:
        job = replace(job, fallbacks=fallbacks, retries=0)
        for model in (MODEL, *fallbacks[:1]):
            fault = Fault.status(chance.choice((404, 429, 503)))
            gateway.fail_next(fault, model=model, times=chance.choice((1, 2, 4)))
    story: list[str] = []
    with proxy.ruled(bad_days(chance)):
        for number in range(RETRIES):
            before = gateway.billed
            killed_after = chance.uniform(0, 1.5) if number < 3 and chance.random() < 0.3 else None
            ended = run_once(job, killed_after=killed_after)
            gateway.wait_for(rendering=0)
            story.append(f"{ended.error or ('clip' if ended.clip else 'killed')}: {ended.message}")
            bought_now = gateway.billed - before
            assert bought_now <= 1, story
            if ended.error:
                said = ended.message.rpartition("\n")[2]
                assert re.search(r"(was|were|been) bought|may have been|^Nothing was bought", said), story
                assert bought_now == 0 or said != Bought.NO.value, story
            if ended.clip or (ended.error and ended.error not in RETRIED):
                break
    assert gateway.billed <= job.max_renders, story
    paid = {render.model for render in gateway.ledger if render.billed_at}
    assert len(paid) <= 1, story  # what may have been bought stays with its model
    assert not ended.clip or ended.clip.model in paid, story
    stored = {item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}
    if ended.clip:
        body = s3.get_object(Bucket=bucket, Key=KEY)["Body"].read()
        assert hashlib.sha256(body).digest() in {hashlib.sha256(each).digest() for each in whole(clip)}, story
        assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == [], story
        assert gateway.billed >= 1, story
    else:
        assert KEY not in stored, story
        assert ended.error in {"RenderLimitReached", "RequestRejected"} or number == RETRIES - 1, story
    if ended.clip:
        # Whoever looks next finds the clip, buys nothing, and clears up what a bad day of S3 left.
        again = run_once(job, killed_after=None)
        assert again.clip, again.message
        assert again.clip.reused
        listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
        assert [item["Key"] for item in listed] == [KEY], story


def whole(clip: bytes) -> tuple[bytes, ...]:
    """The clip, and the one that ``ClipFault.changed`` makes of it."""
    return clip, Source.of(clip).changed().content_bytes
