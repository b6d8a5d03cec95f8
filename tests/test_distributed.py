"""Airflow on several machines, as far as one can show it: Celery over Redis, two of each part, some of them killed.

Every part is a process of its own. They share S3, Redis and PostgreSQL; logs and DAG files are on one disk here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS
from media_samples import mp4_of

from airflow_provider_codegateway.emulator import RemoteEmulator
from demo.airflow_server import AirflowServer
from demo.postgres import postgres
from demo.sandbox import BUCKET, PROJECT, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("airflow.providers.celery", reason="needs Airflow's Celery provider")
REDIS = shutil.which("redis-server")

pytestmark = [
    pytest.mark.skipif(not AIRFLOW_V_3_1_PLUS, reason="drives Airflow's REST API as of 3.1"),
    pytest.mark.skipif(REDIS is None, reason="needs redis-server, as in Debian's package of that name"),
    pytest.mark.e2e,
]

CLIPS = int(os.environ.get("CODEGATEWAY_E2E_CLIPS", "8"))
BLOCKING = 2
DEADLINE = 30
"""Seconds after which a render of a lost process is given up, but for the claim's margin."""
MP4 = mp4_of(300_000)
DAGS = ("spread", "spread_blocking", "spread_batch")
LOST_AFTER = "15"
"""Seconds without a heartbeat after which a task, a triggerer or a scheduler counts as lost."""
SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "3",
    # What a killed worker had taken and not begun is given to the other one.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": LOST_AFTER,
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "3",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": LOST_AFTER,
}


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of an empty Redis on loopback, which keeps nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(REDIS), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log) as server:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


def stored(sandbox: Sandbox, prefix: str) -> list[str]:
    pages = sandbox.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def test_every_clip_is_stored_although_a_worker_and_a_triggerer_are_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Two of each part, all at work, on clips, mapped clips and a batch; only what was lost is billed a second time."""
    home = tmp_path_factory.mktemp("distributed")
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        settings = {
            **SETTINGS,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
            "AIRFLOW__CELERY__BROKER_URL": stack.enter_context(redis(home)),
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "tests" / "e2e_dags"),
            "CODEGATEWAY_E2E_CLIPS": str(CLIPS),
            "CODEGATEWAY_E2E_SLOTS": "1",
            "CODEGATEWAY_E2E_BUSY": str(home),
        }
        sandbox = stack.enter_context(Sandbox(home / "airflow", render_seconds=0, settings=settings))
        connection = json.loads(sandbox.environment["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
        connection["extra"] = {"deadline": DEADLINE, "read_timeout": DEADLINE}
        hasty = {**settings, "AIRFLOW_CONN_CODEGATEWAY_HASTY": json.dumps(connection)}
        airflow = AirflowServer(sandbox, triggerers=0, settings=hasty)
        emulator = stack.enter_context(closing(RemoteEmulator(sandbox.emulator_url)))
        emulator.serve_clip(MP4)
        try:
            with airflow:
                airflow.start("scheduler-2", "scheduler --skip-serve-logs")
                for number in (1, 2):
                    airflow.start_triggerer(f"triggerer-{number}")
                    airflow.start(f"worker-{number}", f"celery worker -H worker-{number} --skip-serve-logs")
                run_and_kill(airflow, emulator)
                ended = {dag_id: airflow.wait_for_run(dag_id, seconds=600) for dag_id in DAGS}
        except BaseException:
            print(sandbox.log_tail(300), file=sys.stderr)
            raise
        assert ended == dict.fromkeys(DAGS, "success")
        assert {dag_id: len(stored(sandbox, f"{dag_id}/")) for dag_id in DAGS} == {
            "spread": CLIPS,
            "spread_blocking": BLOCKING,
            "spread_batch": CLIPS,
        }
        for key in stored(sandbox, "spread"):
            if key.endswith(".mp4"):
                assert sandbox.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == MP4
        assert stored(sandbox, "_codegateway/") == []
        assert emulator.billed <= 2 * CLIPS + BLOCKING + _hung_up(emulator)


def run_and_kill(airflow: AirflowServer, emulator: RemoteEmulator) -> None:
    """Start all runs, and kill a worker and a triggerer as soon as both of them wait for renders."""

    port = httpx.URL(emulator.url).port

    def busiest(kind: str) -> str:
        return max((f"{kind}-{number}" for number in (1, 2)), key=renders_of)

    def renders_of(part: str) -> int:
        """How many renders it waits for: the emulator holds all answers, so each has an open connection."""
        first = psutil.Process(airflow.processes[part].pid)
        found = 0
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                peers = [each.raddr for each in process.net_connections("tcp") if each.raddr]
                found += sum(peer.port == port for peer in peers)
        return found

    def seen_by_the_emulator() -> bool:
        """Whether it has no connection left of a client that is gone: to that one it would send an answer."""
        closed = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_CLOSE_WAIT]
        return all(each.laddr.port != port for each in closed)

    kinds = ("worker", "triggerer")
    with emulator.holding():
        for dag_id in DAGS:
            airflow.trigger(dag_id)
        airflow.wait_until(
            lambda: all(renders_of(busiest(kind)) for kind in kinds), what="both at work", seconds=300
        )
        victims = {part: renders_of(part) for part in map(busiest, kinds)}
        print(f"Killed with their renders: {victims}")
        for part in victims:
            airflow.stop(part, signal.SIGKILL)
        airflow.wait_until(seen_by_the_emulator, what="the loss seen by the emulator")


def _hung_up(emulator: RemoteEmulator) -> int:
    """How many renders nobody waited for until their end: of those that were killed, or that took too long."""
    ledger: Any = emulator.ledger
    return sum(render.answered is False for render in ledger)
