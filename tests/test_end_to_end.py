"""A running Airflow, every part a process of its own: what its users see, and what they pay when parts die.

CODEGATEWAY_E2E_CLIPS clips are made by each mapped task; CODEGATEWAY_E2E_BUSY_SECONDS is for how long all worker
slots are taken, and CODEGATEWAY_E2E_LINK_SECONDS how long a clip's link lives then.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, get_args

import asyncpg
import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS
from media_samples import mp4_of
from stats_server import StatsServer

from airflow_provider_codegateway import metrics
from airflow_provider_codegateway.emulator import Fault, RemoteEmulator
from airflow_provider_codegateway.emulator.faults import Encoding, HostileShape, OddShape
from demo.airflow_server import AirflowServer
from demo.postgres import postgres
from demo.sandbox import BUCKET, PROJECT, Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not AIRFLOW_V_3_1_PLUS, reason="drives Airflow's REST API as of 3.1"),
    pytest.mark.e2e,
]

CLIPS = int(os.environ.get("CODEGATEWAY_E2E_CLIPS", "8"))
BUSY_SECONDS = float(os.environ.get("CODEGATEWAY_E2E_BUSY_SECONDS", "20"))
LINK_SECONDS = float(os.environ.get("CODEGATEWAY_E2E_LINK_SECONDS", "15"))
SLOTS = 4
DEADLINE = max(45, CLIPS)
"""Seconds after which the renders of a lost triggerer are given up, but for the claim's margin."""
MP4 = mp4_of(300_000)
POISONED = "minimax/hailuo-2.3-fast"
"""The model whose answers are made to break whoever reads them; the good clips are of another."""
POISONS: tuple[Fault, ...] = (
    *(Fault.hostile_text(shape, code=code) for shape in get_args(HostileShape) for code in (400, 502)),
    *(Fault.encoded(encoding, code=code) for encoding in get_args(Encoding) for code in (200, 502)),
    *(Fault.odd_answer(shape) for shape in get_args(OddShape)),
    Fault.html(),
    Fault.html(502),
)


class Cluster:
    """A running Airflow with its emulator, its S3 and its database."""

    def __init__(
        self, airflow: AirflowServer, emulator: RemoteEmulator, stats: StatsServer, database: str, busy: Path
    ) -> None:
        self.airflow = airflow
        self.stats = stats
        self.emulator = emulator
        self.s3 = airflow.sandbox.s3
        self._database = database.replace("postgresql+psycopg2", "postgresql")
        self._busy = busy
        self._runs = 0

    def start(self, dag_id: str) -> str:
        """Start a new run of a DAG: its id."""
        self._runs += 1
        self.airflow.trigger(dag_id, f"run-{self._runs}")
        return f"run-{self._runs}"

    def stored(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
        self.airflow.wait_until(condition, what=what, seconds=seconds)

    def triggers(self) -> int:
        """How many triggers Airflow has."""
        return int(self._value("SELECT count(*) FROM trigger"))

    def trigger_arguments(self) -> str:
        """What Airflow's database holds of the triggers, decrypted."""
        return str(self._value("SELECT string_agg(kwargs::text, ' ') FROM trigger"))

    def log(self, dag_id: str, run_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """A task's log as the UI shows it."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/clip/logs/{try_number}"
        return json.dumps(self.airflow.call("GET", path, params={"map_index": map_index})["content"])

    def task(self, dag_id: str, run_id: str) -> dict[str, Any]:
        [task] = self.airflow.tasks(dag_id, run_id)
        return task

    @contextmanager
    def all_slots_taken(self) -> Iterator[None]:
        for file in self._busy.iterdir():
            file.unlink()
        (self._busy / "busy").touch()
        try:
            run_id = self.start("busy")
            self.wait(lambda: len(list(self._busy.iterdir())) == SLOTS + 1, "all slots taken")
            yield
        finally:
            (self._busy / "busy").unlink()
        self.airflow.wait_for_run("busy", run_id)

    def _value(self, query: str) -> Any:
        async def fetch() -> Any:
            connection = await asyncpg.connect(self._database)
            try:
                return await connection.fetchval(query)
            finally:
                await connection.close()

        return asyncio.run(fetch())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("airflow")
    busy = tmp_path_factory.mktemp("busy")
    with postgres() as database, closing(StatsServer()) as stats:
        settings = {
            **stats.settings,
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "codegateway",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "tests" / "e2e_dags"),
            "AIRFLOW__CORE__PARALLELISM": str(SLOTS),
            # So that a lost triggerer is noticed in seconds, and not in half a minute.
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
            "CODEGATEWAY_E2E_CLIPS": str(CLIPS),
            "CODEGATEWAY_E2E_POISONS": str(len(POISONS)),
            "CODEGATEWAY_E2E_SLOTS": str(SLOTS),
            "CODEGATEWAY_E2E_BUSY": str(busy),
        }
        with Sandbox(home / "airflow", render_seconds=0, settings=settings) as sandbox:
            connection = json.loads(sandbox.environment["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
            hasty = {**connection, "extra": {"deadline": DEADLINE, "read_timeout": DEADLINE}}
            server = AirflowServer(
                sandbox,
                triggerers=0,
                settings={
                    "AIRFLOW__CORE__PARALLELISM": str(SLOTS),
                    "AIRFLOW_CONN_CODEGATEWAY_HASTY": json.dumps(hasty),
                },
            )
            with server as airflow, closing(RemoteEmulator(sandbox.emulator_url)) as emulator:
                try:
                    yield Cluster(airflow, emulator, stats, database, busy)
                except BaseException:
                    print(sandbox.log_tail(200), file=sys.stderr)
                    raise


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Airflow without a triggerer; the emulator without a past, and with small clips."""
    running.emulator.reset()
    running.emulator.serve_clip(MP4)
    running.stats.forget()
    yield running
    for name in [name for name in running.airflow.processes if name.startswith("triggerer")]:
        running.airflow.stop(name)


def test_every_clip_of_a_mapped_task_is_stored_and_billed_once_in_blocking_mode(cluster: Cluster) -> None:
    """Worker slots are held for the renders, and every clip arrives."""
    run_id = cluster.start("blocking")
    assert cluster.airflow.wait_for_run("blocking", run_id) == "success"
    assert len(cluster.stored("blocking/")) == cluster.emulator.billed == CLIPS


def test_renders_of_a_mapped_task_are_all_under_way_at_once_without_a_worker_slot(cluster: Cluster) -> None:
    """More renders than slots are in flight, while every slot is free for others."""
    cluster.airflow.start_triggerer("triggerer")
    with cluster.emulator.holding():
        run_id = cluster.start("deferrable")
        cluster.emulator.wait_for(rendering=CLIPS, timeout=300)
        cluster.wait(lambda: cluster.airflow.states("deferrable", run_id) == {"deferred": CLIPS}, "deferred")
        stored_arguments = cluster.trigger_arguments()
        with cluster.all_slots_taken():
            pass
    assert cluster.airflow.wait_for_run("deferrable", run_id) == "success"
    assert len(cluster.stored("deferrable/")) == cluster.emulator.billed == CLIPS
    assert cluster.stored("_codegateway/deferrable/") == []
    assert "paper boat" not in stored_arguments
    clip = cluster.airflow.xcom("deferrable", "clip", "clip", run_id, map_index=0)
    assert clip["uri"] == f"s3://{BUCKET}/deferrable/{run_id}/0000.mp4"
    log = cluster.log("deferrable", run_id, map_index=0)
    assert "Requesting render 1 of at most 2" in log
    assert "is paid for; retries will not buy it again" in log
    assert "The clip is at s3://" in log


def test_poisoned_answers_cost_their_own_renders_at_most(cluster: Cluster) -> None:
    """All at once in one triggerer, on PostgreSQL: the good renders beside them are stored, and the triggerer lives."""
    cluster.airflow.start_triggerer("triggerer")
    triggerer = cluster.airflow.processes["triggerer"]
    for poison in POISONS:
        cluster.emulator.fail_next(poison, model=POISONED)
    with cluster.emulator.holding():
        good, poisoned = cluster.start("deferrable"), cluster.start("poisoned")
        cluster.emulator.wait_for(rendering=CLIPS, timeout=300)
        # Refusals are answered at once, and everything else with the good renders.
        begun = {"deferred", "failed", "up_for_retry", "success"}
        cluster.wait(
            lambda: cluster.airflow.states("poisoned", poisoned).keys() <= begun, "all of them asked", 400
        )
    assert cluster.airflow.wait_for_run("deferrable", good) == "success"
    cluster.airflow.wait_for_run("poisoned", poisoned, seconds=600)
    assert len(cluster.stored(f"deferrable/{good}/")) == CLIPS
    assert (
        sum(render.billed_at is not None for render in cluster.emulator.ledger if render.model != POISONED)
        == CLIPS
    )
    tasks = cluster.airflow.tasks("poisoned", poisoned)
    assert {task["state"] for task in tasks} <= {"success", "failed"}
    assert len(cluster.stored(f"poisoned/{poisoned}/")) == sum(task["state"] == "success" for task in tasks)
    failed = [task["map_index"] for task in tasks if task["state"] == "failed"]
    told = []
    for map_index in failed:
        # A busy scheduler of Airflow may fail a task that resumes before it has heard of the deferral.
        with suppress(SandboxError):
            told.append(cluster.airflow.xcom("poisoned", "clip", "clip_error", poisoned, map_index)["class"])
    assert set(told) <= {"RequestRejected", "RenderOutcomeUnknown"}
    assert len(told) > len(failed) / 2
    assert triggerer.poll() is None
    assert cluster.airflow.processes["triggerer"] is triggerer


def test_metrics_come_from_where_the_call_is_made_and_from_where_the_task_ends(cluster: Cluster) -> None:
    """The triggerer counts what it asks for, buys and has in flight; the workers count what they hand over."""
    cluster.airflow.start_triggerer("triggerer")
    with cluster.emulator.holding():
        run_id = cluster.start("deferrable")
        cluster.emulator.wait_for(rendering=CLIPS, timeout=300)
    counts: Counter[str] = Counter()
    most_in_flight = 0
    give_up_at = time.monotonic() + 120
    while counts[metrics.CLIP_BYTES] < CLIPS * len(MP4) or counts[metrics.BOUGHT] < CLIPS:
        if time.monotonic() > give_up_at:  # a task failed: Airflow's gauges go on for ever
            break
        name, number = re.fullmatch(r"([\w.]+)(?:,[^:]+)?:([\d.]+)\|.+", cluster.stats.next()).groups()  # type: ignore[union-attr]
        if name == metrics.IN_FLIGHT:
            most_in_flight = max(most_in_flight, int(number))
        elif name != metrics.DURATION:
            counts[name] += int(number)
    assert cluster.airflow.wait_for_run("deferrable", run_id) == "success"
    assert most_in_flight == CLIPS
    assert counts == {
        metrics.BEGUN: CLIPS,
        metrics.BOUGHT: CLIPS,
        metrics.CLIP_BYTES: CLIPS * len(MP4),
        metrics.SPENT: CLIPS * 200_000,  # 0.20 each
    }


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_batch_goes_on_in_another_triggerer(cluster: Cluster, end: signal.Signals) -> None:
    """One trigger renders all rows at once; what the triggerer took with it is rendered again, and nothing else is."""
    cluster.airflow.start_triggerer("triggerer-1")
    with cluster.emulator.holding():
        run_id = cluster.start("batch")
        cluster.emulator.wait_for(rendering=CLIPS, timeout=300)
        cluster.wait(lambda: cluster.airflow.states("batch", run_id) == {"deferred": 1}, "deferred")
        assert cluster.triggers() == 1
        assert len(cluster.trigger_arguments()) < 2000
        cluster.airflow.stop("triggerer-1", end)
        cluster.emulator.wait_for(hung_up=CLIPS, timeout=60)
    cluster.airflow.start_triggerer("triggerer-2")
    assert cluster.airflow.wait_for_run("batch", run_id, seconds=DEADLINE + 300) == "success"
    assert len(cluster.stored(f"batch/{run_id}/")) == CLIPS
    assert cluster.emulator.billed == 2 * CLIPS
    assert cluster.stored("_codegateway/batch/") == []
    summary = cluster.airflow.xcom("batch", "clip", "batch", run_id)
    assert (summary["stored"], summary["renders_bought"], summary["renders_unknown"]) == (CLIPS, CLIPS, CLIPS)
    log = cluster.log("batch", run_id)
    assert f"{CLIPS} stored, 0 failed, 0 in flight, 0 waiting" in log
    assert "The manifest is at s3://" in log


@pytest.fixture
def lost_triggerer(cluster: Cluster) -> Callable[[str], tuple[str, int]]:
    """Two triggerers share the renders of a DAG; one is killed: the run, and how many renders it held."""

    def lose(dag_id: str) -> tuple[str, int]:
        run_id = cluster.start(dag_id)
        cluster.wait(
            lambda: cluster.airflow.states(dag_id, run_id) == {"deferred": CLIPS}, "deferred", 30 + 10 * CLIPS
        )
        with cluster.emulator.holding():
            half = {"AIRFLOW__TRIGGERER__CAPACITY": str((CLIPS + 1) // 2)}
            for name in ("triggerer-1", "triggerer-2"):
                cluster.airflow.start_triggerer(name, half)
            cluster.emulator.wait_for(rendering=CLIPS, timeout=120)
            cluster.airflow.stop("triggerer-1", signal.SIGKILL)
            cluster.emulator.wait_for(hung_up=CLIPS // 2)
        cluster.emulator.wait_for(rendering=0)
        lost = sum(render.answered is False for render in cluster.emulator.ledger)
        assert 0 < lost < CLIPS
        return run_id, lost

    return lose


def test_what_a_killed_triggerer_was_rendering_is_rendered_by_the_other(
    cluster: Cluster, lost_triggerer: Callable[[str], tuple[str, int]]
) -> None:
    """All clips are stored; only what the killed one was rendering is bought again, within ``max_renders``."""
    run_id, lost = lost_triggerer("survivors")
    assert cluster.airflow.wait_for_run("survivors", run_id, seconds=DEADLINE + 300) == "success"
    assert len(cluster.stored("survivors/")) == CLIPS
    assert cluster.emulator.billed == CLIPS + lost
    assert cluster.stored("_codegateway/survivors/") == []


def test_with_one_render_allowed_a_killed_triggerer_costs_clips_and_never_money(
    cluster: Cluster, lost_triggerer: Callable[[str], tuple[str, int]]
) -> None:
    """What was lost fails, and says that it may have been bought; nothing is bought a second time."""
    run_id, lost = lost_triggerer("bought_once")
    assert cluster.airflow.wait_for_run("bought_once", run_id, seconds=DEADLINE + 300) == "failed"
    assert cluster.airflow.states("bought_once", run_id) == {"failed": lost, "success": CLIPS - lost}
    assert cluster.emulator.billed == CLIPS
    failed = [task for task in cluster.airflow.tasks("bought_once", run_id) if task["state"] == "failed"]
    log = cluster.log("bought_once", run_id, map_index=failed[0]["map_index"])
    assert "max_renders=1 is used up" in log
    assert "may have been bought: its run ended without reporting" in log


def test_a_triggerer_that_is_told_to_stop_says_what_it_gave_up(cluster: Cluster) -> None:
    """A rolling restart: its renders are begun anew at once, by the next triggerer; nobody waits for a claim."""
    cluster.airflow.start_triggerer("triggerer-old")
    with cluster.emulator.holding():
        run_id = cluster.start("deferrable")
        cluster.emulator.wait_for(rendering=CLIPS, timeout=300)
        stopped = time.monotonic()
        cluster.airflow.stop("triggerer-old", signal.SIGTERM)
        cluster.emulator.wait_for(hung_up=CLIPS)
        cluster.airflow.start_triggerer("triggerer-new")
        cluster.emulator.wait_for(accepted=2 * CLIPS, timeout=120)
        print(f"All {CLIPS} renders were begun anew {time.monotonic() - stopped:.1f} s after SIGTERM.")
    assert cluster.airflow.wait_for_run("deferrable", run_id) == "success"
    assert len(cluster.stored(f"deferrable/{run_id}/")) == CLIPS
    assert cluster.emulator.billed == 2 * CLIPS


@pytest.mark.parametrize(("dag_id", "billed"), [("single", 1), ("naive", 2)])
def test_what_dags_test_left_in_the_database_buys_nothing(tmp_path: Path, dag_id: str, billed: int) -> None:
    """``airflow dags test`` runs the trigger itself and leaves it behind: run again, only a naive one is paid again."""
    settings = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "tests" / "e2e_dags"),
        "CODEGATEWAY_E2E_CLIPS": "1",
        "CODEGATEWAY_E2E_SLOTS": "1",
        "CODEGATEWAY_E2E_BUSY": str(tmp_path),
    }
    with (
        Sandbox(tmp_path / "airflow", render_seconds=0, settings=settings) as sandbox,
        closing(RemoteEmulator(sandbox.emulator_url)) as emulator,
    ):
        connection = json.loads(sandbox.environment["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
        sandbox.environment["CODEGATEWAY_BENCHMARK_KEY"] = connection["password"]
        for _ in sandbox.airflow("db migrate", f"dags test {dag_id}"):
            pass
        assert emulator.billed == 1
        run_triggers = [sys.executable, "-c", RUN_ALL_TRIGGERS]
        ran = subprocess.run(
            run_triggers, env=sandbox.environment, cwd=PROJECT, capture_output=True, text=True
        )
        assert "1 trigger ran" in ran.stdout, ran.stderr
        assert emulator.billed == billed


RUN_ALL_TRIGGERS = """
import asyncio
from pydoc import locate
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session

with create_session() as session:
    triggers = [locate(left.classpath)(**left.kwargs) for left in session.query(Trigger)]
for trigger in triggers:
    asyncio.run(anext(trigger.run()))
print(len(triggers), "trigger ran")
"""
"""What a triggerer would do, if Airflow did not happen to delete them first."""


def test_a_triggerer_that_finds_what_dags_test_left_buys_nothing(tmp_path: Path) -> None:
    """It starts later, on the same database."""
    settings = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "tests" / "e2e_dags"),
        "CODEGATEWAY_E2E_CLIPS": "1",
        "CODEGATEWAY_E2E_SLOTS": "1",
        "CODEGATEWAY_E2E_BUSY": str(tmp_path),
    }
    with (
        Sandbox(tmp_path / "airflow", render_seconds=0, settings=settings) as sandbox,
        closing(RemoteEmulator(sandbox.emulator_url)) as emulator,
    ):
        for _ in sandbox.airflow("db migrate", "dags test single"):
            pass
        left_behind = triggers_in(sandbox)
        with sandbox.running("triggerer --skip-serve-logs") as triggerer:
            while triggers_in(sandbox) or "Starting the triggerer" not in sandbox.log_tail(1000):
                assert triggerer.poll() is None
                time.sleep(0.2)
        assert left_behind == 1
        assert len(emulator.ledger) == emulator.billed == 1


def triggers_in(sandbox: Sandbox) -> int:
    with closing(sqlite3.connect(sandbox.home / "airflow.db")) as database:
        return int(database.execute("SELECT count(*) FROM trigger").fetchone()[0])


def test_clips_are_stored_before_their_links_expire_though_no_worker_slot_is_free(cluster: Cluster) -> None:
    """The triggerer itself brings them to S3; the tasks learn of it when there is a slot again."""
    cluster.emulator.link_lifetime = LINK_SECONDS
    cluster.airflow.start_triggerer("triggerer")
    with ExitStack() as slots:
        with cluster.emulator.holding():
            run_id = cluster.start("deferrable")
            cluster.emulator.wait_for(rendering=CLIPS, timeout=300)
            cluster.wait(
                lambda: cluster.airflow.states("deferrable", run_id) == {"deferred": CLIPS}, "deferred"
            )
            slots.enter_context(cluster.all_slots_taken())
        released = time.monotonic()
        cluster.wait(lambda: len(cluster.stored(f"deferrable/{run_id}/")) == CLIPS, "all clips stored")
        # Until every link is dead, and then some.
        cluster.wait(lambda: time.monotonic() - released > BUSY_SECONDS, "busy", BUSY_SECONDS + 60)
        assert "success" not in cluster.airflow.states("deferrable", run_id)
    assert cluster.airflow.wait_for_run("deferrable", run_id) == "success"
    assert cluster.emulator.billed == CLIPS


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_deferred_task_that_is_marked_keeps_what_is_being_paid(cluster: Cluster, state: str) -> None:
    """The gateway cannot cancel a render: so it is stored, and whoever runs the task again has it for free."""
    cluster.airflow.start_triggerer("triggerer")
    with cluster.emulator.holding():
        run_id = cluster.start("single")
        cluster.emulator.wait_for(rendering=1, timeout=120)
        path = f"/api/v2/dags/single/dagRuns/{run_id}/taskInstances/clip"
        cluster.airflow.call("PATCH", path, json={"new_state": state})
        told = "The task was cleared, marked or out of time."
        cluster.wait(lambda: told in cluster.log("single", run_id), "the trigger cancelled")
    cluster.wait(lambda: cluster.stored(f"single/{run_id}") != [], "the clip stored")
    cluster.wait(lambda: cluster.stored("_codegateway/single/") == [], "the ledger settled")
    assert cluster.task("single", run_id)["state"] == state
    clear(cluster, run_id)
    cluster.wait(lambda: cluster.task("single", run_id)["try_number"] == 2, "the second try")
    assert cluster.airflow.wait_for_run("single", run_id) == "success"
    assert cluster.airflow.xcom("single", "clip", "clip", run_id)["reused"] is True
    assert len(cluster.emulator.ledger) == 1


def test_a_deferred_task_that_is_cleared_waits_for_the_render_of_its_first_try(cluster: Cluster) -> None:
    """Clearing starts a new try, and not a new render."""
    cluster.airflow.start_triggerer("triggerer")
    with cluster.emulator.holding():
        run_id = cluster.start("single")
        cluster.emulator.wait_for(rendering=1, timeout=120)
        clear(cluster, run_id)

        def second_try_waits() -> bool:
            task = cluster.task("single", run_id)
            return (task["state"], task["try_number"]) == (
                "deferred",
                2,
            ) and "by a run that is still at work, or was restarted or killed" in (
                cluster.log("single", run_id, try_number=2)
            )

        cluster.wait(second_try_waits, "the second try waits")
    assert cluster.airflow.wait_for_run("single", run_id) == "success"
    assert len(cluster.emulator.ledger) == 1


def test_a_task_out_of_time_says_what_may_have_been_bought(cluster: Cluster) -> None:
    """``execution_timeout`` ends the task, and not the render: the next run of the task has its clip."""
    cluster.airflow.start_triggerer("triggerer")
    with cluster.emulator.holding():
        run_id = cluster.start("impatient")
        cluster.emulator.wait_for(rendering=1, timeout=120)
        assert cluster.airflow.wait_for_run("impatient", run_id) == "failed"
        log = cluster.log("impatient", run_id)
        assert "TaskDeferralTimeout" in log
        assert "may still be rendering" in log
        assert "Run the task again: it fetches what was bought." in log
    cluster.wait(lambda: cluster.stored(f"impatient/{run_id}") != [], "the clip stored")
    assert len(cluster.emulator.ledger) == 1


def clear(cluster: Cluster, run_id: str) -> None:
    cluster.airflow.call(
        "POST",
        "/api/v2/dags/single/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run_id, "task_ids": ["clip"], "only_failed": False},
    )
