"""Fixtures for the tests of DAG authors. With them, ``run_task`` of this package runs a task to its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .emulator import Emulator


@pytest.fixture
def codegateway_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A fresh local CodeGateway, set as the Airflow connection ``codegateway_default``."""
    from .emulator import Emulator

    with Emulator() as emulator:
        connection = {"conn_type": "codegateway", "host": emulator.url, "password": emulator.api_key}
        monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))
        yield emulator


@pytest.fixture
def codegateway_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty S3 on this machine, set as the Airflow connection ``aws_default``: a boto3 client for it.

    Needs ``moto[s3,server]``.
    """
    import boto3
    import httpx

    from .s3_server import s3_server

    with s3_server() as endpoint:
        httpx.post(
            f"{endpoint}/moto-api/reset", trust_env=False
        )  # moto keeps its buckets for the whole process
        settings: dict[str, Any] = {
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "endpoint_url": endpoint,
            "region_name": "us-east-1",
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "extra": settings}))
        yield boto3.client("s3", **settings)
