"""Killed at every step of the path, and resumed as Airflow would: whole clips, and nothing paid twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import crash_runner
import pytest
from crash_runner import KEY, MULTIPART, ONE_PART, POINTS, UNKNOWN, Ended, Job
from media_samples import mp4_of
from s3_proxy import S3Proxy, S3Request, Verdict

from airflow_provider_codegateway.clip import Clip
from airflow_provider_codegateway.emulator import ClipFault, Emulator
from airflow_provider_codegateway.exceptions import ClipTransferError, CodeGatewayError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

SMALL, LARGE = mp4_of(300_000), mp4_of(17_000_000)
ROUNDS = int(os.environ.get("CODEGATEWAY_ROUNDS", "5"))
KILLS = int(os.environ.get("CODEGATEWAY_KILLS", "10"))
SEED = int(os.environ.get("CODEGATEWAY_SEED", "1"))


@pytest.fixture
def job(gateway: Emulator, s3_endpoint: str, s3_credentials: dict[str, str], bucket: str) -> Job:
    return Job(
        gateway_url=gateway.url,
        api_key=gateway.api_key,
        s3_endpoint=s3_endpoint,
        s3_credentials=s3_credentials,
        bucket=bucket,
    )


@dataclass(frozen=True)
class Bucket:
    """What is in a bucket after all is done."""

    clips: dict[str, str]
    """Key and SHA-256 of each clip."""
    ledger: list[str]
    uploads: list[str]

    @classmethod
    def of(cls, s3: S3Client, bucket: str) -> Bucket:
        keys = [
            item["Key"]
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            for item in page.get("Contents", [])
        ]
        return cls(
            clips={
                key: hashlib.sha256(s3.get_object(Bucket=bucket, Key=key)["Body"].read()).hexdigest()
                for key in keys
                if not key.startswith("_codegateway/")
            },
            ledger=[key for key in keys if key.startswith("_codegateway/")],
            uploads=[upload["Key"] for upload in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])],
        )


def only(clip: bytes) -> Bucket:
    """The bucket in which this clip is all that there is."""
    return Bucket({KEY: hashlib.sha256(clip).hexdigest()}, [], [])


# Killed at a named point, once.


CASES = [
    *((point, SMALL, 1) for point in POINTS if point not in MULTIPART),
    *((point, LARGE, 2) for point in POINTS if point not in ONE_PART),
]


@pytest.mark.parametrize(
    ("point", "clip", "max_renders"),
    CASES,
    ids=lambda value: f"{len(value) // 1000}kB" if isinstance(value, bytes) else str(value),
)
def test_a_run_that_is_killed_at_any_point_is_resumed_and_nothing_is_paid_twice(
    point: str, clip: bytes, max_renders: int, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """One bill wherever there is a receipt; where nobody can know, ``max_renders`` decides."""
    gateway.serve_clip(clip)
    job = replace(job, max_renders=max_renders)
    killed = crash_runner.run(replace(job, kill_at=point))
    assert killed.killed or point == "after XCom"
    billed_before = gateway.billed
    resumed = crash_runner.resume(job)
    if point in UNKNOWN and max_renders == 1:
        assert resumed.error == "RenderLimitReached"
        assert "its run ended without reporting" in resumed.message
        assert gateway.billed == billed_before <= 1
        assert Bucket.of(s3, bucket).clips == {}
        return
    assert resumed.clip, resumed.message
    assert resumed.clip.renders_bought == (2 if point in UNKNOWN else 1)
    assert Bucket.of(s3, bucket) == only(clip)
    assert gateway.billed == (2 if point == "before the receipt" else 1)


@pytest.mark.parametrize("max_renders", [1, 2])
def test_a_run_that_is_killed_while_the_gateway_renders(
    max_renders: int, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """The gateway goes on and bills: a second render is bought if that is allowed, and never a third."""
    gateway.serve_clip(LARGE)
    job = replace(job, max_renders=max_renders)
    with gateway.holding():
        process, connection = crash_runner.start(job)
        gateway.wait_for(rendering=1)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        assert crash_runner.finish(process, connection).killed
    gateway.wait_for(billed=1)
    resumed = crash_runner.resume(job)
    if max_renders == 1:
        assert resumed.error == "RenderLimitReached"
        assert gateway.billed == 1
        return
    assert Bucket.of(s3, bucket) == only(LARGE)
    assert gateway.billed == 2


STORED = {"after completing", "before settling"}


@pytest.mark.parametrize("point", sorted(MULTIPART | STORED | {"after the receipt"}))
def test_another_run_takes_over_what_a_killed_one_has_paid_for(
    point: str, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Also where that was killed twice on the way; an upload that it left is gone as well."""
    gateway.serve_clip(LARGE)
    assert crash_runner.run(replace(job, kill_at=point)).killed
    # By the second, the clip is stored, and what the first has left not yet aborted.
    assert crash_runner.run(replace(job, kill_at="after upload")).killed or point in STORED
    other = crash_runner.resume(replace(job, requester="another"))
    assert other.clip
    assert Bucket.of(s3, bucket) == only(LARGE)
    assert gateway.billed == 1


# With Airflow's own task runner, killed from outside when a server sees that the point is reached.


@pytest.mark.usefixtures("airflow_database")
@pytest.mark.parametrize(
    ("point", "billed"),
    [
        ("rendering", 2),
        ("GetClip", 1),
        ("UploadPart", 1),
        ("CompleteMultipartUpload", 1),
        ("DeleteObjects", 1),
    ],
)
def test_a_task_of_airflow_that_is_killed_is_resumed_by_its_retry(
    point: str, billed: int, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """The same task instance, in another process: the clip is whole and its key in XCom."""
    gateway.serve_clip(LARGE)
    job = replace(job, requester=f"killed_{point}", claim_seconds=5)
    reached, killed = threading.Event(), threading.Event()

    def stop_there(request: S3Request) -> Verdict:
        is_proof = point == "DeleteObjects" and not gateway.ledger  # made before the purchase
        if request.operation == point and not is_proof and not killed.is_set():
            reached.set()
            killed.wait(60)
            # What was on its way to S3 when the process died: it arrives late, or never.
            return Verdict.PASS if point == "DeleteObjects" else Verdict.DROP
        return Verdict.PASS

    with S3Proxy(job.s3_endpoint) as proxy, proxy.ruled(stop_there), ExitStack() as held:
        if point == "rendering":
            held.enter_context(gateway.holding())
        if point == "GetClip":
            gateway.fail_next(ClipFault.hang())
        process, result = crash_runner.start_task(job, proxy.url)
        if point == "rendering":
            gateway.wait_for(rendering=1, timeout=60)
        elif point == "GetClip":
            gateway.wait_for(clip_requests=1, timeout=60)
        else:
            assert reached.wait(60)
        process.kill()
        process.join()
        killed.set()
        held.close()
        retry, result = crash_runner.start_task(job, proxy.url)
        run = result.recv()
        retry.join()
    assert (run.state, run["clip"].xcoms["return_value"]) == ("success", KEY)
    assert run["clip"].xcoms["clip"]["renders_bought"] == billed
    assert run["clip"].xcoms["clip"]["reused"] == (point == "DeleteObjects")
    assert Bucket.of(s3, bucket) == only(LARGE)
    assert gateway.billed == billed


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "AbortMultipartUpload"])
def test_a_lost_answer_of_s3_leaves_no_open_upload(
    operation: str, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """An upload that was begun twice, or could not be ended, is found and ended once the clip is stored."""
    gateway.serve_clip(LARGE)
    if operation == "AbortMultipartUpload":  # an upload is given up when the host does not go on
        gateway.fail_next(ClipFault.break_after(12_000_000))
        gateway.fail_next(ClipFault.no_ranges())
    # The first abort is the proof of the permission, before anything is bought.
    verdicts = [Verdict.LOSE] if operation == "CreateMultipartUpload" else [Verdict.DENY, Verdict.PASS]

    def rule(request: S3Request) -> Verdict:
        return verdicts.pop() if verdicts and request.operation == operation else Verdict.PASS

    with S3Proxy(job.s3_endpoint) as proxy, proxy.ruled(rule):
        clip = crash_runner.run(replace(job, s3_endpoint=proxy.url)).clip
    assert clip
    assert Bucket.of(s3, bucket) == only(LARGE)


def test_the_proof_of_a_run_that_died_is_cleared_up(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """It left an upload that was begun to test a permission, and an entry for which nothing was begun."""
    gateway.serve_clip(SMALL)
    one = replace(job, key="clips/proof.mp4")
    one.purchase(s3).ledger.open(one.requests()[0].body())
    s3.create_multipart_upload(Bucket=bucket, Key=one.key)
    ended = crash_runner.run(one)
    assert ended.clip, ended.message
    assert Bucket.of(s3, bucket).uploads == []


def test_three_hosts_that_trickle_do_not_starve_the_other_clips(
    job: Job, gateway: Emulator, s3: S3Client
) -> None:
    """One byte a second is given up; five clips beside them, on the same transfer threads, are stored meanwhile."""
    gateway.serve_clip(SMALL)
    gateway.link_lifetime = 60
    hasty = replace(job, limits=replace(job.limits, speed_window=1.0))

    async def one(number: int) -> Clip | CodeGatewayError:
        clip = replace(hasty, key=f"clips/{number}.mp4")
        try:
            return await clip.purchase(s3).complete(*clip.requests())
        except CodeGatewayError as error:
            return error

    async def all_of_them() -> list[Clip | CodeGatewayError]:
        slow = [asyncio.create_task(one(number)) for number in range(3)]
        while len(gateway.clip_requests) < 3:  # noqa: ASYNC110 - the emulator has no event for it
            await asyncio.sleep(0.01)
        return await asyncio.gather(*slow, *map(one, range(3, 8)))

    gateway.fail_next(ClipFault.slow(1), times=3)
    *slow, one_more, two, three, four, five = asyncio.run(all_of_them())
    assert [type(each) for each in slow] == [ClipTransferError] * 3
    assert all(isinstance(each, Clip) for each in (one_more, two, three, four, five))
    assert gateway.billed == 8


# 8 at once.


def test_eight_runs_at_once_buy_one_clip(job: Job, gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """One bill a round, whoever wins; the others wait for it and return the same clip."""
    gateway.serve_clip(SMALL)
    # None of them is killed: the one that rendered the clip stores it, however slow the machine.
    patient = replace(job.limits, settle_grace=15)
    with crash_runner.workers(8) as one_round:
        for number in range(ROUNDS):
            key = f"clips/{number}.mp4"
            one = replace(job, key=key, claim_seconds=60, max_renders=4, limits=patient)
            ended = one_round([replace(one, requester=f"run-{n}") for n in range(8)])
            assert [each.error for each in ended] == [""] * 8
            assert gateway.billed == number + 1
            assert sum(not each.clip.reused for each in ended if each.clip) == 1
    digest = hashlib.sha256(SMALL).hexdigest()
    wanted = {f"clips/{number}.mp4": digest for number in range(ROUNDS)}
    assert Bucket.of(s3, bucket) == Bucket(wanted, [], [])


def test_a_transfer_that_is_alive_is_left_alone(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Eight runs at a slow clip host: one stores the clip, the others wait for it, and none of them fails."""
    clip = mp4_of(200_000)
    gateway.serve_clip(clip)
    gateway.fail_next(ClipFault.slow(100_000), times=8)
    patient = replace(job, claim_seconds=60, limits=replace(job.limits, settle_grace=5, beat_patience=5))
    with crash_runner.workers(8) as one_round:
        ended = one_round([replace(patient, requester=f"run-{n}") for n in range(8)])
    assert [each.message for each in ended] == [""] * 8
    assert (gateway.billed, len(gateway.clip_requests)) == (1, 1)
    assert Bucket.of(s3, bucket) == only(clip)


# Killed at random.


@dataclass
class Tally:
    """What came of many runs with a kill at a random moment each."""

    killed: int = 0
    mid_render: int = 0
    """Kills between a claim and its receipt: nobody can know what was bought."""
    stored: int = 0


def test_runs_that_are_killed_at_random_moments_store_every_clip(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """As many clips as runs, one bill each besides the kills in mid-render, and nothing left behind."""
    chance = random.Random(SEED)
    gateway.render_seconds = 0.1
    tally, wanted = Tally(), {}
    for number in range(KILLS):
        clip = chance.choice((SMALL, LARGE)) + number.to_bytes(4)
        gateway.serve_clip(clip)
        one = replace(job, key=f"clips/{number}.mp4", max_renders=3)
        wanted[one.key] = hashlib.sha256(clip).hexdigest()
        ended = run_and_kill(one, after=chance.uniform(0, 0.9))
        if ended.killed:
            tally.killed += 1
            entry = one.purchase(s3).ledger.read()
            tally.mid_render += any(attempt.started and not attempt.rendered for attempt in entry.attempts)
            ended = crash_runner.resume(one)
        assert ended.clip, ended.message
        tally.stored += 1
    gateway.wait_for(rendering=0)
    print(f"seed {SEED}: {tally}, billed {gateway.billed}")
    assert gateway.billed <= KILLS + tally.mid_render
    assert Bucket.of(s3, bucket) == Bucket(wanted, [], [])


def run_and_kill(job: Job, *, after: float) -> Ended:
    """One process, killed so many seconds after it began, unless it has ended by then."""
    process, connection = crash_runner.start(job)
    wait([process.sentinel], timeout=after)
    process.kill()
    return crash_runner.finish(process, connection)
