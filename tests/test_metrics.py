"""The metrics, as a StatsD server receives them from Airflow's own client."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Stats, TaskDeferred
from airflow_run import AIRFLOW
from media_samples import mp4
from stats_server import StatsServer

from airflow_provider_codegateway import metrics
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    ClipTransferError,
    CodeGatewayError,
    InvalidRequest,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.gateway import Answer
from airflow_provider_codegateway.models import build_request
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.operators.videos import GenerateVideosOperator

pytest.importorskip("statsd")

HAILUO = "minimax/hailuo-2.3-fast"
REQUEST = build_request(HAILUO, prompt="p")
MP4 = mp4()
PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"

pytestmark = pytest.mark.usefixtures("airflow_database", "connections")


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsServer]:
    """A server to which this process sends its metrics."""
    server = StatsServer()
    with monkeypatch.context() as settings:
        for name, value in server.settings.items():
            settings.setenv(name, value)
        connect_airflow()
        yield server
    connect_airflow()
    server.close()


def connect_airflow() -> None:
    """Have Airflow read its settings for metrics again, as it does when a task's process starts."""
    stats: Any = Stats
    if AIRFLOW < (3, 2):
        del type(stats).factory
        stats.instance = None
        type(stats).__init__(stats)
        return
    stats_utils: Any = importlib.import_module("airflow.sdk.observability.metrics.stats_utils")
    if AIRFLOW < (3, 3):
        stats.initialize(factory=stats_utils.get_stats_factory(stats))
    else:
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)


@pytest.fixture(params=[False, True], ids=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def quick_gateway(gateway: Emulator) -> None:
    gateway.serve_clip(MP4)


def execute(bucket: str, **arguments: Any) -> None:
    """One try without a scheduler around it."""
    operator = GenerateVideoOperator(
        **{
            "task_id": "clip",
            "model": HAILUO,
            "s3_key": f"s3://{bucket}/x.mp4",
            "do_xcom_push": False,
            **arguments,
        }
    )
    context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="clip", run_id="r", map_index=-1)}
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(only_event(deferred.trigger))
        operator.execute_complete(context, event, **json.loads(json.dumps(deferred.kwargs)))


async def only_event(trigger: Any) -> Any:
    (event,) = [event.payload async for event in trigger.run()]
    return event


def test_a_batch_counts_each_of_its_clips(
    stats: StatsServer, gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """As a task of its own would, but where the clips are made."""
    operator = GenerateVideosOperator(
        task_id="clip",
        requests=[{"prompt": "a", "s3_key": "1.mp4"}, {"prompt": "b", "s3_key": "2.mp4"}],
        result_path=f"s3://{bucket}/result",
        model=HAILUO,
        s3_bucket=bucket,
        deferrable=deferrable,
    )
    context: Any = {
        "ti": SimpleNamespace(
            dag_id="d", task_id="clip", run_id="r", map_index=-1, xcom_push=lambda key, value: None
        )
    }
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        asyncio.run(only_event(deferred.trigger))
    counts: Counter[str] = Counter()
    while counts[metrics.CLIP_BYTES] < 2 * len(MP4) or counts[metrics.BOUGHT] < 2:
        name, number = re.fullmatch(r"([\w.]+)(?:,[^:]+)?:([\d.]+)\|.+", stats.next()).groups()  # type: ignore[union-attr]
        counts[name] += int(float(number))
    assert counts[metrics.BEGUN] == counts[metrics.BOUGHT] == 2


def counted(received: list[str]) -> dict[str, int]:
    """The counters among them, by name and tags."""
    counters = [metric.split(":") for metric in received if metric.endswith("|c")]
    return {name: int(value.removesuffix("|c")) for name, value in counters}


def test_a_render_is_counted_and_timed(stats: StatsServer, bucket: str, deferrable: bool) -> None:
    """What was begun and bought, how long the gateway took, and what was stored."""
    execute(bucket, deferrable=deferrable)
    received = stats.receive(metrics.DURATION, metrics.CLIP_BYTES)
    model = f"model={HAILUO}"
    assert counted(received) == {
        f"{metrics.BEGUN},{model}": 1,
        f"{metrics.BOUGHT},{model}": 1,
        f"{metrics.CLIP_BYTES},{model}": len(MP4),
    }
    gauge = rf"{metrics.IN_FLIGHT},host=\S+:(\d+)\|g"
    assert [found[1] for metric in received if (found := re.fullmatch(gauge, metric))] == ["1", "0"]
    (milliseconds,) = [metric for metric in received if metric.startswith(metrics.DURATION)]
    assert re.fullmatch(rf"{metrics.DURATION},{model}:[\d.]+\|ms", milliseconds)


def test_what_a_render_costs_is_counted_in_millionths(
    stats: StatsServer, gateway: Emulator, bucket: str, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the price list of the connection; counters are whole numbers."""
    spend = {"currency": "USD", "prices": [{"model": HAILUO, "per_render": "0.30"}]}
    connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
    connection["extra"] = {**connection.get("extra", {}), "spend": spend}
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))
    execute(bucket, deferrable=deferrable)
    received = counted(stats.receive(metrics.SPENT, metrics.CLIP_BYTES))
    assert received[f"{metrics.SPENT},model={HAILUO},currency=USD"] == 300_000


def test_a_clip_in_place_is_counted_as_reused(stats: StatsServer, bucket: str, deferrable: bool) -> None:
    """Nothing is begun for it."""
    execute(bucket, deferrable=deferrable)
    stats.receive(metrics.DURATION, metrics.CLIP_BYTES)
    execute(bucket, deferrable=deferrable)
    assert counted(stats.receive(metrics.REUSED)) == {f"{metrics.REUSED},model={HAILUO}": 1}


@pytest.mark.parametrize(
    ("arguments", "fault", "error", "begun"),
    [
        ({"resolution": "720p"}, None, InvalidRequest, False),
        ({}, Fault.status(400), RequestRejected, True),
    ],
    ids=["by us", "by the gateway"],
)
def test_what_is_refused_is_counted_by_its_error(
    arguments: dict[str, Any],
    fault: Fault | None,
    error: type[CodeGatewayError],
    begun: bool,
    stats: StatsServer,
    gateway: Emulator,
    bucket: str,
    deferrable: bool,
) -> None:
    """Whoever refuses it, nothing is counted as bought."""
    if fault:
        gateway.fail_next(fault)
    with pytest.raises(error):
        execute(bucket, deferrable=deferrable, **arguments)
    received = counted(stats.receive(metrics.REFUSED))
    assert received.pop(f"{metrics.REFUSED},model={HAILUO},error={error.__name__}") == 1
    assert received == ({f"{metrics.BEGUN},model={HAILUO}": 1} if begun else {})


@pytest.mark.parametrize(
    ("fault", "name"),
    [(Fault.reset_after(), metrics.UNKNOWN), (Fault.no_url("empty"), metrics.BOUGHT)],
    ids=["connection lost", "no clip in the answer"],
)
def test_a_render_without_a_clip_is_counted_as_the_bill_may_have_it(
    fault: Fault, name: str, stats: StatsServer, gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """Bought where that is known, unknown where it is not; and no longer in flight."""
    gateway.fail_next(fault)
    with pytest.raises(RenderOutcomeUnknown):
        execute(bucket, deferrable=deferrable)
    received = stats.receive(name)
    assert counted(received) == {f"{metrics.BEGUN},model={HAILUO}": 1, f"{name},model={HAILUO}": 1}
    assert received[-2].startswith(metrics.IN_FLIGHT)
    assert received[-2].endswith(":0|g")


@pytest.mark.usefixtures("no_pauses")
def test_a_failed_transfer_is_not_refused_and_its_retry_is_not_bought(
    stats: StatsServer, gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """One render, one clip: as on the bill."""
    gateway.fail_next(ClipFault.html())
    with pytest.raises(ClipTransferError):
        execute(bucket, deferrable=deferrable)
    execute(bucket, deferrable=deferrable)
    received = counted(stats.receive(metrics.DURATION, metrics.CLIP_BYTES))
    assert sorted(name.split(",")[0] for name in received) == [
        metrics.CLIP_BYTES,
        metrics.BEGUN,
        metrics.BOUGHT,
    ]


def test_a_tag_holds_nothing_but_a_name(stats: StatsServer, bucket: str) -> None:
    """A model that is a mistake, or a secret pasted to the wrong place, makes no odd or endless tag."""
    with pytest.raises(InvalidRequest):
        execute(bucket, model="a=b,c d?e" * 20, parameters={"image": "x"})
    (refused,) = [metric for metric in stats.receive(metrics.REFUSED) if metric.startswith(metrics.REFUSED)]
    assert re.fullmatch(rf"{metrics.REFUSED},model=[\w./:-]{{64}},error=InvalidRequest:1\|c", refused)


# What must not happen.


class SlowStats:
    """A Stats that answers when it is told to, and waits for so many metrics."""

    def __init__(self, metrics: int) -> None:
        self.may_go_on = threading.Event()
        self.all_sent = threading.Event()
        self.sent: list[tuple[Any, ...]] = []
        self._metrics = metrics

    def __getattr__(self, kind: str) -> Any:
        def send(*values: Any, tags: dict[str, str]) -> None:
            assert self.may_go_on.wait(30)
            self.sent.append((kind, *values))
            if len(self.sent) == self._metrics:
                self.all_sent.set()

        return send


class CalmGateway:
    """Answers when as many renders as it waits for are in flight."""

    def __init__(self, at_once: int) -> None:
        self._barrier = asyncio.Barrier(at_once)

    async def generate(self, content: Any) -> Answer:
        await self._barrier.wait()
        return Answer(body=b"{}", render_seconds=1.0)


def test_a_slow_backend_holds_up_no_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty renders begin and end while not one metric could be sent; each is sent, in order, afterwards."""
    slow = SlowStats(20 * 5)
    monkeypatch.setattr("airflow.providers.common.compat.sdk.Stats", slow, raising=False)

    async def renders() -> None:
        gateway = metrics.MeteredBuyer(CalmGateway(20), HAILUO)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(gateway.generate(REQUEST.content))

    asyncio.run(renders())
    assert slow.sent == []
    slow.may_go_on.set()
    assert slow.all_sent.wait(30)
    in_flight = [values[2] for values in slow.sent if values[1] == metrics.IN_FLIGHT]
    assert in_flight == [*range(1, 21), *reversed(range(20))]


def test_a_broken_backend_costs_no_clip(
    bucket: str, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are told, not asked."""

    class BrokenStats:
        def __getattr__(self, kind: str) -> Any:
            raise RuntimeError("no metrics today")

    monkeypatch.setattr("airflow.providers.common.compat.sdk.Stats", BrokenStats(), raising=False)
    execute(bucket, deferrable=deferrable)


def test_the_page_has_every_metric() -> None:
    """With its name, and no name that does not exist."""
    names = {
        value for value in vars(metrics).values() if isinstance(value, str) and value[:12] == "codegateway."
    }
    assert len(names) == 10
    assert set(re.findall(r"(?m)^\| `(codegateway\.[\w.]+)` \|", PAGE.read_text())) == names
