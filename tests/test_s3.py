"""S3 as it is: stores that lack something, policies that demand something, answers without words, wrong settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import crash_runner
import pytest
from botocore.config import Config
from crash_runner import KEY, MODEL, Job
from media_samples import mp4, mp4_of
from s3_proxy import Answer, Edit, Rule, S3Proxy, S3Request, Verdict, answer, once, says

from airflow_provider_codegateway.clip import Clip, ClipSpec, S3Location, checked_target, clip_location
from airflow_provider_codegateway.emulator import Emulator
from airflow_provider_codegateway.exceptions import (
    Bought,
    BudgetExceeded,
    ClipTransferError,
    CodeGatewayError,
    InvalidConnection,
    InvalidRequest,
    InvalidTarget,
    LedgerConflict,
    StorageUnavailable,
)
from airflow_provider_codegateway.gateway import BlockingCall
from airflow_provider_codegateway.hooks.storage import s3_client
from airflow_provider_codegateway.ledger import Ledger
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MP4 = mp4()
OTHER_MP4 = mp4_of(200_000)
LEDGER = f"_codegateway/{KEY}/"
BODY = {"model": MODEL, "prompt": "p"}


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_endpoint) as server:
        yield server


@pytest.fixture
def client(proxy: S3Proxy, s3_credentials: dict[str, str]) -> S3Client:
    return client_of(proxy.url, s3_credentials)


def client_of(url: str, credentials: dict[str, str]) -> S3Client:
    return _client(url, credentials, attempts=1)


def retrying_client(url: str, credentials: dict[str, str]) -> S3Client:
    """As botocore makes one: a call is tried again."""
    return _client(url, credentials, attempts=2)


def _client(url: str, credentials: dict[str, str], *, attempts: int) -> S3Client:
    session = boto3.Session(
        credentials["aws_access_key_id"], credentials["aws_secret_access_key"], region_name="us-east-1"
    )
    return session.client(
        "s3", endpoint_url=url, config=Config(retries={"total_max_attempts": attempts, "mode": "standard"})
    )


def render(job: Job, s3: S3Client, **terms: Any) -> Clip:
    return crash_runner.render_blocking(replace(job, **terms), s3)


def keys(s3: S3Client, bucket: str) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


# Stores without DeleteObjects.


@pytest.mark.parametrize(
    "refusal",
    [
        says(501, "NotImplemented"),
        says(405, "MethodNotAllowed"),
        says(400, "InvalidArgument"),
        says(403, "AccessDenied"),
        Answer(404, b"<html>Not Found", "text/html"),
        Answer(501, b""),
    ],
)
def test_a_store_without_a_batch_delete_is_cleared_one_by_one(
    refusal: Answer, job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """As Google's; it is asked for a batch once a client."""
    with proxy.ruled(answer(refusal, "DeleteObjects")):
        render(job, client)
        render(job, client, key="clips/y.mp4")
    assert keys(s3, bucket) == {KEY, "clips/y.mp4"}
    assert proxy.operations.count("DeleteObjects") == 1
    assert gateway.billed == 2


# Entries that remained although their clip was delivered.


def leave_entry(job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client, **terms: Any) -> None:
    """A delivered clip whose entry could not be deleted."""

    def rule(request: S3Request) -> Verdict:
        deletes = request.operation in ("DeleteObjects", "DeleteObject")
        return Verdict.DENY if deletes and gateway.ledger else Verdict.PASS

    with proxy.ruled(rule):
        render(job, client, **terms)


def test_replace_does_not_deliver_the_old_clip_again(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """The next day's run finds the entry of a clip that is at its key: it buys a new one."""
    leave_entry(job, gateway, proxy, client)
    assert f"{LEDGER}1.rendered" in keys(s3, bucket)
    gateway.serve_clip(OTHER_MP4)
    clip = render(job, client, requester="tomorrow", if_exists="replace")
    assert (clip.bytes, clip.renders_bought) == (len(OTHER_MP4), 1)
    assert gateway.billed == 2
    assert keys(s3, bucket) == {KEY}


def test_a_changed_prompt_is_not_told_that_the_delivered_clip_is_missing(
    job: Job, gateway: Emulator, s3: S3Client, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """With ``replace`` the new request is rendered, and the entry of the old one is cleared."""
    leave_entry(job, gateway, proxy, client)
    gateway.serve_clip(OTHER_MP4)
    clip = render(job, client, prompt="q", requester="tomorrow", if_exists="replace")
    assert clip.bytes == len(OTHER_MP4)
    assert gateway.billed == 2
    assert keys(s3, bucket) == {KEY}


def test_a_paid_clip_that_is_not_delivered_is_still_a_conflict(
    job: Job, gateway: Emulator, s3: S3Client, client: S3Client, bucket: str
) -> None:
    """Another clip at the key does not make a receipt worthless."""
    render(job, client)
    ledger = job.purchase(s3).ledger
    ledger.open(BODY)
    assert crash_runner.run(
        replace(job, kill_at="after the receipt", if_exists="replace", requester="b")
    ).killed
    with pytest.raises(LedgerConflict):
        render(job, client, prompt="q", requester="c", if_exists="replace")
    gateway.serve_clip(MP4)
    clip = render(job, client, requester="b", if_exists="replace")
    assert not clip.reused
    assert gateway.billed == 2


# The checksum that boto3 adds, and conditions.


@pytest.mark.parametrize(
    "refusal",
    [
        says(
            501, "NotImplemented", "Header 'x-amz-sdk-checksum-algorithm' with value 'CRC32' not implemented"
        ),
        says(400, "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"),
        says(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match"),
        says(501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
    ],
)
def test_a_refused_checksum_names_the_setting(
    refusal: Answer, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """And not another store alone."""
    with proxy.ruled(answer(refusal, "PutObject")), pytest.raises(InvalidTarget) as error:
        render(job, client)
    assert '"request_checksum_calculation": "when_required"' in str(error.value)
    assert "extra of the AWS connection" in str(error.value)
    assert error.value.bought is Bought.NO
    assert gateway.ledger == ()


@pytest.mark.parametrize(
    "words",
    [
        says(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
        says(400, "Unknown", "At least one of the pre-conditions you specified did not hold"),
        says(409, "ConditionalRequestConflict"),
        says(409, "OperationAborted"),
        says(412, "conditionNotMet"),
        Answer(412),
        Answer(304),
        Answer(409),
    ],
)
def test_a_failed_condition_is_one_in_whatever_words(
    words: Answer, proxy: S3Proxy, client: S3Client, s3: S3Client, bucket: str
) -> None:
    """The claim was not won; nothing is wrong."""
    at = S3Location(bucket, LEDGER)
    assert Ledger(s3, at, fingerprint="f").claim(1, claim_seconds=60)
    late = Ledger(client, at, fingerprint="f")
    with proxy.ruled(answer(words, "PutObject")):
        assert not late.claim(1, claim_seconds=60)


def test_a_conflict_that_stays_is_not_asked_for_without_end(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """It looks like another run's claim, and there is none: with pauses, and an error in the end."""
    job = replace(job, limits=replace(job.limits, list_patience=0.3))

    def conflict(request: S3Request) -> Verdict | Answer:
        is_claim = request.method == "PUT" and request.key.endswith("1.started")
        return says(409, "OperationAborted") if is_claim else Verdict.PASS

    with (
        proxy.ruled(conflict),
        pytest.raises(StorageUnavailable, match="as if it were there") as error,
    ):
        render(job, client)
    assert error.value.bought is not Bought.YES
    assert gateway.ledger == ()
    assert render(job, client).renders_bought == 1


# Policies that demand headers.


DEMANDED = {
    "ACL": ("x-amz-acl", "bucket-owner-full-control"),
    "ServerSideEncryption": ("x-amz-server-side-encryption", "AES256"),
    "Tagging": ("x-amz-tagging", "team=spring"),
    "GrantFullControl": (
        "x-amz-grant-full-control",
        f"id={'75aa57f0' * 8}",
    ),
    "ExpectedBucketOwner": ("x-amz-expected-bucket-owner", "123456789012"),
    "RequestPayer": ("x-amz-request-payer", "requester"),
}


@pytest.mark.parametrize("name", DEMANDED)
def test_what_a_policy_demands_of_every_object_goes_to_the_ledger_too(
    name: str, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """As buckets of another account demand an ACL."""
    if name in ("ServerSideEncryption", "GrantFullControl") and "CODEGATEWAY_TEST_S3_ENDPOINT" in os.environ:
        pytest.skip("That server may have no encryption of its own, and does not know this grantee.")
    header, value = DEMANDED[name]

    def policy(request: S3Request) -> Verdict:
        demanded = request.operation in ("PutObject", "CreateMultipartUpload")
        return Verdict.DENY if demanded and request.headers.get(header) != value else Verdict.PASS

    spec = replace(job.spec(), upload_args={name: value})
    with proxy.ruled(policy):
        BlockingCall().run(job.purchase_of(spec, client).complete(job.request()))
    assert gateway.billed == 1


def test_what_a_policy_demands_of_the_journal_is_in_the_spend_settings(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client, bucket: str
) -> None:
    """Without it nothing is bought; with it every object has what the policy demands, and every request who pays."""

    def policy(request: S3Request) -> Verdict:
        if not request.key.startswith("journal/"):
            return Verdict.PASS
        tags = request.method != "PUT" or request.headers.get("x-amz-tagging") == "team=ops"
        pays = request.headers.get("x-amz-request-payer") == "requester"
        return Verdict.PASS if tags and pays else Verdict.DENY

    spend: dict[str, Any] = {
        "journal": f"s3://{bucket}/journal",
        "budgets": [{"per": "day", "renders": 1}],
    }
    demanded = {"Tagging": "team=ops", "RequestPayer": "requester"}
    with proxy.ruled(policy):
        with pytest.raises(InvalidTarget, match="denied access") as refused:
            render(job, client, spend=spend)
        assert refused.value.bought is Bought.NO
        render(job, client, spend={**spend, "journal_extra_args": demanded})
        with pytest.raises(BudgetExceeded):
            render(job, client, key="clips/y.mp4", spend={**spend, "journal_extra_args": demanded})
    assert gateway.billed == 1


@pytest.mark.parametrize("args", [{"ACL": "public-read"}, {"ContentType": "text/html"}])
def test_the_journal_takes_only_what_a_policy_may_demand(
    args: dict[str, str], job: Job, s3: S3Client
) -> None:
    """Nothing that publishes it, and nothing that changes what it is."""
    spend = {"journal": "s3://b/journal", "journal_extra_args": args}
    with pytest.raises(InvalidConnection, match=f"journal_extra_args has {next(iter(args))}="):
        render(job, s3, spend=spend)


@pytest.mark.parametrize("name", ["RequestPayer", "ExpectedBucketOwner"])
def test_every_request_says_who_pays_and_whose_bucket_it_is(
    name: str, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """A requester-pays bucket refuses each request that does not, also a HEAD."""
    header, value = DEMANDED[name]
    spec = replace(job.spec(), upload_args={name: value})
    policy: Rule = lambda request: Verdict.PASS if request.headers.get(header) == value else Verdict.DENY  # noqa: E731
    with proxy.ruled(policy):
        BlockingCall().run(job.purchase_of(spec, client).complete(job.request()))
    assert gateway.billed == 1


@pytest.mark.parametrize(
    "args", [{"ACL": "public-read"}, {"GrantRead": 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'}]
)
def test_the_ledger_is_never_public(args: dict[str, str], job: Job, proxy: S3Proxy, client: S3Client) -> None:
    """It holds links that are as good as the clip, and prompts."""
    spec = replace(job.spec(), upload_args=args)
    BlockingCall().run(job.purchase_of(spec, client).complete(job.request()))
    published = [
        request.key
        for request in proxy.requests
        if request.headers.keys() & {"x-amz-acl", "x-amz-grant-read"} and request.key != KEY
    ]
    assert published == []


# Answers without words.


def wordless(request: S3Request, told: Answer) -> Verdict | Answer:
    return Answer(told.status) if request.method == "HEAD" else told


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (says(403, "RequestTimeTooSkewed"), "this machine's clock is wrong"),
        (says(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch"),
        (says(403, "InvalidAccessKeyId"), "InvalidAccessKeyId"),
        (says(400, "ExpiredToken", "The provided token has expired."), "ExpiredToken"),
        (says(400, "InvalidToken"), "InvalidToken"),
        (says(403, "AccessDenied"), "s3:GetObject and s3:ListBucket"),
    ],
)
def test_a_head_that_says_nothing_is_asked_again_with_words(
    told: Answer, words: str, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """What a HEAD is refused for stands in no body."""
    with (
        proxy.ruled(lambda request: wordless(request, told)),
        pytest.raises(InvalidTarget, match=words) as error,
    ):
        render(job, client)
    assert error.value.bought is Bought.NO
    assert [request.headers["range"] for request in proxy.requests if request.operation == "GetObject"] == [
        "bytes=0-0"
    ]
    assert gateway.ledger == ()


def test_the_console_of_a_store_is_named_as_such(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """It answers a page to anything, also to a HEAD."""
    page = Answer(200, b"<!doctype html><html><body>Console</body></html>", "text/html")
    with proxy.ruled(lambda request: page), pytest.raises(InvalidTarget, match="web console") as error:
        render(job, client)
    assert "endpoint_url" in str(error.value)
    assert gateway.ledger == ()


def test_a_store_that_tells_no_time_is_refused_for_free(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """The age of a claim could not be known."""
    proxy.tells_time = False
    with pytest.raises(InvalidTarget, match="sends no Date header") as error:
        render(job, client)
    assert "ledger_conn_id" in str(error.value)
    assert error.value.bought is Bought.NO
    assert gateway.ledger == ()


def test_what_s3_says_is_shown_as_text(job: Job, proxy: S3Proxy, client: S3Client) -> None:
    """Whatever a server sends: bounded, printable, without a query."""
    rude = says(400, "Rude", "\u202e&#27;[31m https://x.example/a?X-Amz-Signature=abc " + "long " * 500)
    with proxy.ruled(answer(rude, "PutObject")), pytest.raises(InvalidTarget) as error:
        render(job, client)
    message = error.value.args[0]
    assert message.isprintable()
    assert "Signature=" not in message
    assert len(message) < 600


# Answers that are not S3's, or lack what S3's have.

PAGE = b"<html><body>This site is blocked.</body></html>"


def both(first: Rule, second: Rule) -> Rule:
    """The first that does not let a request pass."""

    def rule(request: S3Request) -> Verdict | Answer:
        verdict = first(request)
        return second(request) if verdict is Verdict.PASS else verdict

    return rule


def without(*names: str) -> Edit:
    """Headers that a front drops, by the beginnings of their names."""
    return lambda request, headers, body: (
        {name: value for name, value in headers.items() if not name.lower().startswith(names)},
        body,
    )


def with_body(body: bytes) -> Edit:
    return lambda request, headers, _: (headers, body)


def with_header(name: str, value: str) -> Edit:
    def edit(request: S3Request, headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        kept = {each: told for each, told in headers.items() if each.lower() != name.lower()}
        return {**kept, name: value}, body

    return edit


def less(element: bytes) -> Edit:
    """Elements that a store leaves out."""
    pattern = re.compile(b"<%b>.*?</%b>" % (element, element), re.DOTALL)
    return lambda request, headers, body: (headers, pattern.sub(b"", body))


def of(operation: str, edit: Edit) -> Edit:
    return lambda request, headers, body: (
        edit(request, headers, body) if request.operation == operation else (headers, body)
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (of("ListObjects", with_body(b"")), "is not a list of objects from S3"),
        (of("ListObjects", with_body(PAGE)), "is not a list of objects from S3"),
        (of("ListObjects", less(b"LastModified")), "without LastModified"),
        (of("ListObjects", less(b"ETag")), "without ETag"),
        (of("ListObjects", lambda r, h, b: (h, re.sub(b"20..-..-..T", b"yesterday", b))), "as S3's"),
        (of("PutObject", without("etag")), "has no ETag"),
        (of("HeadObject", without("etag")), "has no ETag"),
        (of("HeadObject", with_header("Last-Modified", "gestern")), "could not be read as S3's"),
        (of("HeadObject", without("x-amz-meta-")), "drops the metadata of objects"),
        (without("x-amz-meta-"), "drops the metadata of objects"),
        (of("CreateMultipartUpload", with_body(PAGE)), "without UploadId"),
        (of("CreateMultipartUpload", with_body(b"")), "without UploadId"),
    ],
)
def test_an_answer_that_is_not_s3s_is_refused_for_free(
    edit: Edit, words: str, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """In words, at once, and before anything is bought."""
    proxy.edit = edit
    with pytest.raises(InvalidTarget, match=words) as error:
        render(job, client)
    assert error.value.bought is Bought.NO
    assert gateway.ledger == ()
    assert len(proxy.requests) < 30
    proxy.edit = None
    assert not render(job, client).reused


@pytest.mark.parametrize(
    "edit",
    [
        of("HeadObject", without("etag")),
        of("HeadObject", with_header("Last-Modified", "gestern")),
        of("HeadObject", with_header("Content-Length", "many")),
    ],
)
def test_a_head_that_is_spoilt_after_the_purchase_ends_in_words(
    edit: Edit, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """The clip is paid for: each try says so, and the first good answer delivers it."""
    gateway.serve_clip(MP4)

    def spoil_later(request: S3Request, headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        return edit(request, headers, body) if gateway.ledger else (headers, body)

    proxy.edit = spoil_later
    with pytest.raises(
        ClipTransferError, match="The clip was stored, and only could not be confirmed"
    ) as first:
        render(job, client)
    assert first.value.bought is Bought.YES
    with pytest.raises(CodeGatewayError) as second:
        render(job, client)
    assert second.value.bought is Bought.YES
    proxy.edit = None
    assert render(job, client).reused
    assert len(gateway.ledger) == 1
    assert keys(client, job.bucket) == {KEY}


def test_a_list_that_stays_behind_is_waited_for(
    job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """A list that does not show what was written holds nothing up for long, and nothing is asked in a hurry."""
    proxy.edit = of("ListObjects", less(b"Contents"))
    with pytest.raises(StorageUnavailable, match="does not list it") as error:
        render(job, client, limits=replace(job.limits, list_patience=0.5))
    assert error.value.bought is Bought.NO
    assert len(proxy.requests) < 60
    shown_after = [6]

    def late(request: S3Request, headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        if request.operation == "ListObjects" and shown_after[0]:
            shown_after[0] -= 1
            return less(b"Contents")(request, headers, body)
        return headers, body

    proxy.edit = late
    assert not render(job, client).reused
    assert len(gateway.ledger) == 1
    assert keys(client, job.bucket) == {KEY}


@pytest.mark.parametrize("lost", ["CreateMultipartUpload", "AbortMultipartUpload", "ListMultipartUploads"])
def test_a_proof_whose_upload_may_be_open_buys_nothing_and_is_cleared_by_the_next_run(
    lost: str, job: Job, gateway: Emulator, proxy: S3Proxy, client: S3Client
) -> None:
    """S3 begins an upload, and breaks off every answer to what should end it."""
    gateway.serve_clip(MP4)
    dropped = Verdict.LOSE if lost == "CreateMultipartUpload" else Verdict.DROP
    breaks = answer(dropped, lost)
    if lost == "ListMultipartUploads":  # of use only if the upload's creation was asked for twice
        once_lost = once(Verdict.LOSE, lambda request: request.operation == "CreateMultipartUpload")
        breaks = both(once_lost, breaks)
        client = retrying_client(proxy.url, job.s3_credentials)
    with proxy.ruled(breaks), pytest.raises(StorageUnavailable) as error:
        render(job, client)
    assert error.value.bought is Bought.NO
    assert gateway.ledger == ()
    assert not render(job, client).reused
    assert client.list_multipart_uploads(Bucket=job.bucket).get("Uploads", []) == []
    assert keys(client, job.bucket) == {KEY}


# Values that cannot be.


@pytest.mark.parametrize("bucket", ["s3://clips", "clips/", "/clips", 123, "a b", "clips\n"])
def test_a_bucket_that_is_none_is_refused_as_it_was_written(bucket: Any) -> None:
    """For free, and not as if S3 were down."""
    with pytest.raises(InvalidRequest) as error:
        clip_location("a.mp4", bucket)
    assert f"s3_bucket={bucket!r}" in str(error.value)


@pytest.mark.parametrize(
    "key", [None, "None", "nan", "null", "", " ", 5, "a\x00.mp4", "a\n.mp4", "\ud800.mp4"]
)
def test_a_key_that_is_none_is_refused_as_it_was_written(key: Any) -> None:
    """Also what a template becomes that had nothing to show."""
    with pytest.raises(InvalidRequest) as error:
        clip_location(key, "clips")
    assert f"s3_key={key!r}" in str(error.value)


@pytest.mark.parametrize(
    ("prefix", "args", "words"),
    [
        (None, {}, "ledger_prefix=None is not a prefix"),
        (5, {}, "ledger_prefix=5 is not a prefix"),
        ("a\nb", {}, "is not a prefix"),
        ("s3://", {}, "does not name a bucket"),
        ("s3:///x", {}, "does not name a bucket"),
        ("p/", "ACL=private", "not 'ACL=private'"),
        ("p/", ["ACL"], "s3_extra_args must be a dict"),
    ],
)
def test_a_prefix_or_arguments_that_cannot_be_are_refused(prefix: Any, args: Any, words: str) -> None:
    """With the value as it was written."""
    with pytest.raises(InvalidRequest, match=words):
        checked_target(S3Location("clips", "a.mp4"), prefix, args)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("_codegateway/a/1.started", "_codegateway/"),
        ("_codegateway/a.mp4", "elsewhere/"),
        ("p/q/a.mp4", "p/q"),
        ("p/q/a.mp4", "/p/q/"),
        ("p/a.mp4", "s3://clips/p"),
        ("a/1.started", ""),
        ("request.json", ""),
        ("a/2.rendered", "s3://clips"),
    ],
)
def test_a_clip_inside_a_ledger_is_refused(key: str, prefix: str) -> None:
    """It would overwrite receipts, or be taken for one."""
    with pytest.raises(InvalidRequest, match="inside the ledger"):
        ClipSpec(
            model=MODEL, fingerprint="f", target=S3Location("clips", key), requester="r", ledger_prefix=prefix
        )


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("a.mp4", ""), ("_codegateway2/a.mp4", "_codegateway/"), ("p/a.mp4", "s3://other/p"), ("a/1.mp4", "")],
)
def test_a_clip_beside_a_ledger_is_not(key: str, prefix: str) -> None:
    """Only what could be the ledger's own."""
    checked_target(S3Location("clips", key), prefix, {})


# Connections that no client can be made of.


def operator_of(**arguments: Any) -> GenerateVideoOperator:
    terms = {"model": MODEL, "prompt": "p", "s3_key": "s3://clips/a.mp4", **arguments}
    return GenerateVideoOperator(task_id="clip", **terms)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"profile_name": "nobody"}, "ProfileNotFound"),
        ({"region_name": "Not A Region"}, "InvalidRegionError"),
        ({"endpoint_url": "s3.example.com"}, "ValueError: Invalid endpoint: s3.example.com"),
        ({"config_kwargs": {"speed": "high"}}, "TypeError"),
        (
            {"config_kwargs": {"retries": {"max_attempts": "many"}}},
            "no more than|InvalidRetry|ValueError|TypeError",
        ),
    ],
)
def test_a_connection_that_no_client_can_be_made_of_is_named(
    extra: dict[str, Any],
    words: str,
    gateway: Emulator,
    connections: None,
    airflow_database: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fails the task, and is not retried."""
    aws = {"conn_type": "aws", "login": "k", "password": "TheSecretOfAws", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_WRONG", json.dumps(aws))
    with pytest.raises(InvalidTarget, match=words) as error:
        operator_of(aws_conn_id="aws_wrong").execute({})
    assert "'aws_wrong'" in str(error.value)
    assert "TheSecretOfAws" not in str(error.value)
    assert gateway.ledger == ()


def test_a_connection_that_does_not_exist_is_named(connections: None, airflow_database: None) -> None:
    """Only ``aws_default`` may be missing: boto3's own credentials are used then."""
    with pytest.raises(InvalidTarget, match="'aws_clips' does not exist"):
        operator_of(aws_conn_id="aws_clips").execute({})
    with pytest.raises(InvalidTarget, match="'aws_ledger' does not exist"):
        operator_of(ledger_conn_id="aws_ledger").execute({})


def test_aws_default_may_be_missing(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the Amazon provider's own operators."""
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert s3_client("aws_default").meta.region_name == "us-east-1"
