"""Asset events, hook lineage and OpenLineage facets of the operator, run by Airflow itself."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.providers.common.compat import sdk
from airflow.providers.common.compat.sdk import DAG, Asset, AssetAlias, TaskDeferred, task
from airflow_run import AIRFLOW, RunResult, TaskResult, run_dag
from media_samples import mp4, png, png_base64
from sqlalchemy import select

from airflow_provider_codegateway import lineage
from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.emulator import ClipFault, Emulator
from airflow_provider_codegateway.exceptions import ClipTransferError, InvalidRequest
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
MP4 = mp4()
SECRET_QUERY = "X-Amz-Signature=5ecre7516na7ure"
KEY_OF_NO_ASSET = "灯" * 333 + ".mp4"

pytestmark = pytest.mark.usefixtures("airflow_database", "connections")


@pytest.fixture(params=[False, True], ids=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def quick_gateway(gateway: Emulator) -> None:
    gateway.serve_clip(MP4)


def run(dag: DAG) -> RunResult:
    """One run of a DAG whose assets are in the database, as a scheduler's are."""
    if AIRFLOW < (3, 0):
        dag.sync_to_db()  # type: ignore[attr-defined]
    return run_dag(dag)


def asset_tables() -> tuple[Any, Any]:
    """Of events and of assets."""
    if AIRFLOW >= (3, 0):
        from airflow.models import asset

        return asset.AssetEvent, asset.AssetModel
    dataset = importlib.import_module("airflow.models.dataset")
    return dataset.DatasetEvent, dataset.DatasetModel


def events_of(task_id: str, dag_id: str = "assets") -> list[tuple[str, dict[str, Any]]]:
    """URI and extra of every asset event that a task emitted, oldest first."""
    from airflow.utils.session import create_session

    event_table, asset_table = asset_tables()
    with create_session() as session:
        events = session.scalars(
            select(event_table)
            .where(event_table.source_task_id == task_id, event_table.source_dag_id == dag_id)
            .order_by(event_table.id)
        ).all()
        identifier = "asset_id" if AIRFLOW >= (3, 0) else "dataset_id"
        return [
            (cast(Any, session.get(asset_table, getattr(event, identifier))).uri, dict(event.extra or {}))
            for event in events
        ]


@pytest.fixture(autouse=True)
def no_events(airflow_database: None) -> None:
    """Each test starts without events of others."""
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(asset_tables()[0]).delete()


# Asset events.


def facts_of(task: TaskResult) -> dict[str, Any]:
    """The facts of the clip itself: the XCom has its connection, too."""
    facts = {name: value for name, value in task.xcoms["clip"].items() if name != "aws_conn_id"}
    if AIRFLOW >= (3, 1):
        return facts
    return {
        name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in facts.items()
    }


def test_every_outlet_learns_which_clip_updated_it(bucket: str, deferrable: bool) -> None:
    """The event of each asset has the facts that XCom ``clip`` has, whatever the asset's URI."""
    clip_asset, collection = Asset(f"s3://{bucket}/x.mp4"), Asset(f"s3://{bucket}/all")
    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=HAILUO,
            s3_bucket=bucket,
            s3_key="x.mp4",
            deferrable=deferrable,
            outlets=[clip_asset, collection],
        )
    result = run(dag)
    assert result.state == "success"
    clip = facts_of(result["clip"])
    assert sorted(uri for uri, _ in events_of("clip")) == sorted([clip_asset.uri, collection.uri])
    assert [extra for _, extra in events_of("clip")] == [clip, clip]


def test_an_alias_becomes_the_real_uri_of_each_clip(s3: S3Client, bucket: str, deferrable: bool) -> None:
    """Each clip of a mapped task is an asset of its own, and the alias knows them all."""
    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator.partial(
            task_id="clip",
            model=VEO,
            s3_bucket=bucket,
            deferrable=deferrable,
            outlets=[AssetAlias("test-clips")],
        ).expand_kwargs([{"prompt": name, "s3_key": f"{name}.mp4"} for name in ("mug", "pot")])
    result = run(dag)
    assert result.state == "success"
    facts = [facts_of(result.tasks["clip", index]) for index in (0, 1)]
    events = sorted(events_of("clip"), key=lambda event: event[0])
    assert events == [(f"s3://{bucket}/{fact['key']}", fact) for fact in facts]


def test_a_key_that_airflow_takes_for_no_asset_is_refused_before_the_purchase(
    gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """S3 takes a key of 1,024 bytes; Airflow a URI of 1,500 characters (2: 3,000), where a byte may need three."""
    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=HAILUO,
            s3_bucket=bucket,
            s3_key=KEY_OF_NO_ASSET,
            deferrable=deferrable,
            outlets=[AssetAlias("test-clips")],
        )
    assert run(dag)["clip"].state == "failed"
    assert gateway.ledger == ()
    assert s3.list_objects_v2(Bucket=bucket).get("Contents", []) == []
    with pytest.raises(
        InvalidRequest, match=r"3,\d{3} characters, and Airflow refuses it .* or no AssetAlias"
    ):
        lineage.require_assets([AssetAlias("a")], S3Location(bucket, KEY_OF_NO_ASSET))


def test_a_dag_that_waits_for_the_alias_is_due_when_a_clip_is_made(bucket: str, deferrable: bool) -> None:
    """A downstream DAG need not know any key beforehand."""
    from airflow.utils.session import create_session

    if AIRFLOW >= (3, 0):
        queue = importlib.import_module("airflow.models.asset").AssetDagRunQueue
    else:
        queue = importlib.import_module("airflow.models.dataset").DatasetDagRunQueue
    from airflow.models.dag import DagModel

    alias = AssetAlias("awaited-clips")
    with DAG("waiting", schedule=alias, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as waiting:
        task(lambda: None, task_id="nothing")()  # type: ignore[call-overload]
    run(waiting)
    with create_session() as session:
        session.get(DagModel, "waiting").is_paused = False  # type: ignore[union-attr]
    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=HAILUO,
            s3_key=f"s3://{bucket}/x.mp4",
            deferrable=deferrable,
            outlets=[alias],
        )
    run(dag)
    with create_session() as session:
        due = session.scalars(select(queue).where(queue.target_dag_id == "waiting")).all()
        assert len(due) == 1
        session.delete(due[0])


def test_a_clip_that_is_reused_is_an_event_as_well(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """A task that succeeds has updated its outlets: Airflow has it so. ``reused`` tells the difference."""
    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=HAILUO,
            s3_key=f"s3://{bucket}/x.mp4",
            deferrable=deferrable,
            outlets=[AssetAlias("reused-clips"), Asset("clips-of-the-test")],
        )
    for _ in range(2):
        assert run(dag).state == "success"
    assert sorted((uri, extra["reused"]) for uri, extra in events_of("clip")) == [
        ("clips-of-the-test", False),
        ("clips-of-the-test", True),
        (f"s3://{bucket}/x.mp4", False),
        (f"s3://{bucket}/x.mp4", True),
    ]
    assert gateway.billed == 1


def test_what_somebody_else_says_of_an_event_stays(bucket: str) -> None:
    """An extra that the DAG's author sets, in a callback say, is not overwritten."""
    asset = Asset("clips-with-an-owner")

    def claim(context: Any) -> None:
        context["outlet_events"][asset].extra = {"owner": "marketing", "model": "ours"}

    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=HAILUO,
            s3_key=f"s3://{bucket}/x.mp4",
            outlets=[asset],
            pre_execute=claim,
        )
    run(dag)
    ((_, extra),) = events_of("clip")
    assert (extra["owner"], extra["model"], extra["key"]) == ("marketing", "ours", "x.mp4")


def test_a_failed_task_updates_nothing(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """No clip, no event."""
    gateway.fail_next(ClipFault.html())
    with DAG("assets", schedule=None) as dag:
        GenerateVideoOperator(
            task_id="clip",
            model=HAILUO,
            s3_key=f"s3://{bucket}/x.mp4",
            deferrable=deferrable,
            outlets=[Asset(f"s3://{bucket}/x.mp4"), AssetAlias("failed-clips")],
        )
    assert run(dag).state == "failed"
    assert events_of("clip") == []


def test_the_decorator_has_outlets_too(bucket: str, deferrable: bool) -> None:
    """``@task.generate_video(outlets=…)`` is the operator."""
    with DAG("assets", schedule=None) as dag:

        @task.generate_video(
            model=VEO, s3_bucket=bucket, deferrable=deferrable, outlets=[AssetAlias("decorated-clips")]
        )
        def paint() -> dict[str, Any]:
            return {"prompt": "p", "s3_key": "x.mp4"}

        paint()
    run(dag)
    assert [uri for uri, _ in events_of("paint")] == [f"s3://{bucket}/x.mp4"]


# URIs.


@pytest.mark.parametrize(
    ("reference", "uri"),
    [
        ("s3://acme/in/a b.png", "s3://acme/in/a b.png"),
        ("S3://acme/in/100%25.png", "s3://acme/in/100%25.png"),
        ("s3://acme/a?b#c.png", "s3://acme/a%3Fb%23c.png"),
        ("s3://acme/ü.png", "s3://acme/%C3%BC.png"),
        (f"https://cdn.example.com/a.png?{SECRET_QUERY}", "https://cdn.example.com/a.png"),
        ("https://user:5ecre7@cdn.example.com/a.png#5ecre7", "https://cdn.example.com/a.png"),
        ("file:///opt/in/a.png", "file:///opt/in/a.png"),
        (png_base64(), None),
        (f"data:image/png;base64,{png_base64()}", None),
        ("iVBORw0KGgo://AAAA", None),
    ],
)
def test_an_input_is_named_without_query_user_or_bytes(reference: str, uri: str | None) -> None:
    """Each form of an input has a URI that Airflow and OpenLineage take, or none."""
    assert lineage.input_uri(reference) == uri
    if uri is not None:
        assert Asset(uri).uri == uri


def test_any_key_makes_an_asset() -> None:
    """A key may hold anything; the URI says it in ASCII, and no two keys in question share one."""
    for key in ("a b", "ü/é %20?#&=+ 灯台.mp4", "a//b/../c.mp4"):
        uri = lineage.asset_uri(S3Location("acme", key))
        assert uri.isascii()
        assert Asset(uri).uri == uri


# Lineage.


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Airflow's own collector, as it is where somebody reads it."""
    collector = sdk.HookLineageCollector()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(sdk, "get_hook_lineage_collector", lambda: collector)
    return collector


def execute(**arguments: Any) -> GenerateVideoOperator:
    """One try without a scheduler around it: the operator that handed the clip over.

    In deferrable mode that is another one than deferred, as in another process.
    """
    operator, resumed = (
        GenerateVideoOperator(task_id="clip", do_xcom_push=False, **arguments) for _ in range(2)
    )
    context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="clip", run_id="r", map_index=-1)}
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(only_event(deferred.trigger))
        kwargs = json.loads(json.dumps(deferred.kwargs))
        resumed.execute_complete(context, event, **kwargs)
        return resumed
    return operator


async def only_event(trigger: Any) -> Any:
    (event,) = [event.payload async for event in trigger.run()]
    return event


def media_arguments(s3: S3Client, bucket: str) -> dict[str, Any]:
    """A request with an input of every kind."""
    s3.put_object(Bucket=bucket, Key="in/a.png", Body=png())
    return {
        "model": SEEDANCE,
        "prompt": "p",
        "image": f"s3://{bucket}/in/a.png",
        "parameters": {
            "last_frame_image": f"https://cdn.example.com/b.png?{SECRET_QUERY}",
            "reference_images": [png_base64()],
        },
        "s3_key": f"s3://{bucket}/x.mp4",
    }


def test_whoever_reads_hook_lineage_sees_inputs_and_clip(
    s3: S3Client, bucket: str, deferrable: bool, collector: Any
) -> None:
    """References only: no query, and nothing of an image that came inline."""
    execute(**media_arguments(s3, bucket), deferrable=deferrable)
    collected = sdk_collected(collector)
    assert [item.asset.uri for item in collected.inputs] == [
        f"s3://{bucket}/in/a.png",
        "https://cdn.example.com/b.png",
    ]
    assert [item.asset.uri for item in collected.outputs] == [f"s3://{bucket}/x.mp4"]
    everything = repr(collected)
    for secret in ("Signature=", "5ecre7516na7ure", png_base64()[:24]):
        assert secret not in everything


def sdk_collected(collector: Any) -> Any:
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    assert get_hook_lineage_collector() is collector  # type: ignore[no-untyped-call]
    return collector.collected_assets


def test_a_broken_collector_costs_no_clip(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lineage is told, not asked: the task succeeds and a warning says what is missing."""

    def fail() -> Any:
        raise RuntimeError("no collector today")

    monkeypatch.setattr(sdk, "get_hook_lineage_collector", fail)
    execute(model=HAILUO, s3_key=f"s3://{bucket}/x.mp4")


def test_openlineage_is_told_inputs_and_clip_with_its_size(
    s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """By Airflow's own extractor; datasets are named as OpenLineage's naming rules have it."""
    extractors = pytest.importorskip("airflow.providers.openlineage.extractors.base")
    operator = execute(**media_arguments(s3, bucket), deferrable=deferrable)
    told = extractors.DefaultExtractor(operator).extract_on_complete(None)
    assert [(item.namespace, item.name) for item in told.inputs] == [
        (f"s3://{bucket}", "in/a.png"),
        ("https://cdn.example.com", "b.png"),
    ]
    (output,) = told.outputs
    assert (output.namespace, output.name) == (f"s3://{bucket}", "x.mp4")
    assert output.outputFacets["outputStatistics"].size == len(MP4)
    assert output.facets["storage"].fileFormat == "mp4"
    facts = output.outputFacets["codegateway_facts"]
    assert (facts.width, facts.duration, facts.audio) == (64, 1.0, False)
    assert len(output.facets["version"].datasetVersion) == 64
    for secret in ("Signature=", "5ecre7516na7ure", png_base64()[:24]):
        assert secret not in repr(told)


def test_openlineage_is_told_nothing_of_a_failed_task(gateway: Emulator, bucket: str) -> None:
    """There is no clip to tell of."""
    gateway.fail_next(ClipFault.html())
    operator = GenerateVideoOperator(task_id="clip", model=HAILUO, s3_key=f"s3://{bucket}/x.mp4")
    context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="clip", run_id="r", map_index=-1)}
    with pytest.raises(ClipTransferError):
        operator.execute(context)
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_without_openlineage_nothing_is_missing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is optional: its absence is no error."""
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    operator = execute(model=HAILUO, s3_key=f"s3://{bucket}/x.mp4")
    assert operator.get_openlineage_facets_on_complete(None) is None
