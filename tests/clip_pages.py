"""What the tests of the pages are about: users, DAGs with clips, and Airflow's real API server."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
from per_dag_auth_manager import GRANTS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

USERS = {"admin": "admin", "anna": "viewer", "ben": "viewer", "nora": "viewer", "tim": "viewer"}
"""With their roles. Anna reads DAG A only; Ben reads DAG A without its XComs, Tim without its task
instances; Nora reads nothing."""
SECRET = "Bandersnatch"
"""Is in everything that DAG B is made of."""
DAG_A, DAG_B = "dag_a", f"dag_{SECRET}"
PROMPT_A = "A hummingbird drinks from a red flower in slow motion, soft morning light."
CONNECTION = "clip_store"


@dataclass(frozen=True)
class World:
    """
    :param clips: the XCom ``clip`` of each DAG's task.
    :param runs: the run of each DAG.
    :param tokens: of each user, as the login cookie holds it.
    """

    url: str
    log: Path
    clips: dict[str, dict[str, Any]]
    runs: dict[str, str]
    tokens: dict[str, str]
    bucket: str
    s3_endpoint: str

    def browse(self, user: str | None) -> httpx.Client:
        """What this user's browser would send: their login cookie."""
        cookies = {"_token": self.tokens[user]} if user else {}
        return httpx.Client(
            base_url=self.url, cookies=cookies, timeout=30, transport=httpx.HTTPTransport(verify=False)
        )

    def task(self, dag_id: str, task_id: str = "render") -> dict[str, Any]:
        """The identity of a task instance, as the pages take it."""
        run_id = self.runs.get(dag_id, "manual__2026")
        return {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": -1}

    def task_row(self, dag_id: str, table: Any) -> dict[str, Any]:
        """What a row of a table like ``task_instance`` would hold of a DAG's task, but for its own id."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            row = _row(session, TaskInstance, dag_id)
        return {name: row[name] for name in table.columns.keys() & row.keys()} | {
            "task_instance_id": _new_id(row)
        }

    def page(self, dag_id: str, task_id: str = "render") -> str:
        """The path of a clip's page."""
        return f"/codegateway/clip?{urlencode(self.task(dag_id, task_id))}"


def clip_dag(dag_id: str, prompt: str, bucket: str) -> Any:
    """A DAG with one clip, and one task that is none of ours."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    from airflow_provider_codegateway.operators.video import GenerateVideoOperator

    with DAG(dag_id, schedule=None) as dag:
        EmptyOperator(task_id="other")
        GenerateVideoOperator(
            task_id="render",
            model="google/veo-3.1-fast",
            prompt=prompt,
            duration=4,
            generate_audio=True,
            s3_bucket=bucket,
            s3_key=f"{dag_id}/clip.mp4",
            aws_conn_id=CONNECTION,
        )
    return dag


def run_of(dag_id: str) -> str:
    """The run of a DAG that has one."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        return str(session.scalars(select(DagRun.run_id).where(DagRun.dag_id == dag_id)).one())


def add_connection(endpoint: str, credentials: dict[str, str]) -> None:
    """The connection to S3, in Airflow's database: that is where an API server looks."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(
            Connection(
                conn_id=CONNECTION,
                conn_type="aws",
                login=credentials["aws_access_key_id"],
                password=credentials["aws_secret_access_key"],
                extra=json.dumps({"endpoint_url": endpoint, "region_name": "us-east-1"}),
            )
        )


@contextmanager
def api_server(home: Path, **settings: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Airflow's API server on the tests' database: its URL, and a login of each user."""
    passwords = {user: secrets.token_hex(8) for user in USERS}
    (home / "passwords").write_text(json.dumps(passwords))
    environment = {
        **os.environ,
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__AUTH_MANAGER": "per_dag_auth_manager.PerDagAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
            f"{name}:{role}" for name, role in USERS.items()
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        GRANTS: json.dumps(
            {
                "anna": {"dags": [DAG_A], "not": ""},
                "ben": {"dags": [DAG_A], "not": "XCOM"},
                "nora": {"dags": [], "not": ""},
                "tim": {"dags": [DAG_A], "not": "TASK_INSTANCE"},
            }
        ),
        **settings,
    }
    with (home / "log").open("wb") as log:
        # The server inherits a socket that listens already: who connects before it is up just waits.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            server = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("api_server.py"), str(listener.fileno())],
                env=environment,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )
        try:
            with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
                tokens = {user: _log_in(client, user, word) for user, word in passwords.items()}
            yield url, tokens
        finally:
            server.terminate()
            server.wait(30)


def _log_in(client: httpx.Client, user: str, password: str) -> str:
    answer = client.post("/auth/token", json={"username": user, "password": password})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["access_token"])


def cursor_at(dag_id: str) -> str:
    """The cursor of the gallery's page that ends with a DAG's clip."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        of_render = TaskInstance.dag_id == dag_id, TaskInstance.task_id == "render"
        start = session.scalars(select(TaskInstance.start_date).where(*of_render)).one()
    assert start is not None
    return base64.urlsafe_b64encode(json.dumps([start.isoformat(), 1]).encode()).decode()


@dataclass(frozen=True, kw_only=True)
class Copy:
    """How a copy of a task instance differs from its original.

    :param clip: the whole XCom ``clip``; by default the original's. ``...`` is none.
    :param error: the whole XCom ``clip_error``, if there is one.
    :param rendered: what is changed of the rendered arguments; None deletes them all.
    :param task: columns of the task instance.
    """

    map_index: int
    clip: Any = None
    error: dict[str, Any] | None = None
    stored: datetime | None = None
    task: dict[str, Any] = field(default_factory=dict)
    rendered: dict[str, Any] | None = field(default_factory=dict)


def copy_tasks(dag_id: str, copies: Iterable[Copy]) -> None:
    """Further instances of a DAG's task ``render``, as if it were mapped, in Airflow's database.

    Copied from the one that Airflow made, so that they are whole in every version of its tables.
    """
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import insert

    xcom_table = xcom_model()
    with create_session() as session:
        task = _row(session, TaskInstance, dag_id)
        rendered = _row(session, RenderedTaskInstanceFields, dag_id)
        xcom = _row(session, xcom_table, dag_id, xcom_table.key == "clip")
        tasks, all_rendered, xcoms = [], [], []
        for copy in copies:
            own = {**task, "map_index": copy.map_index, "id": _new_id(task), **copy.task}
            if "region_index" in task:
                own["region_index"] = copy.map_index
            tasks.append(own)
            if copy.rendered is not None:
                fields = {**rendered["rendered_fields"], **copy.rendered}
                all_rendered.append({**_belonging_to(own, rendered), "rendered_fields": fields})
            if copy.clip is not ...:
                value = xcom["value"] if copy.clip is None else copy.clip
                stored = copy.stored or xcom["timestamp"]
                xcoms.append({**_belonging_to(own, xcom), "value": value, "timestamp": stored})
            if copy.error is not None:
                xcoms.append({**_belonging_to(own, xcom), "key": "clip_error", "value": copy.error})
        tables = (TaskInstance, tasks), (RenderedTaskInstanceFields, all_rendered), (xcom_table, xcoms)
        for model, rows in tables:
            if rows:
                keys = rows[0].keys() & model.__table__.columns.keys()
                session.execute(insert(model.__table__), [{name: row[name] for name in keys} for row in rows])


def set_state(dag_id: str, map_index: int, state: str) -> None:
    """The state of a copy, as if its task had ended now."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.query(TaskInstance).filter_by(dag_id=dag_id, map_index=map_index)
        found.update({"state": state, "end_date": datetime.now(UTC)})


def xcom_model() -> Any:
    """Airflow's table of XComs, which is another one from 3.4 on."""
    from airflow.models import xcom

    return getattr(xcom, "XComModelV2", None) or xcom.XComModel


def _belonging_to(task: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row of another task instance, by its names or, from Airflow 3.4 on, by its id."""
    if "task_instance_id" in row:
        return {**row, "id": _new_id(row), "task_instance_id": task["id"]}
    return {**row, "map_index": task["map_index"]}


def _new_id(task: dict[str, Any]) -> Any:
    return type(task["id"])(str(uuid4()))  # a string or a UUID, by Airflow's version


def _row(session: Session, model: Any, dag_id: str, *conditions: Any) -> dict[str, Any]:
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    of_render = (
        TaskInstance.dag_id == dag_id,
        TaskInstance.task_id == "render",
        TaskInstance.map_index == -1,
    )
    query = select(model.__table__)
    if hasattr(model, "task_instance_id"):
        query = query.join(TaskInstance.__table__, TaskInstance.id == model.task_instance_id).where(
            *of_render
        )
    else:
        query = query.where(model.dag_id == dag_id, model.task_id == "render", model.map_index == -1)
    return dict(session.execute(query.where(*conditions)).mappings().one())


BATCH_DAG, BATCH_ROWS = "catalogue", 120


@dataclass(frozen=True)
class Catalogue:
    """A batch of ``BATCH_ROWS`` rows, of which the gateway refused one."""

    world: World
    bucket: str
    task: dict[str, Any]
    clip: bytes

    @property
    def query(self) -> str:
        """The identity of its task, as a page's address has it."""
        return urlencode(self.task)

    def get(self, path: str, user: str = "admin", **parameters: Any) -> httpx.Response:
        with self.world.browse(user) as client:
            return client.get(f"/codegateway/{path}", params={**self.task, **parameters})
