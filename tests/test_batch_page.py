"""The page of a batch: its counts, its rows, and their clips. On Airflow's real API server, and in Chromium."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow_run import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("Airflow before 3.1 has no room for the pages.", allow_module_level=True)

from clip_pages import BATCH_DAG, BATCH_ROWS

from airflow_provider_codegateway.clip import MADE_BY, run_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clip_pages import Catalogue
    from mypy_boto3_s3.client import S3Client

pytest_plugins = ("clip_world",)

NOTHING_TO_SEE = "There is no such clip, or you may not see it."


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
            [card] = [card for card in cards if card["task"]["dag_id"] == catalogue.task["dag_id"]]
            assert card["is_batch"]
            assert card["batch"]["stored"] == BATCH_ROWS - 1
            assert card["task"]["task_id"] == "videos"


def test_a_batch_that_is_under_way_says_how_far_it_is(
    catalogue: Catalogue, under_way: dict[str, Any], s3: S3Client
) -> None:
    """By what it writes itself; what another run left there says nothing."""
    progress = catalogue.get("api/batch").json()["progress"]
    assert {name: progress[name] for name in under_way} == under_way
    key: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": "result/progress.json"}
    s3.put_object(**key, Body=json.dumps(under_way).encode(), Metadata={MADE_BY: run_identity("a", "b")})
    assert catalogue.get("api/batch").json()["progress"] is None
    own = {MADE_BY: run_identity(BATCH_DAG, catalogue.task["run_id"])}
    for content in (
        b"no JSON",
        b"[" * 9000,
        b'{"stored": NaN}',
        json.dumps({**under_way, "stored": {}}).encode(),
    ):
        s3.put_object(**key, Body=content, Metadata=own)
        assert catalogue.get("api/batch").json()["progress"] is None


# Who sees what, and what a manifest may hold.


@pytest.mark.parametrize("more", [{}, {"at": 0}], ids=["batch", "row"])
def test_pages_refuse_a_person_in_words(catalogue: Catalogue, more: dict[str, Any]) -> None:
    """Who may not see a batch gets a page that says so, and who is not logged in the way to the login."""
    for page in ("batch", "clip"):
        refused = catalogue.get(page, user="nora", **more)
        assert (refused.status_code, refused.headers["Content-Type"]) == (403, "text/html; charset=utf-8")
        with catalogue.world.browse(None) as client:
            answer = client.get(f"/codegateway/{page}", params={**catalogue.task, **more})
        assert answer.status_code == 307
        assert answer.headers["Location"].startswith("/api/v2/auth/login?next=")


@pytest.mark.parametrize("path", ["api/batch", "api/batch/rows", "api/batch/clip", "api/batch/link"])
def test_no_fact_without_the_right(catalogue: Catalogue, path: str) -> None:
    """Neither counts nor rows nor links for who may not read the DAG."""
    assert catalogue.get(path, user="nora", at=0).json() == {"detail": NOTHING_TO_SEE}


@pytest.fixture
def manifest(catalogue: Catalogue, s3: S3Client) -> Iterator[Callable[[bytes], None]]:
    """Puts other bytes in the place of the manifest, as if the batch had written them."""
    at: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": "result/manifest.jsonl"}
    own = s3.get_object(**at)
    body = own["Body"].read()
    yield lambda content: s3.put_object(**at, Body=content, Metadata=own["Metadata"]) and None
    s3.put_object(**at, Body=body, Metadata=own["Metadata"])


GOOD = b'{"index": 7, "id": "good", "status": "failed"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 60_000,
        b'{"status": "stored", "id": ' + b"[" * 60_000,
        b'{"status": "stored", "id": "' + b"x" * 5_000_000 + b'"}',
        b'{"status": ["stored"]}',
        b"\xff\xfe",
        b"",
    ],
    ids=["nested", "nested inside", "longer than a page", "a status that is a list", "no text", "empty"],
)
def test_line_that_is_no_row_is_passed_over(
    catalogue: Catalogue, manifest: Callable[[bytes], None], line: bytes
) -> None:
    """Whatever a manifest holds, the rows around it are shown."""
    manifest(GOOD + line + b"\n" + GOOD)
    assert [row["id"] for row in all_rows(catalogue)] == ["good", "good"]


def test_values_that_are_none_are_absent(catalogue: Catalogue, manifest: Callable[[bytes], None]) -> None:
    """NaN, a number beyond all bounds and a list where a number belongs are left out of the answer."""
    manifest(
        b'{"index": [1], "id": {}, "status": "stored", "uri": 7, "renders_bought": 1e999, "cost": {"amount": 3},'
        b' "facts": {"duration": NaN, "width": [[]], "height": 720, "audio": "loud"}, "error": "none"}\n'
    )
    [row] = all_rows(catalogue)
    facts = {"width": None, "height": 720, "duration": None, "fps": None, "codec": None, "audio": None}
    assert (row["index"], row["id"], row["renders_bought"], row["facts"]) == (None, None, None, facts)
    assert row["cost"] == {"amount": None, "at_most": None, "currency": None}


def test_last_line_needs_no_end(catalogue: Catalogue, manifest: Callable[[bytes], None]) -> None:
    """A manifest whose last line has no new line is shown whole."""
    manifest(GOOD + GOOD.strip())
    assert len(all_rows(catalogue)) == 2


def test_rows_beyond_the_first_megabytes_are_found(
    catalogue: Catalogue, manifest: Callable[[bytes], None]
) -> None:
    """One answer looks through a part of a long manifest, and says where the next one goes on: no row is missed."""
    rows = (
        json.dumps({"index": n, "id": f"row-{n}", "status": "stored", "uri": "s3://b/" + "k" * 900})
        for n in range(10_000)
    )
    manifest("\n".join(rows).encode())
    first = catalogue.get("api/batch/rows", words="row-9999").json()
    assert first["rows"] == []
    assert first["next"] is not None
    assert [row["index"] for row in all_rows(catalogue, words="row-9999")] == [9999]
    assert len(all_rows(catalogue)) == 10_000


# The clip of a row.


def test_row_has_a_page_of_its_own(catalogue: Catalogue, s3: S3Client) -> None:
    """With what the manifest says of it, and what its object says of itself."""
    row = all_rows(catalogue, words="sku-7.mp4")[0]
    answer = catalogue.get("api/batch/clip", at=row["at"]).json()
    head = s3.head_object(Bucket=catalogue.bucket, Key="clips/sku-7.mp4")
    assert answer["row"]["id"] == "sku-7"
    clip = answer["clip"]
    assert clip["uri"] == f"s3://{catalogue.bucket}/clips/sku-7.mp4"
    assert (clip["bytes"], clip["model"]) == (len(catalogue.clip), "bytedance/seedance-2.0")
    assert clip["fingerprint"] == head["Metadata"]["codegateway-fingerprint"]
    assert answer["stored"] == head["LastModified"].isoformat()
    page = catalogue.get("clip", at=row["at"])
    assert catalogue.world.s3_endpoint in page.headers["Content-Security-Policy"]


def test_row_without_a_clip_says_why(catalogue: Catalogue) -> None:
    """Its page has the error, and no clip."""
    [row] = all_rows(catalogue, status="without_clip")
    answer = catalogue.get("api/batch/clip", at=row["at"]).json()
    assert answer["clip"] is None
    assert answer["row"]["error"]["class"] == "RequestRejected"


def test_clip_that_is_gone_still_has_its_row(catalogue: Catalogue, s3: S3Client) -> None:
    """What the manifest says stays; what only the object could say is absent, and the link says why."""
    row = all_rows(catalogue, words="sku-9.mp4")[0]
    at: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": "clips/sku-9.mp4"}
    own = s3.get_object(**at)
    body = own["Body"].read()
    s3.delete_object(**at)
    try:
        clip = catalogue.get("api/batch/clip", at=row["at"]).json()["clip"]
        assert (clip["uri"], clip["bytes"], clip["fingerprint"]) == (row["uri"], None, None)
        assert catalogue.get("api/batch/link", at=row["at"]).json()["problem"] == "GONE"
    finally:
        s3.put_object(**at, Body=body, Metadata=own["Metadata"])


@pytest.mark.parametrize("at", [1, 10**9, 2**52])
def test_place_that_is_no_row(catalogue: Catalogue, at: int) -> None:
    """A place within a line, or behind the end, has no clip."""
    for path in ("api/batch/clip", "api/batch/link"):
        assert catalogue.get(path, at=at).json()["problem"] == "GONE"


def test_clip_is_downloaded_under_its_name(catalogue: Catalogue) -> None:
    """A link that downloads names the file; one that plays does not."""
    row = all_rows(catalogue, words="sku-7.mp4")[0]
    for download, disposition in (("true", "attachment; filename*=UTF-8''sku-7.mp4"), ("false", "inline")):
        url = catalogue.get("api/batch/link", at=row["at"], download=download).json()["url"]
        answer = httpx.get(url, trust_env=False)
        assert answer.headers["Content-Disposition"] == disposition
        assert answer.content == catalogue.clip


# A batch whose task ended without its XCom: it was killed, or out of time.


def set_state(state: str) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        session.execute(update(TaskInstance).where(TaskInstance.dag_id == BATCH_DAG).values(state=state))


@pytest.mark.usefixtures("under_way")
def test_task_that_was_killed_shows_its_manifest(catalogue: Catalogue, s3: S3Client) -> None:
    """The manifest is written however a batch ends, and is shown also without the XCom; progress is not."""
    assert catalogue.get("api/batch").json()["manifest"] is None
    set_state("failed")
    batch = catalogue.get("api/batch").json()
    assert (batch["batch"], batch["progress"]) == (None, None)
    assert batch["manifest"] == f"s3://{catalogue.bucket}/result/manifest.jsonl"
    assert len(all_rows(catalogue)) == BATCH_ROWS
    at: dict[str, Any] = {"Bucket": catalogue.bucket, "Key": "result/manifest.jsonl"}
    own = s3.get_object(**at)
    body = own["Body"].read()
    try:
        s3.put_object(**at, Body=body, Metadata={MADE_BY: run_identity(BATCH_DAG, "another run")})
        assert catalogue.get("api/batch/rows").json()["problem"] == "NOT_THE_CLIP"
        s3.delete_object(**at)
        assert catalogue.get("api/batch/rows").json()["problem"] == "GONE"
    finally:
        s3.put_object(**at, Body=body, Metadata=own["Metadata"])


def test_progress_of_an_attempt_before_is_not_shown(catalogue: Catalogue, under_way: dict[str, Any]) -> None:
    """What was written before this attempt began says nothing of it."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select, update

    of_batch = TaskInstance.dag_id == BATCH_DAG
    with create_session() as session:
        begun = session.scalars(select(TaskInstance.start_date).where(of_batch)).one()
        assert begun is not None
        later = update(TaskInstance).where(of_batch).values(start_date=begun + timedelta(hours=1))
        session.execute(later)
    try:
        assert catalogue.get("api/batch").json()["progress"] is None
    finally:
        with create_session() as session:
            session.execute(update(TaskInstance).where(of_batch).values(start_date=begun))
    progress = catalogue.get("api/batch").json()["progress"]
    assert progress.pop("at") is not None
    assert progress == under_way
