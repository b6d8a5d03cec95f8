"""Fixtures of the test files about the pages, which share them: a pytest plugin."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from clip_browser import CHROMIUM, FLAGS
from clip_pages import (
    BATCH_DAG,
    BATCH_ROWS,
    CONNECTION,
    DAG_A,
    DAG_B,
    PROMPT_A,
    SECRET,
    Catalogue,
    World,
    add_connection,
    api_server,
    clip_dag,
    run_of,
    xcom_model,
)
from media_samples import mp4_of

from airflow_provider_codegateway.clip import MADE_BY, run_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3.client import S3Client
    from playwright.sync_api import Browser

    from airflow_provider_codegateway.emulator import Emulator


@pytest.fixture
def world(session_world: World) -> World:
    """The world, in which tests of other files have left no clips of other DAGs."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        session.execute(delete(TaskInstance).where(TaskInstance.dag_id.not_in([DAG_A, DAG_B])))
    return session_world


@pytest.fixture(scope="session")
def session_world(
    airflow_database: None,
    shared_gateway: Emulator,
    s3: S3Client,
    s3_endpoint: str,
    s3_credentials: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """DAG A and DAG B with a clip each, rendered by Airflow's own task runner; and an API server."""
    from airflow_run import run_dag

    bucket = f"pages-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=bucket)
    add_connection(s3_endpoint, s3_credentials)
    shared_gateway.reset()
    clips, runs = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        gateway = {"conn_type": "codegateway", "host": shared_gateway.url, "password": shared_gateway.api_key}
        patch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(gateway))
        for dag_id, prompt in ((DAG_A, PROMPT_A), (DAG_B, f"The frumious {SECRET}.")):
            result = run_dag(clip_dag(dag_id, prompt, bucket))
            assert result.state == "success"
            clips[dag_id], runs[dag_id] = result["render"].xcoms["clip"], run_of(dag_id)
    home = tmp_path_factory.mktemp("api-server")
    with api_server(home) as (url, tokens):
        yield World(url, home / "log", clips, runs, tokens, bucket, s3_endpoint)


@pytest.fixture
def copies(world: World) -> Iterator[None]:
    """Removes the copies of task instances that a test makes."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    yield
    with create_session() as session:
        session.execute(delete(TaskInstance).where(TaskInstance.map_index >= 0))


@pytest.fixture(scope="module")
def catalogue(session_world: World, shared_gateway: Emulator, s3: S3Client) -> Iterator[Catalogue]:
    """A batch, rendered by Airflow's own task runner."""
    from airflow.sdk import DAG
    from airflow_run import run_dag

    from airflow_provider_codegateway.emulator import Fault
    from airflow_provider_codegateway.operators.videos import GenerateVideosOperator

    bucket, clip = f"batch-{secrets.token_hex(6)}", mp4_of(20_000)
    s3.create_bucket(Bucket=bucket)
    shared_gateway.reset()
    shared_gateway.serve_clip(clip)
    shared_gateway.fail_next(Fault.status(400))
    with DAG(BATCH_DAG, schedule=None) as dag:
        GenerateVideosOperator(
            task_id="videos",
            requests=[{"id": f"sku-{number}"} for number in range(BATCH_ROWS)],
            model="bytedance/seedance-2.0",
            prompt="a paper boat",
            s3_bucket=bucket,
            s3_key="clips/{id}.mp4",
            result_path=f"s3://{bucket}/result/",
            aws_conn_id=CONNECTION,
            max_active=8,
            tolerated_failures=1,
        )
    with pytest.MonkeyPatch.context() as patch:
        gateway = {"conn_type": "codegateway", "host": shared_gateway.url, "password": shared_gateway.api_key}
        patch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(gateway))
        assert run_dag(dag).state == "success"
    task = {"dag_id": BATCH_DAG, "run_id": run_of(BATCH_DAG), "task_id": "videos", "map_index": -1}
    yield Catalogue(session_world, bucket, task, clip)
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        for model in (TaskInstance, DagRun):
            session.execute(delete(model).where(model.dag_id == BATCH_DAG))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without it, or without Playwright, the test is skipped.

    Not for longer than a module: as long as it runs, no other test of the process can use ``asyncio.run``.
    """
    if CHROMIUM is None:
        pytest.skip("No Chromium is installed; CHROMIUM may name one.")
    sync_api: Any = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def under_way(catalogue: Catalogue, s3: S3Client) -> Iterator[dict[str, Any]]:
    """The batch as it was while it ran: without its XCom, and with what it wrote of its progress."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import delete, insert, select, update

    progress = {
        "stored": 40,
        "failed": 1,
        "in_flight": 8,
        "waiting": 71,
        "spent": "41 renders",
        "seconds_left": 61.0,
    }
    s3.put_object(
        Bucket=catalogue.bucket,
        Key="result/progress.json",
        Body=json.dumps(progress).encode(),
        Metadata={MADE_BY: run_identity(BATCH_DAG, catalogue.task["run_id"])},
    )
    model = xcom_model()
    with create_session() as session:
        task = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG)).one()
        of_task = (
            model.task_instance_id == task.id
            if hasattr(model, "task_instance_id")
            else model.dag_id == BATCH_DAG
        )
        kept = [dict(row._mapping) for row in session.execute(select(model.__table__).where(of_task))]
        session.execute(delete(model).where(of_task))
        session.execute(update(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG).values(state="deferred"))
    yield progress
    with create_session() as session:
        session.execute(insert(model.__table__), kept)
        session.execute(update(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG).values(state="success"))
