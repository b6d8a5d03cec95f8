"""``@task.generate_video``, run by Airflow against a real gateway (the emulator's) and a real S3 server."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import DAG, TaskDeferred, task
from airflow_run import AIRFLOW, RunResult, run_dag
from media_samples import mp4, png, png_base64

from airflow_provider_codegateway.decorators.video import RETURNABLE, generate_video_task
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipTransferError,
    InvalidRequest,
    LedgerConflict,
    RenderOutcomeUnknown,
)
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
MP4 = mp4()
SECRET_QUERY = "X-Amz-Signature=5ecre7516na7ure"

pytestmark = pytest.mark.usefixtures("airflow_database", "connections")


@pytest.fixture(params=[False, True], ids=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def quick_gateway(gateway: Emulator) -> None:
    gateway.serve_clip(MP4)


def run(function: Callable[..., Any], *args: Any, **options: Any) -> RunResult:
    """One DAG run with one decorated task."""
    with DAG("decorated", schedule=None) as dag:
        task.generate_video(task_id="clip", **options)(function)(*args)
    return run_dag(dag)


def make(function: Callable[..., Any], **options: Any) -> GenerateVideoOperator:
    """The operator behind a decorated function."""
    with DAG("decorated", schedule=None):
        decorated: Any = generate_video_task(**{"task_id": "clip", "model": VEO, **options})
        operator = decorated(function)().operator
    assert isinstance(operator, GenerateVideoOperator)
    return operator


def execute(operator: GenerateVideoOperator, resume: GenerateVideoOperator | None = None) -> dict[str, Any]:
    """One try without a scheduler around it: the clip's facts.

    :param resume: what the process that resumes has in its place.
    """
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(
        dag_id="d",
        task_id="clip",
        run_id="run",
        map_index=-1,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
    )
    context: Any = {"ti": instance}
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(only_event(deferred.trigger))
        kwargs = json.loads(json.dumps(deferred.kwargs))
        getattr(resume or operator, deferred.method_name)(context, event, **kwargs)
    clip: dict[str, Any] = pushed["clip"]
    return clip


async def only_event(trigger: Any) -> Any:
    (event,) = [event.payload async for event in trigger.run()]
    return event


def keys(s3: S3Client, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


# What the function returns.


def test_a_returned_string_is_the_prompt(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """The clip's key and facts are the task's XComs, as the operator's."""

    def paint(subject: str, dag: Any = None) -> str:
        return f"{subject} for {dag.dag_id}"

    result = run(
        paint,
        "a mug",
        model=VEO,
        s3_bucket=bucket,
        s3_key="clips/{{ dag.dag_id }}.mp4",
        deferrable=deferrable,
    )
    assert result.state == "success"
    assert result["clip"].xcoms["return_value"] == "clips/decorated.mp4"
    assert result["clip"].xcoms["clip"]["uri"] == f"s3://{bucket}/clips/decorated.mp4"
    assert [render.prompt for render in gateway.ledger] == ["a mug for decorated"]


def test_a_returned_dict_takes_the_place_of_the_options(
    gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """Every argument of the request and of the target may come from the function; the rest stays."""
    s3.put_object(Bucket=bucket, Key="in.png", Body=png())

    def paint() -> dict[str, Any]:
        return {
            "model": SEEDANCE,
            "prompt": "p",
            "image": f"s3://{bucket}/in.png",
            "duration": 5,
            "seed": "7",
            "parameters": {"camera_fixed": True},
            "s3_key": "chosen.mp4",
        }

    result = run(
        paint,
        model=VEO,
        s3_bucket=bucket,
        duration=4,
        resolution="480p",
        s3_key="x.mp4",
        deferrable=deferrable,
    )
    assert result.state == "success"
    assert keys(s3, bucket) == ["chosen.mp4", "in.png"]
    sent = dict(gateway.ledger[0].request)
    image = sent.pop("image")
    assert "sha256" in str(image)
    assert sent == {
        "model": SEEDANCE,
        "prompt": "p",
        "duration": 5,
        "resolution": "480p",
        "seed": 7,
        "camera_fixed": True,
    }


def test_model_and_key_may_come_from_the_function_alone(
    gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """A bare decorator is enough where the function says it all; Hailuo needs no prompt, but an image."""

    def paint() -> dict[str, Any]:
        return {"model": HAILUO, "s3_key": f"s3://{bucket}/x.mp4"}

    operator = make(paint, deferrable=deferrable)
    assert execute(operator)["uri"] == f"s3://{bucket}/x.mp4"
    assert "prompt" not in gateway.ledger[0].request


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, r"paint\(\) returned nothing. Return a prompt"),
        (7, "returned int. Return a prompt"),
        (["p"], "returned list. Return a prompt"),
        ("  ", "returned an empty prompt"),
        ({"promt": "p"}, "returned promt. Use model, prompt, image"),
        ({"prompt": "p", "deferrable": True}, "returned deferrable. Use"),
        ({"prompt": "p", "camera_fixed": True}, "returned camera_fixed. Use .+ into parameters"),
        ({"prompt": "p", f"https://x.example.com/?{SECRET_QUERY}": 1}, "returned https://x.example.com/"),
        ({"prompt": 7}, "prompt"),
        ({"model": HAILUO, "prompt": None}, r"paint\(\) returned prompt=None. Return what to show"),
        ({"model": HAILUO, "prompt": ""}, "returned prompt=''"),
        ({"model": HAILUO, "prompt": "nan"}, "prompt='nan' describes no video"),
        ("None", "prompt='None' describes no video"),
        ({}, "prompt is required"),
        ({"prompt": "p", "s3_key": None}, "s3_key=None is not an S3 key"),
        ({"prompt": "p", "model": None}, "model=None is not the name of a model"),
        ({"prompt": "p", "duration": 5}, "does not support duration=5. Use 4, 6 or 8."),
    ],
    ids=str,
)
def test_what_makes_no_request_is_refused_for_free(
    returned: Any, words: str, gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """The message says what was returned, without anything secret in it, and what to return."""

    def paint() -> Any:
        return returned

    with pytest.raises(InvalidRequest, match=words) as refusal:
        execute(make(paint, s3_bucket=bucket, s3_key="x.mp4", deferrable=deferrable))
    assert str(refusal.value).endswith(Bought.NO.value)
    assert "5ecre7" not in str(refusal.value)
    assert gateway.ledger == ()
    assert keys(s3, bucket) == []


def test_a_returned_template_is_data(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """A product's name with braces in it reads no variable and no connection."""

    def paint() -> str:
        return "{{ conn.codegateway_default.password }} {{ no_such_name }}"

    assert run(paint, model=VEO, s3_bucket=bucket, s3_key="x.mp4", deferrable=deferrable).state == "success"
    assert gateway.ledger[0].prompt == "{{ conn.codegateway_default.password }} {{ no_such_name }}"


@pytest.mark.parametrize(
    "extra", [{}, {"image": f"https://cdn.example.com/a.png?{SECRET_QUERY}"}], ids=["", "link"]
)
def test_mapped_data_is_no_template(
    extra: dict[str, str], gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """What an upstream task returned stays as it is at any depth, also where a link beside it is hidden."""
    if deferrable and AIRFLOW < (3, 0):
        pytest.skip("There, dag.test resumes the same object, and renders what was rendered; workers do not.")
    braces = "{{ conn.codegateway_default.password }} {% 50 off"

    def paint(row: dict[str, Any], given: str) -> dict[str, Any]:
        assert given == "decorated"
        return {"prompt": row["deep"][0]["name"], "image": row.get("image")}

    with DAG("decorated", schedule=None) as dag:

        @task
        def rows() -> list[dict[str, Any]]:
            return [{"deep": [{"name": braces}], **extra}]

        decorate = task.generate_video(
            model=SEEDANCE, s3_bucket=bucket, s3_key="x.mp4", task_id="clip", deferrable=deferrable
        )
        decorate(paint).partial(given="{{ dag.dag_id }}").expand(row=rows())
    assert run_dag(dag).state == "success"
    assert [render.prompt for render in gateway.ledger] == [braces]


def test_defaults_of_the_dag_hold(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """``default_args`` may have what the function does not return, the model and the key too."""
    defaults = {"model": VEO, "s3_bucket": bucket, "s3_key": "x.mp4", "duration": 4, "deferrable": deferrable}
    with DAG("decorated", schedule=None, default_args=defaults) as dag:

        @task.generate_video(task_id="clip")
        def paint(what: str) -> str:
            return f"A {what}"

        paint.expand(what=["kite"])
    assert run_dag(dag).state == "success"
    assert gateway.ledger[0].request == {"model": VEO, "prompt": "A kite", "duration": "4s"}


def test_every_argument_of_the_request_can_be_returned() -> None:
    """What is templated in the operator can be returned, but for how it is stored and connected."""
    operator = set(GenerateVideoOperator.template_fields)
    assert operator - set(RETURNABLE) == {
        "codegateway_conn_id",
        "aws_conn_id",
        "ledger_prefix",
        "ledger_conn_id",
        "s3_extra_args",
        "max_cost",
        "fallback_on",
    }
    assert set(RETURNABLE) <= operator


def test_an_async_function_is_refused_when_the_dag_is_parsed() -> None:
    """It would return no prompt but a coroutine."""

    async def paint() -> str:
        return "p"

    with pytest.raises(TypeError, match="paint is an async one"):
        make(paint)


# When the function runs.


def test_the_function_runs_once_for_each_try(bucket: str, deferrable: bool) -> None:
    """In the worker, before the task defers; what resumes does not run it, and shows what it returned."""
    calls: list[str] = []

    def paint() -> dict[str, Any]:
        calls.append("call")
        return {"prompt": "p", "image": png_base64()}

    operator, resumed = (
        make(paint, s3_bucket=bucket, s3_key="x.mp4", deferrable=deferrable) for _ in range(2)
    )
    execute(operator, resumed)
    assert calls == ["call"]
    shown = resumed if deferrable else operator
    assert shown.prompt == "p"
    assert str(shown.image).startswith("<image/png, ")


def test_a_clip_that_somebody_else_stored_meanwhile_is_taken_without_a_second_call(
    gateway: Emulator, bucket: str
) -> None:
    """The function may have a new idea each time; the clip is the one that the task deferred for."""
    ideas = iter(["first", "second"])

    def paint() -> str:
        return next(ideas)

    arguments: dict[str, Any] = {"s3_bucket": bucket, "s3_key": "x.mp4"}
    operator = make(paint, deferrable=True, **arguments)
    context: Any = {
        "ti": SimpleNamespace(dag_id="d", task_id="c", run_id="1", map_index=-1, xcom_push=lambda **_: None)
    }
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    execute(make(lambda: "first", **arguments))
    event = asyncio.run(only_event(deferred.value.trigger))
    assert event == {"status": "gone"}
    resumed = make(paint, deferrable=True, **arguments)
    assert resumed.execute_complete(context, event, **(deferred.value.kwargs or {})) == "x.mp4"
    assert next(ideas) == "second"
    assert gateway.billed == 1


def test_an_entry_deleted_by_hand_asks_the_function_again(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Then there is no clip and no record of one: what the function says now is what is rendered."""
    ideas = iter([{"prompt": "first", "image": png_base64()}, {"prompt": "second"}])

    def paint() -> dict[str, Any]:
        return next(ideas)

    def operator() -> GenerateVideoOperator:
        return make(paint, deferrable=True, s3_bucket=bucket, s3_key="x.mp4")

    context: Any = {
        "ti": SimpleNamespace(dag_id="d", task_id="c", run_id="1", map_index=-1, xcom_push=lambda **_: None)
    }
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(context)
    for key in keys(s3, bucket):
        s3.delete_object(Bucket=bucket, Key=key)
    event = asyncio.run(only_event(deferred.value.trigger))
    with pytest.raises(TaskDeferred) as again:
        operator().execute_complete(context, event, **(deferred.value.kwargs or {}))
    event = asyncio.run(only_event(again.value.trigger))
    assert operator().execute_complete(context, event, **(again.value.kwargs or {})) == "x.mp4"
    assert [render.prompt for render in gateway.ledger] == ["second"]
    assert set(gateway.ledger[0].request) == {"model", "prompt"}


def test_a_new_idea_does_not_lose_a_clip_that_is_paid(
    gateway: Emulator, bucket: str, deferrable: bool
) -> None:
    """A retry whose function returns another prompt is told of the render that waits to be delivered."""
    ideas = iter(["first", "second"])
    arguments: dict[str, Any] = {"s3_bucket": bucket, "s3_key": "x.mp4", "deferrable": deferrable}
    gateway.fail_next(ClipFault.html())
    for error in (ClipTransferError, LedgerConflict):
        with pytest.raises(error):
            execute(make(lambda: next(ideas), **arguments))
    assert gateway.billed == 1


def test_retries_are_airflows_own(gateway: Emulator, bucket: str, deferrable: bool) -> None:
    """The task's next try runs the function anew, and renders within ``max_renders``."""
    if deferrable and AIRFLOW == (3, 0):
        pytest.skip("Airflow 3.0 resumes a retry with the event of the try before")
    gateway.fail_next(Fault.reset_after())
    tries: list[int] = []

    def paint(ti: Any = None) -> str:
        tries.append(ti.try_number)
        return "p"

    result = run(
        paint,
        model=VEO,
        s3_bucket=bucket,
        s3_key="x.mp4",
        deferrable=deferrable,
        retries=1,
        retry_delay=timedelta(0),
    )
    assert result["clip"].xcoms["clip"]["renders_bought"] == 2
    assert tries == [1, 2]


# As Airflow's other decorators.


def test_mapped_over_arguments_of_the_function(
    gateway: Emulator, s3: S3Client, bucket: str, deferrable: bool
) -> None:
    """``partial`` and ``expand`` map the function's arguments; each clip has a key of its own."""
    with DAG("mapped", schedule=None) as dag:

        @task
        def products() -> list[str]:
            return ["mug", "pot"]

        @task.generate_video(
            model=VEO, s3_bucket=bucket, deferrable=deferrable, map_index_template="{{ task.s3_key }}"
        )
        def paint(product: str, style: str) -> dict[str, Any]:
            return {"prompt": f"{product}, {style}", "s3_key": f"{product}.mp4"}

        paint.partial(style="soft light").expand(product=products())
    result = run_dag(dag)
    assert result.state == "success"
    assert keys(s3, bucket) == ["mug.mp4", "pot.mp4"]
    assert [result.tasks["paint", index].xcoms["return_value"] for index in (0, 1)] == ["mug.mp4", "pot.mp4"]
    assert sorted(render.prompt or "" for render in gateway.ledger) == ["mug, soft light", "pot, soft light"]


def test_its_output_is_an_argument_of_the_next_task(bucket: str, deferrable: bool) -> None:
    """Calling the decorated function gives the key to whoever comes next."""
    with DAG("chained", schedule=None) as dag:

        @task.generate_video(model=VEO, s3_bucket=bucket, s3_key="x.mp4", deferrable=deferrable)
        def paint() -> str:
            return "p"

        @task
        def publish(key: str) -> str:
            return f"published {key}"

        publish(paint())  # type: ignore[arg-type]
    assert run_dag(dag)["publish"].xcoms["return_value"] == "published x.mp4"


def test_airflow_knows_the_decorator_by_its_name() -> None:
    """``@task.generate_video`` is this decorator, and the UI calls its tasks so."""
    operator = make(lambda: "p")
    assert operator.operator_name == "@task.generate_video"
    assert task.generate_video is generate_video_task


# Secrets.


def test_no_link_or_image_that_passes_through_is_in_any_log_xcom_or_template(
    gateway: Emulator,
    bucket: str,
    deferrable: bool,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither in the function's arguments nor in what it returns, also if the braces of a template are in it."""
    image = png_base64()
    link = f"https://cdn.example.com/a.png?{SECRET_QUERY}&t={{{{ds}}}}"

    def paint(link: str, images: list[str]) -> dict[str, Any]:
        assert SECRET_QUERY in link
        return {
            "prompt": "p",
            "image": f"data:image/png;base64,{images[0]}",
            "parameters": {"last_frame_image": f"https://cdn.example.com/b.png?{SECRET_QUERY}&t={{{{ds}}}}"},
        }

    result = run(
        paint, link, [image], model=SEEDANCE, s3_bucket=bucket, s3_key="x.mp4", deferrable=deferrable
    )
    assert result.state == "success"
    output = capfd.readouterr()
    everything = "\n".join([output.out, output.err, caplog.text, repr(result)])
    assert "cdn.example.com/a.png" in everything
    for secret in ("Signature=", "5ecre7516na7ure", image[:24], image[-24:]):
        assert secret not in everything


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "The function chose its key"),
        ({"s3_key": "default.mp4"}, "The ledger at s3://.+ has no render of this task"),
    ],
)
def test_after_a_failed_deferral_the_money_of_another_task_is_not_told(
    gateway: Emulator, s3: S3Client, bucket: str, options: dict[str, Any], words: str
) -> None:
    """Which key the function chose is not known any more; at the default key there may be somebody else's entry."""
    instance = SimpleNamespace(dag_id="other", task_id="clip", run_id="run", map_index=-1)
    other = make(lambda: "p", s3_bucket=bucket, s3_key="default.mp4", deferrable=True)
    with pytest.raises(TaskDeferred):
        other.execute({"ti": instance})  # type: ignore[typeddict-item]
    marker = {"fingerprint": "0" * 64, "run": "of another task", "owner": "o", "claim_seconds": 300}
    s3.put_object(Bucket=bucket, Key="_codegateway/default.mp4/1.started", Body=json.dumps(marker).encode())

    failed = make(lambda: {"prompt": "p", "s3_key": "mine.mp4"}, s3_bucket=bucket, **options)
    context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="clip", run_id="run", map_index=-1)}
    with pytest.raises(RenderOutcomeUnknown, match=words) as caught:
        failed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
    assert "Render 1" not in str(caught.value)
