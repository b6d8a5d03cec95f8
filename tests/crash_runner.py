"""A process that renders one clip as the operator does, and kills itself at a named point if told so.

Nothing in the package knows of these points: they are put around its methods and around S3's calls here.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import boto3
import botocore.auth
import botocore.compat
from botocore.config import Config

from airflow_provider_codegateway.clip import Clip, ClipSpec, IfExists, Member, S3Location
from airflow_provider_codegateway.gateway import BlockingCall, Gateway, GatewaySettings
from airflow_provider_codegateway.ledger import Ledger
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.models import VideoRequest, build_chain, chain_fingerprint
from airflow_provider_codegateway.purchase import Purchase
from airflow_provider_codegateway.spend import Account, parse_spend
from airflow_provider_codegateway.transfer import Transfer
from airflow_provider_codegateway.transfer.upload import Upload

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MODEL = "google/veo-3.1-fast"
KEY = "clips/x.mp4"
HASTY = Limits(claim_margin=0.5, settle_grace=0.5, poll_interval=0.05, beat_interval=0.2, beat_patience=0.5)

processes = multiprocessing.get_context("forkserver")

_session = boto3.Session("x", "x", region_name="us-east-1")
_session.client("s3")  # reads the service's model, which every process would do again


@dataclass(frozen=True)
class Job:
    """What one process is to do.

    :param requester: the same for every try of one task instance.
    :param kill_at: the point at which the process kills itself.
    :param claim_seconds: how long after a claim its owner may still be rendering.
    :param clock: seconds that the process's clock is off.
    :param deadline: seconds for one call of the gateway.
    :param limits: on which others wait for fractions of a second.
    :param fallbacks: the models to ask after the first.
    """

    gateway_url: str
    api_key: str
    s3_endpoint: str
    s3_credentials: dict[str, str] = field(repr=False)
    bucket: str
    key: str = KEY
    prompt: str = "p"
    requester: str = "run"
    if_exists: IfExists = "reuse"
    max_renders: int = 2
    kill_at: str | None = None
    claim_seconds: float = 0.5
    clock: float = 0.0
    deadline: float = 300.0
    limits: Limits = HASTY
    spend: dict[str, Any] | None = None
    allows_http_links: bool = False
    fallbacks: tuple[str, ...] = ()
    fallback_on: tuple[str, ...] = ("unavailable",)
    retries: int = 3

    def requests(self) -> tuple[VideoRequest, ...]:
        return build_chain(MODEL, self.fallbacks, prompt=self.prompt)

    def request(self) -> VideoRequest:
        return self.requests()[0]

    def spec(self) -> ClipSpec:
        requests = self.requests()
        return ClipSpec(
            model=MODEL,
            fingerprint=chain_fingerprint(requests),
            fallbacks=tuple(Member(model=each.model) for each in requests[1:]),
            fallback_on=self.fallback_on,
            target=S3Location(self.bucket, self.key),
            requester=self.requester,
            if_exists=self.if_exists,
            max_renders=self.max_renders,
        )

    def purchase(self, s3: S3Client) -> Purchase:
        return self.purchase_of(self.spec(), s3)

    def purchase_of(self, spec: ClipSpec, s3: S3Client) -> Purchase:
        settings = GatewaySettings(
            base_url=self.gateway_url,
            api_key=self.api_key,
            deadline=self.deadline,
            read_timeout=self.deadline,
            retries=self.retries,
        )
        gateway = Gateway(settings)
        account = None if self.spend is None else Account.open(parse_spend(self.spend, "it"), s3, self.limits)
        return Purchase(
            spec,
            s3=s3,
            buyer=gateway,
            claim_seconds=self.claim_seconds,
            account=account,
            allows_http_links=self.allows_http_links,
            limits=self.limits,
        )

    def s3(self) -> S3Client:
        config = Config(retries={"total_max_attempts": 2})
        return _session.client(
            "s3",
            endpoint_url=self.s3_endpoint,
            aws_access_key_id=self.s3_credentials["aws_access_key_id"],
            aws_secret_access_key=self.s3_credentials["aws_secret_access_key"],
            config=config,
        )


@dataclass(frozen=True)
class Ended:
    """How a process ended: with a clip, with an error, or killed."""

    clip: Clip | None = None
    error: str = ""
    """The error's class."""
    message: str = ""

    @property
    def killed(self) -> bool:
        return self.clip is None and not self.error


@cache
def fork_server() -> None:
    """Start what every process is forked from, with everything imported, which takes seconds."""
    processes.set_forkserver_preload([__name__, "airflow_preload"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # Python 3.11's fork server is not told sys.path
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(job: Job) -> tuple[BaseProcess, Connection]:
    """Begin a job in a process of its own; what it ends with comes through the connection."""
    fork_server()
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_main, args=(job, theirs))
    process.start()
    theirs.close()
    return process, ours


def finish(process: BaseProcess, connection: Connection) -> Ended:
    """Wait for the end of a process."""
    if not connection.poll(120):
        process.kill()
        raise TimeoutError("the runner has not ended within two minutes")
    try:
        ended: Ended = connection.recv()
    except EOFError:
        ended = Ended()
    process.join()
    killed = process.exitcode == -signal.SIGKILL
    assert killed or process.exitcode == 0, f"the runner ended with {process.exitcode}"
    assert killed or not ended.killed
    connection.close()
    process.close()
    return ended


def run(job: Job) -> Ended:
    """Do a job in a process of its own."""
    return finish(*start(job))


def resume(job: Job) -> Ended:
    """Do a job as Airflow would: again while it fails with an error that a retry may help."""
    while (ended := run(job)).error in ("RenderOutcomeUnknown", "ClipTransferError", "ClipExpired"):
        pass
    return ended


def start_task(job: Job, s3_endpoint: str) -> tuple[BaseProcess, Connection]:
    """Begin a job as one task that Airflow runs. A second time, it is a retry of the same task instance.

    :return: the connection brings an ``airflow_run.RunResult``.
    """
    fork_server()
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_task, args=(job, s3_endpoint, theirs))
    process.start()
    theirs.close()
    return process, ours


@contextmanager
def workers(count: int) -> Iterator[Callable[[list[Job]], list[Ended]]]:
    """Processes that stay alive for any number of rounds, in each of which they all begin at once."""
    fork_server()
    barrier = processes.Barrier(count)
    pipes = [processes.Pipe() for _ in range(count)]
    started = [processes.Process(target=_worker, args=(theirs, barrier)) for _, theirs in pipes]
    for process in started:
        process.start()

    def one_round(jobs: list[Job]) -> list[Ended]:
        for (ours, _), job in zip(pipes, jobs, strict=True):
            ours.send(job)
        return [ours.recv() for ours, _ in pipes]

    try:
        yield one_round
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in started:
            process.join()


def _worker(jobs: Connection, barrier: Any) -> None:
    while (job := jobs.recv()) is not None:
        s3 = job.s3()
        barrier.wait()
        jobs.send(_ended(job, s3))


def _main(job: Job, result: Connection) -> None:
    s3 = job.s3()
    if job.clock:
        _shift_clock(job.clock)
    if job.kill_at:
        _arm(job, s3)
    ended = _ended(job, s3)
    if job.kill_at == "before XCom" and ended.clip:
        _die()
    result.send(ended)
    if job.kill_at == "after XCom" and ended.clip:
        _die()


def _task(job: Job, s3_endpoint: str, result: Connection) -> None:
    from airflow.providers.common.compat.sdk import DAG
    from airflow_run import run_dag

    from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
    from airflow_provider_codegateway.operators.video import GenerateVideoOperator

    CodeGatewayVideoHook.limits = job.limits
    terms = {"deadline": job.claim_seconds}
    aws = {"endpoint_url": s3_endpoint, "region_name": "us-east-1"}
    for name, connection in {
        "CODEGATEWAY": {"host": job.gateway_url, "password": job.api_key, "extra": terms},
        "AWS": {
            "login": job.s3_credentials["aws_access_key_id"],
            "password": job.s3_credentials["aws_secret_access_key"],
            "extra": aws,
        },
    }.items():
        os.environ[f"AIRFLOW_CONN_{name}_DEFAULT"] = json.dumps({"conn_type": name.lower(), **connection})
    with DAG(job.requester, schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=MODEL,
            prompt=job.prompt,
            s3_bucket=job.bucket,
            s3_key=job.key,
            max_renders=job.max_renders,
            deferrable=False,
        )
    at = datetime(2026, 11, 22, tzinfo=UTC)
    result.send(run_dag(dag, at=at))


def _ended(job: Job, s3: S3Client) -> Ended:
    try:
        return Ended(clip=render_blocking(job, s3))
    except Exception as error:
        return Ended(error=type(error).__name__, message=str(error))


def render_blocking(job: Job, s3: S3Client) -> Clip:
    """One clip, as the operator's ``execute`` has it."""
    return BlockingCall().run(job.purchase(s3).complete(*job.requests()))


def _shift_clock(seconds: float) -> None:
    """Every way in which this package or botocore asks for the time of day."""
    true_time, true_now = time.time, botocore.compat.get_current_datetime
    time.time = lambda: true_time() + seconds

    def now(remove_tzinfo: bool = True) -> datetime:
        return true_now(remove_tzinfo) + timedelta(seconds=seconds)

    vars(botocore.auth)["get_current_datetime"] = now


# Points.


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
    raise AssertionError("killed")


def _before(owner: Any, name: str, *, call: int = 1) -> None:
    """Die before the ``call``-th call."""
    _count_calls(owner, name, lambda number: number == call and _die(), lambda number: None)


def _after(owner: Any, name: str, *, call: int = 1) -> None:
    """Die after the ``call``-th call."""
    _count_calls(owner, name, lambda number: None, lambda number: number == call and _die())


def _count_calls(
    owner: Any, name: str, before: Callable[[int], object], after: Callable[[int], object]
) -> None:
    method = getattr(owner, name)
    calls = itertools.count(1)

    def counted(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        before(number)
        result = method(*args, **kwargs)
        after(number)
        return result

    setattr(owner, name, counted)


def _on_s3(s3: S3Client, event: str, *, number: int = 1, key: str) -> None:
    """Die at the ``number``-th such event of botocore that is about the clip."""
    seen = 0

    def count(params: Any = None, context: Any = None, model: Any = None, **_: Any) -> None:
        nonlocal seen
        where = str((params or {}).get("url_path", "")) if isinstance(params, dict) else ""
        if where and not where.endswith(key):
            return
        seen += 1
        if seen == number:
            _die()

    s3.meta.events.register(event, count)


def _while_downloading(after_bytes: int) -> None:
    original = Upload.filled
    total = 0

    def filled(self: Upload, count: int) -> None:
        nonlocal total
        original(self, count)
        total += count
        if total >= after_bytes:
            _die()

    Upload.filled = filled  # type: ignore[method-assign]


# In the order of the path. A clip of one part has no multipart upload, so some have a form for each.
POINTS: dict[str, Callable[[Job, S3Client], None]] = {
    "before the entry": lambda job, s3: _before(Ledger, "open"),
    "before claim": lambda job, s3: _before(Ledger, "claim"),
    "after claim": lambda job, s3: _after(Ledger, "claim"),
    "before the POST": lambda job, s3: _before(Gateway, "generate"),
    "before the receipt": lambda job, s3: _before(Ledger, "keep"),
    "after the receipt": lambda job, s3: _after(Ledger, "keep"),
    "mid-download": lambda job, s3: _while_downloading(1000),
    "late in the download": lambda job, s3: _while_downloading(12_000_000),
    "mid-upload": lambda job, s3: _on_s3(s3, "before-send.s3.UploadPart", number=2, key=job.key),
    "before PutObject": lambda job, s3: _on_s3(s3, "before-call.s3.PutObject", key=job.key),
    "before completing": lambda job, s3: _on_s3(s3, "before-call.s3.CompleteMultipartUpload", key=job.key),
    "after completing": lambda job, s3: _on_s3(s3, "after-call.s3.CompleteMultipartUpload", key=job.key),
    "after upload": lambda job, s3: _after(Transfer, "run"),
    "before settling": lambda job, s3: _before(Ledger, "settle"),
    "after settling": lambda job, s3: _after(Ledger, "settle"),
    "before XCom": lambda job, s3: None,
    "after XCom": lambda job, s3: None,
}

# Of a purchase with a journal.
JOURNAL_POINTS: dict[str, Callable[[Job, S3Client], None]] = {
    "before reserving": lambda job, s3: _before(Account, "reserve"),
    "after reserving": lambda job, s3: _after(Account, "reserve"),
    "before the outcome": lambda job, s3: _before(Account, "bought"),
    "after the outcome": lambda job, s3: _after(Account, "bought"),
}

# Of a purchase whose first model is down, between that model and its fallback.
FALLBACK_POINTS: dict[str, Callable[[Job, S3Client], None]] = {
    "before passing on": lambda job, s3: _before(Ledger, "release"),
    "after passing on": lambda job, s3: _after(Ledger, "release"),
    "before the fallback's claim": lambda job, s3: _before(Ledger, "claim", call=2),
    "after the fallback's claim": lambda job, s3: _after(Ledger, "claim", call=2),
    "before the fallback's POST": lambda job, s3: _before(Gateway, "generate", call=2),
    "before the fallback's receipt": lambda job, s3: _before(Ledger, "keep"),
    "after the fallback's receipt": lambda job, s3: _after(Ledger, "keep"),
    "before the fallback is settled": lambda job, s3: _before(Ledger, "settle"),
    "after the fallback is settled": lambda job, s3: _after(Ledger, "settle"),
}

UNKNOWN = frozenset({"after claim", "before the POST", "before the receipt"})
"""Points at which nobody else can know whether a render was bought."""

MULTIPART = frozenset({"late in the download", "mid-upload", "before completing", "after completing"})
"""Points that only a clip of several parts comes to."""

ONE_PART = frozenset({"before PutObject"})
"""Points that only a clip of one part comes to."""


def _arm(job: Job, s3: S3Client) -> None:
    assert job.kill_at is not None
    (POINTS | JOURNAL_POINTS | FALLBACK_POINTS)[job.kill_at](job, s3)
