"""The example DAGs, which are also the documentation's snippets, and the sample input of the demo."""

from __future__ import annotations

import copy
import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import av
import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow_run import AIRFLOW, load_dags, run_dag
from media_samples import mp4

from airflow_provider_codegateway.emulator import Fault
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from demo.clips import (
    LARGEST_DISTANCE,
    Shape,
    WrongClip,
    check,
    distance,
    first_picture,
    last_picture,
    measure,
)
from demo.run import CATALOGUE, CLIPS, DAGS

# A run of these needs a scheduler or a person: they are in `make up`, and not in `make demo`.
APPROVALS = ("codegateway_approval", "codegateway_approval_above")
WAITING = (*APPROVALS, "codegateway_publish_new_clips")

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.emulator import Emulator

PROJECT = Path(__file__).resolve().parent.parent
INPUT = PROJECT / "demo" / "input"


@pytest.fixture(scope="module")
def bag(airflow_database: None) -> DagBag:
    bag = load_dags(PROJECT / "example_dags")
    if AIRFLOW < (3, 0):  # asset events need their assets in the database
        bag.sync_to_db()  # type: ignore[attr-defined]
    return bag


def put_input(s3: S3Client, bucket: str) -> None:
    for file in INPUT.iterdir():
        s3.upload_file(str(file), bucket, f"input/{file.name}")


def test_every_file_is_a_dag_of_the_demo(bag: DagBag) -> None:
    """Each file imports without error and holds one DAG, and the demo runs each that can run alone."""
    assert bag.import_errors == {}
    without = () if AIRFLOW >= (3, 1) else APPROVALS
    assert len(bag.dags) == len(list((PROJECT / "example_dags").glob("*.py"))) - len(without)
    assert sorted((*bag.dags, *without)) == sorted((*DAGS, *WAITING))


@pytest.mark.parametrize("dag_id", DAGS)
def test_example_explains_itself(bag: DagBag, dag_id: str) -> None:
    """An example is found by its tags, says what it shows, and runs only when somebody triggers it."""
    dag = bag.dags[dag_id]
    assert {"codegateway", "example"} <= set(dag.tags)
    assert dag.doc_md
    assert dag.doc_md.strip().startswith("### ")
    assert not dag.timetable.can_be_scheduled


def test_three_models_differ_in_the_model_only(bag: DagBag) -> None:
    """Switching models is changing one string: nothing else of the request differs."""
    dag = bag.dags["codegateway_three_models"]
    tasks = [task for task in dag.tasks if isinstance(task, GenerateVideoOperator)]
    request = [name for name in GenerateVideoOperator.template_fields if name not in ("model", "s3_key")]
    assert len({task.model for task in tasks}) == 3
    assert len({repr([getattr(task, name) for name in request]) for task in tasks}) == 1


@pytest.mark.usefixtures("connections")
def test_image_to_video_shows_the_image(
    bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator, tmp_path: Path
) -> None:
    """The image in S3 reaches the gateway as bytes, and the clip has the asked shape."""
    put_input(s3, bucket)
    dag = bag.dags["codegateway_image_to_video"]
    assert run_dag(dag, run_conf={"bucket": bucket}).state == "success"
    s3.download_file(bucket, "clips/lighthouse.mp4", str(tmp_path / "clip.mp4"))
    assert check(tmp_path / "clip.mp4", {"duration": 5, "aspect_ratio": "4:3"}) == Shape(960, 720, 5.0, None)
    (render,) = gateway.ledger
    assert "image" in render.request


@pytest.mark.usefixtures("connections")
def test_marketing_pipeline_buys_each_product_once(
    bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator
) -> None:
    """Each product becomes one clip in the manifest; the campaign's second run buys nothing."""
    put_input(s3, bucket)
    dag = bag.dags["codegateway_marketing_pipeline"]
    products = list(csv.DictReader((INPUT / "products.csv").open()))
    for _ in range(2):
        run = run_dag(dag, run_conf={"bucket": bucket, "campaign": "autumn"})
        assert run.state == "success"
        key = run["write_manifest"].xcoms["return_value"]
        manifest = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        assert [clip["key"] for clip in manifest] == [f"autumn/{row['sku']}.mp4" for row in products]
        assert gateway.billed == len(products)


@pytest.mark.usefixtures("connections")
def test_marketing_pipeline_writes_its_manifest_although_single_products_fail(
    bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator
) -> None:
    """With the reason of each, and what was bought; the run fails, and the next one renders what is missing."""
    put_input(s3, bucket)
    dag = bag.dags["codegateway_marketing_pipeline"]
    products = list(csv.DictReader((INPUT / "products.csv").open()))
    gateway.fail_next(Fault.status(400))
    run = run_dag(dag, run_conf={"bucket": bucket, "campaign": "autumn"})
    assert run.state == "failed"
    manifest = json.loads(s3.get_object(Bucket=bucket, Key="autumn/manifest.json")["Body"].read())
    assert [row["key"] for row in manifest] == [f"autumn/{row['sku']}.mp4" for row in products]
    assert [row["error"] for row in manifest if "error" in row] == [
        "The gateway answered 400: bad request. Nothing was bought."
    ]
    assert run_dag(dag, run_conf={"bucket": bucket, "campaign": "autumn"}).state == "success"
    assert gateway.billed == len(products)


@pytest.mark.usefixtures("connections")
def test_marketing_pipeline_takes_the_list_for_data(
    bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator
) -> None:
    """Braces in a cell read no connection, and break nothing."""
    prompt = "A mug {{ conn.codegateway_default.password }} {% 50 off"
    s3.put_object(Bucket=bucket, Key="input/products.csv", Body=f"sku,prompt\nmug,{prompt}\n".encode())
    run = run_dag(bag.dags["codegateway_marketing_pipeline"], run_conf={"bucket": bucket})
    assert run.state == "success"
    assert [render.prompt for render in gateway.ledger] == [prompt]


@pytest.mark.usefixtures("connections")
def test_catalogue_is_rendered_in_one_task(bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator) -> None:
    """Thirty rows become thirty clips; the second run is free."""
    put_input(s3, bucket)
    gateway.serve_clip(mp4())
    for status in ("stored", "reused"):
        run = run_dag(bag.dags["codegateway_catalogue"], run_conf={"bucket": bucket})
        assert run.state == "success"
        assert run["count_by_status"].xcoms["return_value"] == {status: 30}
        assert gateway.billed == 30


@pytest.mark.usefixtures("connections")
def test_decorator_renders_each_season(bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator) -> None:
    """What the function returns for a season is asked for, and stored at the key that it chose."""
    assert run_dag(bag.dags["codegateway_decorator"], run_conf={"bucket": bucket}).state == "success"
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["seasons/autumn.mp4", "seasons/spring.mp4"]
    assert sorted("spring" in (render.prompt or "") for render in gateway.ledger) == [False, True]


@pytest.mark.usefixtures("connections")
def test_prompt_from_task_is_what_the_task_wrote(bag: DagBag, bucket: str, gateway: Emulator) -> None:
    """The upstream task's result is the prompt."""
    dag = bag.dags["codegateway_prompt_from_task"]
    assert run_dag(dag, run_conf={"bucket": bucket, "product": "a red kite"}).state == "success"
    assert (gateway.ledger[0].prompt or "").startswith("A close-up of a red kite in the rain")


@pytest.mark.usefixtures("connections")
def test_a_chain_goes_on_where_it_stopped(
    bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator, tmp_path: Path
) -> None:
    """Each clip begins with the last picture of the one before; joined, no picture is missing or encoded anew."""
    assert run_dag(bag.dags["codegateway_chain"], run_conf={"bucket": bucket}).state == "success"
    assert gateway.billed == 3
    names = ("scene-1", "scene-2", "scene-3", "story")
    for name in names:
        s3.download_file(bucket, f"chain/{name}.mp4", str(tmp_path / name))
    one, two, three, story = (tmp_path / name for name in names)
    assert distance(last_picture(one), first_picture(two)) < LARGEST_DISTANCE
    assert distance(last_picture(two), first_picture(three)) < LARGEST_DISTANCE
    assert measure(story) == Shape(1280, 720, 12.0, None)
    assert packets(story) == [*packets(one), *packets(two), *packets(three)]


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.usefixtures("connections")
def test_publish_copies_the_clips_of_the_events(
    bag: DagBag, s3: S3Client, bucket: str, gateway: Emulator
) -> None:
    """The events of the marketing pipeline's clips are all that it needs; a clip that comes twice does no harm."""
    put_input(s3, bucket)
    pipeline, publishing = (
        bag.dags[f"codegateway_{name}"] for name in ("marketing_pipeline", "publish_new_clips")
    )
    run = run_dag(pipeline, run_conf={"bucket": bucket, "campaign": "winter"})
    clips = [task.xcoms["clip"] for (task_id, _), task in run.tasks.items() if task_id == "render"]
    events = [SimpleNamespace(extra=clip) for clip in (*clips, clips[0])]
    publish = publishing.get_task("publish").python_callable  # type: ignore[union-attr]
    published = publish(triggering_asset_events={"codegateway-clips": events})
    assert sorted(set(published)) == sorted(f"published/{clip['key']}" for clip in clips)
    for clip in clips:
        copy = s3.head_object(Bucket=bucket, Key=f"published/{clip['key']}")
        assert copy["ContentLength"] == clip["bytes"]


@pytest.mark.skipif(AIRFLOW < (3, 1), reason="ApprovalOperator comes with Airflow 3.1")
def test_approval_comes_before_the_render(bag: DagBag) -> None:
    """Whoever approves sees the very prompt that is rendered; without an approval the render is skipped."""
    approve, render = (bag.dags["codegateway_approval"].get_task(name) for name in ("approve", "render"))
    assert render.upstream_task_ids == {"approve"}
    assert approve.body == render.prompt  # type: ignore[union-attr]
    assert not approve.fail_on_reject  # type: ignore[union-attr]


@pytest.mark.usefixtures("connections")
@pytest.mark.skipif(AIRFLOW < (3, 1), reason="Approvals came with Airflow 3.1.")
def test_what_costs_little_is_rendered_at_once(
    bag: DagBag, gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is skipped, nobody is asked, and the clip is there."""
    connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
    spend = {"currency": "USD", "prices": [{"model": "google/veo-3.1-fast", "per_second": "0.10"}]}
    extra = {**(connection.get("extra") or {}), "spend": spend}
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps({**connection, "extra": extra}))
    run = run_dag(bag.dags["codegateway_approval_above"], run_conf={"bucket": bucket})
    states = {name: run[name].state for name in ("estimate", "ask_or_render", "approve", "render")}
    assert states == {
        "estimate": "skipped",
        "ask_or_render": "success",
        "approve": "skipped",
        "render": "success",
    }
    assert gateway.billed == 1


@pytest.mark.usefixtures("connections")
@pytest.mark.skipif(AIRFLOW < (3, 1), reason="Approvals came with Airflow 3.1.")
@pytest.mark.parametrize(
    ("price", "goes_to"), [("0.10", "render"), ("0.20", "approve"), (None, "approve")], ids=str
)
def test_what_costs_much_waits_for_an_approval(
    bag: DagBag,
    gateway: Emulator,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    price: str | None,
    goes_to: str,
) -> None:
    """8 s for 0.80 are rendered at once; for 1.60, or without a price, somebody is asked, with the amount."""
    prices = [{"model": "google/veo-3.1-fast", "per_second": price}] if price else []
    connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
    spend = {"currency": "USD", "prices": prices}
    extra = {**(connection.get("extra") or {}), "spend": spend}
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps({**connection, "extra": extra}))
    dag: Any = bag.dags["codegateway_approval_above"]
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(
        dag_id="d",
        task_id="estimate",
        run_id="r",
        map_index=-1,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
        xcom_pull=lambda task_ids, key: pushed[key],
    )
    estimate = copy.copy(dag.get_task("estimate"))
    estimate.render_template_fields({"params": {"bucket": bucket, "prompt": "p"}})
    with pytest.raises(AirflowSkipException, match="Nothing was bought"):
        estimate.execute({"ti": instance})
    assert dag.get_task("ask_or_render").python_callable(ti=instance) == goes_to
    approve = dag.get_task("approve")
    subject = approve.render_template(approve.subject, {"ti": instance})
    amount = {"0.10": "0.80", "0.20": "1.60", None: "an unknown amount"}[price]
    assert subject == f"Spend {amount} on a clip?"
    assert gateway.billed == 0


def test_demo_knows_how_many_clips_there_are() -> None:
    """The demo counts the clips of all examples: a missing one must not pass unseen."""
    products = list(csv.DictReader((INPUT / "products.csv").open()))
    seasons, prompts, scenes = 2, 1, 3
    assert 1 + 3 + 1 + len(products) + seasons + prompts + scenes == CLIPS
    assert len(list(csv.DictReader((INPUT / "catalogue.csv").open()))) == CATALOGUE


def test_demo_refuses_a_wrong_clip(gateway: Emulator, tmp_path: Path) -> None:
    """The demo's check decodes the clip and names each way in which it is not what was asked for."""
    import httpx

    body = {"model": "google/veo-3.1-fast", "prompt": "x", "duration": "4s"}
    answer = httpx.post(
        f"{gateway.url}/v1/video/generate",
        json=body,
        headers={"Authorization": f"Bearer {gateway.api_key}"},
        timeout=60,
    ).json()
    path = tmp_path / "clip.mp4"
    path.write_bytes(httpx.get(answer["data"][0]["url"]).content)
    assert measure(path) == Shape(1280, 720, 4.0, None)
    asked = {"duration": 6, "resolution": "1080p", "aspect_ratio": "9:16", "generate_audio": True}
    with pytest.raises(
        WrongClip, match=r"4 s instead of 6 s, 720 lines .* 1280x720 instead of 9:16, no sound"
    ):
        check(path, asked)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WrongClip):
        check(path, {})
