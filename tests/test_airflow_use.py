"""The operator as people use it: in unit tests, inside other tasks, cleared, mapped anew, while it is upgraded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pkgutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset, TaskDeferred, task
from airflow_run import AIRFLOW, run_dag
from media_samples import mp4

from airflow_provider_codegateway.clip import Clip, Marks, run_identity, task_identity
from airflow_provider_codegateway.decorators.video import generate_video_task
from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipTransferError,
    CodeGatewayError,
    InvalidConnection,
    InvalidRequest,
    RenderOutcomeUnknown,
    RequestRejected,
    from_dict,
)
from airflow_provider_codegateway.models import build_request
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.triggers.video import RenderTrigger

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, HAILUO = "google/veo-3.1-fast", "minimax/hailuo-2.3-fast"
MP4 = mp4()

pytestmark = pytest.mark.usefixtures("airflow_database", "connections", "no_pauses")


@pytest.fixture(autouse=True)
def quick_gateway(gateway: Emulator) -> None:
    gateway.serve_clip(MP4)


@pytest.fixture(params=[False, True], ids=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def make(bucket: str, **arguments: Any) -> GenerateVideoOperator:
    arguments = {"task_id": "clip", "model": HAILUO, "prompt": "p", "s3_key": "x.mp4", **arguments}
    return GenerateVideoOperator(s3_bucket=bucket, **arguments)


def context_of(run_id: str = "run", map_index: int = -1, task_id: str = "clip") -> Any:
    """A context as Airflow's, and what is pushed in it."""
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(
        dag_id="d",
        task_id=task_id,
        run_id=run_id,
        map_index=map_index,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
        pushed=pushed,
    )
    return {"ti": instance}


def execute(operator: GenerateVideoOperator, context: Any) -> dict[str, Any]:
    """One try of a task, deferred or not: the XCom ``clip``."""
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        resume(operator, context, deferred, event_of(deferred))
    clip: dict[str, Any] = context["ti"].pushed["clip"]
    return clip


def defer(operator: GenerateVideoOperator, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    return deferred.value


def event_of(deferred: TaskDeferred) -> Any:
    """What a triggerer would bring back: through the database, by another process."""

    async def first_event() -> Any:
        path, arguments = json.loads(json.dumps(deferred.trigger.serialize()))
        return (await anext(pkgutil.resolve_name(path)(**arguments).run())).payload

    return json.loads(json.dumps(asyncio.run(first_event())))


def resume(operator: GenerateVideoOperator, context: Any, deferred: TaskDeferred, event: Any) -> Any:
    kwargs = json.loads(json.dumps(deferred.kwargs))
    return operator.resume_execution(deferred.method_name, {**kwargs, "event": event}, context)


def put_marker(s3: S3Client, bucket: str, name: str, **content: Any) -> None:
    request = build_request(HAILUO, prompt="p")
    marker = {"fingerprint": request.fingerprint(), **content}
    s3.put_object(Bucket=bucket, Key=f"_codegateway/x.mp4/{name}", Body=json.dumps(marker).encode())


# A prompt that has no value.


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ ti.xcom_pull(task_ids='no_such_task') }}",
        "{{ ti.xcom_pull(task_ids='silent') }}",
        "{{ dag_run.conf.get('promt') }}",
        "{{ dag_run.conf.get('promt', '') }}",
        "{{ ' ' }}",
    ],
)
@pytest.mark.parametrize("model", [VEO, HAILUO])
def test_a_template_without_a_value_buys_no_clip(
    prompt: str, model: str, gateway: Emulator, bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody wants a clip of the word "None", and no message says less than where to look."""
    with DAG("silence", schedule=None) as dag:
        silent = task(lambda: None, task_id="silent")()  # type: ignore[call-overload]
        silent >> make(bucket, model=model, prompt=prompt)
    assert run_dag(dag)["clip"].state == "failed"
    assert gateway.ledger == ()
    output = "".join(capfd.readouterr())
    assert "describes no video" in output
    assert "task id, key or column" in output


def test_an_output_that_is_none_buys_no_clip(gateway: Emulator, bucket: str) -> None:
    """Also where the model needs no prompt: the author has named one."""
    with DAG("silence", schedule=None) as dag:
        silent = task(lambda: None, task_id="silent")()  # type: ignore[call-overload]
        make(bucket, prompt=silent)
    assert run_dag(dag)["clip"].state == "failed"
    assert gateway.ledger == ()


def test_a_clip_without_a_prompt_is_bought_where_none_was_named(gateway: Emulator, bucket: str) -> None:
    """Hailuo needs none, and an empty cell of a table is none."""
    for number, prompt in enumerate((None, "")):
        make(bucket, prompt=prompt, s3_key=f"{number}.mp4").execute({})
    assert [render.prompt for render in gateway.ledger] == [None, None]


# Anywhere.


def test_it_runs_in_a_unit_test(
    gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a context there is nobody to defer, to push to, or to tell of an asset."""
    with caplog.at_level(logging.WARNING):
        key = make(bucket, deferrable=deferrable, outlets=[Asset("clips"), Asset("more")]).execute({})
    assert key == "x.mp4"
    assert s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(MP4)
    assert caplog.text.count("There are no asset events") == 1
    assert gateway.billed == 1


@pytest.mark.parametrize("if_exists", ["reuse", "replace", "fail"])
def test_outside_of_a_dag_run_the_same_clip_is_bought_once(
    if_exists: str, gateway: Emulator, bucket: str
) -> None:
    """Nothing tells a retry from a new wish there, so a repeated call finds what was bought."""
    for _ in range(2):
        assert make(bucket, if_exists=if_exists).execute({}) == "x.mp4"
    assert gateway.billed == 1


def test_a_call_that_failed_outside_of_a_dag_run_is_taken_up_again(gateway: Emulator, bucket: str) -> None:
    """The ledger works there as anywhere."""
    gateway.fail_next(Fault.reset_after())
    with pytest.raises(RenderOutcomeUnknown):
        make(bucket).execute({})
    make(bucket).execute({})
    with pytest.raises(CodeGatewayError, match="already exists"):
        make(bucket, if_exists="fail").execute(context_of("a DAG run"))
    assert gateway.billed == 2


def test_a_decorated_function_runs_in_a_unit_test(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """As the operator behind it."""

    def paint() -> str:
        return "a mug"

    with DAG("unit", schedule=None):
        decorated: Any = generate_video_task(
            model=HAILUO, s3_bucket=bucket, s3_key="x.mp4", deferrable=deferrable
        )
        operator = decorated(paint)().operator
    assert operator.execute({}) == "x.mp4"
    assert [render.prompt for render in gateway.ledger] == ["a mug"]


def test_it_runs_in_a_loop(gateway: Emulator, bucket: str) -> None:
    """As the page about the operator has it."""
    for product in ("mug", "pot"):
        GenerateVideoOperator(
            task_id="clip",
            model="google/veo-3.1-fast",
            prompt=f"A {product} on a table",
            s3_bucket=bucket,
            s3_key=f"{product}.mp4",
        ).execute({})
    assert gateway.billed == 2


@pytest.mark.parametrize("gives_context", [False, True], ids=["{}", "context"])
def test_it_runs_inside_another_task_in_a_loop(
    gives_context: bool, gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """Airflow would resume the other task, which knows of no deferral: so it renders in place."""

    def clips(**context: Any) -> list[str]:
        return [
            str(
                make(
                    bucket,
                    task_id="clip",
                    s3_key=f"{name}.mp4",
                    deferrable=deferrable,
                    outlets=[Asset("clips-of-a-loop")],
                ).execute(
                    context if gives_context else {}  # type: ignore[arg-type]
                )
            )
            for name in ("mug", "pot")
        ]

    with DAG("nested", schedule=None) as dag:
        task(clips, task_id="clip")()  # type: ignore[call-overload]
    result = run_dag(dag)
    assert result["clip"].xcoms["return_value"] == ["mug.mp4", "pot.mp4"]
    assert ("clip" in result["clip"].xcoms) is gives_context
    assert gateway.billed == 2


def test_a_task_of_its_own_is_deferred(
    gateway: Emulator, bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also a mapped one: Airflow resumes these."""
    with DAG("deferred", schedule=None) as dag:
        make(bucket, deferrable=True, task_id="one", s3_key="one.mp4")
        GenerateVideoOperator.partial(
            task_id="many", model=HAILUO, s3_bucket=bucket, deferrable=True
        ).expand_kwargs([{"prompt": "p", "s3_key": "many.mp4"}])
    assert run_dag(dag).state == "success"
    output = "".join(capfd.readouterr())
    if AIRFLOW >= (
        3,
        1,
    ):  # before, a handler of its log, which pytest closes, repeats each line with its stack
        assert output.count("No worker slot is used.") == 2
    assert "Rendering in this process" not in output


# A run is the DAG run and the key.


def test_a_mapped_list_in_another_order_is_not_bought_again(
    gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """When it is cleared, the clip of each key is found, whichever index it has now (apache/airflow#72725)."""
    for keys in (["a", "b"], ["b", "a"]):
        for index, key in enumerate(keys):
            operator = make(bucket, s3_key=f"{key}.mp4", if_exists="replace", deferrable=deferrable)
            execute(operator, context_of(map_index=index))
    assert gateway.billed == 2
    execute(make(bucket, s3_key="a.mp4", if_exists="replace", deferrable=deferrable), context_of("next"))
    assert gateway.billed == 3


def test_what_the_first_versions_stored_is_known_as_the_runs_own(
    gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """They wrote the task and its map index into what stands for a run."""
    marks = Marks(
        fingerprint=build_request(HAILUO, prompt="p").fingerprint(),
        requester=task_identity("d", "clip", "run", 3),
        model=HAILUO,
        created=1.0,
        render_seconds=2.0,
        renders_bought=1,
    )
    s3.put_object(Bucket=bucket, Key="x.mp4", Body=MP4, Metadata=marks.as_metadata())
    operator = make(bucket, if_exists="replace", deferrable=deferrable)
    assert execute(operator, context_of(map_index=3))["reused"]
    assert gateway.billed == 0
    assert not execute(operator, context_of("another run", map_index=3))["reused"]


def test_a_trigger_of_the_first_version_is_still_read(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """Its arguments lie in Airflow's database while the package is upgraded."""
    former = task_identity("d", "clip", "run", -1)
    request = build_request(HAILUO, prompt="p")
    put_marker(s3, bucket, "request.json", model=HAILUO, body=request.body())
    trigger = RenderTrigger(
        bucket=bucket,
        key="x.mp4",
        model=HAILUO,
        fingerprint=request.fingerprint(),
        run=former,
        if_exists="replace",
        max_renders=2,
        ledger_prefix="_codegateway/",
        extra_args={},
        codegateway_conn_id="codegateway_default",
        aws_conn_id="aws_default",
    )
    event = event_of(SimpleNamespace(trigger=trigger))  # type: ignore[arg-type]
    assert event["status"] == "stored"
    found = execute(make(bucket, if_exists="replace"), context_of())
    assert (found["reused"], found["renders_bought_here"]) == (True, 1)
    assert gateway.billed == 1


# What this run bought.


def test_a_cleared_task_says_what_its_own_render_cost(gateway: Emulator, bucket: str) -> None:
    """The render went on without it, and is found: it was bought by this run all the same."""
    event_of(defer(make(bucket, deferrable=True), context_of()))
    cleared = execute(make(bucket, deferrable=True), context_of())
    assert (cleared["reused"], cleared["renders_bought_here"]) == (True, 1)
    other = execute(make(bucket), context_of("another run"))
    assert (other["reused"], other["renders_bought_here"]) == (True, 0)
    assert gateway.billed == 1


def test_each_run_counts_its_own_renders(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """Of two renders for one clip, one by each run, each has bought one."""
    gateway.fail_next(Fault.reset_after())
    with pytest.raises(RenderOutcomeUnknown):
        execute(make(bucket, deferrable=deferrable), context_of("first"))
    second = execute(make(bucket, deferrable=deferrable), context_of("second"))
    first = execute(make(bucket, deferrable=deferrable), context_of("first"))
    assert [(clip["renders_bought"], clip["renders_bought_here"]) for clip in (first, second)] == [(2, 1)] * 2
    third = execute(make(bucket, deferrable=deferrable), context_of("third"))
    assert (third["renders_bought"], third["renders_bought_here"]) == (2, 0)


# Versions that meet.


def test_a_clip_of_another_version_is_handed_over(gateway: Emulator, bucket: str) -> None:
    """A newer trigger says more of a clip, an older one less."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    event = event_of(deferred)
    del event["clip"]["renders_bought_here"]
    event["clip"]["facts"] = {"width": 1280}
    context = context_of()
    assert resume(make(bucket, deferrable=True), context, deferred, event) == "x.mp4"
    assert context["ti"].pushed["clip"]["renders_bought_here"] == 0
    pushed = context["ti"].pushed["clip"]
    assert {**Clip.from_dict(event["clip"]).as_dict(), "aws_conn_id": "aws_default"} == pushed


STRANGE: list[Any] = [
    {"status": "delivered", "where": "x"},
    {"status": "stored"},
    {"status": "stored", "clip": {"bucket": "b"}},
    {"status": "stored", "clip": None},
    {"status": "failed"},
    {"status": "failed", "error": "a text"},
    {"status": ["stored"]},
    {},
    None,
    "stored",
]


@pytest.mark.parametrize("event", STRANGE, ids=str)
def test_an_event_that_is_not_understood_is_no_loss(
    event: Any, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """The clip is looked for; where there is none, the ledger tells what was bought."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    with pytest.raises(RenderOutcomeUnknown, match="another version") as nothing_yet:
        resume(make(bucket, deferrable=True), context_of(), deferred, event)
    assert nothing_yet.value.bought is Bought.PERHAPS
    put_marker(s3, bucket, "1.started", run=run_identity("d", "run"), owner="o", claim_seconds=0)
    put_marker(s3, bucket, "1.rendered", receipt={})
    with pytest.raises(RenderOutcomeUnknown, match=r"Render 1, started .* was bought") as paid:
        resume(make(bucket, deferrable=True), context_of(), deferred, event)
    assert paid.value.bought is Bought.YES
    for name in ("1.started", "1.rendered"):
        s3.delete_object(Bucket=bucket, Key=f"_codegateway/x.mp4/{name}")
    event_of(deferred)
    assert resume(make(bucket, deferrable=True), context_of(), deferred, event) == "x.mp4"
    assert gateway.billed == 1


@pytest.mark.parametrize(
    ("error", "known", "bought"),
    [
        (
            {"class": "RequestPostponed", "bases": ["RequestRejected"], "bought": "NO"},
            RequestRejected,
            Bought.NO,
        ),
        ({"class": "ClipTooLoud", "bought": "YES", "facts": {}}, CodeGatewayError, Bought.YES),
        ({"class": "ClipTransferError", "bought": "YES", "host": "x"}, ClipTransferError, Bought.YES),
        ({"class": "RequestRejected", "bought": "NO", "status": 400}, RequestRejected, Bought.NO),
        ({"class": "InvalidRequest", "bought": "MAYBE", "problems": []}, InvalidRequest, Bought.PERHAPS),
        ({}, CodeGatewayError, Bought.PERHAPS),
    ],
)
def test_an_error_of_another_version_keeps_its_words_and_its_money(
    error: dict[str, Any], known: type[CodeGatewayError], bought: Bought, bucket: str
) -> None:
    """It becomes the nearest class that this version knows, and never a KeyError."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    event = {"status": "failed", "error": {"message": "Words.", **error}}
    with pytest.raises(CodeGatewayError, match=r"^Words\.\n") as raised:
        resume(make(bucket, deferrable=True), context_of(), deferred, event)
    assert (type(raised.value), raised.value.bought) == (known, bought)
    assert getattr(raised.value, "status", 400) in (400, 0)


def test_every_error_survives_the_way_through_the_database() -> None:
    """With its class, words, money and facts; one of a class to come says which class it is derived from."""

    class RequestPostponed(RequestRejected):
        pass

    for error in (RequestRejected("a", status=403), InvalidRequest(["a", "b"]), ClipTransferError("a")):
        again = from_dict(json.loads(json.dumps(error.as_dict())))
        assert (type(again), str(again), again.bought) == (type(error), str(error), error.bought)
    assert "bases" not in RequestRejected("a").as_dict()
    assert (
        from_dict(RequestPostponed("a", status=400).as_dict()).as_dict()
        == RequestRejected("a", status=400).as_dict()
    )


def test_what_an_older_version_remembered_is_enough(gateway: Emulator, bucket: str) -> None:
    """It deferred with fewer arguments for whoever resumes."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    event = event_of(deferred)
    remembered: list[dict[str, Any]] = [
        {},
        {"deferred": None},
        {"deferred": {}},
        {"deferred": {"trigger": {"unknown": 1}}},
    ]
    for kwargs in remembered:
        operator = make(bucket, deferrable=True)
        assert (
            operator.resume_execution("execute_complete", {**kwargs, "event": event}, context_of()) == "x.mp4"
        )


# A connection that is deleted after the deferral.


@pytest.mark.parametrize("is_paid", [False, True], ids=["nothing bought", "paid"])
def test_a_gateway_connection_deleted_after_the_deferral_is_named(
    is_paid: bool, gateway: Emulator, s3: S3Client, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is known of the money, which is not always nothing."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    if is_paid:
        put_marker(s3, bucket, "1.started", run=run_identity("d", "run"), owner="o", claim_seconds=0)
        put_marker(s3, bucket, "1.rendered", receipt={})
    monkeypatch.delenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT")
    event = event_of(deferred)
    with pytest.raises(InvalidConnection, match="'codegateway_default' does not exist") as deleted:
        resume(make(bucket, deferrable=True), context_of(), deferred, event)
    assert deleted.value.bought is (Bought.YES if is_paid else Bought.NO)
    assert gateway.ledger == ()


def test_an_aws_connection_deleted_after_the_deferral_is_named(
    gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials of its own, nothing is bought and the message says what is missing."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    event = event_of(deferred)
    with pytest.raises(CodeGatewayError, match="no AWS credentials"):
        resume(make(bucket, deferrable=True), context_of(), deferred, event)
    assert gateway.ledger == ()


# The log.


@pytest.mark.skipif(AIRFLOW < (3, 0), reason="Airflow 2 logs to the stream that the first test had")
@pytest.mark.parametrize(
    ("fault", "bought"),
    [(Fault.status(401), Bought.NO), (Fault.reset_after(), Bought.PERHAPS)],
    ids=["refused", "unknown"],
)
def test_a_failure_says_first_what_it_cost(
    fault: Fault,
    bought: Bought,
    gateway: Emulator,
    bucket: str,
    deferrable: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On a line of its own, once, before Airflow's own lines about it."""
    gateway.fail_next(fault)
    with DAG("costs", schedule=None) as dag:
        make(bucket, deferrable=deferrable)
    run_dag(dag)
    before, failed, _ = "".join(capfd.readouterr()).partition("Task failed with exception")
    assert failed
    assert before.count(bought.value) == 1


def test_bad_input_shows_one_message_and_none_of_our_frames(
    gateway: Emulator, bucket: str, deferrable: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever mistyped a duration need not read the package."""
    with DAG("mistake", schedule=None) as dag:
        make(bucket, model=VEO, duration=5, deferrable=deferrable)
    assert run_dag(dag).state == "failed"
    output = "".join(capfd.readouterr())
    assert "google/veo-3.1-fast does not support duration=5. Use 4, 6 or 8." in output
    if AIRFLOW >= (3, 1):
        assert "airflow_provider_codegateway/models" not in output
        assert "airflow_provider_codegateway/operators" not in output


@pytest.mark.skipif(AIRFLOW < (3, 0), reason="The time-out ends `dag.test` of Airflow 2 itself.")
def test_a_blocking_task_that_runs_out_of_time_leaves_what_it_may_have_cost(
    gateway: Emulator, bucket: str
) -> None:
    """On its page, as every failure does: by the ledger, which is told first."""
    gateway.fail_next(Fault.hang())
    with DAG("impatient", schedule=None) as dag:
        make(bucket, execution_timeout=timedelta(seconds=2))
    result = run_dag(dag)
    assert result.state == "failed"
    error = result["clip"].xcoms["clip_error"]
    assert error["class"] == "RenderOutcomeUnknown"
    assert error["message"].startswith("The task ran out of time (")
    assert "Render 1, started" in error["message"]
    assert error["bought"] == Bought.PERHAPS.value


def test_a_render_lost_with_its_triggerer_is_named(
    gateway: Emulator, s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which render, until when it is waited for and why; then what became of it, and which one is bought instead."""
    deferred = defer(make(bucket, deferrable=True), context_of())
    put_marker(s3, bucket, "1.started", run=run_identity("d", "run"), owner="killed", claim_seconds=2)
    started = s3.head_object(Bucket=bucket, Key="_codegateway/x.mp4/1.started")["LastModified"]
    with caplog.at_level(logging.INFO):
        assert event_of(deferred)["clip"]["renders_bought_here"] == 2
    assert started.tzinfo is not None
    at = f"{started.astimezone(UTC):%H:%M:%S} UTC"
    story = [record.getMessage() for record in caplog.records]
    told = [
        next((number for number, line in enumerate(story) if all(piece in line for piece in pieces)), None)
        for pieces in (
            (f"Render 1 was started at {at}", "restarted or killed", "Waiting up to", "until"),
            ("Render 1, started", at, "may have been bought: its run ended without reporting"),
            ("Requesting render 2 of at most 2",),
        )
    ]
    assert None not in told, story
    assert told == sorted(told)  # type: ignore[type-var]
    assert datetime.now(UTC) > started
