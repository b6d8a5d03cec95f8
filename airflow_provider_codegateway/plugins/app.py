"""The pages' own small web app, mounted by Airflow's API server.

Airflow does not protect a plugin's app: every route here that tells anything asks Airflow's API, with the viewer's own
login. All are GETs that change nothing. A DAG that does not exist, one that may not be read and a task that makes no
clips get the very same answer.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from airflow_provider_codegateway.clip import Clip, S3Location
from airflow_provider_codegateway.links import URL_PREFIX
from airflow_provider_codegateway.plugins import clips, manifests, storage
from airflow_provider_codegateway.plugins.airflow_api import (
    MAX_CALLS,
    AirflowApi,
    NoAnswer,
    NotAllowed,
    NotLoggedIn,
    TaskRef,
)
from airflow_provider_codegateway.plugins.clips import Choice, ConnId, Entry

Result = TypeVar("Result")

_PAGES = Path(__file__).parent / "pages"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_AIRFLOW = "airflow_provider_codegateway.airflow"
"""Where a request has the app of Airflow that serves it."""
_PERSONS = ("/batch", "/clip", "/clips")
"""Routes that a person opens, and not a script."""
_REFUSALS: dict[type[Exception], tuple[int, str]] = {
    NotLoggedIn: (401, "Not authenticated"),
    NotAllowed: (403, "There is no such clip, or you may not see it."),
    NoAnswer: (503, "Airflow's API failed. Its log says why."),
}

# S3, or whatever gives the credentials for it, may be slow to fail. In these few threads it holds up nobody but our
# viewers, and no page waits for links.
_link_threads = ThreadPoolExecutor(4, thread_name_prefix="codegateway-links")
_origin_threads = ThreadPoolExecutor(4, thread_name_prefix="codegateway-origins")
_LINK_PATIENCE = 20.0
_PAGE_PATIENCE = 10.0
"""Seconds. A page that is sent without the origin of its video says, when asked to play, to reload it."""
_GALLERY_PATIENCE = 0.3
"""Seconds: a new process has boto3 to load first. A gallery that misses an origin reloads itself, once."""


class ClipApp(FastAPI):
    """Knows the app that it is mounted in, which is Airflow's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await super().__call__({**scope, _AIRFLOW: scope.get("app")}, receive, send)


def create_app() -> FastAPI:
    """The app, to be mounted at ``links.URL_PREFIX``."""
    app = ClipApp(title="CodeGateway clips", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.calls = asyncio.Semaphore(MAX_CALLS)
    app.mount("/static", StaticFiles(directory=_PAGES / "static"))
    app.get("/clips")(gallery_page)
    app.get("/clip")(clip_page)
    app.get("/api/clips")(gallery)
    app.get("/api/filters")(filters)
    app.get("/api/clip")(clip)
    app.get("/api/link")(link)
    app.get("/api/poster")(poster)
    app.get("/batch")(batch_page)
    app.get("/api/batch")(batch)
    app.get("/api/batch/rows")(batch_rows)
    app.get("/api/batch/clip")(batch_clip)
    app.get("/api/batch/link")(batch_link)
    for kind in _REFUSALS:
        app.exception_handler(kind)(_refuse)
    app.exception_handler(storage.NoLink)(_no_link)
    app.exception_handler(TimeoutError)(_no_link)
    app.middleware("http")(_with_headers)
    return app


# Who asks for what.


def _api(request: Request) -> AirflowApi:
    return AirflowApi(request.scope[_AIRFLOW], request.headers, request.app.state.calls)


ApiDep = Annotated[AirflowApi, Depends(_api)]


def _task(
    dag_id: Annotated[str, Query(max_length=250)],
    run_id: Annotated[str, Query(max_length=250)],
    task_id: Annotated[str, Query(max_length=250)],
    map_index: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
) -> TaskRef:
    return TaskRef(dag_id, run_id, task_id, map_index)


async def _entry(api: ApiDep, task: Annotated[TaskRef, Depends(_task)]) -> Entry:
    return await clips.look_up(api, task)


def _choice(
    dag_id: Annotated[str, Query(max_length=250)] = "",
    model: Annotated[str, Query(max_length=250)] = "",
    state: Annotated[str, Query(pattern="^[a-z_]{0,20}$")] = "",
    words: Annotated[str, Query(max_length=250)] = "",
    before: Annotated[str, Query(max_length=2000)] = "",
) -> Choice:
    # No database takes a zero byte.
    return Choice(dag_id.replace("\0", ""), model, state, words, before)


async def _batch(entry: Annotated[Entry, Depends(_entry)]) -> Entry:
    if not entry.is_batch:
        raise NotAllowed
    return entry


RowPlace = Annotated[int, Query(ge=0, lt=2**53)]
EntryDep = Annotated[Entry, Depends(_entry)]
BatchDep = Annotated[Entry, Depends(_batch)]
ChoiceDep = Annotated[Choice, Depends(_choice)]


# The routes.


async def gallery_page(api: ApiDep, choice: ChoiceDep, stills: bool = False) -> Response:
    """The gallery. With ``stills``, its policy names the places that the frames of this page come from."""
    if not stills:
        await api.require_login()
        return _html("gallery.html")
    entries, _ = await clips.recent(api, choice)
    places = {(entry.aws_conn_id, entry.clip.bucket) for entry in entries if entry.clip}
    return _html("gallery.html", media=await origins(places, _GALLERY_PATIENCE))


async def clip_page(request: Request, entry: EntryDep, at: RowPlace | None = None) -> Response:
    """The page of one clip, also of a batch's row. Its policy names the one place that its video comes from."""
    place: S3Location | Clip | None = entry.clip
    if entry.is_batch:
        if at is None:
            return RedirectResponse(f"batch?{request.url.query}")
        with suppress(storage.NoLink, TimeoutError):  # the page says why
            place = (await _from_s3(manifests.read_row, entry, at)).place
    places = [(entry.aws_conn_id, place.bucket)] if place else ()
    return _html("clip.html", media=await origins(places, _PAGE_PATIENCE))


async def gallery(api: ApiDep, choice: ChoiceDep) -> Response:
    """The facts of some clips, newest first."""
    entries, cursor = await clips.recent(api, choice)
    return _json({"clips": [_card(entry) for entry in entries], "next": cursor})


async def filters(api: ApiDep) -> Response:
    """What the gallery can be narrowed to: DAGs and models of the newest clips that the viewer may see."""
    return _json(await clips.choices(api))


async def clip(api: ApiDep, entry: EntryDep) -> Response:
    """The facts of one clip, and of the task that makes it."""
    return _json(
        {
            **await _about_task(api, entry),
            "target": entry.target and entry.target.uri,
            "clip": entry.clip and entry.clip.as_dict(),
            "stored": entry.stored,
        }
    )


async def _about_task(api: AirflowApi, entry: Entry) -> dict[str, Any]:
    tries = await api.tries(entry.task)
    return {
        "task": asdict(entry.task),
        "label": entry.instance.label,
        "state": entry.instance.state,
        "number": entry.instance.number,
        "model": entry.model,
        "request": entry.request,
        "error": None if entry.instance.state == "success" else await clips.error_of(api, entry.task),
        "tries": [
            {name: getattr(attempt, name) for name in ("number", "state", "start", "end", "seconds")}
            for attempt in tries
        ],
    }


async def batch_page(entry: BatchDep) -> Response:
    """The page of a batch. Its policy names the places that its videos most likely come from."""
    at = entry.manifest
    buckets = {bucket for bucket in (at and at.bucket, entry.text("s3_bucket")) if bucket}
    places = {(entry.aws_conn_id, bucket) for bucket in buckets} if at else set()
    return _html("batch.html", media=await origins(places, _PAGE_PATIENCE))


async def batch(api: ApiDep, entry: BatchDep) -> Response:
    """The counts of a batch, and of one that is under way how far it is."""
    progress = None
    if entry.batch is None and not entry.has_ended:
        with suppress(TimeoutError):
            progress = await _from_s3(manifests.read_progress, entry)
    return _json(
        {
            **await _about_task(api, entry),
            "result_path": entry.text("result_path"),
            "batch": entry.batch and entry.batch.model_dump(),
            "manifest": entry.manifest and entry.manifest.uri,
            "has_ended": entry.has_ended,
            "progress": progress,
            "stored": entry.stored,
        }
    )


async def batch_rows(
    entry: BatchDep,
    status: Annotated[str, Query(pattern="^[a-z_]{0,20}$")] = "",
    words: Annotated[str, Query(max_length=250)] = "",
    at: RowPlace = 0,
) -> Response:
    """Some rows of a batch's manifest."""
    return _json(await _from_s3(partial(manifests.read_rows, entry, status=status, words=words, at=at)))


async def batch_clip(api: ApiDep, entry: BatchDep, at: RowPlace) -> Response:
    """The facts of one row, as ``clip`` of a single clip. Without its object, what the manifest says."""
    row = await _from_s3(manifests.read_row, entry, at)
    about = await _about_task(api, entry)
    found = None
    with suppress(storage.NoLink, TimeoutError):
        found = await _look(api, manifests.look_at_clip, entry, row)
    return _json(
        {
            **about,
            "error": None,
            "request": None,
            "row": asdict(row),
            "target": row.uri,
            "clip": row.place and _facts_of(row, row.place, found),
            "stored": found and found.stored,
        }
    )


def _facts_of(row: manifests.Row, place: S3Location, found: storage.Found | None) -> dict[str, Any]:
    marks = found and found.marks
    return {
        "uri": place.uri,
        "key": place.key,
        "model": row.model,
        "cost": row.cost,
        "facts": row.facts,
        "reused": row.status == "reused",
        "renders_bought": row.renders_bought,
        "bytes": found and found.size,
        "fingerprint": marks and marks.fingerprint,
        "created": marks and marks.created,
        "render_seconds": marks and marks.render_seconds,
    }


async def batch_link(api: ApiDep, entry: BatchDep, at: RowPlace, download: bool = False) -> Response:
    """A link to the video of one row, as ``link`` of a single clip."""
    row = await _from_s3(manifests.read_row, entry, at)
    return await _link(await _look(api, manifests.look_at_clip, entry, row), download=download)


async def link(api: ApiDep, entry: EntryDep, download: bool = False) -> Response:
    """A link to the video, for a few minutes; or why there is none."""
    return await _link(await _look(api, storage.look_at, entry), download=download)


async def _link(found: storage.Found, *, download: bool) -> Response:
    url = await _from_s3(partial(found.sign, download=download))
    return _json({"url": url, "seconds": storage.LINK_SECONDS})


async def poster(api: ApiDep, entry: EntryDep) -> Response:
    """The first picture of a clip: small, so it comes through Airflow, and the page's policy need name no S3."""
    found = await _look(api, storage.look_at, entry)
    content, kind = await _from_s3(found.poster, entry.clip and entry.clip.poster)
    return Response(content, media_type=kind)


async def _look(api: AirflowApi, look: Callable[..., storage.Found], *args: Any) -> storage.Found:
    """
    :raises NoLink: there is no such object, or the viewer may not see it.
    """
    found = await _from_s3(look, *args)
    if not found.is_own and not await clips.may_see_work_of(api, found.marks):
        raise storage.NoLink(storage.Problem.NOT_THE_CLIP)
    return found


def _card(entry: Entry) -> dict[str, Any]:
    clip = entry.clip
    return {
        "task": asdict(entry.task),
        "label": entry.instance.label,
        "state": entry.instance.state,
        "model": entry.model,
        "prompt": entry.text("prompt"),
        "aspect_ratio": entry.text("aspect_ratio"),
        "batch": entry.batch and entry.batch.model_dump(exclude={"manifest", "stopped"}),
        "is_batch": entry.is_batch,
        "error": entry.error and {**entry.error, "message": _first_sentence(entry.error["message"])},
        "when": entry.stored or entry.instance.end or entry.instance.start,
        "clip": clip
        and {
            "bytes": clip.bytes,
            "reused": clip.reused and not clip.renders_bought_here,
            "fingerprint": clip.fingerprint,
            "cost": clip.cost,
            "duration": (clip.facts or {}).get("duration"),
            "has_poster": clip.poster is not None,
        },
    }


def _first_sentence(message: str) -> str:
    """As much of a message as fits on a card."""
    line = message.strip().partition("\n")[0]
    return re.split(r"(?<=[.!]) ", line, maxsplit=1)[0][:200]


# S3.


async def _from_s3(function: Callable[..., Result], *args: Any) -> Result:
    """What a function of ours brings from S3.

    :raises TimeoutError: it takes longer than a viewer waits.
    """
    async with asyncio.timeout(_LINK_PATIENCE):
        return await asyncio.get_running_loop().run_in_executor(_link_threads, function, *args)


async def origins(places: Collection[tuple[ConnId, str]], patience: float) -> list[str]:
    """The origins of links into these places, as far as they can be told in ``patience`` seconds."""
    if not places:
        return []
    loop = asyncio.get_running_loop()
    asked = [loop.run_in_executor(_origin_threads, storage.media_origin, *place) for place in places]
    told, late = await asyncio.wait(asked, timeout=patience)
    for each in late:
        each.cancel()
    return sorted({origin for each in told if (origin := each.result())})


# Answers.


def _json(content: Any, *, status: int = 200) -> Response:
    # Escaped to ASCII: half a surrogate in somebody's prompt is no reason to fail.
    text = json.dumps(content, default=datetime.isoformat)
    return Response(text, status, media_type="application/json")


def _html(name: str, *, status: int = 200, media: Iterable[str] = ()) -> Response:
    # By hand: a FileResponse would answer 304 to who has the page, and may no longer have it.
    policy = {"Content-Security-Policy": _policy(media)}
    return Response((_PAGES / name).read_bytes(), status, policy, media_type="text/html")


def _policy(media: Iterable[str] = ()) -> str:
    sources = " ".join(media) or "'none'"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        f"media-src {sources}; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'self'"
    )


async def _no_link(request: Request, error: Exception) -> Response:
    if not isinstance(error, storage.NoLink):
        error = storage.NoLink(storage.Problem.UNREACHABLE)
    return _json({"problem": error.problem.name, "words": error.words}, status=error.problem.value)


async def _refuse(request: Request, error: Exception) -> Response:
    """To a script the status in JSON; to a person a page, or the way to log in."""
    status, detail = next(said for kind, said in _REFUSALS.items() if isinstance(error, kind))
    path, root = request.url.path, str(request.scope["root_path"])
    if path.removeprefix(root) not in _PERSONS:
        return _json({"detail": detail}, status=status)
    if status == 401:
        # Relative: behind a proxy, nobody here knows under which name the viewer came.
        here = quote(f"{path}?{request.url.query}", safe="")
        return RedirectResponse(f"{root.removesuffix(URL_PREFIX)}/api/v2/auth/login?next={here}")
    return _html("refused.html", status=status)


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    is_static = request.url.path.startswith(f"{request.scope['root_path']}/static/")
    response = await call_next(request)
    headers = {**_HEADERS, "Content-Security-Policy": _policy()}
    if is_static:
        headers["Cache-Control"] = "no-cache"  # asked for anew, and answered by its ETag
    for name, value in headers.items():
        response.headers.setdefault(name, value)
    return response
