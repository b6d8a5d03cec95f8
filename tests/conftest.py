"""Servers that the tests share: each is real, on a port of its own."""

from __future__ import annotations

import datetime as dt
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

# Airflow reads its settings at import: tests get a home of their own, and never the person's.
os.environ.setdefault("AIRFLOW_HOME", mkdtemp(prefix="codegateway-airflow-"))
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
# Without a configuration file Airflow 3.2 has none, and runs no task; also in the processes that tests start.
os.environ.setdefault("AIRFLOW__API_AUTH__JWT_SECRET", "of-nobody-but-the-tests")
# Else Airflow 3.1 and later run a DAG as another test left it, if that had the same name less than 30 s ago.
os.environ["AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL"] = "0"

import boto3
import pytest
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from media_samples import mp4

from airflow_provider_codegateway.emulator import Emulator
from airflow_provider_codegateway.limits import LIMITS, Limits
from demo.s3_server import s3_server

if TYPE_CHECKING:
    from crash_runner import Job
    from mypy_boto3_s3.client import S3Client

API_KEY = "sk-cg-SecretOfTheTests0123456789"
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server: the one of CODEGATEWAY_TEST_S3_ENDPOINT, or moto's."""
    if endpoint := os.environ.get("CODEGATEWAY_TEST_S3_ENDPOINT"):
        yield endpoint
        return
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3_credentials() -> dict[str, str]:
    return {
        "aws_access_key_id": os.environ.get("CODEGATEWAY_TEST_S3_ACCESS_KEY", "testing"),
        "aws_secret_access_key": os.environ.get("CODEGATEWAY_TEST_S3_SECRET_KEY", "testing"),
    }


@pytest.fixture(scope="session")
def s3(s3_endpoint: str, s3_credentials: dict[str, str]) -> S3Client:
    session = boto3.Session(
        s3_credentials["aws_access_key_id"], s3_credentials["aws_secret_access_key"], region_name="us-east-1"
    )
    return session.client("s3", endpoint_url=s3_endpoint, config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture
def bucket(s3: S3Client) -> str:
    name = f"clips-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[Emulator]:
    with Emulator(port=0, api_key=API_KEY) as emulator:
        yield emulator


@pytest.fixture
def gateway(shared_gateway: Emulator) -> Emulator:
    """An emulator without a past."""
    shared_gateway.reset()
    return shared_gateway


@pytest.fixture
def job(gateway: Emulator, s3_endpoint: str, s3_credentials: dict[str, str], bucket: str) -> Job:
    """One clip, on terms that let successors wait for fractions of a second."""
    from crash_runner import HASTY, Job

    gateway.serve_clip(mp4())
    return Job(
        gateway_url=gateway.url,
        api_key=gateway.api_key,
        s3_endpoint=s3_endpoint,
        s3_credentials=s3_credentials,
        bucket=bucket,
        limits=replace(HASTY, beat_interval=LIMITS.beat_interval),
    )


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for media.example and localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "media.example")])
    names = [x509.DNSName("media.example"), x509.DNSName("localhost")]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "media.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Operators, triggers and hooks retry a broken download, and fetch a paid clip, at once."""
    from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook

    limits = Limits(first_backoff=0, max_backoff=0, settle_grace=0)
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", limits)
    return limits


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's tables, once, in a home of the tests' own."""
    from airflow_run import initialise_database

    initialise_database()


@pytest.fixture
def connections(
    gateway: Emulator, s3_endpoint: str, s3_credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two connections that the operator uses by default, as a person would set them."""
    codegateway = {"conn_type": "codegateway", "host": gateway.url, "password": gateway.api_key}
    aws = {
        "conn_type": "aws",
        "login": s3_credentials["aws_access_key_id"],
        "password": s3_credentials["aws_secret_access_key"],
        "extra": {"endpoint_url": s3_endpoint, "region_name": "us-east-1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(codegateway))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))


@pytest.fixture
def paying(
    s3_endpoint: str, s3_credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The id of an AWS connection to a store that refuses each request which does not say that the requester pays."""
    from s3_proxy import S3Proxy, S3Request, Verdict

    def policy(request: S3Request) -> Verdict:
        pays = request.headers.get("x-amz-request-payer") == "requester"
        return Verdict.PASS if pays else Verdict.DENY

    with S3Proxy(s3_endpoint) as proxy, proxy.ruled(policy):
        connection = {
            "conn_type": "aws",
            "login": s3_credentials["aws_access_key_id"],
            "password": s3_credentials["aws_secret_access_key"],
            "extra": {"endpoint_url": proxy.url, "region_name": "us-east-1"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_PAYING", json.dumps(connection))
        yield "paying"
