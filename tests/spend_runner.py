"""Processes that buy renders through one journal, and kill themselves at a named point if told so.

What they buy is a file in a directory: as a gateway's bill, it is written whatever the journal says.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from airflow_provider_codegateway.clip import S3Location, TaskRun
from airflow_provider_codegateway.exceptions import BudgetExceeded
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.spend import Account, SpendSettings, parse_spend
from airflow_provider_codegateway.spend.journal import Journal

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MODEL = "google/veo-3.1-fast"
BODY = {"model": MODEL, "prompt": "p", "duration": "6s"}
LIMITS = Limits(journal_patience=0.2)
PATIENT = Limits(journal_patience=60.0)

processes = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """What one process is to buy.

    :param clips: how many, by so many threads at a time.
    :param bill: the directory in which each render that was bought is a file.
    :param kill_at: the point at which the process kills itself, at its first clip.
    """

    endpoint: str
    credentials: dict[str, str] = field(repr=False)
    bucket: str
    budgets: list[dict[str, Any]]
    bill: str
    clips: int = 1
    threads: int = 1
    kill_at: str | None = None

    def s3(self) -> S3Client:
        return client(self.endpoint, self.credentials)


def client(endpoint: str, credentials: dict[str, str], attempts: int = 2) -> S3Client:
    session = boto3.Session(
        credentials["aws_access_key_id"], credentials["aws_secret_access_key"], region_name="us-east-1"
    )
    return session.client(
        "s3", endpoint_url=endpoint, config=Config(retries={"total_max_attempts": attempts})
    )


def spend(bucket: str, budgets: list[dict[str, Any]], **further: Any) -> SpendSettings:
    """Settings with a price of 0.10 USD a second and a journal."""
    prices = [{"model": MODEL, "per_second": "0.10"}]
    return parse_spend(
        {
            "currency": "USD",
            "journal": f"s3://{bucket}/journal",
            "prices": prices,
            "budgets": budgets,
            **further,
        },
        "it",
    )


def account(s3: S3Client, bucket: str, budgets: list[dict[str, Any]], limits: Limits = LIMITS) -> Account:
    """An account with a journal object of its own, as another process has."""
    return Account(spend(bucket, budgets), Journal(s3, S3Location(bucket, "journal"), limits))


def reserve(account: Account, run: str = "r", body: dict[str, Any] = BODY) -> str:
    """Reserve one render; its id."""
    reservation = uuid.uuid4().hex
    account.reserve(
        body,
        reservation=reservation,
        asked_by=TaskRun(dag_id="d", task_id="t", run_id=run, map_index=-1),
        uri="s3://clips/x.mp4",
        render=1,
        seconds=300,
    )
    return reservation


@contextmanager
def buyers(count: int) -> Iterator[Any]:
    """Processes that all begin at once, for any number of rounds: each round's bought and refused clips."""
    fork_server()
    barrier = processes.Barrier(count)
    pipes = [processes.Pipe() for _ in range(count)]
    started = [processes.Process(target=_worker, args=(theirs, barrier)) for _, theirs in pipes]
    for process in started:
        process.start()

    def one_round(job: Job) -> tuple[int, int]:
        for ours, _ in pipes:
            ours.send(job)
        ended = [ours.recv() for ours, _ in pipes]
        return sum(bought for bought, _ in ended), sum(refused for _, refused in ended)

    try:
        yield one_round
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in started:
            process.join()


def run(job: Job) -> bool:
    """Do a job in a process of its own; whether it came to its end."""
    fork_server()
    process = processes.Process(target=_buy_all, args=(job,))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def fork_server() -> None:
    """Start what every process is forked from, with everything imported."""
    processes.set_forkserver_preload([__name__, "airflow_preload"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _worker(jobs: Connection, barrier: Any) -> None:
    while (job := jobs.recv()) is not None:
        barrier.wait()
        jobs.send(_buy_all(job))


def _buy_all(job: Job) -> tuple[int, int]:
    s3 = job.s3()
    if job.kill_at:
        POINTS[job.kill_at](s3)
    ours = account(s3, job.bucket, job.budgets, LIMITS if job.kill_at else PATIENT)

    def buy(_: int) -> bool:
        try:
            reservation = reserve(ours)
        except BudgetExceeded:
            return False
        (Path(job.bill) / reservation).touch()
        if job.kill_at == "after the POST":
            _die()
        ours.bought(reservation)
        if job.kill_at == "after the outcome":
            _die()
        return True

    with ThreadPoolExecutor(job.threads) as pool:
        bought = sum(pool.map(buy, range(job.clips)))
    return bought, job.clips - bought


# Points.


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def _at(event: str, number: int, suffix: str) -> Any:
    def arm(s3: S3Client) -> None:
        seen = 0

        def count(params: Any = None, **_: Any) -> None:
            nonlocal seen
            if isinstance(params, dict) and not str(params.get("url_path", "")).endswith(suffix):
                return
            seen += 1
            if seen == number:
                _die()

        s3.meta.events.register(event, count)

    return arm


_PUT = "{}.s3.PutObject"

# After a call, botocore does not say which object it was about. The first PUT is the checkpoint of an empty journal;
# the second and third prove conditional writes, the fourth reserves, and the fifth tells the outcome.
POINTS: dict[str, Any] = {
    "before reserving": _at(_PUT.format("before-call"), 1, ".jsonl"),
    "after reserving": _at(_PUT.format("after-call"), 4, ""),
    "after the POST": lambda s3: None,
    "before the outcome": _at(_PUT.format("before-call"), 2, ".jsonl"),
    "after the outcome": lambda s3: None,
}
