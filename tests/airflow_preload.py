"""What Airflow imports and builds when it runs a task, once for all processes that are forked from here."""

import asyncio

import airflow.providers.amazon.aws.hooks.s3
import airflow.sdk.execution_time.task_runner  # noqa: F401
import airflow_run  # noqa: F401
import httpx
import starlette.testclient  # noqa: F401
from airflow.sdk.execution_time.supervisor import in_process_api_server

import airflow_provider_codegateway.operators.video  # noqa: F401


async def first_request() -> None:
    """Airflow keeps its in-process API server, which takes seconds to build its routes when first asked."""
    transport = httpx.ASGITransport(in_process_api_server().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://in-process") as client:
        await client.get("/nothing")


asyncio.run(first_request())
