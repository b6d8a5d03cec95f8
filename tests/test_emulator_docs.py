"""The example of docs/emulator.md: what follows its mark stands there word for word, and runs here."""

# ruff: noqa: E402 - the example has its own imports

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "emulator.md"


def test_the_page_shows_the_example() -> None:
    """The page and this file have the same example."""
    example = Path(__file__).read_text(encoding="utf-8").partition("# The example\n")[2].strip()
    assert f"```python\n{example}\n```" in PAGE.read_text(encoding="utf-8")


# The example
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.operators.video import GenerateVideoOperator


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    httpx.post(f"http://{host}:{port}/moto-api/reset")  # moto keeps its buckets for the whole process
    settings: dict[str, Any] = {
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "endpoint_url": f"http://{host}:{port}",
        "region_name": "us-east-1",
    }
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "extra": settings}))
    yield boto3.client("s3", **settings)
    server.stop()


def test_a_busy_gateway_is_waited_for(codegateway_emulator: Emulator, s3: Any) -> None:
    s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.status(429, retry_after=0))

    operator = GenerateVideoOperator(
        task_id="clip",
        model="google/veo-3.1-fast",
        prompt="A paper boat drifting down a rain-filled gutter",
        s3_key="s3://marketing/ads/boat.mp4",
    )
    task = SimpleNamespace(
        dag_id="ads", task_id="clip", run_id="test", map_index=-1, xcom_push=lambda **_: None
    )
    key = operator.execute({"ti": task})  # type: ignore[typeddict-item]

    assert s3.head_object(Bucket="marketing", Key=key)["ContentType"] == "video/mp4"
    assert codegateway_emulator.refused == 1
    assert codegateway_emulator.billed == 1
