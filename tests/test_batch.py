"""A batch: rows checked whole, rendered side by side, each in the manifest. Against the emulator and a real S3."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import batch_runner
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, AssetAlias, TaskDeferred, task
from airflow_run import execute_in_a_thread, run_dag
from batch_runner import HASTY
from media_samples import mp4, png
from s3_proxy import S3Proxy, S3Request, Verdict

from airflow_provider_codegateway.batch import LineFile, store_rows
from airflow_provider_codegateway.clip import MADE_BY, S3Location, TaskRun
from airflow_provider_codegateway.decorators.videos import generate_videos_task
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    BatchIncomplete,
    BatchRefused,
    Bought,
    BudgetExceeded,
    InvalidConnection,
    InvalidRequest,
    InvalidTarget,
    RenderOutcomeUnknown,
)
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.operators.videos import GenerateVideosOperator
from airflow_provider_codegateway.triggers import base as triggers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
MP4 = mp4()

pytestmark = pytest.mark.usefixtures("airflow_database", "connections", "no_pauses")


@pytest.fixture(autouse=True)
def clip(gateway: Emulator) -> None:
    gateway.serve_clip(MP4)


@pytest.fixture(params=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """The same code in both modes."""
    return bool(request.param == "deferrable")


def rows(count: int, **further: Any) -> list[dict[str, Any]]:
    return [{"id": f"sku-{number}", "prompt": f"p {number}", **further} for number in range(count)]


class Run:
    """A task instance of a batch, which may be cleared."""

    def __init__(self, s3: S3Client, bucket: str, run_id: str = "run") -> None:
        self.s3 = s3
        self.bucket = bucket
        self.pushed: dict[str, Any] = {}
        self.context: Any = {
            "ti": SimpleNamespace(
                dag_id="d",
                task_id="batch",
                run_id=run_id,
                map_index=-1,
                xcom_push=lambda key, value: self.pushed.update({key: value}),
            )
        }

    def operator(self, requests: Any, **arguments: Any) -> GenerateVideosOperator:
        defaults: dict[str, Any] = {
            "model": SEEDANCE,
            "duration": 4,
            "s3_bucket": self.bucket,
            "s3_key": "clips/{id}.mp4",
            "result_path": f"s3://{self.bucket}/result/",
        }
        return GenerateVideosOperator(task_id="batch", requests=requests, **{**defaults, **arguments})

    def execute(self, requests: Any, **arguments: Any) -> str:
        """Without a scheduler around it, to see the exception as it is raised."""
        operator = self.operator(requests, **arguments)
        try:
            return operator.execute(self.context)
        except TaskDeferred as deferred:
            event = asyncio.run(first_event(deferred.trigger))
            return getattr(operator, deferred.method_name)(self.context, event)  # type: ignore[no-any-return]

    @property
    def summary(self) -> dict[str, Any]:
        return self.pushed["batch"]  # type: ignore[no-any-return]

    @property
    def counts(self) -> dict[str, int]:
        """Those that are not 0."""
        names = ("stored", "reused", "refused", "failed", "unknown", "not_begun")
        return {name: self.summary[name] for name in names if self.summary[name]}

    def manifest(self) -> list[dict[str, Any]]:
        """The manifest, which has one row a request, in their order."""
        body = self.s3.get_object(Bucket=self.bucket, Key="result/manifest.jsonl")["Body"].read()
        lines = [json.loads(line) for line in body.splitlines()]
        assert [line["index"] for line in lines] == list(range(len(lines)))
        for line in lines:
            assert set(line) == {
                *("index", "id", "status", "uri", "model", "cost", "renders_bought", "facts", "error")
            }
        return lines

    def clips(self) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="clips/").get("Contents", [])
        return [item["Key"].removeprefix("clips/") for item in found]

    def ledger(self) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="_codegateway/").get("Contents", [])
        return [item["Key"] for item in found]


@pytest.fixture
def run(s3: S3Client, bucket: str) -> Run:
    return Run(s3, bucket)


async def first_event(trigger: Any) -> Any:
    """What a triggerer would bring back: through the database, by another process."""
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    events = [event.payload async for event in pkgutil.resolve_name(path)(**arguments).run()]
    assert len(events) == 1
    return json.loads(json.dumps(events[0]))


def statuses(manifest: list[dict[str, Any]]) -> Counter[str]:
    return Counter(line["status"] for line in manifest)


# The main job.


def test_a_list_becomes_clips_and_a_manifest(run: Run, gateway: Emulator, deferrable: bool) -> None:
    """One clip for each row, one line of the manifest for each row, small XComs, and nothing left in the ledger."""
    uri = run.execute(rows(5), deferrable=deferrable, max_active=3)
    assert uri == f"s3://{run.bucket}/result/manifest.jsonl"
    assert run.clips() == [f"sku-{number}.mp4" for number in range(5)]
    assert run.counts == {"stored": 5}
    assert run.summary["manifest"] == uri
    assert run.summary["renders_bought"] == gateway.billed == 5
    assert run.ledger() == []
    line = run.manifest()[3]
    assert line["id"] == "sku-3"
    assert line["status"] == "stored"
    assert line["uri"] == f"s3://{run.bucket}/clips/sku-3.mp4"
    assert (line["model"], line["renders_bought"], line["error"]) == (SEEDANCE, 1, None)
    assert {render.prompt for render in gateway.ledger} == {f"p {number}" for number in range(5)}


def test_rows_come_from_jsonl_and_csv_in_s3(run: Run, s3: S3Client, gateway: Emulator) -> None:
    """The same rows in three forms make the same clips: the second and third time for free."""
    listed: list[dict[str, Any]] = [
        {"id": "1", "prompt": "a, b", "model": VEO, "duration": 4, "generate_audio": True},
        {"id": "2", "prompt": 'with "quotes"\nand lines', "parameters": {"camera_fixed": True}},
        {"id": "3", "model": HAILUO, "prompt": "ü", "duration": 6, "resolution": None},
    ]
    run.execute(listed)
    assert gateway.billed == 3
    s3.put_object(
        Bucket=run.bucket, Key="rows.jsonl", Body="\n\n".join(map(json.dumps, listed)).encode("utf-8-sig")
    )
    text = io.StringIO()
    fields = ("id", "prompt", "model", "duration", "generate_audio", "parameters", "resolution")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    for row in listed:
        cells = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}
        writer.writerow(cells)
    s3.put_object(Bucket=run.bucket, Key="rows.csv", Body=text.getvalue().encode())
    for name in ("rows.jsonl", "rows.csv"):
        other = Run(s3, run.bucket, run_id=name)
        other.execute(f"s3://{run.bucket}/{name}")
        assert other.counts == {"reused": 3}
        assert other.summary["renders_bought"] == 0
    assert gateway.billed == 3


def test_airflow_runs_it_with_rows_of_an_upstream_task(
    s3: S3Client, bucket: str, gateway: Emulator, deferrable: bool
) -> None:
    """Braces in a prompt are data; the folder and the defaults are templates; outputs of tasks are put in."""
    with DAG("a_batch", schedule=None) as dag:

        @task
        def catalogue() -> list[dict[str, Any]]:
            return [{"id": 1, "prompt": "{{ 6 * 7 }} {% boats %}"}, {"id": 2, "prompt": "two"}]

        @task
        def shape() -> str:
            return "9:16"

        common: Any = {"s3_bucket": bucket, "model": SEEDANCE, "deferrable": deferrable}
        GenerateVideosOperator(
            task_id="upstream",
            requests=catalogue(),
            result_path=f"s3://{bucket}/" + "{{ dag.dag_id }}/1",
            s3_key="{{ dag.dag_id }}/{id}.mp4",
            **common,
        )
        GenerateVideosOperator(
            task_id="literal",
            requests=[{"prompt": "{{ 1 }}", "s3_key": "3.mp4", "aspect_ratio": shape()}],
            result_path=f"s3://{bucket}/2",
            **common,
        )
    result = run_dag(dag)
    assert result.state == "success"
    keys = {item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert {"a_batch/1.mp4", "a_batch/2.mp4", "3.mp4", "a_batch/1/manifest.jsonl"} <= keys
    assert {render.prompt for render in gateway.ledger} == {"{{ 6 * 7 }} {% boats %}", "two", "{{ 1 }}"}
    assert {render.request.get("aspect_ratio") for render in gateway.ledger} == {None, "9:16"}
    assert result["upstream"].xcoms["batch"]["stored"] == 2


def test_a_function_returns_the_rows(s3: S3Client, bucket: str, gateway: Emulator, deferrable: bool) -> None:
    """``@task.generate_videos``: braces in what it returns are data."""
    with DAG("decorated", schedule=None) as dag:

        @task
        def names() -> list[str]:
            return ["a", "b"]

        @task.generate_videos(
            model="bytedance/seedance-2.0",
            s3_bucket=bucket,
            s3_key="{id}.mp4",
            result_path=f"s3://{bucket}/result/",
            deferrable=deferrable,
        )
        def render(listed: list[str]) -> list[dict[str, Any]]:
            return [{"id": name, "prompt": f"{{{{ {name} }}}}"} for name in listed]

        listed: Any = names()
        render(listed)
    result = run_dag(dag)
    assert result.state == "success"
    assert {render.prompt for render in gateway.ledger} == {"{{ a }}", "{{ b }}"}
    assert result["render"].xcoms["return_value"] == f"s3://{bucket}/result/manifest.jsonl"
    assert result["render"].xcoms["batch"]["stored"] == 2


@pytest.mark.parametrize("returned", [None, 3, {"prompt": "p"}])
def test_a_function_that_returns_no_rows_is_refused(returned: Any, run: Run) -> None:
    """With what it should return."""
    with DAG("decorated", schedule=None):

        @generate_videos_task(result_path=f"s3://{run.bucket}/result/")
        def render() -> Any:
            return returned

        made: Any = render()
    operator = made.operator
    with pytest.raises(InvalidRequest, match="Return a list of dicts"):
        operator.execute(run.context)


def test_shards_of_a_catalogue_are_mapped(s3: S3Client, bucket: str, gateway: Emulator) -> None:
    """Each shard is a batch of its own, with a manifest of its own."""
    with DAG("shards", schedule=None) as dag:

        @task
        def shards() -> list[list[dict[str, Any]]]:
            return [[{"id": 1, "prompt": "{{ 1 }}"}, {"id": 2, "prompt": "b"}], [{"id": 3, "prompt": "c"}]]

        GenerateVideosOperator.partial(
            task_id="render",
            model=SEEDANCE,
            s3_bucket=bucket,
            s3_key="{id}.mp4",
            result_path=f"s3://{bucket}/" + "{{ ti.map_index }}/",
        ).expand(requests=shards())
    result = run_dag(dag)
    assert result.state == "success"
    assert [result.tasks["render", index].xcoms["batch"]["stored"] for index in (0, 1)] == [2, 1]
    keys = {item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert {"1.mp4", "2.mp4", "3.mp4", "0/manifest.jsonl", "1/manifest.jsonl"} <= keys
    assert {render.prompt for render in gateway.ledger} == {"{{ 1 }}", "b", "c"}


def test_the_trigger_has_few_and_harmless_arguments(run: Run) -> None:
    """However many rows there are: no prompt, link or image lies in Airflow's database."""
    secret = "https://media.example/x.png?X-Amz-Signature=abc"
    operator = run.operator(rows(200, image=secret), deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(run.context)
    arguments = json.dumps(deferred.value.trigger.serialize()) + json.dumps(deferred.value.kwargs)
    assert len(arguments) < 1500
    assert "p 1" not in arguments
    assert "Signature" not in arguments
    assert "Signature" not in repr(operator.requests)


# Checked whole.


def test_every_bad_row_is_named_and_nothing_is_bought(run: Run, gateway: Emulator, s3: S3Client) -> None:
    """With its number, id, field, and what would be right."""
    s3.put_object(Bucket=run.bucket, Key="text.png", Body=b"no image")
    listed = [
        {"id": "good", "prompt": "p"},
        {"id": "a", "prompt": "p", "duration": 5, "model": VEO},
        {"id": "b", "prompt": "nan"},
        {"id": "c"},
        {"id": "good", "prompt": "p", "s3_key": "other.mp4"},
        {"id": "d", "prompt": "p", "s3_key": "clips/good.mp4"},
        {"prompt": "p"},
        {"id": "e", "prompt": "p", "durration": 4},
        {"id": "f", "prompt": "p", "image": f"s3://{run.bucket}/text.png"},
        {"id": "g", "prompt": "p", "image": "file:///x.png"},
        {"id": "h", "prompt": "p", "max_renders": 0, "if_exists": "maybe", "max_cost": 0.5},
        {"id": "i", "prompt": "p", "s3_extra_args": {"Body": "x"}},
        {"id": "j", "prompt": "p", "parameters": "x"},
        {"id": "k", "prompt": "p", "seed": {1, 2}},
        "a row",
    ]
    with pytest.raises(InvalidRequest) as refused:
        run.execute(listed)
    text = str(refused.value)
    for words in (
        "Row 2 (id 'a'): google/veo-3.1-fast does not support duration=5. Use 4, 6 or 8.",
        "Row 3 (id 'b'): prompt='nan' describes no video.",
        "Row 4 (id 'c'): prompt is required",
        "Row 5 (id 'good'): id='good' is that of row 1, too.",
        f"Row 6 (id 'd'): s3_key: s3://{run.bucket}/clips/good.mp4 is the key of row 1, too.",
        "Row 7: s3_key='clips/{id}.mp4' uses {id}, and the row has no id.",
        "Row 8 (id 'e'): 'durration' is not a field of a row. Did you mean 'duration'?",
        f"Row 9 (id 'f'): image of bytedance/seedance-2.0: s3://{run.bucket}/text.png is of no known format",
        "Row 10 (id 'g'): image of bytedance/seedance-2.0: file:///x.png is on one machine",
        "Row 11 (id 'h'): max_renders must be an integer of 1 or more, not 0.",
        "Row 11 (id 'h'): if_exists='maybe' is not supported.",
        "Row 11 (id 'h'): max_cost is 0.5, not a string.",
        "Row 12 (id 'i'): s3_extra_args has Body",
        "Row 13 (id 'j'): parameters must be an object of names and values, not str.",
        "Row 14 (id 'k'): it has a value that JSON cannot hold",
        "Row 15: it is str, not an object",
    ):
        assert words in text, text
    assert "Row 1 " not in text
    assert text.endswith("Nothing was bought.")
    assert gateway.ledger == ()
    assert run.clips() == []


def test_invalid_rows_are_skipped_on_request(run: Run, gateway: Emulator) -> None:
    """27 of 30 rows are rendered, and the manifest says why three are not."""
    listed = rows(30)
    for number in (3, 14, 29):
        listed[number]["duration"] = 99
    with pytest.raises(InvalidRequest, match="3 problems"):
        run.execute(listed)
    assert gateway.billed == 0
    run.execute(listed, skip_invalid=True)
    assert run.counts == {"stored": 27, "refused": 3}
    assert gateway.billed == 27
    refused = [line for line in run.manifest() if line["status"] == "refused"]
    assert [line["index"] for line in refused] == [3, 14, 29]
    assert all("does not support duration=99" in line["error"]["message"] for line in refused)
    assert {line["error"]["bought"] for line in refused} == {"NO"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"requests": 3}, "requests must be a list of dicts"),
        ({"requests": "rows.csv"}, "is not the s3:// URI of a .jsonl or .csv object"),
        ({"requests": "s3://{bucket}/none.csv"}, "does not exist"),
        ({"result_path": "result"}, "result_path='result' is not a folder in S3"),
        ({"max_active": 0}, "max_active must be an integer of 1 or more, not 0."),
        ({"tolerated_failures": "many"}, "tolerated_failures='many' is not supported"),
        ({"tolerated_failures": 1.5}, "tolerated_failures=1.5 is not supported"),
        ({"s3_key": "{id.__class__}.mp4"}, "Use plain field names in braces"),
        ({"s3_key": "{id!r}.mp4"}, "Use plain field names in braces"),
        ({"s3_key": "{id"}, "is not a template"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], words: str, run: Run, gateway: Emulator
) -> None:
    """Before anything is bought."""
    requests = arguments.pop("requests", rows(1))
    if isinstance(requests, str):
        requests = requests.replace("{bucket}", run.bucket)
    with pytest.raises(InvalidRequest) as refused:
        run.execute(requests, **arguments)
    assert words in str(refused.value)
    assert gateway.ledger == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"prompt": "p"\n', "Row 1: it is not JSON"),
        ("x.jsonl", b"\xff\xfe{}", "is not UTF-8"),
        ("x.csv", b"id,prompt\n1,a,b\n", "Row 1: it has more cells than the header"),
        ("x.csv", b"id,prompt\n1,\n", "Row 1 (id '1'): prompt is required"),
    ],
)
def test_files_that_are_not_rows_are_refused(
    name: str, content: bytes, words: str, run: Run, s3: S3Client
) -> None:
    """With the row, or the file, that is wrong."""
    s3.put_object(Bucket=run.bucket, Key=name, Body=content)
    with pytest.raises(InvalidRequest) as refused:
        run.execute(f"s3://{run.bucket}/{name}")
    assert words in str(refused.value)


def test_each_image_is_looked_at_once_and_sent(run: Run, s3: S3Client, gateway: Emulator) -> None:
    """Rows may share an image in S3; each render gets its bytes."""
    s3.put_object(Bucket=run.bucket, Key="in.png", Body=png())
    run.execute(rows(3, image=f"s3://{run.bucket}/in.png"), model=VEO)
    assert all("image_input" in render.request for render in gateway.ledger)
    assert gateway.billed == 3


def test_an_empty_list_makes_an_empty_manifest(run: Run) -> None:
    """A catalogue without news is no failure."""
    run.execute([])
    assert run.manifest() == []
    assert run.counts == {}


# Failures.


def test_more_failures_than_tolerated_fail_the_task_after_the_manifest(
    run: Run, gateway: Emulator, deferrable: bool
) -> None:
    """The message has counts, the first errors and the manifest; what was rendered is stored."""
    gateway.fail_next(Fault.status(400), times=2)
    with pytest.raises(BatchRefused) as refused:
        run.execute(rows(6), deferrable=deferrable, max_active=1)
    assert "2 of 6 rows have no clip (4 stored, 2 refused). tolerated_failures=0 allows fewer." in str(
        refused.value
    )
    assert "Row 1 (id 'sku-0'): RequestRejected: The gateway answered 400" in str(refused.value)
    assert str(refused.value).endswith("4 renders were bought.")
    assert statuses(run.manifest()) == {"stored": 4, "refused": 2}
    assert len(run.clips()) == gateway.billed == 4


@pytest.mark.parametrize("tolerated", [2, "2", "34%", 0.34])
def test_tolerated_failures_do_not_fail_the_task(tolerated: Any, run: Run, gateway: Emulator) -> None:
    """As a number or as a share of the rows."""
    gateway.fail_next(Fault.status(422), times=2)
    run.execute(rows(6), tolerated_failures=tolerated)
    assert run.counts == {"stored": 4, "refused": 2}


def test_clearing_a_batch_that_succeeded_buys_nothing(run: Run, gateway: Emulator, deferrable: bool) -> None:
    """Its clips are found, and still count as those of this run."""
    run.execute(rows(4), deferrable=deferrable)
    first = run.manifest()
    run.execute(rows(4), deferrable=deferrable)
    assert gateway.billed == 4
    assert run.counts == {"stored": 4}
    assert run.manifest() == first


def test_clearing_a_batch_in_which_some_failed_buys_only_those(run: Run, gateway: Emulator) -> None:
    """Two of twenty, whatever they failed of."""
    gateway.fail_next(Fault.reset_after())
    gateway.fail_next(Fault.status(500))
    with pytest.raises(BatchIncomplete) as incomplete:
        run.execute(rows(20))
    assert not isinstance(incomplete.value, BatchRefused)
    assert incomplete.value.bought is Bought.PERHAPS
    assert run.counts == {"stored": 18, "unknown": 2}
    before = len(gateway.ledger)
    run.execute(rows(20))
    assert run.counts == {"stored": 20}
    assert len(gateway.ledger) == before + 2


def test_a_paid_clip_is_fetched_again_within_the_batch(run: Run, gateway: Emulator) -> None:
    """A download that breaks costs no render, and no failure."""
    gateway.fail_next(ClipFault.html())
    run.execute(rows(2), max_active=1)
    assert run.counts == {"stored": 2}
    assert gateway.billed == 2


def test_links_over_http_are_allowed_by_the_connection(
    run: Run, gateway: Emulator, s3: S3Client, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway behind https that links to http, allowed as for a single clip."""
    gateway.fail_next(ClipFault.html(), times=None)
    with pytest.raises(BatchIncomplete):
        run.execute(rows(1))
    gateway.clear_faults()
    at = {"Bucket": bucket, "Key": "_codegateway/clips/sku-0.mp4/1.rendered"}
    marker = json.loads(s3.get_object(**at)["Body"].read())  # type: ignore[arg-type]
    marker["answer"]["is_secure"] = True
    s3.put_object(**at, Body=json.dumps(marker).encode())  # type: ignore[arg-type]
    with pytest.raises(BatchIncomplete, match=r'set \{"http_links": "allow"\}'):
        run.execute(rows(1))
    set_extra(monkeypatch, gateway, http_links="allow")
    run.execute(rows(1))
    assert run.counts == {"stored": 1}
    assert gateway.billed == 1


def test_a_requester_pays_for_everything_that_a_batch_reads_and_writes(
    run: Run, s3: S3Client, bucket: str, paying: str, deferrable: bool
) -> None:
    """Rows, images, clips and manifest: a requester-pays bucket refuses each request that does not say so."""
    s3.put_object(Bucket=bucket, Key="in/frame.png", Body=png())
    listed = "".join(json.dumps({**each, "image": f"s3://{bucket}/in/frame.png"}) + "\n" for each in rows(2))
    s3.put_object(Bucket=bucket, Key="in/rows.jsonl", Body=listed.encode())
    run.execute(
        f"s3://{bucket}/in/rows.jsonl",
        aws_conn_id=paying,
        s3_extra_args={"RequestPayer": "requester"},
        deferrable=deferrable,
    )
    assert run.counts == {"stored": 2}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_batch(status: int, run: Run, gateway: Emulator) -> None:
    """Every other row would be refused, too: what was not begun says why."""
    gateway.fail_next(Fault.status(status), times=None)
    with pytest.raises(BatchRefused) as refused:
        run.execute(rows(10), max_active=2)
    assert f"No more rows were begun: The gateway answered {status}" in str(refused.value)
    assert str(refused.value).endswith("Nothing was bought.")
    assert len(gateway.ledger) <= 2
    found = statuses(run.manifest())
    assert found["refused"] in (1, 2)
    assert found["not_begun"] == 10 - found["refused"]
    assert run.manifest()[-1]["error"]["message"].startswith(f"Not begun: The gateway answered {status}")


def test_never_more_are_under_way_than_max_active(run: Run, gateway: Emulator) -> None:
    """Not even while rows fail and others take their place."""
    gateway.render_seconds = 0.05
    gateway.fail_next(Fault.status(400), times=5)
    run.execute(rows(24), max_active=4, tolerated_failures=5)
    spans = [
        (render.received_at, render.billed_at) for render in gateway.ledger if render.billed_at is not None
    ]
    starts = [(start, +1) for start, _ in spans]
    changes = sorted([*starts, *((end, -1) for _, end in spans)])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    assert most <= 4
    assert run.counts == {"stored": 19, "refused": 5}


def test_a_rate_limit_is_waited_for_once_by_all(run: Run, gateway: Emulator) -> None:
    """Rows that were told to come back later are rendered in the end, and none is lost."""
    gateway.fail_next(Fault.status(429), times=6)
    run.execute(rows(8), max_active=8)
    assert run.counts == {"stored": 8}
    assert gateway.billed == 8


def set_extra(monkeypatch: pytest.MonkeyPatch, gateway: Emulator, **extra: Any) -> None:
    connection = {
        "conn_type": "codegateway",
        "host": gateway.url,
        "password": gateway.api_key,
        "extra": extra,
    }
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))


def test_a_gateway_that_stays_away_ends_the_batch(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some patience; nothing was bought, and Airflow may retry."""
    set_extra(monkeypatch, gateway, retries=0, deadline=1)
    with gateway.down(), pytest.raises(BatchIncomplete) as incomplete:
        run.execute(rows(5), max_active=2)
    assert not isinstance(incomplete.value, BatchRefused)
    assert incomplete.value.bought is Bought.NO
    found = statuses(run.manifest())
    assert found["failed"] + found["not_begun"] == 5
    assert run.ledger() == []


def test_a_row_may_have_fallbacks(run: Run, gateway: Emulator) -> None:
    """One model is down: its rows are rendered by the next one, and the manifest says by which."""
    gateway.fail_next(Fault.status(503), times=None, model=SEEDANCE)
    run.execute([*rows(2, fallbacks=[VEO]), {"id": "x", "model": HAILUO}])
    assert [line["model"] for line in run.manifest()] == [VEO, VEO, HAILUO]
    assert run.counts == {"stored": 3}
    assert gateway.billed == 3


def test_a_clip_that_is_not_what_was_asked_for_is_kept_and_may_fail_its_row(
    run: Run, gateway: Emulator
) -> None:
    """It is never bought again by itself."""
    listed = [{"id": "a", "prompt": "p", "aspect_ratio": "9:16", "on_mismatch": "fail"}]
    for _ in range(2):
        with pytest.raises(BatchIncomplete, match=r"Row 1 \(id 'a'\): ClipMismatch"):
            run.execute(listed)
        assert run.clips() == ["a.mp4"]
    assert gateway.billed == 1
    assert run.manifest()[0]["facts"]["width"] == run.manifest()[0]["facts"]["height"]


# Ends.


def deferred_trigger(run: Run, requests: Any, **arguments: Any) -> Any:
    """The trigger of a task that has deferred."""
    with pytest.raises(TaskDeferred) as deferred:
        run.operator(requests, deferrable=True, **arguments).execute(run.context)
    return deferred.value.trigger


def test_a_triggerer_that_is_killed_costs_no_more_than_what_was_in_flight(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor goes on by the ledgers: every clip is stored, and none of the stored ones is bought again."""
    set_extra(monkeypatch, gateway, deadline=2)
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", HASTY)
    gateway.render_seconds = 0.2
    count, at_once = 16, 4
    trigger = deferred_trigger(run, rows(count), max_active=at_once)
    with subprocess.Popen(
        [sys.executable, str(Path(batch_runner.__file__))], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(trigger.serialize()[1]).encode())
        process.stdin.close()
        gateway.wait_for(billed=6)
        process.kill()
    event = asyncio.run(first_event(trigger))
    assert event["summary"]["stored"] == count
    assert len(run.clips()) == count
    assert gateway.billed <= count + at_once
    assert statuses(run.manifest()) == {"stored": count}


def test_renders_that_are_under_way_are_stored_although_the_task_moved_on(
    run: Run, gateway: Emulator
) -> None:
    """The manifest says at once what is known, and again in the end; no other row is begun."""
    trigger = deferred_trigger(run, rows(6), max_active=2)

    async def move_on() -> None:
        with gateway.holding():
            running = asyncio.create_task(anext(trigger.run()))
            await asyncio.to_thread(gateway.wait_for, rendering=2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert statuses(run.manifest()) == {"unknown": 2, "not_begun": 4}
        while triggers.unattended:
            await asyncio.wait(set(triggers.unattended))

    asyncio.run(move_on())
    assert statuses(run.manifest()) == {"stored": 2, "not_begun": 4}
    assert gateway.billed == 2
    assert "cleared, marked or out of time" in run.manifest()[-1]["error"]["message"]
    asyncio.run(first_event(trigger))
    assert statuses(run.manifest()) == {"stored": 6}
    assert gateway.billed == 6


def test_a_batch_that_was_left_does_not_overwrite_the_manifest_of_the_next_one(
    run: Run, gateway: Emulator, s3: S3Client
) -> None:
    """It may end long after the task's next attempt has."""
    trigger = deferred_trigger(run, rows(2))

    async def move_on() -> None:
        with gateway.holding():
            running = asyncio.create_task(anext(trigger.run()))
            await asyncio.to_thread(gateway.wait_for, rendering=2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            s3.put_object(Bucket=run.bucket, Key="result/manifest.jsonl", Body=b"another's")
        while triggers.unattended:
            await asyncio.wait(set(triggers.unattended))

    asyncio.run(move_on())
    assert s3.get_object(Bucket=run.bucket, Key="result/manifest.jsonl")["Body"].read() == b"another's"
    assert len(run.clips()) == gateway.billed == 2


def test_a_triggerer_that_stops_says_in_each_ledger_what_it_gave_up(run: Run, gateway: Emulator) -> None:
    """And in the manifest; the next one need not wait for claims that nobody holds."""
    trigger = deferred_trigger(run, rows(5), max_active=3)

    async def stop() -> None:
        running = asyncio.create_task(anext(trigger.run()))
        await asyncio.to_thread(gateway.wait_for, rendering=3)
        assert not running.done()

    with gateway.holding():
        asyncio.run(stop())
    assert sum(key.endswith("1.abandoned") for key in run.ledger()) == 3
    assert statuses(run.manifest()) == {"unknown": 3, "not_begun": 2}
    event = asyncio.run(first_event(trigger))
    assert event["summary"]["stored"] == 5
    assert gateway.billed <= 5 + 3


def test_a_task_that_is_killed_says_what_was_under_way(run: Run, gateway: Emulator) -> None:
    """In blocking mode: the manifest is whole, and the message counts."""
    operator = run.operator(rows(4), max_active=2)
    with gateway.holding(), ThreadPoolExecutor(1) as thread:
        executing = thread.submit(execute_in_a_thread, operator, run.context)
        gateway.wait_for(rendering=2)
        operator.on_kill()
        with pytest.raises(BatchIncomplete, match="stopped from outside") as killed:
            executing.result()
    assert "2 renders may have been bought." in str(killed.value)
    assert statuses(run.manifest()) == {"unknown": 2, "not_begun": 2}


def test_a_deferral_that_timed_out_says_where_to_look(run: Run) -> None:
    """Airflow's own words hide it."""
    operator = run.operator(rows(1))
    with pytest.raises(RenderOutcomeUnknown, match=r"manifest\.jsonl. Run the task again"):
        operator.resume_execution("__fail__", {"error": "Trigger timeout"}, run.context)


def test_the_log_says_how_far_the_batch_is(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for all rows, instead of several for each."""
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", Limits(progress_interval=0.05))
    gateway.render_seconds = 0.3
    gateway.fail_next(Fault.status(400))
    caplog.set_level("INFO")
    run.execute(rows(4), max_active=2, tolerated_failures=1)
    assert re.search(r"\d stored, \d failed, 2 in flight, \d waiting; \d renders spent", caplog.text)
    assert "3 stored, 1 failed, 0 in flight, 0 waiting; 3 renders spent." in caplog.text
    assert re.search(r"Row \d \(id 'sku-\d'\): The gateway answered 400", caplog.text)
    assert "Requesting render" not in caplog.text


def test_progress_is_beside_the_manifest(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    """While a batch is under way, an object says how far it is, and which run it belongs to."""
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", Limits(progress_interval=0.05))
    gateway.render_seconds = 0.3
    run.execute(rows(3), max_active=1, deferrable=deferrable)
    answer = run.s3.get_object(Bucket=run.bucket, Key="result/progress.json")
    progress = json.loads(answer["Body"].read())
    assert progress["stored"] + progress["in_flight"] + progress["waiting"] == 3
    assert progress["failed"] == 0
    manifest = run.s3.head_object(Bucket=run.bucket, Key="result/manifest.jsonl")
    assert answer["Metadata"][MADE_BY] == manifest["Metadata"][MADE_BY]


def test_a_batch_goes_on_without_its_progress(
    run: Run,
    gateway: Emulator,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    deferrable: bool,
) -> None:
    """S3 refuses it each time: all clips are stored, and the log says so once."""

    def policy(request: S3Request) -> Verdict:
        is_progress = request.method == "PUT" and request.key.endswith("progress.json")
        return Verdict.DENY if is_progress else Verdict.PASS

    monkeypatch.setattr(CodeGatewayVideoHook, "limits", Limits(progress_interval=0.05))
    gateway.render_seconds = 0.3
    with S3Proxy(s3_endpoint) as proxy, proxy.ruled(policy):
        aws = json.loads(os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
        aws["extra"]["endpoint_url"] = proxy.url
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))
        run.execute(rows(3), max_active=1, deferrable=deferrable)
    tried = [request for request in proxy.requests if request.key.endswith("progress.json")]
    assert len(tried) > 1
    assert run.counts == {"stored": 3}
    assert caplog.text.count("How far the batch is could not be written") == 1


# Budgets.


def spend_settings(bucket: str, *budgets: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "currency": "USD",
        "journal": f"s3://{bucket}/ops/journal",
        "prices": [{"model": SEEDANCE, "per_second": "0.05"}],
        "budgets": list(budgets),
    }


def test_a_batch_that_no_budget_has_room_for_is_refused_whole(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For free; and what is stored already does not count."""
    set_extra(monkeypatch, gateway, spend=spend_settings(run.bucket, {"per": "day", "amount": "1.00"}))
    with pytest.raises(BudgetExceeded, match=r"costs up to 1.20 USD, and the budget of 1.00 USD per day"):
        run.execute(rows(6))
    assert gateway.billed == 0
    run.execute(rows(4))
    assert run.summary["cost"] == {"amount": "0.80", "at_most": "0.80", "currency": "USD"}
    run.execute(rows(5))
    assert gateway.billed == 5
    assert run.summary["cost"] == {"amount": "1.00", "at_most": "1.00", "currency": "USD"}
    assert run.manifest()[0]["cost"]["amount"] == "0.20"


def test_a_budget_that_fills_up_on_the_way_stops_the_batch(
    run: Run, gateway: Emulator, s3: S3Client, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    """Another run took the room: what is left is not begun, and nothing is spent past the budget."""
    set_extra(monkeypatch, gateway, spend=spend_settings(run.bucket, {"per": "day", "renders": 6}))
    operator = run.operator(rows(6), max_active=2, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(run.context)
    Run(s3, run.bucket, "other").execute(
        [{"id": "x", "prompt": "x"}, {"id": "y", "prompt": "y"}], result_path=f"s3://{run.bucket}/other"
    )
    event = asyncio.run(first_event(deferred.value.trigger))
    with pytest.raises(BatchRefused, match="No more rows were begun: The budget of 6 renders per day"):
        operator.execute_complete(run.context, event)
    assert gateway.billed == 6
    found = statuses(run.manifest())
    assert found["stored"] == 4
    assert found["refused"] + found["not_begun"] == 2


def test_a_dry_run_tells_what_it_would_cost(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And buys nothing."""
    set_extra(monkeypatch, gateway, spend=spend_settings(run.bucket))
    with pytest.raises(AirflowSkipException, match=r"10 renders would cost at most 2.00 USD"):
        run.execute(rows(10), dry_run=True)
    assert run.pushed["estimate"] == {"renders": 10, "at_most": "2.00", "currency": "USD"}
    assert gateway.ledger == ()


# Asset events.


@pytest.mark.parametrize(
    ("kind", "keys"), [("batch", ["result/manifest.jsonl"]), ("clip", ["1.mp4", "2.mp4"])]
)
def test_asset_events_are_one_for_the_batch_or_one_for_each_clip(
    kind: Any, keys: list[str], run: Run, gateway: Emulator
) -> None:
    """An alias becomes the manifest, or each clip; the extra has the facts."""
    alias = AssetAlias("clips")
    added: list[tuple[str, dict[str, Any]]] = []
    recorder = SimpleNamespace(add=lambda asset, extra: added.append((asset.uri, extra)))
    # Of Airflow 3.0, which cannot hash an alias.
    events = type("Events", (), {"__getitem__": lambda self, outlet: recorder})
    run.context["outlet_events"] = events()
    listed = [{"prompt": "p", "s3_key": key} for key in ("1.mp4", "2.mp4")]
    run.execute(listed, outlets=[alias], asset_events=kind)
    assert [uri for uri, _ in added] == [f"s3://{run.bucket}/{key}" for key in keys]
    assert added[0][1]["stored" if kind == "batch" else "status"] == (2 if kind == "batch" else "stored")


# What shares a folder, and what is no row.


def test_a_retry_that_fails_before_its_rows_says_where_it_is_what_was_bought_before(
    run: Run, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try of a batch has bought nothing. A later one does not know, and names the manifest."""
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", "codegateway://:@gateway")
    instance = run.context["ti"]
    told = []
    for number in (1, 2):
        instance.try_number = number
        with pytest.raises(InvalidConnection) as error:
            run.execute(rows(1))
        told.append(error.value.bought)
        run.s3.put_object(Bucket=run.bucket, Key="result/requests.jsonl", Body=b"{}\n")
    assert told == [Bought.NO, Bought.PERHAPS]
    assert f"What was bought before is in s3://{run.bucket}/result/manifest.jsonl" in error.value.args[0]


def test_rows_that_another_batch_replaced_are_not_rendered(run: Run, gateway: Emulator, bucket: str) -> None:
    """Two runs with one ``result_path``: the trigger of the first says so, and renders nothing of the second's."""
    first, second = (
        run.operator(rows(2), s3_key=f"{name}-{{id}}.mp4", deferrable=True) for name in ("a", "b")
    )
    with pytest.raises(TaskDeferred) as deferred:
        first.execute(run.context)
    with pytest.raises(TaskDeferred):
        second.execute(run.context)
    event = asyncio.run(first_event(deferred.value.trigger))
    with pytest.raises(InvalidTarget, match="holds the rows of another batch by now") as refused:
        first.execute_complete(run.context, event)
    assert refused.value.bought is Bought.PERHAPS
    assert gateway.ledger == ()


@pytest.mark.parametrize(
    "events", [{}, {"asset_events": "clip", "outlets": [AssetAlias("clips")]}], ids=["none", "clip"]
)
def test_nobody_is_sent_to_the_manifest_of_another_batch(
    events: dict[str, Any], run: Run, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """It was replaced before the task resumed: the task says so, and what was bought."""
    operator = run.operator(rows(2), deferrable=True, **events)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(run.context)
    event = asyncio.run(first_event(deferred.value.trigger))
    other = {"index": 0, "id": "x", "status": "stored", "uri": f"s3://{bucket}/other.mp4"}
    s3.put_object(Bucket=bucket, Key="result/manifest.jsonl", Body=json.dumps(other).encode() + b"\n")
    with pytest.raises(InvalidTarget, match="is the manifest of another batch by now") as refused:
        operator.execute_complete(run.context, event)
    assert refused.value.money == "2 renders were bought."
    assert run.summary["stored"] == gateway.billed == 2


@pytest.mark.parametrize("name", ["manifest.jsonl", "requests.jsonl", "progress.json"])
def test_neither_a_clip_nor_the_requests_take_the_place_of_the_batchs_own_files(
    name: str, run: Run, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """A paid clip would be overwritten by the manifest, and the author's catalogue by the rows."""
    with pytest.raises(InvalidRequest, match="is a file of the batch itself"):
        run.execute([{"prompt": "p", "s3_key": f"result/{name}"}])
    if name.endswith("l"):
        s3.put_object(Bucket=bucket, Key=f"result/{name}", Body=b'{"prompt": "p", "s3_key": "x.mp4"}')
        with pytest.raises(InvalidRequest, match="is where the batch writes its own files"):
            run.execute(f"s3://{bucket}/result/{name}")
    assert gateway.ledger == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('id,prompt\n1,a cup\n2,"a 6 inch screen\n3,a cat\n', "is not CSV"),
        ("id,prompt,seed\n1,a cup,\n2,a do", "fewer cells than the header"),
        ("id,prompt,prompt\n1,a,b\n", "names 'prompt' twice"),
    ],
    ids=["open quote", "cut off", "doubled column"],
)
def test_a_broken_table_is_not_bought(
    table: str, words: str, run: Run, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """It would be read as something that nobody wrote."""
    s3.put_object(Bucket=bucket, Key="rows.csv", Body=table.encode())
    with pytest.raises(InvalidRequest, match=words):
        run.execute(f"s3://{bucket}/rows.csv")
    assert gateway.ledger == ()


def test_images_may_be_data_uris(run: Run, gateway: Emulator) -> None:
    """As with the single operator; whatever their length."""
    uris = [f"data:image/png;base64,{base64.b64encode(png() + bytes(extra)).decode()}" for extra in range(3)]
    run.execute([{"id": str(n), "prompt": "p", "image": uri} for n, uri in enumerate(uris)])
    assert run.counts == {"stored": 3}


def test_a_fallback_that_fails_is_told_at_its_own_price(
    run: Run, gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names the model that was asked last."""
    prices = [{"model": SEEDANCE, "per_render": "0.10"}, {"model": VEO, "per_render": "1.00"}]
    set_extra(monkeypatch, gateway, retries=0, spend={"currency": "USD", "prices": prices})
    gateway.fail_next(Fault.status(503), times=None, model=SEEDANCE)
    gateway.fail_next(Fault.status(500, billed=True), model=VEO)
    with pytest.raises(BatchIncomplete):
        run.execute(rows(1, fallbacks=[VEO]))
    [line] = run.manifest()
    assert (line["model"], line["cost"]["at_most"], line["renders_bought"]) == (VEO, "1.00", 1)
    assert run.summary["cost"]["at_most"] == "1.00"


def test_a_run_does_not_claim_what_another_run_bought(
    run: Run, s3: S3Client, gateway: Emulator, bucket: str
) -> None:
    """Another prompt at a key whose paid clip waits: nothing is billed, and nothing is counted."""
    gateway.fail_next(ClipFault.html(), times=None)
    with pytest.raises(BatchIncomplete):
        run.execute(rows(1))
    gateway.clear_faults()
    other = Run(s3, bucket, "another")
    with pytest.raises(BatchIncomplete):
        other.execute([{"id": "sku-0", "prompt": "q"}])
    assert (other.summary["renders_bought"], other.summary["renders_unknown"]) == (0, 0)
    assert gateway.billed == 1


def mapped(run: Run, index: int, run_id: str = "run") -> Run:
    """Another map index of the same task."""
    other = Run(run.s3, run.bucket, run_id)
    other.context["ti"].map_index = index
    return other


def test_mapped_batches_that_share_a_folder_are_refused_for_free(
    run: Run, gateway: Emulator, deferrable: bool
) -> None:
    """Each would overwrite the manifest of the other. One that is cleared, and another run, may use it again."""
    shards = [mapped(run, 0), mapped(run, 1)]
    shards[0].execute(rows(2), deferrable=deferrable)
    with pytest.raises(InvalidRequest, match=r"rows of map index 0 of this task.*result_path of its own"):
        shards[1].execute(rows(2), s3_key="clips/{id}-b.mp4", deferrable=deferrable)
    assert gateway.billed == 2
    shards[0].execute(rows(2), deferrable=deferrable)
    mapped(run, 1, "next").execute(rows(2), deferrable=deferrable)
    assert gateway.billed == 2


def test_of_mapped_batches_that_begin_at_once_one_has_the_folder(s3: S3Client, bucket: str) -> None:
    """The store decides."""
    at = S3Location(bucket, "result/requests.jsonl")

    def store(index: int) -> str:
        with LineFile() as lines:
            lines.append({"index": index})
            try:
                store_rows(lines, s3, at, put_args={}, task=TaskRun(dag_id="d", map_index=index))
            except InvalidRequest:
                return "refused"
        return "stored"

    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(store, range(8))) == {"stored": 1, "refused": 7}


def test_a_render_that_may_have_been_bought_is_not_counted_as_bought(run: Run, gateway: Emulator) -> None:
    """Its clip came of the next one, in another try of the same run."""
    gateway.fail_next(Fault.reset_after())
    with pytest.raises(BatchIncomplete):
        run.execute(rows(1))
    for _ in range(2):  # also when the task is cleared afterwards
        run.execute(rows(1))
        assert (run.summary["renders_bought"], run.summary["renders_unknown"]) == (1, 1)
    assert run.counts == {"stored": 1}
    assert gateway.billed == 2


def test_a_clip_that_another_run_made_of_our_key_is_not_ours(run: Run, gateway: Emulator) -> None:
    """Of ours nobody knows. The clip is told as what it is for us: found."""
    gateway.fail_next(Fault.status(500))
    with pytest.raises(BatchIncomplete):
        run.execute(rows(1))
    other = Run(run.s3, run.bucket, "another")
    other.execute(rows(1))
    assert other.counts == {"stored": 1}
    assert (other.summary["renders_bought"], other.summary["renders_unknown"]) == (1, 0)
    run.execute(rows(1))
    assert run.counts == {"reused": 1}
    assert (run.summary["renders_bought"], run.summary["renders_unknown"]) == (0, 1)
    assert gateway.billed == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"ledger_conn_id": "nowhere"}, "ledger_conn_id='nowhere': "),
        ({"ledger_conn_id": 5}, "ledger_conn_id=5 is not the name of an AWS connection"),
        ({"s3_extra_args": {"ACL": 5}}, "s3_extra_args: Invalid type for parameter ACL"),
        ({"s3_extra_args": {"Tagging": {"a": "b"}}}, "s3_extra_args: Invalid type for parameter Tagging"),
    ],
)
def test_what_would_fail_at_its_first_use_is_refused_with_the_rows(
    row: dict[str, Any], words: str, run: Run, gateway: Emulator
) -> None:
    """A connection that there is not, and values that boto3 does not take."""
    with pytest.raises(InvalidRequest, match=re.escape(words)) as error:
        run.execute([*rows(1), {"id": "b", "prompt": "p", **row}])
    assert "Row 2 (id 'b'): " in str(error.value)
    assert gateway.billed == 0


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_table_with_another_separator_is_told_so(separator: str, run: Run, s3: S3Client) -> None:
    """As spreadsheets write it in many countries."""
    body = f"id{separator}prompt\n1{separator}a\n".encode()
    s3.put_object(Bucket=run.bucket, Key="rows.csv", Body=body)
    with pytest.raises(InvalidRequest, match=r"Separate columns by commas, not by"):
        run.execute(f"s3://{run.bucket}/rows.csv")


def test_blanks_around_a_model_are_no_matter(run: Run, gateway: Emulator) -> None:
    """A table's cell often has them."""
    run.execute(rows(1, model=f" {SEEDANCE} "))
    assert [render.model for render in gateway.ledger] == [SEEDANCE]
