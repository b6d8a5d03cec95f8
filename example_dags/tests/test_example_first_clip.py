"""How the author of a DAG tests it: an emulator in place of the gateway, moto in place of S3. Nothing is spent."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.exceptions import RenderOutcomeUnknown

DAGS = Path(__file__).parent.parent


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 of our own, set as the connection ``aws_default``."""
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


def run_task(file: str, task_id: str, **params: str) -> Any:
    """Render a task's templates and execute it, as a worker would: what it returns."""
    task = runpy.run_path(str(DAGS / file))["dag"].get_task(task_id)
    task.render_template_fields({"params": params})
    instance = SimpleNamespace(
        dag_id=task.dag_id, task_id=task_id, run_id="test", map_index=-1, xcom_push=lambda **_: None
    )
    return task.execute({"ti": instance})


def test_the_clip_is_asked_for_and_stored(codegateway_emulator: Emulator, s3: Any) -> None:
    """The gateway gets what the DAG says, in its own words, and the clip is in the bucket."""
    s3.create_bucket(Bucket="marketing")
    key = run_task("example_first_clip.py", "render", bucket="marketing")
    assert s3.head_object(Bucket="marketing", Key=key)["ContentType"] == "video/mp4"
    sent = dict(codegateway_emulator.ledger[0].request)
    assert "hummingbird" in sent.pop("prompt")
    assert sent == {
        "model": "google/veo-3.1-fast",
        "aspect_ratio": "9:16",
        "duration": "6s",
        "generate_audio": True,
    }


def test_a_line_that_breaks_costs_one_render_more_and_no_third(
    codegateway_emulator: Emulator, s3: Any
) -> None:
    """The next try renders again, within ``max_renders``; a clip in place is bought no more."""
    s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.reset_after())
    with pytest.raises(RenderOutcomeUnknown):
        run_task("example_first_clip.py", "render", bucket="marketing")
    for _ in range(2):
        run_task("example_first_clip.py", "render", bucket="marketing")
    assert codegateway_emulator.billed == 2
