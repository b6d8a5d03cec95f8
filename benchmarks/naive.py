"""What people write without this provider: the peers of the benchmarks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow.providers.common.compat.sdk import Context


def quickstart(body: dict[str, Any], bucket: str, key: str) -> None:
    """The vendor's quickstart, for a PythonOperator: POST, get the clip, put it to S3."""
    import requests
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    connection = BaseHook.get_connection("codegateway_default")
    answer = requests.post(
        f"{connection.host}/v1/video/generate",
        headers={"Authorization": f"Bearer {connection.password}"},
        json=body,
        timeout=3600,
    )
    answer.raise_for_status()
    clip = requests.get(answer.json()["data"][0]["url"], timeout=120).content
    S3Hook().load_bytes(clip, key, bucket, replace=True)


class NaiveTrigger(BaseTrigger):
    """A client of its own for each render, no ledger; the link goes to the worker."""

    def __init__(self, url: str, key_variable: str, body: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.url = url
        self.key_variable = key_variable
        self.body = body

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"url": self.url, "key_variable": self.key_variable, "body": self.body}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        headers = {"Authorization": f"Bearer {os.environ[self.key_variable]}"}
        async with httpx.AsyncClient(timeout=3600, headers=headers) as client:
            answer = await client.post(f"{self.url}/v1/video/generate", json=self.body)
            answer.raise_for_status()
        yield TriggerEvent(answer.json()["data"][0]["url"])  # type: ignore[no-untyped-call]


class NaiveOperator(BaseOperator):
    """Defers to ``NaiveTrigger``; the worker brings the clip to S3."""

    def __init__(self, *, body: dict[str, Any], s3_bucket: str, s3_key: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = body
        self.s3_bucket = s3_bucket
        self.s3_key = s3_key

    def execute(self, context: Context) -> None:
        connection = BaseHook.get_connection("codegateway_default")
        self.defer(
            trigger=NaiveTrigger(str(connection.host), "CODEGATEWAY_BENCHMARK_KEY", self.body),
            method_name="execute_complete",
        )

    def execute_complete(self, context: Context, event: str) -> str:
        import requests
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        clip = requests.get(event, timeout=120).content
        S3Hook().load_bytes(clip, self.s3_key, self.s3_bucket, replace=True)
        return self.s3_key
