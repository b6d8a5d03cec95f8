"""The ledger: what it decides, what it does on a real S3 server, and what it does when that fails."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import crash_runner
import pytest
from botocore.config import Config
from crash_runner import KEY, Job
from media_samples import mp4
from moto.server import ThreadedMotoServer
from s3_proxy import Rule, S3Proxy, S3Request, Verdict, deny, down, once

from airflow_provider_codegateway import purchase
from airflow_provider_codegateway.clip import Clip, S3Location, split_uri
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    InvalidTarget,
    LedgerConflict,
    RenderLimitReached,
    RenderOutcomeUnknown,
    RequestRejected,
    StorageUnavailable,
)
from airflow_provider_codegateway.gateway import Answer, BlockingCall
from airflow_provider_codegateway.ledger import (
    Claim,
    Entry,
    Gone,
    Ledger,
    Take,
    Wait,
    entry_location,
    next_step,
)
from airflow_provider_codegateway.ledger.command import parser
from airflow_provider_codegateway.ledger.entry import Attempt
from airflow_provider_codegateway.limits import LIMITS
from airflow_provider_codegateway.s3 import RenewableClient

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MP4 = mp4()
BODY = {"model": "google/veo-3.1-fast", "prompt": "p"}
LEDGER = f"_codegateway/{KEY}/"
ANSWER = Answer(
    body=b'{"created": 1, "model": "m", "data": [{"url": "https://cdn.example.com/x.mp4?sig=s"}]}',
    render_seconds=120.5,
)

# The decision.

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LOCATION = S3Location("bucket", "_codegateway/x.mp4/")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def entry(*attempts: Attempt, open: bool = True, fingerprint: str | None = "f") -> Entry:  # noqa: A002
    return Entry(now=NOW, fingerprint=fingerprint, model="m", open=open, attempts=attempts)


def live(number: int = 1) -> Attempt:
    return Attempt(number, started=ago(100), claim_seconds=330)


def dead(number: int = 1) -> Attempt:
    return Attempt(number, started=ago(331), claim_seconds=330)


def abandoned(number: int = 1) -> Attempt:
    return Attempt(number, started=ago(10), abandoned=ago(5), claim_seconds=330)


def rendered(age: float, number: int = 1) -> Attempt:
    return Attempt(number, started=ago(age + 120), rendered=ago(age), claim_seconds=330)


def stored_slowly(age: float) -> Attempt:
    return replace(rendered(60), delivering=ago(age))


def expired(number: int = 1) -> Attempt:
    return replace(rendered(4000, number), abandoned=ago(1))


STARTED = "Render {} was started at 11:58:20 UTC by a run that is still at work, or was restarted or killed."
STORING = "Render 1 is paid for; another run is storing its clip."

STEPS: list[tuple[str, Entry, int, Claim | Wait | Take | Gone]] = [
    ("no entry", entry(open=False, fingerprint=None), 2, Gone()),
    ("settled, and a marker left", entry(dead(), open=False), 2, Gone()),
    ("fresh", entry(), 2, Claim(1)),
    ("fresh, one render allowed", entry(), 1, Claim(1)),
    ("another run renders", entry(live()), 2, Wait(230, STARTED.format(1))),
    ("another run renders the last", entry(live()), 1, Wait(230, STARTED.format(1))),
    ("a run died", entry(dead()), 2, Claim(2)),
    ("a run gave up", entry(abandoned()), 2, Claim(2)),
    ("a run died, then another", entry(dead(), dead(2)), 3, Claim(3)),
    ("after a dead run one renders", entry(dead(), live(2)), 2, Wait(230, STARTED.format(2))),
    ("just rendered", entry(rendered(5)), 2, Wait(10, STORING)),
    ("rendered a while ago", entry(rendered(LIMITS.settle_grace)), 1, Take(1)),
    ("it takes long to store", entry(stored_slowly(5)), 2, Wait(15, STORING)),
    ("its transfer was killed", entry(stored_slowly(LIMITS.beat_patience)), 2, Take(1)),
    ("the second try rendered", entry(dead(), rendered(60, 2)), 2, Take(2)),
    ("a late answer to the first", entry(rendered(60), dead(2)), 2, Take(1)),
    ("a late answer, the second lives", entry(rendered(60), live(2)), 2, Take(1)),
    ("an expired link", entry(expired()), 2, Claim(2)),
    ("an expired link, then rendered", entry(expired(), rendered(60, 2)), 2, Take(2)),
    ("a marker without its start", entry(Attempt(1, abandoned=ago(5))), 2, Claim(2)),
]


@pytest.mark.parametrize(
    ("state", "max_renders", "step"), [row[1:] for row in STEPS], ids=[row[0] for row in STEPS]
)
def test_what_the_ledger_allows(state: Entry, max_renders: int, step: Claim | Wait | Take | Gone) -> None:
    """Only who can create the next marker buys; a receipt is used; where somebody may be at it, wait."""
    assert step_of(state, max_renders=max_renders) == step


def step_of(state: Entry, *, fingerprint: str = "f", max_renders: int = 2) -> Claim | Wait | Take | Gone:
    return next_step(
        state,
        fingerprint=fingerprint,
        max_renders=max_renders,
        location=LOCATION,
    )


@pytest.mark.parametrize(
    ("attempts", "max_renders", "words"),
    [
        ([dead()], 1, "Render 1, started 2026-11-22 11:54:29 UTC, may have been bought: its run ended"),
        ([abandoned(), dead(2)], 2, "Render 2, started"),
        ([expired()], 1, "was bought and is lost"),
        ([dead(), dead(2), dead(3)], 2, "Render 3, started"),
        ([dead()], 1, "\nOne render may have been bought."),
        ([expired()], 1, "\nOne render was bought."),
        ([dead(), dead(2)], 2, "\n2 renders may have been bought."),
        ([expired(), expired(2)], 2, "\n2 renders were bought."),
        ([expired(), dead(2)], 2, "\n1 render was bought, and 1 more may have been."),
        (
            [expired()],
            1,
            "What the gateway answered is kept: python -m airflow_provider_codegateway.ledger show",
        ),
    ],
)
def test_when_the_limit_is_reached_the_message_says_what_was_bought_and_what_to_do(
    attempts: list[Attempt], max_renders: int, words: str
) -> None:
    """How many, when, with what outcome, where the ledger is, and how to allow another."""
    with pytest.raises(RenderLimitReached) as limit:
        step_of(entry(*attempts), max_renders=max_renders)
    message = str(limit.value)
    for each in (
        words,
        f"max_renders={max_renders} is used up",
        LOCATION.uri,
        "raise max_renders, or delete",
    ):
        assert each in message


@pytest.mark.parametrize("state", [live(), dead(), rendered(60), abandoned()])
def test_an_entry_for_another_request_is_a_conflict_whatever_its_state(state: Attempt) -> None:
    """Its clip is not ours, and its money is not forgotten."""
    with pytest.raises(LedgerConflict, match=r"another request \(model m, fingerprint f…\)"):
        step_of(entry(state), fingerprint="g", max_renders=9)


@pytest.mark.parametrize(
    ("prefix", "uri"),
    [
        ("_codegateway/", "s3://b/_codegateway/a/x.mp4/"),
        ("/p/q", "s3://b/p/q/a/x.mp4/"),
        ("", "s3://b/a/x.mp4/"),
        ("s3://other", "s3://other/b/a/x.mp4/"),
        ("s3://other/p/", "s3://other/p/b/a/x.mp4/"),
    ],
)
def test_where_the_entry_of_a_clip_is(prefix: str, uri: str) -> None:
    """In the clip's bucket, or apart, where the bucket's name keeps equal keys apart."""
    assert entry_location(S3Location("b", "a/x.mp4"), prefix).uri == uri


# On a real S3 server.


def ledger_of(s3: S3Client, bucket: str, requester: str = "run", fingerprint: str = "f") -> Ledger:
    return Ledger(s3, S3Location(bucket, LEDGER), fingerprint=fingerprint, requester=requester)


def names(s3: S3Client, bucket: str) -> set[str]:
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"].removeprefix(LEDGER) for item in listed}


def test_of_eight_at_once_one_claims(s3: S3Client, bucket: str) -> None:
    """Only the run that creates the marker may buy."""
    for _ in range(5):
        racers = [ledger_of(s3, bucket) for _ in range(8)]
        barrier = threading.Barrier(8)

        def race(ledger: Ledger, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            ledger.open(BODY)
            barrier.wait()
            return ledger.claim(1, claim_seconds=60)

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(race, racers)) == 1
        racers[0].forget()


def test_an_entry_reads_as_it_was_written(s3: S3Client, bucket: str) -> None:
    """With whose it is, when each thing happened by the store's clock, and the receipt as it came."""
    ledger = ledger_of(s3, bucket, "run 1")
    assert not ledger.read()
    ledger.open(BODY)
    assert ledger.claim(1, claim_seconds=330)
    ledger.abandon(1, "reset")
    assert ledger.claim(2, claim_seconds=330)
    ledger.keep(2, ANSWER)
    state = ledger.read()
    first, second = state.attempts
    assert (state.open, state.fingerprint, state.model) == (True, "f", BODY["model"])
    assert (first.claim_seconds, first.outcome, first.rendered) == (330, "reset", None)
    assert first.started
    assert first.abandoned
    assert second.started
    assert second.rendered
    # The store's clock is given in whole seconds.
    assert timedelta(seconds=-1) < state.now - second.rendered < timedelta(seconds=60)
    assert ledger_of(s3, bucket).answer(2) == ANSWER
    ledger.settle(2, ANSWER)
    assert names(s3, bucket) == set()


def test_a_clip_below_another_clips_key_has_an_entry_of_its_own(s3: S3Client, bucket: str) -> None:
    """The markers of ``x.mp4/y.mp4`` are not those of ``x.mp4``."""
    inner = Ledger(s3, entry_location(S3Location(bucket, f"{KEY}/y.mp4")), fingerprint="g", requester="r")
    inner.open(BODY)
    inner.claim(1, claim_seconds=60)
    ledger = ledger_of(s3, bucket)
    ledger.open(BODY)
    assert ledger.read().attempts == ()


@pytest.mark.parametrize("name", ["request.json", "1.started", "1.rendered", "1.abandoned"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'"words"', b"null", b"{}"])
def test_a_marker_that_cannot_be_read_is_an_error_and_never_nothing(
    name: str, content: bytes, s3: S3Client, bucket: str
) -> None:
    """Whatever it holds, money may stand behind it."""
    ledger = ledger_of(s3, bucket)
    ledger.open(BODY)
    s3.put_object(Bucket=bucket, Key=LEDGER + name, Body=content)
    with pytest.raises(LedgerConflict, match=f"{name} was not written by this ledger"):
        ledger.read()


def test_the_receipt_of_another_request_is_never_used(s3: S3Client, bucket: str) -> None:
    """Should a run that was held up write its receipt late, into an entry that has become another's."""
    late, other = ledger_of(s3, bucket), ledger_of(s3, bucket, "other", "g")
    other.open(BODY)
    assert other.claim(1, claim_seconds=60)
    late.keep(1, ANSWER)
    with pytest.raises(LedgerConflict, match="was bought, and cannot be used for this one"):
        other.answer(1)


# A run that was held up (its machine asleep, its process stopped) while others went on without it.


def overtaken(s3: S3Client, bucket: str) -> tuple[Ledger, Ledger]:
    """One whose claim lapsed, whose entry was settled, and the next one, which has claimed the key anew."""
    late, new = ledger_of(s3, bucket, "late"), ledger_of(s3, bucket, "new")
    late.open(BODY)
    assert late.claim(1, claim_seconds=0)
    late.forget()
    new.open(BODY)
    assert new.claim(1, claim_seconds=60)
    return late, new


@pytest.mark.parametrize(
    "act",
    [
        lambda late: late.release(1),
        lambda late: late.abandon(1, "reset"),
        lambda late: late.abandon(1, "expired", answer=ANSWER),
        lambda late: late.settle(1, ANSWER),
    ],
    ids=["release", "abandon", "expire", "settle"],
)
@pytest.mark.parametrize("has_receipt", [False, True])
def test_a_run_that_was_overtaken_leaves_the_markers_of_others_alone(
    act: Callable[[Ledger], None], has_receipt: bool, s3: S3Client, bucket: str
) -> None:
    """Else a third could claim what a second is paying for."""
    late, new = overtaken(s3, bucket)
    if has_receipt:
        new.keep(1, replace(ANSWER, render_seconds=2.0))
    before = names(s3, bucket)
    act(late)
    assert names(s3, bucket) == before


def test_a_claim_that_is_taken_back_late_leaves_its_successors_request(s3: S3Client, bucket: str) -> None:
    """Render 1 bought nothing after all, while render 2 is under way."""
    late, successor = ledger_of(s3, bucket, "late"), ledger_of(s3, bucket, "successor")
    late.open(BODY)
    assert late.claim(1, claim_seconds=0)
    assert successor.claim(2, claim_seconds=60)
    late.release(1)
    assert names(s3, bucket) == {"request.json", "2.started"}


def test_what_a_late_run_left_behind_is_read_before_anything_is_bought(s3: S3Client, bucket: str) -> None:
    """A receipt without a request is no fresh entry, though ``open`` creates the request."""
    ledger_of(s3, bucket, "late").keep(2, ANSWER)
    ledger = ledger_of(s3, bucket)
    ledger.open(BODY)
    assert [attempt.number for attempt in ledger.read().attempts] == [2]


def test_a_marker_that_vanishes_while_it_is_read_is_looked_for_again(
    s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """An entry that is settled between the list and the read is no dead run."""
    owner = ledger_of(s3, bucket, "owner")
    owner.open(BODY)
    owner.claim(1, claim_seconds=60)

    def settle_first(request: S3Request) -> Verdict:
        if request.operation == "GetObject" and request.key.endswith("1.started"):
            owner.forget()
        return Verdict.PASS

    with proxy.ruled(settle_first):
        assert not ledger_of(client, bucket).read()


# The whole path, through a proxy that is S3's bad days.


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_endpoint) as server:
        yield server


@pytest.fixture
def client(proxy: S3Proxy, s3_credentials: dict[str, str]) -> S3Client:
    return s3_client(proxy.url, s3_credentials)


def s3_client(url: str, credentials: dict[str, str], attempts: int = 1) -> S3Client:
    session = boto3.Session(
        credentials["aws_access_key_id"], credentials["aws_secret_access_key"], region_name="us-east-1"
    )
    return session.client("s3", endpoint_url=url, config=Config(retries={"total_max_attempts": attempts}))


def render(job: Job, s3: S3Client, **terms: Any) -> Clip:
    return crash_runner.render_blocking(replace(job, **terms), s3)


def test_the_happy_path_costs_eight_requests_and_eight_proofs_once_a_process(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """Besides the upload's own. What a process has proven of a client and a folder, it does not prove again."""
    # On a busy machine a run would look once more before it settles.
    job = replace(job, limits=replace(job.limits, settle_grace=60))
    proxy.requests.clear()
    render(job, client)
    proofs = [
        "ListObjects",  # may the ledger be listed,
        "GetObject",  # read,
        "HeadObject",  # looked at with its metadata
        "DeleteObjects",  # and cleared?
        "CreateMultipartUpload",  # may the clip be written,
        "AbortMultipartUpload",  # an upload aborted,
        "ListMultipartUploads",  # and found again?
    ]
    ours = [
        "HeadObject",  # is the key free?
        "PutObject",  # request.json
        *proofs,
        "ListObjects",
        "PutObject",  # 1.started
        "PutObject",  # 1.started again: refused, or the store cannot be relied upon
        "HeadObject",  # is the key still free?
        "GetObject",  # request.json
        "PutObject",  # 1.rendered
        "DeleteObjects",
    ]
    uploads = ["PutObject", "HeadObject"]
    assert proxy.operations == [*ours[:-1], *uploads, ours[-1]]
    proxy.requests.clear()
    render(job, client, key="clips/second.mp4")
    assert len(proxy.requests) == len(ours) - len(proofs) - 1 + len(uploads) == 8 + len(uploads)
    assert gateway.billed == 2


@pytest.mark.parametrize(
    ("verdict", "error", "words"),
    [
        (Verdict.DENY, InvalidTarget, "Give the AWS connection s3:PutObject there"),
        (Verdict.REFUSE, InvalidTarget, "InvalidStorageClass"),
        (Verdict.DROP, StorageUnavailable, "S3 could not begin an upload"),
    ],
)
def test_terms_that_s3_does_not_take_are_refused_for_free(
    verdict: Verdict, error: type[CodeGatewayError], words: str, job: Job, proxy: S3Proxy, client: S3Client
) -> None:
    """An upload that is begun tells; where S3 takes it, nothing of it is left."""
    purchase = job.purchase_of(replace(job.spec(), upload_args={"StorageClass": "STANDARD-IA"}), client)
    begins = lambda request: request.operation == "CreateMultipartUpload"  # noqa: E731
    with proxy.ruled(once(verdict, begins)), pytest.raises(error, match=words) as refusal:
        purchase.begin(job.request())
    assert refusal.value.bought is Bought.NO
    assert purchase.begin(job.request()) is None
    assert client.list_multipart_uploads(Bucket=job.bucket).get("Uploads", []) == []


def test_a_paid_clip_whose_upload_is_refused_stays_free_to_retry(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """Terms are proven where nothing is bought yet: later, each try is another transfer, until S3 takes it."""
    spec = replace(job.spec(), upload_args={"StorageClass": "STANDARD_IA"})

    def attempt() -> Clip:
        return BlockingCall().run(job.purchase_of(spec, client).complete(job.request()))

    def denied(request: S3Request) -> Verdict:
        return Verdict.DENY if request.key == KEY and request.operation == "PutObject" else Verdict.PASS

    with proxy.ruled(denied):
        for _ in range(2):
            with pytest.raises(ClipTransferError):
                attempt()
    assert attempt().renders_bought == gateway.billed == 1


def test_a_claim_whose_answer_was_lost_is_recognised_as_our_own(
    job: Job, gateway: Emulator, proxy: S3Proxy, s3: S3Client, s3_credentials: dict[str, str], bucket: str
) -> None:
    """botocore sends it again, and is told that the marker exists."""
    twice = s3_client(proxy.url, s3_credentials, attempts=2)
    with proxy.ruled(once(Verdict.LOSE, writes("1.started"))):
        clip = render(job, twice)
    assert clip.renders_bought == 1
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.LOSE])
@pytest.mark.parametrize("name", ["request.json", "1.started"])
def test_a_claim_that_ends_in_doubt_buys_nothing_and_does_not_count(
    name: str, verdict: Verdict, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """It is taken back if it was made, so that the next try has all of ``max_renders`` and need not wait."""
    with proxy.ruled(once(verdict, writes(name))), pytest.raises(StorageUnavailable) as failure:
        render(job, client, max_renders=1)
    assert failure.value.bought is Bought.NO
    assert gateway.ledger == ()
    assert render(job, client, max_renders=1, claim_seconds=300).renders_bought == 1


def does(operation: str) -> Callable[[S3Request], bool]:
    return lambda request: request.operation == operation


def writes(name: str) -> Callable[[S3Request], bool]:
    return lambda request: request.method == "PUT" and request.key.endswith(name)


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_bought(
    job: Job, gateway: Emulator
) -> None:
    """On such a store two could claim the same render. Nothing is left on it."""
    # A server of its own: one that checks signatures would refuse a request that lacks a signed header.
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    try:
        with S3Proxy(f"http://{host}:{port}", strip="If-None-Match") as lax:
            s3 = s3_client(lax.url, job.s3_credentials)
            s3.create_bucket(Bucket=job.bucket)
            for _ in range(2):
                with pytest.raises(InvalidTarget, match="ignores If-None-Match") as refusal:
                    render(job, s3)
                assert "Set ledger_prefix to an s3:// location" in str(refusal.value)
                assert names(s3, job.bucket) == set()
    finally:
        moto.stop()
    assert gateway.ledger == ()


DENIED: list[tuple[str, Rule, str]] = [
    ("read-only", deny("PutObject", "DeleteObjects"), "s3:PutObject"),
    ("write-only", deny("GetObject", "HeadObject", "ListObjects"), "s3:GetObject and s3:ListBucket"),
    ("no list", deny("ListObjects"), "s3:ListBucket"),
    ("no ledger to read", deny("GetObject"), "s3:GetObject"),
    ("no delete", deny("DeleteObjects", "DeleteObject"), "s3:DeleteObject"),
    ("no upload", deny("CreateMultipartUpload"), "s3:PutObject"),
    ("no abort", deny("AbortMultipartUpload"), "s3:AbortMultipartUpload"),
    ("no list of uploads", deny("ListMultipartUploads"), "s3:ListBucketMultipartUploads"),
    ("nothing at all", lambda request: Verdict.DENY, "s3:GetObject"),
]


@pytest.mark.parametrize(("rule", "permission"), [row[1:] for row in DENIED], ids=[row[0] for row in DENIED])
def test_a_missing_permission_is_named_before_anything_is_bought(
    rule: Rule, permission: str, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """And with it granted, the next try goes on."""
    with proxy.ruled(rule), pytest.raises(InvalidTarget, match=permission) as refusal:
        render(job, client)
    assert refusal.value.bought is Bought.NO
    assert gateway.ledger == ()
    render(job, client, max_renders=1)
    assert gateway.billed == 1


def deny_once_billed(gateway: Emulator, *operations: str) -> Rule:
    """The rule of credentials that lose a permission while a render is under way."""
    denied = deny(*operations)
    return lambda request: denied(request) if gateway.ledger else Verdict.PASS


def test_without_the_permission_to_delete_clips_are_stored_and_reused(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Lost during the render: the ledger stays untidy, and the log names the permission."""
    with proxy.ruled(deny_once_billed(gateway, "DeleteObjects", "DeleteObject")):
        assert not render(job, client).reused
        assert render(job, client, requester="another").reused
    assert caplog.text.count("Give the AWS connection s3:DeleteObject") == 2
    assert gateway.billed == 1


def test_without_the_permission_to_delete_what_the_gateway_said_is_still_the_error(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim that cannot be taken back counts, and that is said."""
    gateway.fail_next(Fault.status(400))
    with (
        proxy.ruled(deny_once_billed(gateway, "DeleteObjects", "DeleteObject")),
        pytest.raises(RequestRejected),
    ):
        render(job, client)
    assert "Give the AWS connection s3:DeleteObject" in caplog.text
    assert "may count it as bought" in caplog.text


def test_without_the_permission_for_multipart_uploads_a_receipt_is_used_all_the_same(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client
) -> None:
    """What a killed transfer may have left is looked for, and not found: a warning, no error."""
    gateway.fail_next(ClipFault.html())
    with pytest.raises(ClipTransferError):
        render(job, client)

    def no_uploads(request: S3Request) -> Verdict:
        return Verdict.DENY if "uploads" in request.query else Verdict.PASS

    with proxy.ruled(no_uploads):
        render(job, client)
    assert names(s3, job.bucket) == {KEY}
    assert gateway.billed == 1


# S3 down.


def test_s3_down_before_the_render(job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client) -> None:
    """Nothing is bought blindly."""
    with proxy.ruled(down), pytest.raises(StorageUnavailable, match="S3 could not") as failure:
        render(job, client)
    assert failure.value.bought is Bought.NO
    assert gateway.ledger == ()


@pytest.mark.parametrize("failures", [1, 3])
def test_s3_down_when_the_answer_comes(
    failures: int,
    job: Job,
    gateway: Emulator,
    s3: S3Client,
    proxy: S3Proxy,
    client: S3Client,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The receipt is written again until it is kept."""
    left = [Verdict.DROP] * failures
    late = writes("1.rendered")
    with proxy.ruled(lambda request: left.pop() if left and late(request) else Verdict.PASS):
        render(job, client)
    assert caplog.text.count("could not be written yet") == failures
    assert proxy.operations.count("PutObject") == 3 + failures + 1 + 1
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.DENY])
def test_a_receipt_that_can_never_be_written_does_not_lose_the_clip(
    verdict: Verdict,
    job: Job,
    gateway: Emulator,
    s3: S3Client,
    proxy: S3Proxy,
    client: S3Client,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The transfer goes on from memory, and the log says loudly what is at stake."""
    job = replace(job, limits=replace(job.limits, receipt_patience=0.6))
    late = writes("1.rendered")
    with proxy.ruled(lambda request: verdict if late(request) else Verdict.PASS):
        assert not render(job, client).reused
    loud = [record for record in caplog.records if "which is PAID FOR" in record.getMessage()]
    assert [record.levelno for record in loud] == [logging.ERROR]
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


def drop_receipts(gateway: Emulator, then: Callable[[], object] = lambda: None) -> Rule:
    """S3 fails for the receipt until the clip is asked for, and answers afterwards."""
    late = writes("1.rendered")

    def rule(request: S3Request) -> Verdict:
        if not late(request):
            return Verdict.PASS
        if not gateway.clip_requests:
            return Verdict.DROP
        then()
        return Verdict.PASS

    return rule


@pytest.mark.parametrize("stopped", [False, True], ids=["failed", "stopped"])
def test_a_receipt_is_kept_late_when_its_transfer_does_not_end_well(
    stopped: bool, job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """S3 failed for the receipt's whole patience: once it answers again, the next attempt is free."""
    job = replace(job, limits=replace(job.limits, receipt_patience=0.6))
    gateway.fail_next(ClipFault.hang() if stopped else ClipFault.html())

    async def stop_in_the_transfer() -> None:
        task = asyncio.ensure_future(job.purchase(client).complete(job.request()))
        await asyncio.to_thread(gateway.wait_for, clip_requests=1)
        task.cancel()
        await task

    with proxy.ruled(drop_receipts(gateway)):
        if stopped:
            with pytest.raises(asyncio.CancelledError):
                asyncio.run(stop_in_the_transfer())
        else:
            with pytest.raises(ClipTransferError):
                render(job, client)
    assert "1.rendered" in names(s3, bucket)
    assert render(job, client, max_renders=1).renders_bought == 1
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


def test_a_receipt_is_kept_late_when_the_run_is_stopped_while_it_could_not_be_written(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """The answer is in hand: S3 gets another chance, and the next attempt is free."""
    job = replace(job, limits=replace(job.limits, receipt_patience=0.6))
    late = writes("1.rendered")
    tried = threading.Event()
    drops = [Verdict.DROP, Verdict.DROP]

    def rule(request: S3Request) -> Verdict:
        if not late(request):
            return Verdict.PASS
        tried.set()
        return drops.pop() if drops else Verdict.PASS

    async def stop_meanwhile() -> None:
        task = asyncio.ensure_future(job.purchase(client).complete(job.request()))
        await asyncio.to_thread(tried.wait)
        task.cancel()
        await task

    with proxy.ruled(rule), pytest.raises(asyncio.CancelledError):
        asyncio.run(stop_meanwhile())
    assert not gateway.clip_requests
    assert "1.rendered" in names(s3, bucket)
    assert render(job, client, max_renders=1).renders_bought == 1
    assert gateway.billed == 1


def test_a_receipt_needs_no_second_client(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """After a failure a new one is tried. If Airflow cannot look its connection up just then, the old one does."""
    clients = [client]

    def connect_quickly() -> S3Client:
        if not clients:
            raise OSError("no way to the API server")
        return clients.pop()

    renewable = RenewableClient.make(lambda: client, connect_quickly)
    with proxy.ruled(once(Verdict.DROP, writes("1.rendered"))):
        assert not render(job, renewable).reused
    assert clients == []
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


@pytest.mark.parametrize("where", ["between two tries", "while it is loaded"])
def test_a_run_that_is_stopped_before_it_has_sent_the_request_bought_nothing(
    where: str,
    job: Job,
    gateway: Emulator,
    s3: S3Client,
    proxy: S3Proxy,
    client: S3Client,
    bucket: str,
    request: pytest.FixtureRequest,
) -> None:
    """It leaves no trace that would count: restarts of a triggerer while the gateway is busy use up no render."""
    at, go = threading.Event(), threading.Event()

    def rule(request: S3Request) -> Verdict:
        if where == "while it is loaded" and loads(request):
            at.set()
            go.wait()
        return Verdict.PASS

    def loads(request: S3Request) -> bool:
        is_request = request.operation == "GetObject" and request.key.endswith("request.json")
        return is_request and "range" not in request.headers

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if where == "between two tries" and "Trying again in" in record.getMessage():
                at.set()

    async def stop() -> None:
        task = asyncio.ensure_future(job.purchase(client).complete(job.request()))
        await asyncio.to_thread(at.wait)
        task.cancel()
        go.set()
        await task

    notice = Notice()
    logging.getLogger("airflow_provider_codegateway").addHandler(notice)
    request.addfinalizer(partial(logging.getLogger("airflow_provider_codegateway").removeHandler, notice))
    for _ in range(3):
        at.clear()
        go.clear()
        gateway.fail_next(Fault.status(429, retry_after=30))
        with proxy.ruled(rule), pytest.raises(asyncio.CancelledError):
            asyncio.run(stop())
        assert names(s3, bucket) == set()
    gateway.clear_faults()
    assert gateway.billed == 0
    assert render(job, client, max_renders=1).renders_bought == 1


def denied_if(when: Callable[[S3Request], bool]) -> Rule:
    return lambda request: Verdict.DENY if when(request) else Verdict.PASS


@pytest.mark.parametrize("fault", [Fault.early_expiry(0.0), Fault.no_url()], ids=["expired", "unreadable"])
def test_a_lost_clip_whose_end_cannot_be_written_is_not_fetched_without_end(
    fault: Fault, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """The error of the clip says the truth, and the next try looks again."""
    gateway.fail_next(fault)
    ends = writes("1.abandoned")
    for _ in range(2):
        with proxy.ruled(denied_if(ends)), pytest.raises((ClipExpired, RenderOutcomeUnknown)) as error:
            render(job, client)
        assert error.value.bought is not Bought.NO
    assert gateway.billed == 1
    assert sum(map(ends, proxy.requests)) <= 4
    assert render(job, client).renders_bought == 2


def test_a_clip_that_was_stored_and_only_not_confirmed_is_settled(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """It is found at its key under our own claim."""

    def confirms(request: S3Request) -> bool:
        return bool(gateway.clip_requests) and (request.operation, request.key) == ("HeadObject", KEY)

    with proxy.ruled(once(Verdict.DROP, confirms)):
        assert render(job, client).renders_bought == 1
    assert names(s3, bucket) == {KEY}


@pytest.mark.parametrize("verdict", [Verdict.DENY, Verdict.DROP])
@pytest.mark.parametrize("operation", ["HeadObject", "PutObject", "ListObjects", "GetObject"])
def test_no_failure_of_s3_hides_what_an_earlier_run_bought(
    operation: str, verdict: Verdict, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """Whichever request of the next try fails."""
    assert crash_runner.run(replace(job, kill_at="after the receipt")).killed
    fails = lambda request: verdict if request.operation == operation else Verdict.PASS  # noqa: E731
    with proxy.ruled(fails), pytest.raises(CodeGatewayError) as error:
        render(job, client)
    assert error.value.bought is not Bought.NO
    with proxy.ruled(fails), pytest.raises(CodeGatewayError) as error:
        BlockingCall().run(job.purchase(client).resume())
    assert error.value.bought is not Bought.NO
    assert render(job, client).renders_bought == 1
    assert gateway.billed == 1


def test_what_another_run_bought_since_is_not_said_to_be_unbought(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """Nothing was begun when this run opened the entry, and a render is paid for when S3 fails."""
    purchase = job.purchase(client)
    assert purchase.begin(job.request()) is None
    assert crash_runner.run(replace(job, kill_at="after the receipt")).killed
    fails = lambda request: Verdict.DROP if request.operation == "HeadObject" else Verdict.PASS  # noqa: E731
    with proxy.ruled(fails), pytest.raises(StorageUnavailable) as error:
        BlockingCall().run(purchase.resume())
    assert error.value.bought is Bought.YES
    assert gateway.billed == 1


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_late_receipt_does_not_come_back_to_an_entry_that_is_gone(
    moment: str, job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """Somebody deleted or settled it, before the late receipt is written or just then: nothing of it remains."""
    job = replace(job, limits=replace(job.limits, receipt_patience=0.6))
    gateway.fail_next(ClipFault.html())
    forget = job.purchase(s3).ledger.forget
    rule = drop_receipts(gateway, forget)

    def rule_of_moment(request: S3Request) -> Verdict:
        if moment == "before" and gateway.clip_requests and names(s3, bucket):
            forget()
        verdict = rule(request)
        assert isinstance(verdict, Verdict)
        return verdict

    with proxy.ruled(rule_of_moment), pytest.raises(ClipTransferError):
        render(job, client)
    assert names(s3, bucket) == set()
    assert gateway.billed == 1


def test_s3_down_when_the_outcome_is_unknown(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """The error is the render's and says so; the next try finds a dead run and buys within the limit."""
    gateway.fail_next(Fault.reset_after())
    ends = writes("1.abandoned")
    with (
        proxy.ruled(lambda request: Verdict.DROP if ends(request) else Verdict.PASS),
        pytest.raises(RenderOutcomeUnknown, match=r"\nOne render may have been bought\.$"),
    ):
        render(job, client)
    assert render(job, client).renders_bought == 2
    assert gateway.billed == 2


@pytest.mark.parametrize("down_from", ["PutObject", "HeadObject"])
def test_s3_down_during_the_transfer(
    down_from: str, job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """The receipt is kept: the next try is free."""

    def rule(request: S3Request) -> Verdict:
        paid = gateway.clip_requests and request.key == KEY
        return Verdict.DROP if paid and request.operation == down_from else Verdict.PASS

    with proxy.ruled(rule), pytest.raises(ClipTransferError):
        render(job, client, max_renders=1)
    assert "1.rendered" in names(s3, bucket)
    render(job, client, max_renders=1)
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


def test_s3_down_when_all_is_done(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """The clip is worth more than a tidy ledger; whoever looks next tidies up."""
    deletes = lambda request: bool(gateway.ledger) and request.operation == "DeleteObjects"  # noqa: E731
    with proxy.ruled(once(Verdict.DROP, deletes)):
        assert not render(job, client).reused
    assert len(names(s3, bucket)) == 4
    assert render(job, client, requester="another").reused
    assert names(s3, bucket) == {KEY}
    assert gateway.billed == 1


def test_the_entry_of_a_stored_clip_is_left_to_its_run_while_that_may_live(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """That run deletes the entry without a further look: an entry that another began meanwhile would go with it."""
    assert crash_runner.run(replace(job, kill_at="before settling")).killed
    patient = replace(job, requester="another", limits=replace(job.limits, settle_grace=300, beat_interval=9))
    assert patient.purchase(s3).begin(job.request()) is None
    assert "request.json" in names(s3, bucket)
    clip = render(replace(job, requester="another"), s3)
    assert (clip.reused, gateway.billed) == (True, 1)
    assert names(s3, bucket) == {KEY}


@pytest.mark.parametrize("name", ["codegateway-claim", "codegateway-created"])
def test_the_entry_of_a_clip_of_an_earlier_version_is_known_by_its_time(
    name: str, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Those have no claim in their metadata; without a time either, nobody can tell, and the entry stays."""
    assert crash_runner.run(replace(job, kill_at="before settling")).killed
    metadata = s3.head_object(Bucket=bucket, Key=KEY)["Metadata"]
    del metadata["codegateway-claim"]
    metadata.pop(name, None)
    s3.put_object(Bucket=bucket, Key=KEY, Body=MP4, ContentType="video/mp4", Metadata=metadata)
    assert render(job, s3, requester="another").reused
    assert (names(s3, bucket) == {KEY}) is (name == "codegateway-claim")
    assert gateway.billed == 1


def test_a_ledger_that_cannot_be_read_is_never_an_empty_one(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """With a paid render in it, a successor that cannot see it buys nothing."""
    gateway.fail_next(ClipFault.html())
    with pytest.raises(ClipTransferError):
        render(job, client)
    for operation in ("ListObjects", "GetObject"):
        with proxy.ruled(once(Verdict.DROP, does(operation))), pytest.raises(StorageUnavailable):
            render(job, client)
    assert gateway.billed == 1


# Clocks, cancellation, other runs.


@pytest.mark.parametrize("clock", [-600.0, 600.0])
def test_a_clock_that_is_ten_minutes_off_changes_nothing(
    clock: float, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Ages are by the store's clock: who looks early waits, who looks late takes over what died."""
    odd = replace(job, clock=clock)
    assert crash_runner.run(replace(odd, kill_at="after the receipt")).killed
    assert crash_runner.run(odd).clip
    second = replace(odd, key="second.mp4", requester="another", claim_seconds=1)
    assert crash_runner.run(replace(second, kill_at="after claim")).killed
    ended = crash_runner.run(second)
    assert ended.clip, ended.message
    assert ended.clip.renders_bought == 2
    assert gateway.billed == 2
    assert names(s3, bucket) == {KEY, "second.mp4"}


def test_a_wrong_clock_does_not_make_a_live_run_look_dead(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """A successor ten minutes ahead still waits for who renders, and reuses its clip."""
    with gateway.holding():
        first = crash_runner.start(replace(job, requester="first", claim_seconds=300))
        gateway.wait_for(rendering=1)
        second = crash_runner.start(replace(job, requester="second", claim_seconds=300, clock=600.0))
        assert not second[1].poll(1)
    for ended in (crash_runner.finish(*first), crash_runner.finish(*second)):
        assert ended.clip, ended.message
    assert gateway.billed == 1
    assert names(s3, bucket) == {KEY}


def test_a_run_that_is_stopped_while_it_claims_has_bought_nothing(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """An orderly exit takes its claim back: the next try need not wait, and has all of ``max_renders``."""
    claiming = threading.Event()

    def note(request: S3Request) -> Verdict:
        if writes("1.started")(request):
            claiming.set()
        return Verdict.PASS

    async def stopped() -> None:
        purchase = replace(job, claim_seconds=300).purchase(client)
        task = asyncio.ensure_future(purchase.complete(job.request()))
        await asyncio.to_thread(claiming.wait)
        task.cancel()
        await task

    with proxy.ruled(note), pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert names(s3, bucket) == set()
    assert gateway.ledger == ()
    assert render(job, client, max_renders=1).renders_bought == 1


@pytest.mark.parametrize("held_up", ["by the look at the key", "by the journal"])
def test_a_claim_that_was_held_up_for_long_is_not_used(
    held_up: str, job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """The render would outlast it, and a successor would buy another too: it claims again, for the same request."""
    spend = {"journal": f"s3://{bucket}/journal", "budgets": [{"per": "day", "renders": 1}]}
    job = replace(job, limits=replace(job.limits, look_patience=0.5), spend=spend)
    seen: list[S3Request] = []
    lapsed = threading.Event()

    def slow(request: S3Request) -> Verdict:
        is_look = request.operation == "HeadObject" and request.key == KEY
        is_record = request.method == "PUT" and request.key.endswith(".jsonl")
        if is_look if held_up == "by the look at the key" else is_record:
            seen.append(request)
            if len(seen) == (2 if is_look else 1):
                lapsed.wait(job.limits.look_patience + 0.1)
        return Verdict.PASS

    with proxy.ruled(slow):
        clip = render(job, client)
    claims = [request for request in proxy.requests if writes("1.started")(request)]
    assert len(claims) == 3  # the first, the proof of conditional writes, and the second
    assert len([request for request in proxy.requests if writes("request.json")(request)]) == 1
    assert clip.renders_bought == 1
    assert gateway.billed == 1
    assert {name for name in names(s3, bucket) if not name.startswith("journal/")} == {KEY}


def test_a_store_that_is_always_too_slow_for_a_claim_ends_the_attempt(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """A claim that is given back again and again would be worked on without end."""
    spend = {"journal": f"s3://{bucket}/journal", "budgets": [{"per": "day", "renders": 1}]}
    job = replace(job, limits=replace(job.limits, look_patience=0.1), spend=spend)
    is_late = threading.Event()

    def slow(request: S3Request) -> Verdict:
        if writes("1.started")(request):
            is_late.wait(job.limits.look_patience + 0.1)
        return Verdict.PASS

    with (
        proxy.ruled(slow),
        pytest.raises(StorageUnavailable, match=r"is too slow: 3 times in a row, more than 0\.1 s") as error,
    ):
        render(job, client)
    assert error.value.bought is Bought.NO
    assert gateway.billed == 0
    written = [name for name in names(s3, bucket) if name.endswith(".jsonl")]
    kinds = [
        json.loads(row)["kind"]
        for name in sorted(written)
        for row in s3.get_object(Bucket=bucket, Key=name)["Body"].read().splitlines()
    ]
    assert kinds == ["reserved", "released"] * 3


def test_a_clip_that_was_stored_after_the_first_look_is_seen_by_the_second(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """Another run may begin and settle in between: the claim can be had again, and is not used."""
    others: list[Clip] = []

    def overtake(request: S3Request) -> Verdict:
        if writes("request.json")(request) and not others:
            others.append(render(job, s3, requester="another"))
        return Verdict.PASS

    with proxy.ruled(overtake):
        assert render(job, client).reused
    assert gateway.billed == 1
    assert names(s3, bucket) == {KEY}


def test_a_request_that_has_become_anothers_is_not_sent(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """Who reads the request from the ledger to send it sends what it has claimed, or nothing."""
    ledger = job.purchase(s3).ledger
    ledger.open(job.request().body())
    other = replace(job, prompt="q").purchase(s3).ledger

    def swap(request: S3Request) -> Verdict:
        if request.operation == "HeadObject":
            ledger.withdraw()
            other.open({**BODY, "prompt": "q"})
        return Verdict.PASS

    with proxy.ruled(swap), pytest.raises(StorageUnavailable):
        asyncio.run(job.purchase(client).resume())
    assert gateway.ledger == ()
    assert "1.started" not in names(s3, bucket)


def test_a_run_that_finds_an_expired_link_buys_within_the_limit_by_itself(
    job: Job, gateway: Emulator, s3: S3Client, client: S3Client, bucket: str
) -> None:
    """What another run paid for is lost; the ledger says so, and the count goes on."""
    gateway.link_lifetime = 0
    with pytest.raises(ClipExpired):
        render(job, client)
    gateway.link_lifetime = 3600
    assert render(job, client, requester="another").renders_bought == 2
    assert gateway.billed == 2
    assert names(s3, bucket) == {KEY}


def test_the_entry_of_a_run_that_died_before_its_claim_is_withdrawn_and_a_new_claim_left(
    job: Job, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """Who reuses the clip tidies up what bought nothing, and nothing else."""
    render(job, client)
    ledger = job.purchase(s3).ledger
    ledger.open(BODY)
    assert render(job, client, requester="another").reused
    assert names(s3, bucket) == {KEY}
    ledger.open(BODY)

    def claim_now(request: S3Request) -> Verdict:
        if request.operation == "GetObject":
            ledger.claim(1, claim_seconds=300)
        return Verdict.PASS

    with proxy.ruled(claim_now):
        assert render(job, client, requester="another").reused
    assert names(s3, bucket) == {KEY, "1.started"}


def test_no_error_of_the_ledger_shows_a_link(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The receipt holds one, which is as good as the clip."""
    gateway.fail_next(ClipFault.html())
    errors: list[CodeGatewayError] = []
    late = writes("1.rendered")
    left = [Verdict.DROP]
    with proxy.ruled(lambda request: left.pop() if left and late(request) else Verdict.PASS):
        try:
            render(job, client)
        except CodeGatewayError as error:
            errors.append(error)
    try:
        render(replace(job, prompt="q"), client)
    except CodeGatewayError as error:
        errors.append(error)
    assert [type(error) for error in errors] == [ClipTransferError, LedgerConflict]
    assert "Signature=" not in caplog.text + "".join(map(str, errors))


# Answers that are kept before they are read.


@pytest.mark.parametrize("shape", ["missing", "job", "nothing"])
def test_an_answer_that_cannot_be_used_stays_in_the_ledger(
    shape: Any, job: Job, gateway: Emulator, client: S3Client, s3: S3Client, bucket: str
) -> None:
    """It was bought, a person can read it, and the next attempt buys within the limit without waiting."""
    gateway.fail_next(Fault.no_url(shape))
    with pytest.raises(RenderOutcomeUnknown, match=r"\nOne render was bought\.$"):
        render(job, client)
    assert {"1.rendered", "1.abandoned"} <= names(s3, bucket)
    assert render(job, client).renders_bought == 2
    assert gateway.billed == 2
    assert names(s3, bucket) == {KEY}


def test_a_relative_link_is_the_gateways(
    job: Job, gateway: Emulator, client: S3Client, s3: S3Client, bucket: str
) -> None:
    """It is asked for where the answer came from."""
    gateway.fail_next(Fault.no_url("relative"))
    assert render(job, client).renders_bought == gateway.billed == 1
    assert names(s3, bucket) == {KEY}


def test_a_later_version_reads_an_answer_that_an_earlier_one_could_not(
    job: Job, gateway: Emulator, client: S3Client, s3: S3Client, bucket: str
) -> None:
    """Though max_renders is used up: the clip is paid for."""
    job = replace(job, max_renders=1)
    gateway.fail_next(Fault.odd_answer("url_padded"))
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(purchase, "read_receipt", _cannot_read)
        with pytest.raises(RenderOutcomeUnknown):
            render(job, client)
        with pytest.raises(RenderLimitReached):
            render(job, client)
    assert not render(job, client).reused
    assert gateway.billed == 1
    assert names(s3, bucket) == {KEY}


def test_a_run_that_dies_before_it_reads_an_answer_leaves_it_to_the_next(
    job: Job, gateway: Emulator, client: S3Client
) -> None:
    """Who takes it goes on to the next render if it cannot be used."""
    gateway.fail_next(Fault.no_url("missing"))
    assert crash_runner.run(replace(job, kill_at="after the receipt")).killed
    assert render(job, client).renders_bought == 2
    assert gateway.billed == 2


def test_a_receipt_of_the_first_versions_is_delivered(
    job: Job, gateway: Emulator, client: S3Client, s3: S3Client, bucket: str
) -> None:
    """They wrote what they had read in the answer."""
    assert crash_runner.run(replace(job, kill_at="after the receipt")).killed
    at = {"Bucket": bucket, "Key": LEDGER + "1.rendered"}
    marker = json.loads(s3.get_object(**at)["Body"].read())  # type: ignore[arg-type]
    old = json.loads(marker.pop("answer")["text"])
    marker["receipt"] = {"url": old["data"][0]["url"], "model": "m", "render_seconds": 1.0, "created": 1.0}
    s3.put_object(**at, Body=json.dumps(marker).encode())  # type: ignore[arg-type]
    assert render(job, client).created == 1.0
    assert gateway.billed == 1


def test_an_http_link_of_an_https_gateway_is_asked_for_over_https(
    job: Job, gateway: Emulator, client: S3Client, s3: S3Client, bucket: str
) -> None:
    """The answer is kept first; where https fails, the message says how to allow http."""
    assert crash_runner.run(replace(job, kill_at="after the receipt")).killed
    at = {"Bucket": bucket, "Key": LEDGER + "1.rendered"}
    marker = json.loads(s3.get_object(**at)["Body"].read())  # type: ignore[arg-type]
    marker["answer"]["is_secure"] = True
    s3.put_object(**at, Body=json.dumps(marker).encode())  # type: ignore[arg-type]
    with pytest.raises(ClipTransferError, match=r'set \{"http_links": "allow"\}'):
        render(job, client)
    assert render(replace(job, allows_http_links=True), client)
    assert gateway.billed == 1


def _cannot_read(answer: Answer) -> None:
    raise RenderOutcomeUnknown("no link", bought=Bought.YES)


def shown_by_error_trackers(error: BaseException | None) -> str:
    """The local variables of every frame, of the error and of those that it came of."""
    seen = []
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        seen += [repr(frame.f_locals) for frame in frames if "/tests/" not in frame.f_code.co_filename]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(seen)


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.DENY])
def test_no_local_variable_of_a_failed_receipt_shows_its_link(
    verdict: Verdict, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """Error trackers report them."""
    ledger = ledger_of(client, bucket)
    late = writes("1.rendered")
    with (
        proxy.ruled(lambda request: verdict if late(request) else Verdict.PASS),
        pytest.raises(CodeGatewayError) as failed,
    ):
        ledger.keep(1, ANSWER)
    assert "sig=s" not in shown_by_error_trackers(failed.value)


@pytest.mark.parametrize(
    "kept", [{"answer": {"body": "x?sig=s"}}, {"receipt": {"link": "x?sig=s"}}, {"answer": "?sig=s"}]
)
def test_no_local_variable_of_an_unreadable_receipt_shows_its_link(
    kept: dict[str, Any], s3: S3Client, bucket: str
) -> None:
    """The same, where it is read."""
    body = json.dumps({"fingerprint": "f", **kept}).encode()
    s3.put_object(Bucket=bucket, Key=LEDGER + "1.rendered", Body=body)
    with pytest.raises(LedgerConflict, match="was not written by this ledger") as failed:
        ledger_of(s3, bucket).answer(1)
    assert "sig=s" not in shown_by_error_trackers(failed.value)


def test_the_command_shows_what_a_person_needs_to_fetch_the_clip(
    s3: S3Client, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer, with its link only where it is asked for, and no terminal escape as such."""
    ledger = ledger_of(s3, bucket)
    ledger.open({**BODY, "prompt": "\x1b[2Jred"})
    ledger.keep(1, ANSWER)
    at = split_uri(ledger.location.uri)
    assert at is not None
    for flags, is_whole in (([], False), (["--answer"], True)):
        options = parser().parse_args(["show", ledger.location.uri, *flags])
        assert options.run(s3, at, options) == 0
        said = capsys.readouterr().out
        assert ("sig=s" in said) is is_whole
        assert "https://cdn.example.com/x.mp4" in said
        assert "\x1b" not in said


def test_the_command_lists_the_others_beside_an_unreadable_entry(
    s3: S3Client, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each for itself."""
    ledger_of(s3, bucket).open(BODY)
    s3.put_object(Bucket=bucket, Key="_codegateway/a.mp4/1.started", Body=b"[")
    options = parser().parse_args(["list", f"s3://{bucket}"])
    assert options.run(s3, S3Location(bucket, ""), options) == 1
    said = capsys.readouterr()
    assert "nothing bought yet" in said.out
    assert "was not written by this ledger" in said.err
