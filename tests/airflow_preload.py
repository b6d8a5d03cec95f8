"""What Airflow imports and builds when it runs a task, once for all processes that are forked from here."""

import asyncio
from importlib import import_module

import airflow.providers.amazon.aws.hooks.s3
import httpx
from airflow_run import AIRFLOW

import airflow_provider_codegateway.operators.video  # noqa: F401


async def first_request() -> None:
    """Airflow keeps its in-process API server, which takes seconds to build its routes when first asked."""
    from airflow.sdk.execution_time.supervisor import in_process_api_server

    transport = httpx.ASGITransport(in_process_api_server().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://in-process") as client:
        await client.get("/nothing")


if AIRFLOW < (3, 0):
    import_module(
        "airflow.providers.fab.auth_manager.models"
    )  # the table of a run's notes refers to its users
else:
    import airflow.sdk.execution_time.task_runner  # noqa: F401
    import starlette.testclient  # noqa: F401
if AIRFLOW >= (3, 3):
    asyncio.run(first_request())
