"""Ledgers on another store or account than the clip, credentials that run out, connections that hang."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow_run import execute_in_a_thread
from botocore.exceptions import BotoCoreError, ClientError
from media_samples import mp4_of
from moto.server import ThreadedMotoServer
from s3_proxy import Answer, S3Proxy, S3Request, Verdict, down, says

from airflow_provider_codegateway.emulator import ClipFault, Emulator
from airflow_provider_codegateway.exceptions import Bought, ClipTransferError, InvalidTarget
from airflow_provider_codegateway.hooks.storage import s3_client
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.s3 import RenewableClient
from airflow_provider_codegateway.triggers.video import RenderTrigger

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MODEL = "google/veo-3.1-fast"
REAL = os.environ.get("CODEGATEWAY_TEST_REAL_S3", "http://127.0.0.1:8333")
"""A server of another make than moto, with the keys realkey and realsecret."""

pytestmark = pytest.mark.usefixtures("airflow_database")


def aws(endpoint: str, login: str = "testing", password: str = "testing", **extra: Any) -> str:
    return json.dumps(
        {
            "conn_type": "aws",
            "login": login,
            "password": password,
            "extra": {"endpoint_url": endpoint, "region_name": "us-east-1", **extra},
        }
    )


def operator_of(bucket: str, **arguments: Any) -> GenerateVideoOperator:
    terms = {"model": MODEL, "prompt": "p", "s3_key": f"s3://{bucket}/clips/a.mp4", **arguments}
    return GenerateVideoOperator(task_id="clip", **terms)


def keys(s3: S3Client, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


# A ledger elsewhere.


def another_moto() -> Iterator[tuple[str, str, str]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}", "other", "other"
    server.stop()


def real_server() -> Iterator[tuple[str, str, str]]:
    try:
        boto3.client(
            "s3",
            endpoint_url=REAL,
            aws_access_key_id="realkey",
            aws_secret_access_key="realsecret",
            region_name="us-east-1",
        ).list_buckets()
    except (BotoCoreError, ClientError) as error:
        pytest.skip(f"There is no S3 server at {REAL}: {type(error).__name__}")
    yield REAL, "realkey", "realsecret"


@pytest.fixture(params=[another_moto, real_server], ids=["moto", "another make"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    """A second S3 server, which knows no bucket of the first; and a connection to it."""
    servers = request.param()
    endpoint, login, password = next(servers)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_LEDGER", aws(endpoint, login, password))
    yield boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=login,
        aws_secret_access_key=password,
        region_name="us-east-1",
    )
    next(servers, None)


@pytest.fixture
def ledger_bucket(elsewhere: S3Client) -> str:
    name = f"ledger-{os.urandom(5).hex()}"
    elsewhere.create_bucket(Bucket=name)
    return name


def test_the_ledger_may_be_on_another_store_than_the_clip(
    gateway: Emulator,
    connections: None,
    no_pauses: Any,
    s3: S3Client,
    bucket: str,
    elsewhere: S3Client,
    ledger_bucket: str,
) -> None:
    """Each has a client of its own; the receipt of one failed transfer is found there by the next try."""
    operator = operator_of(bucket, ledger_prefix=f"s3://{ledger_bucket}/p", ledger_conn_id="aws_ledger")
    gateway.fail_next(ClipFault.html())
    with pytest.raises(ClipTransferError):
        operator.execute({})
    assert f"p/{bucket}/clips/a.mp4/1.rendered" in keys(elsewhere, ledger_bucket)
    assert keys(s3, bucket) == []
    assert operator.execute({}) == "clips/a.mp4"
    assert keys(elsewhere, ledger_bucket) == []
    assert keys(s3, bucket) == ["clips/a.mp4"]
    assert gateway.billed == 1


def test_a_trigger_carries_the_ledgers_connection_and_reads_old_arguments(bucket: str) -> None:
    """Those that an earlier version stored have none: the ledger is the clip's store then."""
    stored = {
        "bucket": bucket,
        "key": "a.mp4",
        "model": MODEL,
        "fingerprint": "f",
        "run": "r",
        "if_exists": "reuse",
        "max_renders": 2,
        "ledger_prefix": "p/",
        "extra_args": {},
        "codegateway_conn_id": "codegateway_default",
        "aws_conn_id": "aws_default",
    }
    old = RenderTrigger(**stored)  # type: ignore[arg-type]
    assert old.spec.ledger_conn_id is None
    new = RenderTrigger(**{**old.serialize()[1], "ledger_conn_id": "aws_ledger"})
    assert new.spec.ledger_conn_id == "aws_ledger"
    assert new.serialize()[1]["ledger_conn_id"] == "aws_ledger"


# Credentials that run out.


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_endpoint) as server:
        yield server


EXPIRED = [
    says(400, "ExpiredToken", "The provided token has expired."),
    says(400, "InvalidToken", "The provided token is malformed or otherwise invalid."),
    says(403, "TokenRefreshRequired"),
    says(403, "InvalidAccessKeyId"),
]


@pytest.mark.parametrize("refusal", EXPIRED)
@pytest.mark.parametrize("size", [100_000, 9 * 1024 * 1024])
def test_a_token_that_rotates_during_the_render_costs_nothing(
    refusal: Answer,
    size: int,
    gateway: Emulator,
    connections: None,
    s3: S3Client,
    bucket: str,
    proxy: S3Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is read anew for the receipt, and for the transfer's requests after it."""
    gateway.serve_clip(mp4_of(size))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws(proxy.url, aws_session_token="first"))

    def rule(request: S3Request) -> Verdict | Answer:
        if not gateway.ledger:
            return Verdict.PASS
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws(proxy.url, aws_session_token="second"))
        if request.headers.get("x-amz-security-token") == "second":
            return Verdict.PASS
        return Answer(refusal.status) if request.method == "HEAD" else refusal

    with proxy.ruled(rule):
        assert operator_of(bucket).execute({}) == "clips/a.mp4"
    receipts = [request for request in proxy.requests if request.key.endswith("1.rendered")]
    assert [request.headers["x-amz-security-token"] for request in receipts] == ["first", "second"]
    assert keys(s3, bucket) == ["clips/a.mp4"]
    assert gateway.billed == 1


def test_a_token_that_stays_expired_is_named(
    gateway: Emulator, connections: None, bucket: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried twice, and no more."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws(proxy.url, aws_session_token="old"))
    with proxy.ruled(lambda request: EXPIRED[0]), pytest.raises(InvalidTarget, match="ExpiredToken"):
        operator_of(bucket).execute({})
    assert gateway.ledger == ()


# Connections that hang.


class Forgetful:
    """A relay before a server, as a firewall that forgets the connections that it was told to."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._forgotten: set[int] = set()
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """From now on, nothing passes on the connections that are open."""
        self._forgotten |= {id(each) for each in self._open}

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(self._upstream)
            self._open += [ours, theirs]
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if id(source) in self._forgotten:
                    continue
                sink.sendall(data)
            sink.close()
        except OSError:
            return


def test_a_receipt_does_not_wait_for_a_connection_that_hangs(
    gateway: Emulator,
    connections: None,
    s3: S3Client,
    proxy: S3Proxy,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that the pool has are forgotten during the render: the receipt's own connection is a new one."""
    relay = Forgetful(proxy.url)  # which keeps connections open, as S3 does
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws(relay.url, config_kwargs={"read_timeout": 1}))
    operator = operator_of(bucket)
    # Warm both pools, as those of a triggerer are.
    warm = s3_client("aws_default")
    assert isinstance(warm, RenewableClient)
    quick = warm.quick()
    quick.list_objects_v2(Bucket=bucket)
    with gateway.holding():
        running = threading.Thread(target=execute_in_a_thread, args=(operator, {}))
        running.start()
        gateway.wait_for(rendering=1)
        relay.forget()
    running.join(60)
    relay.close()
    assert not running.is_alive()
    assert "could not be written yet" in caplog.text
    assert "PAID FOR" not in caplog.text
    assert warm.quick() is not quick
    assert keys(s3, bucket) == ["clips/a.mp4"]
    assert gateway.billed == 1


# What an error says of money, once the task is deferred.


@pytest.mark.parametrize("lost", ["S3", "the AWS connection", "the ledger's permission"])
def test_a_ledger_that_cannot_be_read_after_the_deferral_says_what_may_have_been_bought(
    lost: str,
    gateway: Emulator,
    connections: None,
    bucket: str,
    proxy: S3Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A triggerer that was killed may have bought; nobody can see it now."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_AWS_PROXIED", aws(proxy.url, config_kwargs={"retries": {"total_max_attempts": 1}})
    )
    spec = {
        "bucket": bucket,
        "key": "a.mp4",
        "model": MODEL,
        "fingerprint": "f",
        "run": "r",
        "if_exists": "reuse",
    }
    terms = {
        "max_renders": 2,
        "ledger_prefix": "p/",
        "extra_args": {},
        "codegateway_conn_id": "codegateway_default",
    }
    conn_id = "aws_proxied"
    if lost == "the AWS connection":
        conn_id = "aws_deleted"
    trigger = RenderTrigger(**spec, **terms, aws_conn_id=conn_id)  # type: ignore[arg-type]
    with proxy.ruled(down if lost == "S3" else lambda request: Verdict.DENY):
        event: Any = asyncio.run(anext(trigger.run()))  # type: ignore[arg-type]
    assert event.payload["status"] == "failed"
    assert event.payload["error"]["bought"] == Bought.PERHAPS.name
    assert gateway.ledger == ()
