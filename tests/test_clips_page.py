"""The clip page and the gallery, in Airflow's real API server, with several users."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import boto3
import httpx
import pytest
from airflow_run import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("Airflow before 3.1 has no room for the pages.", allow_module_level=True)

from clip_pages import DAG_A, DAG_B, PROMPT_A, SECRET, Copy, copy_tasks, cursor_at
from media_samples import png

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clip_pages import World
    from mypy_boto3_s3.client import S3Client

pytest_plugins = ("clip_world",)


def cursor(start: datetime) -> str:
    """The cursor of a page that ends at a moment."""
    return base64.urlsafe_b64encode(json.dumps([start.isoformat(), 0]).encode()).decode()


ROUTES = ("clip", "clips", "api/clip", "api/clips", "api/filters", "api/link", "api/poster")
NEWEST = datetime(2026, 1, 1, tzinfo=UTC)


def ask(world: World, user: str | None, path: str, **parameters: Any) -> httpx.Response:
    with world.browse(user) as client:
        return client.get(f"/codegateway/{path}", params=parameters)


def copied(world: World, map_index: int) -> dict[str, Any]:
    return {**world.task(DAG_A), "map_index": map_index}


# What is shown.


def test_page_has_the_facts_of_the_clip(world: World) -> None:
    """The clip's facts are those of the XCom, the request is what the task rendered, and each try is listed."""
    answer = ask(world, "anna", "api/clip", **world.task(DAG_A)).json()
    assert answer["clip"] == {
        name: value for name, value in world.clips[DAG_A].items() if name != "aws_conn_id"
    }
    assert answer["request"] == {"prompt": PROMPT_A, "duration": "4", "generate_audio": "true"}
    assert [(attempt["number"], attempt["state"]) for attempt in answer["tries"]] == [(1, "success")]
    assert answer["state"] == "success"


def test_link_plays_the_clip_for_five_minutes(world: World) -> None:
    """The link is signed with version 4, ends soon, serves ranges, and calls the object a video."""
    answer = ask(world, "anna", "api/link", **world.task(DAG_A)).json()
    parameters = httpx.URL(answer["url"]).params
    assert (parameters["X-Amz-Expires"], parameters["X-Amz-Algorithm"]) == ("300", "AWS4-HMAC-SHA256")
    part = httpx.get(answer["url"], headers={"Range": "bytes=4-11"}, trust_env=False)
    assert (part.status_code, part.headers["Content-Type"], part.content[:4]) == (206, "video/mp4", b"ftyp")


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("state", ["running", "deferred", "failed", None])
def test_task_without_a_clip_says_its_state(world: World, state: str | None) -> None:
    """A task that has made no clip has a page all the same, which knows why; and there is no link."""
    copy_tasks(DAG_A, [Copy(map_index=0, clip=..., task={"state": state})])
    answer = ask(world, "anna", "api/clip", **copied(world, 0)).json()
    assert (answer["clip"], answer["state"]) == (None, state)
    assert ask(world, "anna", "api/link", **copied(world, 0)).status_code == 410


@pytest.mark.usefixtures("copies")
def test_every_try_is_listed(world: World) -> None:
    """Earlier tries come from Airflow's history, the newest is first."""
    TaskInstanceHistory = pytest.importorskip(
        "airflow.models.taskinstancehistory", reason="From 3.4 on, a try is a task instance of its own."
    ).TaskInstanceHistory
    from airflow.utils.session import create_session
    from sqlalchemy import insert

    copy_tasks(DAG_A, [Copy(map_index=0, task={"try_number": 3})])
    history = TaskInstanceHistory.__table__
    with create_session() as session:
        for number, state in ((1, "failed"), (2, "up_for_retry")):
            row = {**world.task_row(DAG_A, history), "map_index": 0, "try_number": number, "state": state}
            session.execute(insert(history), row)
    tries = ask(world, "anna", "api/clip", **copied(world, 0)).json()["tries"]
    assert [(attempt["number"], attempt["state"]) for attempt in tries] == [
        (3, "success"),
        (2, "up_for_retry"),
        (1, "failed"),
    ]


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("state", [None, "up_for_retry"])
def test_finished_try_is_listed_while_the_next_has_not_begun(world: World, state: str | None) -> None:
    """Until then the task's own row has the number of the finished one, whose end only the history knows."""
    TaskInstanceHistory = pytest.importorskip(
        "airflow.models.taskinstancehistory", reason="From 3.4 on, a try is a task instance of its own."
    ).TaskInstanceHistory
    from airflow.utils.session import create_session
    from sqlalchemy import insert

    copy_tasks(DAG_A, [Copy(map_index=0, task={"try_number": 1, "state": state})])
    history = TaskInstanceHistory.__table__
    with create_session() as session:
        row = {**world.task_row(DAG_A, history), "map_index": 0, "try_number": 1, "state": "failed"}
        session.execute(insert(history), row)
    tries = ask(world, "anna", "api/clip", **copied(world, 0)).json()["tries"]
    assert [(attempt["number"], attempt["state"]) for attempt in tries] == [(1, "failed")]


@pytest.mark.usefixtures("copies")
def test_page_lives_on_when_airflow_has_deleted_the_arguments(world: World) -> None:
    """Without rendered arguments the connection is the one that the XCom has, and the clip plays."""
    copy_tasks(DAG_A, [Copy(map_index=0, rendered=None)])
    assert ask(world, "anna", "api/clip", **copied(world, 0)).json()["request"] is None
    assert ask(world, "anna", "api/link", **copied(world, 0)).status_code == 200


@pytest.mark.usefixtures("copies")
def test_connection_that_nobody_knows_any_more_is_not_guessed(world: World) -> None:
    """The clip of an earlier version, whose arguments Airflow has deleted: the page says so."""
    clip = {name: value for name, value in world.clips[DAG_A].items() if name != "aws_conn_id"}
    copy_tasks(DAG_A, [Copy(map_index=0, clip=clip, rendered=None)])
    assert link_problem(world, 0) == (404, "FORGOTTEN")
    assert ask(world, "anna", "clip", **copied(world, 0)).status_code == 200


# S3.


def link_problem(world: World, map_index: int) -> tuple[int, str]:
    answer = ask(world, "anna", "api/link", **copied(world, map_index))
    return answer.status_code, answer.json().get("problem", "")


@pytest.mark.usefixtures("copies")
def test_clip_that_is_gone_from_s3(world: World) -> None:
    """A clip that somebody deleted is said to be gone."""
    clip = {**world.clips[DAG_A], "key": "gone.mp4"}
    copy_tasks(DAG_A, [Copy(map_index=0, clip=clip, rendered={"s3_key": "gone.mp4"})])
    assert link_problem(world, 0) == (410, "GONE")


@pytest.mark.usefixtures("copies")
def test_s3_that_does_not_answer(world: World, s3_credentials: dict[str, str]) -> None:
    """An S3 that cannot be reached is said to be so, in words without an address."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    extra = json.dumps({"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"})
    with create_session() as session:
        session.add(Connection(conn_id="nowhere", conn_type="aws", login="a", password="b", extra=extra))
    copy_tasks(DAG_A, [Copy(map_index=0, rendered={"aws_conn_id": "nowhere"})])
    answer = ask(world, "anna", "api/link", **copied(world, 0))
    assert answer.status_code == 503
    assert answer.json() == {"problem": "UNREACHABLE", "words": "EndpointConnectionError"}


@pytest.mark.usefixtures("copies")
def test_edited_xcom_opens_no_other_object(world: World, s3: S3Client) -> None:
    """An XCom that names another object gets no link: not even if it has that object's own fingerprint."""
    s3.put_object(Bucket=world.bucket, Key="salaries.csv", Body=b"secret")
    mine, theirs = world.clips[DAG_A], world.clips[DAG_B]
    edited = [
        {**mine, "key": "salaries.csv"},
        {**mine, "key": theirs["key"]},
        {**mine, "key": theirs["key"], "fingerprint": theirs["fingerprint"]},
        {**mine, "key": theirs["key"], "fingerprint": theirs["fingerprint"], "reused": True},
        {**mine, "key": "is there such an object?"},
    ]
    copy_tasks(DAG_A, [Copy(map_index=index, clip=clip) for index, clip in enumerate(edited)])
    assert {link_problem(world, index) for index in range(len(edited))} == {(409, "NOT_THE_CLIP")}


@pytest.mark.usefixtures("copies")
def test_reused_clip_is_shown_to_who_may_see_its_maker(world: World) -> None:
    """A clip that another DAG's task made plays for who may read that DAG, whatever place the arguments name."""
    theirs = {**world.clips[DAG_B], "reused": True}
    copy_tasks(DAG_A, [Copy(map_index=0, clip=theirs, rendered={"s3_key": theirs["key"]})])
    assert link_problem(world, 0) == (409, "NOT_THE_CLIP")
    assert ask(world, "admin", "api/link", **copied(world, 0)).status_code == 200


@pytest.mark.parametrize("code", ["403", "404", "NoSuchBucket"])
def test_refusal_tells_nothing_of_what_is_there(code: str) -> None:
    """At a place that the task's arguments do not name, S3's answers are all the same to the viewer."""
    from botocore.exceptions import ClientError

    from airflow_provider_codegateway.plugins import storage

    refused = ClientError({"Error": {"Code": code}}, "HeadObject")
    problem = storage.no_link(refused, place_is_known=False)
    assert (problem.problem, problem.words) == (storage.Problem.NOT_THE_CLIP, "")


@pytest.fixture
def aws() -> Iterator[None]:
    """moto in place of the calls to AWS. Its server may be in this process, so nothing is reset."""
    moto = pytest.importorskip("moto").mock_aws()
    moto.start(reset=False)
    yield
    moto.stop(remove_data=False)


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("region", [None, "us-east-1", "eu-south-1"])
@pytest.mark.parametrize("separator", ["-", "."])
def test_link_and_policy_name_the_buckets_own_region(
    monkeypatch: pytest.MonkeyPatch, region: str | None, separator: str
) -> None:
    """Whatever region the connection has, the link is signed for the bucket's, and leads where the policy says."""
    from airflow_provider_codegateway.plugins import storage
    from airflow_provider_codegateway.plugins.airflow_api import TaskRef
    from airflow_provider_codegateway.plugins.clips import runs_of

    extra = {"region_name": region} if region else {}
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_ANYWHERE", json.dumps(connection))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    task = TaskRef("d", "r", "t")
    metadata = {"codegateway-fingerprint": "f" * 64, "codegateway-run": runs_of(task)[0]}
    storage.make_client.cache_clear()
    name = f"acme{separator}{secrets.token_hex(6)}"
    s3 = boto3.client("s3", region_name="eu-south-1")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-south-1"})
    s3.put_object(Bucket=name, Key="k", Metadata=metadata)
    clip: Any = SimpleNamespace(bucket=name, key="k", fingerprint="f" * 64)
    entry: Any = SimpleNamespace(task=task, clip=clip, aws_conn_id="anywhere", target=None)
    origin = storage.media_origin("anywhere", name)
    url = httpx.URL(storage.look_at(entry).sign())
    host = f"{name}.s3.eu-south-1.amazonaws.com" if separator == "-" else "s3.eu-south-1.amazonaws.com"
    assert (f"{url.scheme}://{url.host}", url.host) == (origin, host)
    assert "/eu-south-1/s3/" in url.params["X-Amz-Credential"]


def test_access_point_is_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip behind an access point is a clip, and its video comes from the access point's own host."""
    from airflow_provider_codegateway.plugins import clips, storage

    arn = "arn:aws:s3:eu-west-1:111122223333:accesspoint/clips"
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": {"region_name": "eu-west-1"}}
    monkeypatch.setenv("AIRFLOW_CONN_ANYWHERE", json.dumps(connection))
    facts = {
        "bucket": arn,
        "key": "k",
        "uri": "",
        "model": "m",
        "bytes": 1,
        "sha256": None,
        "created": None,
        "render_seconds": None,
        "renders_bought": 1,
        "fingerprint": "f" * 64,
        "reused": False,
    }
    clip = clips.parse_clip(json.dumps(facts))
    assert clip is not None
    assert clip.bucket == arn
    storage.make_client.cache_clear()
    assert (
        storage.media_origin("anywhere", arn)
        == "https://clips-111122223333.s3-accesspoint.eu-west-1.amazonaws.com"
    )


@pytest.mark.usefixtures("copies")
def test_links_that_wait_for_s3_hold_up_no_page(world: World) -> None:
    """While an S3 that does not answer has every thread for links, pages come all the same."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(8) as viewers:
        extra = {
            "endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "region_name": "us-east-1",
            "config_kwargs": {"read_timeout": 60},
        }
        with create_session() as session:
            silent_s3 = Connection(
                conn_id="silent", conn_type="aws", login="a", password="b", extra=json.dumps(extra)
            )
            session.add(silent_s3)
        copy_tasks(DAG_A, [Copy(map_index=n, rendered={"aws_conn_id": "silent"}) for n in range(8)])
        links = [viewers.submit(link_problem, world, n) for n in range(8)]
        calls = [silent.accept()[0] for _ in range(4)]
        page = ask(world, "anna", "clip", **world.task(DAG_A))
        assert f"media-src {world.s3_endpoint};" in page.headers["Content-Security-Policy"]
        assert not all(link.done() for link in links)
        silent.close()
        for call in calls:
            call.close()
        assert {link.result()[0] for link in links} == {503}


def test_page_does_not_wait_for_an_s3_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is sent with the origins that are known in time."""
    from airflow_provider_codegateway.plugins import app, storage

    answered = threading.Event()

    def origin(conn_id: str | None, bucket: str) -> str:
        if bucket == "silent":
            answered.wait(30)
        return f"https://{bucket}"

    monkeypatch.setattr(storage, "media_origin", origin)
    origins = asyncio.run(app.origins([(None, "silent"), (None, "quick")], patience=1))
    answered.set()
    assert origins == ["https://quick"]


@pytest.mark.usefixtures("copies")
def test_poster_is_shown_if_it_belongs_to_the_clip(world: World, s3: S3Client) -> None:
    """It comes through Airflow, for who may see the clip; another object that the XCom names does not."""
    clip = world.clips[DAG_A]
    for key, fingerprint in (("own.png", clip["fingerprint"]), ("other.png", "0" * 64)):
        s3.put_object(
            Bucket=world.bucket,
            Key=key,
            Body=png(),
            ContentType="image/png",
            Metadata={"codegateway-beside": fingerprint},
        )
    posters = [f"s3://{world.bucket}/{key}" for key in ("own.png", "other.png", "none.png")]
    copy_tasks(DAG_A, [Copy(map_index=n, clip={**clip, "poster": uri}) for n, uri in enumerate(posters)])
    answers = [ask(world, "anna", "api/poster", **copied(world, n)) for n in range(3)]
    assert [answer.status_code for answer in answers] == [200, 409, 409]
    assert (answers[0].content, answers[0].headers["Content-Type"]) == (png(), "image/png")
    assert ask(world, "anna", "api/poster", **world.task(DAG_A)).status_code == 410
    assert ask(world, "nora", "api/poster", **copied(world, 0)).status_code == 403
    cards = ask(world, "anna", "api/clips").json()["clips"]
    assert sorted(card["clip"]["has_poster"] for card in cards) == [False, True, True, True]


@pytest.mark.usefixtures("copies")
def test_object_that_replaced_the_clip_is_not_shown(world: World) -> None:
    """What lies at the clip's place must have its fingerprint."""
    clip = {**world.clips[DAG_A], "fingerprint": "0" * 64}
    copy_tasks(DAG_A, [Copy(map_index=0, clip=clip)])
    assert link_problem(world, 0) == (409, "NOT_THE_CLIP")


# Values that somebody wrote.


@pytest.mark.parametrize(
    "change",
    [
        {"bucket": "a/../b"},
        {"bucket": "evil.example.com/"},
        {"key": ""},
        {"key": "k" * 1025},
        {"fingerprint": "../../etc"},
        {"model": ""},
        {"model": "two\nlines"},
        {"bytes": -1},
        {"bytes": "12"},
        {"bytes": True},
        {"bytes": 10**400},
        {"renders_bought": 2**53},
        {"created": 1e300},
        {"reused": "no"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("copies")
def test_malformed_clip_is_no_clip(world: World, change: dict[str, Any]) -> None:
    """An XCom whose values are not those of a clip is shown nowhere, and breaks nothing."""
    copy_tasks(DAG_A, [Copy(map_index=0, clip={**world.clips[DAG_A], **change})])
    assert ask(world, "anna", "api/clip", **copied(world, 0)).json()["clip"] is None
    assert len(ask(world, "anna", "api/clips", model=world.clips[DAG_A]["model"]).json()["clips"]) == 1


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    "value", [None, 7, "clip", [], {}, {"fingerprint": float("nan")}, "x" * 50_000], ids=repr
)
def test_xcom_of_another_kind_is_no_clip(world: World, value: Any) -> None:
    """An XCom that is called ``clip`` and is none is passed over."""
    copy_tasks(DAG_A, [Copy(map_index=0, clip={"not": "ours"} if value is None else value)])
    assert len(ask(world, "anna", "api/clips").json()["clips"]) == 1


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_number_that_is_none_is_absent(world: World, number: float) -> None:
    """NaN and infinity are no JSON: the page shows the clip without them."""
    copy_tasks(DAG_A, [Copy(map_index=0, clip={**world.clips[DAG_A], "created": number})])
    answer = ask(world, "anna", "api/clip", **copied(world, 0)).json()
    assert (answer["clip"] or {}).get("created") is None


@pytest.mark.usefixtures("copies")
def test_uri_is_derived(world: World) -> None:
    """The S3 URI is that of bucket and key, whatever the XCom says."""
    copy_tasks(DAG_A, [Copy(map_index=0, clip={**world.clips[DAG_A], "uri": "javascript:alert(1)"})])
    assert ask(world, "anna", "api/clip", **copied(world, 0)).json()["clip"]["uri"].startswith("s3://")


# Who sees what.


def what_is_told(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    headers = [(name, value) for name, value in answer.headers.items() if name not in ("date", "server")]
    return answer.status_code, answer.content, sorted(headers)


@pytest.mark.parametrize("user", ["anna", "ben", "nora"])
def test_nothing_of_a_dag_that_one_may_not_read(world: World, user: str) -> None:
    """No byte about DAG B is in any answer, and each is the one that is given for a DAG that does not exist."""
    for route in ROUTES:
        for more in ({}, {"stills": "true"}, {"before": cursor_at(DAG_B)}):
            told = ask(world, user, route, **world.task(DAG_B), **more)
            other = ask(world, user, route, **{**world.task(DAG_B), "dag_id": "no_such_dag"}, **more)
            assert what_is_told(told) == what_is_told(other)
            everything = ask(world, user, route, **more)
            for answer in (told, everything):
                assert SECRET not in answer.text + str(answer.headers)
                assert world.runs[DAG_B] not in answer.text


def test_reader_of_one_dag_sees_that_one(world: World) -> None:
    """Whoever may read DAG A finds its clip, and DAG A alone to choose from."""
    cards = ask(world, "anna", "api/clips").json()["clips"]
    assert [card["task"]["dag_id"] for card in cards] == [DAG_A]
    assert ask(world, "anna", "api/filters").json() == {"dags": [DAG_A], "models": ["google/veo-3.1-fast"]}


@pytest.mark.parametrize("user", ["ben", "tim"])
def test_reader_of_a_part_of_a_dag_sees_nothing(world: World, user: str) -> None:
    """Reading the DAG is not enough: a clip is an XCom, and its page tells of its task instance."""
    assert ask(world, user, "api/clip", **world.task(DAG_A)).status_code == 403
    assert ask(world, user, "api/link", **world.task(DAG_A)).status_code == 403
    assert ask(world, user, "api/clips").json() == {"clips": [], "next": None}
    assert ask(world, user, "api/filters").json() == {"dags": [], "models": []}


@pytest.mark.parametrize("page", ["clip", "clips"])
def test_stranger_is_sent_to_log_in(world: World, page: str) -> None:
    """Without a login a page leads to Airflow's, and back."""
    answer = ask(world, None, page, **world.task(DAG_A))
    assert answer.status_code == 307
    query = urlencode(world.task(DAG_A))
    assert (
        answer.headers["Location"]
        == f"/api/v2/auth/login?next={quote(f'/codegateway/{page}?{query}', safe='')}"
    )


def test_pages_are_known_wherever_airflow_is_served() -> None:
    """Below a path, whatever it is called, a stranger is sent to the login there; a script gets JSON."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from airflow_provider_codegateway.plugins.app import create_app

    airflow = FastAPI()
    airflow.get("/api/v2/dags", status_code=401)(lambda: None)
    airflow.mount("/api/airflow/codegateway", create_app())
    client = TestClient(airflow, follow_redirects=False)
    login = "/api/airflow/api/v2/auth/login?next=%2Fapi%2Fairflow%2Fcodegateway%2Fclips%3Fmodel%3Dm"
    assert client.get("/api/airflow/codegateway/clips?model=m").headers["Location"] == login
    assert client.get("/api/airflow/codegateway/api/clips").json() == {"detail": "Not authenticated"}


@pytest.mark.parametrize("route", [route for route in ROUTES if route.startswith("api/")])
def test_stranger_is_told_nothing(world: World, route: str) -> None:
    """Without a login no facts are given."""
    answer = ask(world, None, route, **world.task(DAG_A))
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


def test_task_of_another_operator_has_no_page(world: World) -> None:
    """A task that makes no clips is answered like one that does not exist."""
    other = ask(world, "anna", "api/clip", **world.task(DAG_A, "other"))
    missing = ask(world, "anna", "api/clip", **world.task(DAG_A, "missing"))
    assert other.status_code == 403
    assert what_is_told(other) == what_is_told(missing)


def test_two_dags_in_one_question(world: World) -> None:
    """The DAG that is asked for access is the DAG that is shown, also where two are named."""
    with world.browse("anna") as client:
        for first, second in ((DAG_A, DAG_B), (DAG_B, DAG_A)):
            task = {**world.task(second), "dag_id": [first, second]}
            assert SECRET not in client.get("/codegateway/api/clip", params=task).text


@pytest.mark.parametrize(
    "position",
    [
        [1e999, 1],
        ["2026-01-01T00:00:00+00:00", 1e999],
        ["2026-01-01T00:00:00", 1],
        ["9999-12-31T23:59:59-14:00", 1],
        ["2026-01-01T00:00:00+00:00", -1],
        ["2026-01-01T00:00:00+00:00"],
        "[" * 1200,
    ],
    ids=lambda position: str(position)[:40].encode(errors="replace").decode(),
)
def test_cursor_that_somebody_wrote_starts_anew(world: World, position: Any) -> None:
    """A cursor that is none of ours is passed over."""
    written = position if isinstance(position, str) else json.dumps(position)
    cursor = base64.urlsafe_b64encode(written.encode()).decode()
    assert len(ask(world, "anna", "api/clips", before=cursor).json()["clips"]) == 1


@pytest.mark.parametrize("strange", ["\0", "~", "%00", "' OR 1=1 --", "a" * 251])
def test_strange_names_do_no_harm(world: World, strange: str) -> None:
    """A name that no DAG has is refused, and nothing breaks."""
    for name in ("dag_id", "run_id", "task_id"):
        answer = ask(world, "anna", "api/clip", **{**world.task(DAG_A), name: strange})
        assert answer.status_code in (403, 422)
    for name in ("dag_id", "model", "before"):
        assert ask(world, "anna", "api/clips", **{name: strange}).status_code in (200, 422)


def test_headers(world: World) -> None:
    """Every answer forbids sniffing, foreign frames, referrers and scripts that are not ours; none is kept."""
    paths = [*ROUTES, "static/clip.js", "static/style.css", "nowhere"]
    for path in paths:
        for user in ("anna", "ben", None):
            headers = ask(world, user, path, **world.task(DAG_A)).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == ("no-cache" if path.startswith("static/") else "no-store")
            assert (
                "default-src 'none'; script-src 'self'; style-src 'self';"
                in headers["Content-Security-Policy"]
            )
            assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]


def test_video_may_come_from_the_clips_s3_only(world: World, s3_endpoint: str) -> None:
    """The policy of a clip's page names the one S3 that its link leads to; the gallery's does on demand."""
    of_page = ask(world, "anna", "clip", **world.task(DAG_A)).headers["Content-Security-Policy"]
    assert f"media-src {s3_endpoint};" in of_page
    assert "media-src 'none';" in ask(world, "anna", "clips").headers["Content-Security-Policy"]
    stills = ask(world, "anna", "clips", stills="true").headers["Content-Security-Policy"]
    assert f"media-src {s3_endpoint};" in stills


def test_signing_is_in_no_log_either(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At level DEBUG botocore logs what it signs, token and signature included; not when it signs links."""
    from airflow_provider_codegateway.clip import S3Location
    from airflow_provider_codegateway.plugins import storage

    extra = {"endpoint_url": s3_endpoint, "region_name": "us-east-1", "aws_session_token": "T0kenOfASession"}
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_LOGGED", json.dumps(connection))
    caplog.set_level(logging.DEBUG)
    s3 = storage.client_for("logged", "any")
    s3.list_buckets()
    assert "Calculating signature" in caplog.text
    caplog.clear()
    signature = httpx.URL(storage.sign(s3, S3Location("any", "k"))).params["X-Amz-Signature"]
    assert signature not in caplog.text
    assert "T0kenOfASession" not in caplog.text


def test_signed_links_are_in_no_log(world: World) -> None:
    """The server's log knows of the request for a link, and not of the link."""
    ask(world, "anna", "api/link", **world.task(DAG_A))
    log = world.log.read_text()
    assert "/codegateway/api/link" in log
    assert "X-Amz-Signature" not in log


# The gallery.


@pytest.mark.usefixtures("copies")
def test_gallery_is_paged_newest_first(world: World) -> None:
    """Following the cursor gives every clip once, newest first, also where many are of the same moment."""
    clip = world.clips[DAG_A]
    copy_tasks(
        DAG_A,
        [
            Copy(map_index=n, clip=clip, task={"start_date": NEWEST - timedelta(hours=n // 20)})
            for n in range(60)
        ],
    )
    seen, cursor = [], ""
    while True:
        page = ask(world, "anna", "api/clips", before=cursor).json()
        seen += [card["task"]["map_index"] for card in page["clips"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == [-1, *range(60)]
    assert [index // 20 for index in seen[1:]] == sorted(index // 20 for index in seen[1:])


@pytest.mark.usefixtures("copies")
def test_gallery_is_narrowed_by_dag_and_model(world: World) -> None:
    """A model and a DAG may be chosen, and the choices are those that have clips."""
    other = {**world.clips[DAG_A], "model": "minimax/hailuo-2.3-fast"}
    copy_tasks(DAG_A, [Copy(map_index=0, clip=other, rendered={"model": other["model"]})])
    filters = ask(world, "admin", "api/filters").json()
    assert filters == {
        "dags": sorted([DAG_A, DAG_B]),
        "models": ["google/veo-3.1-fast", "minimax/hailuo-2.3-fast"],
    }
    by_model = ask(world, "admin", "api/clips", model="minimax/hailuo-2.3-fast").json()["clips"]
    by_dag = ask(world, "admin", "api/clips", dag_id=DAG_B).json()["clips"]
    assert [card["task"]["map_index"] for card in by_model] == [0]
    assert [card["task"]["dag_id"] for card in by_dag] == [DAG_B]


@pytest.mark.usefixtures("copies")
def test_gallery_reads_on_past_what_is_no_clip(world: World) -> None:
    """A page is not empty because the newest XComs are malformed; nor are their models offered."""
    malformed = {**world.clips[DAG_A], "model": "two\nlines"}
    later = NEWEST + timedelta(days=365 * 100)
    copies = [Copy(map_index=n, clip=malformed, task={"start_date": later}) for n in range(60)]
    copy_tasks(DAG_A, copies)
    page = ask(world, "anna", "api/clips").json()
    assert ([card["task"]["map_index"] for card in page["clips"]], page["next"]) == ([-1], None)
    assert ask(world, "anna", "api/filters").json()["models"] == [world.clips[DAG_A]["model"]]


@pytest.mark.usefixtures("copies")
def test_gallery_of_ten_thousand_clips_shows_the_newest(world: World) -> None:
    """Of 10,000 clips one page is read, the newest first; the last ones are found as well."""
    tasks = [{"start_date": NEWEST - timedelta(minutes=n)} for n in range(10_000)]
    copy_tasks(DAG_A, [Copy(map_index=n, task=task) for n, task in enumerate(tasks)])
    page = ask(world, "anna", "api/clips", before=cursor(NEWEST + timedelta(minutes=1))).json()
    assert [card["task"]["map_index"] for card in page["clips"]] == list(range(24))
    last = ask(world, "anna", "api/clips", before=cursor(NEWEST - timedelta(minutes=9_990, seconds=1))).json()
    assert [card["task"]["map_index"] for card in last["clips"]] == list(range(9_991, 10_000))
    assert last["next"] is None


# The link on the task, and the plugin.


def airflow_links(world: World, task: dict[str, Any]) -> dict[str, str | None]:
    path = f"/api/v2/dags/{task['dag_id']}/dagRuns/{task['run_id']}/taskInstances/{task['task_id']}/links"
    with world.browse("admin") as client:
        answer = client.get(path, params={"map_index": task["map_index"]})
    links: dict[str, str | None] = answer.raise_for_status().json()["extra_links"]
    return links


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("state", ["success", "failed", "running"])
def test_task_has_a_link_to_its_page(world: World, state: str) -> None:
    """Airflow gives the link of a task of ours, also while it runs and after it failed, and it is the page's."""
    copy_tasks(DAG_A, [Copy(map_index=0, task={"state": state})])
    links = airflow_links(world, copied(world, 0))
    assert list(links) == ["Clip"]
    with world.browse("anna") as client:  # relative to Airflow's base, as its UI takes it
        assert client.get(f"/{links['Clip']}").status_code == 200


def test_only_our_tasks_have_the_link(world: World) -> None:
    """A task of another operator has none."""
    assert airflow_links(world, world.task(DAG_A, "other")) == {}


def test_worker_keeps_the_link(world: World) -> None:
    """The link is an XCom as well, for operators that are derived from ours."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_provider_codegateway.links import page_of

    with create_session() as session:
        kept = session.scalars(
            select(XComModel.value).where(XComModel.dag_id == DAG_A, XComModel.key == "_link_ClipLink")
        ).one()
    assert page_of(SimpleNamespace(**world.task(DAG_A))) in kept


def test_menu_has_the_gallery(world: World) -> None:
    """Airflow's UI is told of one entry under Browse."""
    with world.browse("admin") as client:
        plugins = client.get("/api/v2/plugins").json()["plugins"]
        errors = client.get("/api/v2/plugins/importErrors").json()
    (view,) = next(plugin for plugin in plugins if plugin["name"] == "codegateway")["external_views"]
    assert (view["name"], view["category"], view["href"]) == (
        "CodeGateway clips",
        "browse",
        "/codegateway/clips",
    )
    assert errors["import_errors"] == []


def test_pages_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``[codegateway] clip_pages = False`` there is no app, no entry, and the link is the S3 console's."""
    from airflow_provider_codegateway.plugins.plugin import CodeGatewayPlugin

    monkeypatch.setenv("AIRFLOW__CODEGATEWAY__CLIP_PAGES", "False")
    plugin = CodeGatewayPlugin()
    assert (plugin.fastapi_apps, plugin.external_views, plugin.operator_extra_links) == ([], [], [])


def test_broken_pages_do_not_stop_the_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that cannot be built, on an Airflow of tomorrow, are left out."""
    from airflow_provider_codegateway.plugins.plugin import CodeGatewayPlugin

    monkeypatch.setitem(sys.modules, "airflow_provider_codegateway.plugins.app", None)
    plugin = CodeGatewayPlugin()
    assert (plugin.fastapi_apps, plugin.external_views, plugin.operator_extra_links) == ([], [], [])


def test_plugin_is_light() -> None:
    """Every process of Airflow loads the plugin: it brings no web framework, no boto3 and not the operator."""
    heavy = {"fastapi", "starlette", "boto3", "airflow_provider_codegateway.operators.video"}
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules); "
        "import airflow_provider_codegateway.plugins.plugin; "
        f"print(*sorted({heavy!r} & (sys.modules.keys() - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.usefixtures("copies")
def test_many_galleries_at_once_leave_airflow_its_connections(world: World) -> None:
    """Airflow has 15 connections to its database: a dozen viewers of long galleries do not take them all."""
    copies = [
        Copy(map_index=n, clip={**world.clips[DAG_A], "key": f"{n}.mp4"}, rendered=None) for n in range(100)
    ]
    copy_tasks(DAG_A, copies)
    with ThreadPoolExecutor(24) as viewers:
        routes = ["api/clips", "api/filters"] * 12
        answers = list(viewers.map(lambda route: ask(world, "admin", route), routes))
    assert [answer.status_code for answer in answers] == [200] * len(routes)
    assert "QueuePool limit" not in world.log.read_text(errors="replace")
