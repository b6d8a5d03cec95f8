"""The page of a batch: its counts, its rows, and their clips. On Airflow's real API server, and in Chromium."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow_run import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("Airflow before 3.1 has no room for the pages.", allow_module_level=True)

from clip_pages import BATCH_DAG, BATCH_ROWS, xcom_model

from airflow_provider_codegateway.clip import MADE_BY, run_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clip_pages import Catalogue
    from mypy_boto3_s3.client import S3Client


pytest_plugins = ("clip_world",)


def all_rows(catalogue: Catalogue, **choice: Any) -> list[dict[str, Any]]:
    found, at = [], 0
    while at is not None:
        answer = catalogue.get("api/batch/rows", at=at, **choice).json()
        found += answer["rows"]
        at = answer["next"]
    return found


def test_the_page_has_the_counts_of_the_batch(catalogue: Catalogue) -> None:
    """And what it cost, its tries, and where its manifest is."""
    batch = catalogue.get("api/batch").json()
    assert (batch["batch"]["requests"], batch["batch"]["stored"], batch["batch"]["refused"]) == (
        BATCH_ROWS,
        BATCH_ROWS - 1,
        1,
    )
    assert batch["batch"]["manifest"] == f"s3://{catalogue.bucket}/result/manifest.jsonl"
    assert (batch["state"], len(batch["tries"]), batch["progress"]) == ("success", 1, None)


def test_the_page_of_a_clip_leads_to_that_of_the_batch(catalogue: Catalogue) -> None:
    """Whoever follows a link to the task's clip."""
    answer = catalogue.get("clip")
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (307, "batch")


def test_rows_are_paged_in_their_order(catalogue: Catalogue) -> None:
    """Each of them once, fifty at a time."""
    first = catalogue.get("api/batch/rows").json()
    assert len(first["rows"]) == 50
    rows = all_rows(catalogue)
    assert [row["id"] for row in rows] == [f"sku-{number}" for number in range(BATCH_ROWS)]
    assert {row["model"] for row in rows} == {"bytedance/seedance-2.0"}


def test_rows_are_chosen_by_status_and_words(catalogue: Catalogue) -> None:
    """Those without a clip say why, and what was bought."""
    [refused] = all_rows(catalogue, status="without_clip")
    assert (refused["status"], refused["error"]["class"], refused["error"]["bought"]) == (
        "refused",
        "RequestRejected",
        "NO",
    )
    assert [row["id"] for row in all_rows(catalogue, words="SKU-77")] == ["sku-77"]
    assert len(all_rows(catalogue, status="stored")) == BATCH_ROWS - 1


def test_the_clip_of_a_row_plays(catalogue: Catalogue) -> None:
    """By a link for five minutes; a row without a clip has none."""
    row = all_rows(catalogue, words="sku-99")[0]
    answer = catalogue.get("api/batch/link", at=row["at"]).json()
    assert httpx.get(answer["url"], trust_env=False).content == catalogue.clip
    [refused] = all_rows(catalogue, status="refused")
    assert catalogue.get("api/batch/link", at=refused["at"]).status_code == 410
    assert catalogue.get("api/batch/link", at=10**9).status_code == 410


@pytest.mark.parametrize("path", ["api/batch", "api/batch/rows", "api/batch/link", "batch"])
@pytest.mark.parametrize("user", ["anna", "nora"])
def test_who_may_not_read_the_dag_sees_nothing_of_its_batch(
    path: str, user: str, catalogue: Catalogue
) -> None:
    """Neither counts nor rows nor clips."""
    answer = catalogue.get(path, user, at=0)
    assert answer.status_code == 403
    assert "sku" not in answer.text


@pytest.mark.parametrize("metadata", [{}, {MADE_BY: run_identity("another", "run")}])
def test_what_no_run_of_the_task_wrote_is_not_shown(
    metadata: dict[str, str], catalogue: Catalogue, s3: S3Client
) -> None:
    """Neither a manifest that took the place of its own, nor a clip."""
    at: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": "result/manifest.jsonl"}
    row = all_rows(catalogue, words="sku-5")[0]
    clip_at: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": f"clips/{row['id']}.mp4"}
    kept = [(place, s3.get_object(**place)) for place in (at, clip_at)]
    bodies = [(place, answer["Body"].read(), answer["Metadata"]) for place, answer in kept]
    try:
        s3.put_object(**clip_at, Body=b"secret", Metadata=metadata)
        assert catalogue.get("api/batch/link", at=row["at"]).status_code == 409
        s3.put_object(**at, Body=bodies[0][1], Metadata=metadata)
        for path in ("api/batch/rows", "api/batch/link"):
            answer = catalogue.get(path, at=0)
            assert (answer.status_code, answer.json()["problem"]) == (409, "NOT_THE_CLIP")
    finally:
        for place, body, own in bodies:
            s3.put_object(**place, Body=body, Metadata=own)


def test_the_gallery_has_the_batch_as_one_card(catalogue: Catalogue) -> None:
    """With its counts; found by its folder, too."""
    with catalogue.world.browse("admin") as client:
        for words in ("", catalogue.bucket):
            cards = client.get("/codegateway/api/clips", params={"words": words}).json()["clips"]
            [card] = [card for card in cards if card["is_batch"]]
            assert card["batch"]["stored"] == BATCH_ROWS - 1
            assert card["task"]["task_id"] == "videos"


@pytest.fixture
def under_way(catalogue: Catalogue, s3: S3Client) -> Iterator[dict[str, Any]]:
    """The batch as it was while it ran: without its XCom, and with what it wrote of its progress."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import delete, insert, select, update

    progress = {
        "stored": 40,
        "failed": 1,
        "in_flight": 8,
        "waiting": 71,
        "spent": "41 renders",
        "seconds_left": 61.0,
    }
    s3.put_object(
        Bucket=catalogue.bucket,
        Key="result/progress.json",
        Body=json.dumps(progress).encode(),
        Metadata={MADE_BY: run_identity(BATCH_DAG, catalogue.task["run_id"])},
    )
    model = xcom_model()
    with create_session() as session:
        task = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG)).one()
        of_task = (
            model.task_instance_id == task.id
            if hasattr(model, "task_instance_id")
            else model.dag_id == BATCH_DAG
        )
        kept = [dict(row._mapping) for row in session.execute(select(model.__table__).where(of_task))]
        session.execute(delete(model).where(of_task))
        session.execute(update(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG).values(state="deferred"))
    yield progress
    with create_session() as session:
        session.execute(insert(model.__table__), kept)
        session.execute(update(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG).values(state="success"))


def test_a_batch_that_is_under_way_says_how_far_it_is(
    catalogue: Catalogue, under_way: dict[str, Any], s3: S3Client
) -> None:
    """By what it writes itself; what another run left there says nothing."""
    assert catalogue.get("api/batch").json()["progress"] == under_way
    key: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": "result/progress.json"}
    s3.put_object(**key, Body=json.dumps(under_way).encode(), Metadata={MADE_BY: run_identity("a", "b")})
    assert catalogue.get("api/batch").json()["progress"] is None
    s3.put_object(
        **key, Body=b"no JSON", Metadata={MADE_BY: run_identity(BATCH_DAG, catalogue.task["run_id"])}
    )
    assert catalogue.get("api/batch").json()["progress"] is None
