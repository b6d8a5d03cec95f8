"""The operator, run by Airflow against a real gateway (the emulator's) and a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import pkgutil
import threading
from traceback import TracebackException
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import av
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskDeferred, task
from airflow_run import RunResult, run_dag
from media_samples import mp4, png, png_base64

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidConnection,
    InvalidRequest,
    InvalidTarget,
    LedgerConflict,
    RenderLimitReached,
    RenderOutcomeUnknown,
    RequestRejected,
    StorageUnavailable,
)
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
MP4 = mp4()

pytestmark = pytest.mark.usefixtures("airflow_database", "connections", "no_pauses")


@pytest.fixture(params=["blocking", "deferrable"], autouse=True)
def deferrable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test of this file runs in both modes: they promise the same."""
    deferrable = bool(request.param == "deferrable")
    # Airflow wraps __init__; the default is read from its configuration when the module is imported.
    defaults = GenerateVideoOperator.__init__.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(defaults, "deferrable", deferrable)
    return deferrable


def run(**arguments: Any) -> RunResult:
    """One DAG run with one clip, by Airflow's own task runner."""
    with DAG("one_clip", schedule=None) as dag:
        GenerateVideoOperator(task_id="clip", **arguments)
    return run_dag(dag)


def execute(run_id: str = "run", **arguments: Any) -> tuple[str, dict[str, Any]]:
    """The operator without a scheduler around it, to see the exception as it is raised."""
    operator = GenerateVideoOperator(task_id="clip", **arguments)
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(
        dag_id="d",
        task_id="clip",
        run_id=run_id,
        map_index=-1,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
    )
    context: Any = {"ti": instance}
    try:
        key = operator.execute(context)
    except TaskDeferred as deferred:
        key = getattr(operator, deferred.method_name)(context, asyncio.run(first_event(deferred.trigger)))
    return key, pushed.get("clip", {})


async def first_event(trigger: Any) -> Any:
    """What a triggerer would bring back: through the database, by another process."""
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    events = [event.payload async for event in pkgutil.resolve_name(path)(**arguments).run()]
    assert len(events) == 1
    return json.loads(json.dumps(events[0]))


def keys(s3: S3Client, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def is_untouched(s3: S3Client, bucket: str) -> bool:
    return not keys(s3, bucket) and not s3.list_multipart_uploads(Bucket=bucket).get("Uploads")


# The main job.


@pytest.mark.parametrize(
    ("model", "size", "seconds"),
    [(VEO, (1280, 720), 4), (SEEDANCE, (1280, 720), 4), (HAILUO, (1366, 768), 4)],
)
def test_a_clip_of_each_model_lands_in_s3_and_its_key_in_xcom(
    model: str, size: tuple[int, int], seconds: int, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """One operator in a DAG: a playable MP4 at the key, the key and the facts in XCom, one bill."""
    result = run(
        model=model, prompt="a {{ dag.dag_id }}", duration=4, s3_bucket=bucket, s3_key="a/{{ ds }}.mp4"
    )
    assert result.state == "success"
    key = result["clip"].xcoms["return_value"]
    assert key.startswith("a/20")
    stored = s3.get_object(Bucket=bucket, Key=key)
    content = stored["Body"].read()
    with av.open(io.BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == size
        assert float(container.duration or 0) / av.time_base == pytest.approx(seconds, abs=0.1)
    assert stored["ContentType"] == "video/mp4"
    clip = result["clip"].xcoms["clip"]
    assert set(clip) == {
        *("bucket", "key", "uri", "model", "bytes", "sha256", "created", "render_seconds", "renders_bought"),
        *(
            "renders_bought_here",
            "renders_unknown_here",
            "fingerprint",
            "reused",
            "cost",
            "facts",
            "mismatches",
        ),
        *("poster", "last_frame", "fallback", "aws_conn_id"),
    }
    assert (clip["mismatches"], clip["poster"], clip["last_frame"]) == ([], None, None)
    width, height = size
    shape = {
        "width": width,
        "height": height,
        "duration": seconds,
        "fps": 24,
        "codec": "h264",
        "audio": False,
    }
    assert clip["facts"] == shape
    assert clip["sha256"] == hashlib.sha256(content).hexdigest()
    assert (clip["uri"], clip["bytes"]) == (f"s3://{bucket}/{key}", len(content))
    assert (clip["renders_bought"], clip["renders_bought_here"]) == (1, 1)
    assert not clip["reused"]
    assert keys(s3, bucket) == [key]
    assert gateway.billed == 1
    assert gateway.ledger[0].prompt == "a one_clip"


def test_arguments_arrive_as_text_from_templates_and_are_understood(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Jinja renders text: numbers and booleans in it become what the model takes."""
    gateway.serve_clip(MP4)
    run(
        model="{{ 'bytedance/seedance-2.0' }}",
        prompt="p",
        duration="{{ 2 + 4 }}",
        seed="{{ 42 }}",
        generate_audio="{{ 1 == 1 }}",
        parameters={"camera_fixed": True},
        s3_key="s3://{{ params.bucket }}/x.mp4".replace("{{ params.bucket }}", bucket),
    )
    sent = gateway.ledger[0].request
    assert sent == {
        "model": SEEDANCE,
        "prompt": "p",
        "duration": 6,
        "seed": 42,
        "generate_audio": True,
        "camera_fixed": True,
    }


def test_one_clip_for_each_row_of_a_mapped_task(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """``expand_kwargs`` over rows of different models, and ``expand`` over one argument."""
    gateway.serve_clip(MP4)
    with DAG("mapped", schedule=None) as dag:
        GenerateVideoOperator.partial(task_id="rows", s3_bucket=bucket).expand_kwargs(
            [
                {"model": VEO, "prompt": "1", "s3_key": "1.mp4", "resolution": "1080p"},
                {"model": HAILUO, "prompt": "2", "s3_key": "2.mp4", "resolution": "1080p"},
            ]
        )
        GenerateVideoOperator.partial(
            task_id="prompts", model=VEO, s3_bucket=bucket, s3_key="{{ ti.map_index }}/{{ task.prompt }}.mp4"
        ).expand(prompt=["a", "b"])
    result = run_dag(dag)
    assert result.state == "success"
    assert keys(s3, bucket) == ["0/a.mp4", "1.mp4", "1/b.mp4", "2.mp4"]
    assert result.tasks["rows", 1].xcoms["return_value"] == "2.mp4"
    assert gateway.billed == 4


def test_an_image_in_s3_becomes_what_the_model_takes(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """``image="s3://…"`` is read with the AWS connection and sent as base64."""
    gateway.serve_clip(MP4)
    s3.put_object(Bucket=bucket, Key="in/a b?.png", Body=png())
    for model, field in ((VEO, "image_input"), (SEEDANCE, "image"), (HAILUO, "first_frame_image")):
        execute(
            model=model, prompt="p", image=f"s3://{bucket}/in/a b?.png", s3_key=f"s3://{bucket}/{model}.mp4"
        )
        assert field in gateway.ledger[-1].request
    assert gateway.billed == 3


def test_a_hundred_characters_of_every_kind_make_a_key(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """Keys are S3's own: spaces, accents and percent signs are none of our business."""
    gateway.serve_clip(MP4)
    key = "ü/é %20?#&=+ 灯台.mp4"
    assert execute(model=HAILUO, s3_bucket=bucket, s3_key=key)[0] == key
    assert keys(s3, bucket) == [key]


def test_encryption_and_the_like_reach_the_clip_and_the_ledger(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """A bucket whose policy demands encryption takes every object that we write."""
    gateway.serve_clip(MP4)
    gateway.fail_next(ClipFault.html())
    arguments: dict[str, Any] = {
        "model": HAILUO,
        "s3_bucket": bucket,
        "s3_key": "x.mp4",
        "s3_extra_args": {"ServerSideEncryption": "AES256", "StorageClass": "STANDARD_IA"},
    }
    with pytest.raises(ClipTransferError):
        execute(**arguments)
    for key in keys(s3, bucket):
        assert s3.head_object(Bucket=bucket, Key=key)["ServerSideEncryption"] == "AES256"
    execute(**arguments)
    stored = s3.head_object(Bucket=bucket, Key="x.mp4")
    assert (stored["ServerSideEncryption"], stored["StorageClass"]) == ("AES256", "STANDARD_IA")


# Refused for free.


REFUSALS: list[tuple[dict[str, Any], type[CodeGatewayError], str]] = [
    ({"model": VEO}, InvalidRequest, "prompt is required"),
    ({"model": VEO, "prompt": "p", "image": "s3://{bucket}/no.png"}, InvalidRequest, "does not exist"),
    ({"model": VEO, "prompt": "p", "image": "s3://{bucket}/no-image.txt"}, InvalidRequest, "image_input of"),
    ({"s3_key": "x/"}, InvalidRequest, "is not an object"),
    ({"s3_key": ""}, InvalidRequest, "is not an S3 key"),
    ({"s3_key": "s3://{bucket}/x.mp4"}, InvalidRequest, "must be left out"),
    ({"s3_bucket": None}, InvalidRequest, "does not name a bucket"),
    ({"s3_key": "k" * 1000}, InvalidRequest, "bytes too long for S3"),
    ({"s3_extra_args": {"Colour": "red"}}, InvalidRequest, "has Colour, which cannot be set here"),
    (
        {"s3_extra_args": {"SSECustomerKey": "k"}},
        InvalidRequest,
        r"customer-provided key \(SSE-C\) is not supported",
    ),
    ({"s3_bucket": "no-such-bucket-anywhere"}, InvalidTarget, "does not exist"),
    ({"s3_key": "no-image.txt"}, InvalidTarget, "an object that this provider did not create"),
    ({"s3_key": "no-image.txt", "if_exists": "fail"}, InvalidTarget, "already exists, and if_exists='fail'"),
    ({"codegateway_conn_id": "no_key"}, InvalidConnection, "has no API key"),
    ({"codegateway_conn_id": "odd_extra"}, InvalidConnection, "has an unknown extra 'dedline'"),
    ({"codegateway_conn_id": "bad_extra"}, InvalidConnection, "'retries' of connection 'bad_extra'"),
    ({"codegateway_conn_id": "other_type"}, InvalidConnection, "has type 'http'"),
    ({"aws_conn_id": "aws_down"}, StorageUnavailable, "could not look for the clip"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSALS, ids=lambda value: str(value)[:50])
def test_what_can_be_refused_for_free_is_refused_before_any_call(
    arguments: dict[str, Any],
    error: type[CodeGatewayError],
    words: str,
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gateway hears of none of these, the ledger keeps nothing, and the message says what to do."""
    s3.put_object(Bucket=bucket, Key="no-image.txt", Body=b"words")
    down = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    for name, connection in {
        "no_key": {"conn_type": "codegateway"},
        "odd_extra": {"conn_type": "codegateway", "password": "sk-cg-x", "extra": {"dedline": 3}},
        "bad_extra": {"conn_type": "codegateway", "password": "sk-cg-x", "extra": {"retries": -1}},
        "other_type": {"conn_type": "http", "password": "sk-cg-x"},
        "aws_down": {"conn_type": "aws", "login": "testing", "password": "testing", "extra": down},
    }.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
    arguments = {"model": HAILUO, "s3_bucket": bucket, "s3_key": "x.mp4", **arguments}
    arguments = {k: v.format(bucket=bucket) if isinstance(v, str) else v for k, v in arguments.items()}
    with pytest.raises(error, match=words) as refusal:
        execute(**arguments)
    assert str(refusal.value).endswith(Bought.NO.value)
    assert gateway.ledger == ()
    assert keys(s3, bucket) == ["no-image.txt"]


@pytest.mark.parametrize(
    "arguments", [{"if_exists": "overwrite"}, {"max_renders": 0}, {"max_renders": "two"}]
)
def test_a_mistake_in_the_terms_is_seen_when_the_dag_is_parsed(arguments: dict[str, Any]) -> None:
    """These are no templates: an import error beats a failed run."""
    with pytest.raises(InvalidRequest):
        GenerateVideoOperator(task_id="clip", model=HAILUO, s3_key="s3://b/k", **arguments)


# A key that is taken.


def test_the_clip_of_the_same_request_is_reused(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """A second run of the same request finds its clip in place and calls nobody."""
    gateway.serve_clip(MP4)
    arguments: dict[str, Any] = {"model": VEO, "prompt": "p", "s3_bucket": bucket, "s3_key": "x.mp4"}
    first_key, first = execute("one", **arguments)
    second_key, second = execute("two", **arguments)
    assert first_key == second_key
    assert second == {
        **first,
        "sha256": None,
        "reused": True,
        "renders_bought_here": 0,
        "render_seconds": round(first["render_seconds"], 3),
    }
    assert len(gateway.ledger) == 1


def test_the_clip_of_another_request_is_not_reused(gateway: Emulator, s3: S3Client, bucket: str) -> None:
    """Another prompt at the same key is an error, before any call."""
    gateway.serve_clip(MP4)
    execute(model=VEO, prompt="p", s3_bucket=bucket, s3_key="x.mp4")
    with pytest.raises(InvalidTarget, match="the clip of another request"):
        execute("two", model=VEO, prompt="q", s3_bucket=bucket, s3_key="x.mp4")
    assert len(gateway.ledger) == 1
    assert keys(s3, bucket) == ["x.mp4"]


@pytest.mark.parametrize(
    ("fault", "bought"), [(Fault.reset_after(), Bought.PERHAPS), (ClipFault.html(), Bought.YES)]
)
def test_a_retry_that_fails_before_the_purchase_says_what_was_bought_before(
    fault: Any, bought: Bought, gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it fails of. Where the ledger cannot be read either, it says that it is not known."""
    gateway.fail_next(fault, times=9)
    operator = GenerateVideoOperator(
        task_id="clip", model=VEO, prompt="p", s3_bucket=bucket, s3_key="x.mp4", deferrable=False
    )
    instance = SimpleNamespace(
        dag_id="d", task_id="clip", run_id="r", map_index=-1, try_number=1, xcom_push=lambda key, value: None
    )
    context: Any = {"ti": instance}
    with pytest.raises(CodeGatewayError):
        operator.execute(context)
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", "codegateway://:@gateway")
    for number, said in ((1, Bought.NO), (2, bought)):
        instance.try_number = number
        with pytest.raises(InvalidConnection) as error:
            operator.execute(context)
        assert error.value.bought is said
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://?endpoint_url=http%3A%2F%2F127.0.0.1%3A1")
    with pytest.raises(InvalidConnection) as error:
        operator.execute(context)
    assert error.value.bought is Bought.PERHAPS


def test_replace_renders_anew_on_a_new_run_and_never_on_a_retry(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """The same run gets the clip that it has paid for; the next run gets a new one."""
    gateway.serve_clip(MP4)
    arguments: dict[str, Any] = {
        "model": VEO,
        "prompt": "p",
        "s3_bucket": bucket,
        "s3_key": "x.mp4",
        "if_exists": "replace",
    }
    assert not execute("one", **arguments)[1]["reused"]
    assert execute("one", **arguments)[1]["reused"]
    gateway.serve_clip(MP4 + b"new")
    assert not execute("two", **arguments)[1]["reused"]
    assert gateway.billed == 2
    assert s3.get_object(Bucket=bucket, Key="x.mp4")["Body"].read() == MP4 + b"new"


def test_fail_does_not_fail_the_retry_of_the_run_that_stored_the_clip(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """``if_exists="fail"`` is about other people's objects."""
    gateway.serve_clip(MP4)
    arguments: dict[str, Any] = {
        "model": VEO,
        "prompt": "p",
        "s3_bucket": bucket,
        "s3_key": "x.mp4",
        "if_exists": "fail",
    }
    execute("one", **arguments)
    assert execute("one", **arguments)[1]["reused"]
    with pytest.raises(InvalidTarget):
        execute("two", **arguments)


# When something fails.


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.status(400), RequestRejected),
        (Fault.status(401), RequestRejected),
        (Fault.status(403), RequestRejected),
        (Fault.status(429, retry_after=100), GatewayUnavailable),
        (Fault.status(503, retry_after=100), GatewayUnavailable),
    ],
    ids=lambda value: str(getattr(value, "code", "")),
)
def test_a_failure_that_bought_nothing_leaves_no_trace_and_does_not_count(
    fault: Fault, error: type[CodeGatewayError], gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """As often as it happens, the next try still has all of ``max_renders``."""
    gateway.serve_clip(MP4)
    arguments: dict[str, Any] = {
        "model": VEO,
        "prompt": "p",
        "s3_bucket": bucket,
        "s3_key": "x.mp4",
        "max_renders": 1,
    }
    gateway.fail_next(fault, times=2)
    for _ in range(2):
        with pytest.raises(error):
            execute(**arguments)
        assert is_untouched(s3, bucket)
    assert execute(**arguments)[1]["renders_bought"] == 1
    assert gateway.billed == 1


def test_an_unknown_outcome_fails_the_try_and_the_next_one_buys_within_the_limit(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """One try buys at most once; after ``max_renders`` nobody buys, and the message says what is known."""
    gateway.serve_clip(MP4)
    arguments: dict[str, Any] = {"model": VEO, "prompt": "p", "s3_bucket": bucket, "s3_key": "x.mp4"}
    gateway.fail_next(Fault.reset_after(), times=2)
    for _ in range(2):
        with pytest.raises(RenderOutcomeUnknown):
            execute(**arguments)
    with pytest.raises(RenderLimitReached) as limit:
        execute(**arguments)
    assert gateway.billed == 2
    for words in (
        "max_renders=2 is used up",
        "Render 1, started 20",
        "Render 2, started",
        "delete the ledger entry",
    ):
        assert words in str(limit.value)
    assert execute(**arguments, max_renders=3)[1]["renders_bought"] == 3
    assert keys(s3, bucket) == ["x.mp4"]


def test_a_clip_that_cannot_be_fetched_now_is_fetched_later_for_free(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """The receipt is kept: a retry costs a download and no render."""
    arguments: dict[str, Any] = {
        "model": VEO,
        "prompt": "p",
        "s3_bucket": bucket,
        "s3_key": "x.mp4",
        "max_renders": 1,
    }
    gateway.fail_next(ClipFault.html())
    with pytest.raises(ClipTransferError) as failure:
        execute(**arguments)
    assert str(failure.value).endswith(Bought.YES.value)
    assert "x.mp4" not in keys(s3, bucket)
    assert not execute(**arguments)[1]["reused"]
    assert gateway.billed == 1
    assert keys(s3, bucket) == ["x.mp4"]


def test_a_link_that_expired_is_rendered_again_within_the_limit(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """What was bought here fails the try; the next one buys the second render, and a third is not bought."""
    gateway.serve_clip(MP4)
    gateway.link_lifetime = 0
    arguments: dict[str, Any] = {"model": VEO, "prompt": "p", "s3_bucket": bucket, "s3_key": "x.mp4"}
    for _ in range(2):
        with pytest.raises(ClipExpired):
            execute(**arguments)
    with pytest.raises(RenderLimitReached, match="was bought and is lost"):
        execute(**arguments)
    assert gateway.billed == 2


def test_a_changed_prompt_after_a_paid_render_is_reported_with_what_was_paid_for(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """A paid clip that waits in the ledger is not silently given up for another request."""
    gateway.serve_clip(MP4)
    gateway.fail_next(ClipFault.html())
    arguments: dict[str, Any] = {"model": VEO, "s3_bucket": bucket, "s3_key": "x.mp4"}
    with pytest.raises(ClipTransferError):
        execute(prompt="p", **arguments)
    with pytest.raises(LedgerConflict, match=r"Render 1, started 20.*was bought and is not delivered"):
        execute(prompt="q", **arguments)
    execute(prompt="p", **arguments)
    assert gateway.billed == 1


@pytest.mark.parametrize("deferrable", ["blocking"], indirect=True)
def test_a_killed_render_is_closed_and_said_to_be_billed_perhaps(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """``on_kill`` ends the call at once; the ledger knows, and the next try need not wait."""
    gateway.serve_clip(MP4)
    gateway.render_seconds = 1
    operator = GenerateVideoOperator(
        task_id="clip", model=VEO, prompt="p", s3_bucket=bucket, s3_key="x.mp4", max_renders=2
    )
    instance = SimpleNamespace(dag_id="d", task_id="clip", run_id="run", map_index=-1)

    def kill() -> None:
        gateway.wait_for(rendering=1)
        operator.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RenderOutcomeUnknown, match="stopped") as stopped:
        operator.execute({"ti": instance})  # type: ignore[typeddict-item]
    killer.join()
    assert str(stopped.value).endswith(Bought.PERHAPS.value)
    gateway.wait_for(hung_up=1)
    gateway.render_seconds = 0
    assert execute(model=VEO, prompt="p", s3_bucket=bucket, s3_key="x.mp4")[1]["renders_bought"] == 2


# Secrets.


SECRET_QUERY = "X-Amz-Signature=5ecre7516na7ure"


@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault.status(400, body={"error": f"echo of https://x.example.com/?{SECRET_QUERY}"}),
        Fault.status(401),
        Fault.status(500),
        Fault.reset_after(),
        Fault.no_url("error"),
        Fault.early_expiry(0),
        ClipFault.html(),
        ClipFault.status(500),
        ClipFault.status(403),
        ClipFault.redirect("http://127.0.0.1:9/clip.mp4?" + SECRET_QUERY),
    ],
    ids=lambda fault: "success" if fault is None else f"{type(fault).__name__}-{fault.kind}-{fault.code}",
)
def test_no_key_query_or_image_is_in_any_log_xcom_template_or_metadata(
    fault: Fault | ClipFault | None,
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever happens, in everything that a person or a backend can read afterwards."""
    gateway.serve_clip(MP4)
    if fault is not None:
        gateway.fail_next(fault, times=20)
    image = png_base64()
    result = run(
        model=SEEDANCE,
        prompt="p",
        image=f"data:image/png;base64,{image}",
        parameters={
            "last_frame_image": f"https://cdn.example.com/a.png?{SECRET_QUERY}",
            "reference_images": [image],
        },
        s3_bucket=bucket,
        s3_key="x.mp4",
    )
    assert result.state == ("success" if fault is None else "failed")
    output = capfd.readouterr()
    metadata = [s3.head_object(Bucket=bucket, Key=key)["Metadata"] for key in keys(s3, bucket)]
    everything = "\n".join([output.out, output.err, caplog.text, repr(result), json.dumps(metadata)])
    assert "one_clip" in everything
    for secret in (gateway.api_key, "Signature=", "5ecre7516na7ure", image[:24], image[-24:]):
        assert secret not in everything


def test_mapped_parameters_are_no_template(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An XCom that is expanded over is data, whatever it looks like."""
    with Emulator(port=0, extra_models=("acme/next",)) as gateway:
        gateway.serve_clip(MP4)
        connection = {"conn_type": "codegateway", "host": gateway.url, "password": gateway.api_key}
        monkeypatch.setenv("AIRFLOW_CONN_NEXT", json.dumps(connection))
        with DAG("one_clip", schedule=None) as dag:

            @task
            def parameters() -> list[dict[str, Any]]:
                return [{"words": ["{{ conn.codegateway_default.password }}"]}]

            GenerateVideoOperator.partial(
                task_id="clip",
                model="acme/next",
                prompt="{{ dag.dag_id }}",
                s3_bucket=bucket,
                s3_key="x.mp4",
                codegateway_conn_id="next",
            ).expand(parameters=parameters())
        assert run_dag(dag).state == "success"
        assert gateway.ledger[0].request["words"] == ["{{ conn.codegateway_default.password }}"]
        assert gateway.ledger[0].prompt == "one_clip"


def test_multiple_outputs_are_refused_when_the_dag_is_parsed() -> None:
    """Airflow would fail the task after the purchase, on every try."""
    with pytest.raises(InvalidRequest, match="multiple_outputs=True"):
        task.generate_video(model=VEO, multiple_outputs=True)(str)
    with pytest.raises(InvalidRequest, match="multiple_outputs=True"):
        GenerateVideoOperator(task_id="clip", model=VEO, prompt="p", s3_key="s3://b/k", multiple_outputs=True)


def test_a_missing_bucket_is_refused_for_free_though_the_ledger_is_elsewhere(
    gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Writing the ledger proves its own bucket only."""
    result = run(
        model=VEO, prompt="p", s3_key="s3://no-such-bucket/x.mp4", ledger_prefix=f"s3://{bucket}/ledger"
    )
    assert result.state == "failed"
    assert gateway.ledger == ()
    assert keys(s3, bucket) == []


@pytest.mark.parametrize(
    "fault",
    [
        None,  # the gateway is not reached
        Fault.status(401),
        Fault.status(500),
        ClipFault.status(403),
        ClipFault.redirect("http://127.0.0.1:9/clip.mp4?" + SECRET_QUERY),
    ],
)
def test_local_variables_of_a_failure_show_no_key_query_or_image(
    fault: Fault | ClipFault | None, gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Error trackers report them, and so does ``airflow dags test`` of Airflow 3.0."""
    gateway.serve_clip(MP4)
    if fault is None:
        nobody = {"conn_type": "codegateway", "host": "http://127.0.0.1:9", "password": gateway.api_key}
        monkeypatch.setenv(
            "AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps({**nobody, "extra": {"retries": 0}})
        )
    else:
        gateway.fail_next(fault, times=20)
    image = png_base64()
    operator = GenerateVideoOperator(
        task_id="clip",
        model=SEEDANCE,
        prompt="p",
        image=f"https://cdn.example.com/a.png?{SECRET_QUERY}",
        parameters={"last_frame_image": image, "reference_images": [image]},
        s3_bucket=bucket,
        s3_key="x.mp4",
        deferrable=False,
    )
    context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="clip", run_id="r", map_index=-1)}
    with pytest.raises(CodeGatewayError) as failed:
        operator.execute(context)
    report = TracebackException.from_exception(failed.value, capture_locals=True)
    ours = "".join(
        f"{frame.name} {frame.locals}"
        for part in (report, report.__cause__, report.__context__)
        for frame in (part.stack if part else [])
        if "airflow_provider_codegateway" in frame.filename
    )
    if isinstance(failed.value, AirflowFailException):
        assert ours == ""  # the message says it all
    else:
        assert "_run {" in ours
        assert "a.png" in ours
    for secret in (gateway.api_key, "Signature=", "5ecre7516na7ure", image[:24], image[-24:]):
        assert secret not in ours
