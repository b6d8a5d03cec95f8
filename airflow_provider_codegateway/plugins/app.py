"""The pages' own small web app, mounted by Airflow's API server.

Airflow does not protect a plugin's app: every route here that tells anything asks ``access`` first. All are
GETs that change nothing. A DAG that does not exist, one that may not be read and a task that makes no clips get
the very same answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

from airflow_provider_codegateway.links import URL_PREFIX
from airflow_provider_codegateway.plugins import access, clips, storage
from airflow_provider_codegateway.plugins.clips import Card, ConnId, Details, Page, TaskRef

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from sqlalchemy.orm import Session

Result = TypeVar("Result")

_PAGES = Path(__file__).parent / "pages"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NOTHING_TO_SEE = "There is no such clip, or you may not see it."

# S3, or whatever gives the credentials for it, may be slow to fail. In these few threads it holds up nobody but our
# viewers, and no page waits for links.
_link_threads = ThreadPoolExecutor(4, thread_name_prefix="codegateway-links")
_origin_threads = ThreadPoolExecutor(4, thread_name_prefix="codegateway-origins")
_LINK_PATIENCE = 20.0
_PAGE_PATIENCE = 10.0
"""Seconds. A page that is sent without the origin of its video says, when asked to play, to reload it."""
_GALLERY_PATIENCE = 0.3
"""Seconds: a new process has boto3 to load first. A gallery that misses an origin reloads itself, once."""


def create_app() -> FastAPI:
    """The app, to be mounted at ``links.URL_PREFIX``."""
    app = FastAPI(title="CodeGateway clips", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=_PAGES / "static"))
    app.get("/clips")(gallery_page)
    app.get("/clip")(clip_page)
    app.get("/api/clips")(gallery)
    app.get("/api/filters")(filters)
    app.get("/api/clip")(clip)
    app.get("/api/link")(link)
    app.exception_handler(HTTPException)(_refuse)
    app.middleware("http")(_with_headers)
    return app


# Who asks for what.


@dataclass(frozen=True)
class Choice:
    """Which clips of the gallery somebody asks for."""

    user: BaseUser
    dag_id: str
    model: str
    before: str

    def page(self, session: Session) -> Page:
        """Those of them that the user may see."""
        wanted = [self.dag_id] if self.dag_id else clips.dags_with_clips(session)
        dag_ids = access.readable_dags(self.user, wanted, session)
        return clips.recent(session, dag_ids, model=self.model, before=self.before)


def _task(
    dag_id: Annotated[str, Query(max_length=250)],
    run_id: Annotated[str, Query(max_length=250)],
    task_id: Annotated[str, Query(max_length=250)],
    map_index: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
) -> TaskRef:
    return TaskRef(dag_id, run_id, task_id, map_index)


def _details(user: GetUserDep, task: Annotated[TaskRef, Depends(_task)]) -> Details:
    if any("\0" in part for part in (task.dag_id, task.run_id, task.task_id)):  # no database takes it
        raise HTTPException(403, _NOTHING_TO_SEE)
    with create_session(scoped=False) as session:
        may_read = access.may_read_clips(user, task.dag_id, session)
        details = clips.details(session, task) if may_read else None
    if details is None:
        raise HTTPException(403, _NOTHING_TO_SEE)
    return details


def _choice(
    user: GetUserDep,
    dag_id: Annotated[str, Query(max_length=250)] = "",
    model: Annotated[str, Query(max_length=250)] = "",
    before: Annotated[str, Query(max_length=2000)] = "",
) -> Choice:
    # No database takes a zero byte.
    return Choice(user, dag_id.replace("\0", ""), model.replace("\0", ""), before)


DetailsDep = Annotated[Details, Depends(_details)]
ChoiceDep = Annotated[Choice, Depends(_choice)]


# The routes.


async def gallery_page(choice: ChoiceDep, stills: bool = False) -> Response:
    """The gallery. With ``stills``, its policy names the places that the frames of this page come from."""
    places = await run_in_threadpool(_places, choice) if stills else ()
    return _html("gallery.html", media=await _origins(places, _GALLERY_PATIENCE))


async def clip_page(details: DetailsDep) -> Response:
    """The page of one clip. Its policy names the one place that its video comes from."""
    places = [(details.aws_conn_id, details.clip.bucket)] if details.clip else ()
    return _html("clip.html", media=await _origins(places, _PAGE_PATIENCE))


def gallery(choice: ChoiceDep) -> Response:
    """The facts of some clips, newest first."""
    with create_session(scoped=False) as session:
        page = choice.page(session)
    return _json({"clips": [_card(card) for card in page.cards], "next": page.next})


def filters(user: GetUserDep) -> Response:
    """What the gallery can be narrowed to: DAGs that the viewer may read, and the models of their clips."""
    with create_session(scoped=False) as session:
        dag_ids = access.readable_dags(user, clips.dags_with_clips(session), session)
        return _json({"dags": dag_ids, "models": clips.models_of(session, dag_ids)})


def clip(details: DetailsDep) -> Response:
    """The facts of one clip, and of the task that makes it."""
    return _json(
        {
            "task": asdict(details.task),
            "state": details.state,
            "clip": details.clip and details.clip.as_dict(),
            "stored": _iso(details.stored),
            "request": details.request,
            "tries": [
                {**asdict(attempt), "start": _iso(attempt.start), "end": _iso(attempt.end)}
                for attempt in details.tries
            ],
        }
    )


async def link(user: GetUserDep, details: DetailsDep) -> Response:
    """A link to the video, for a few minutes; or why there is none."""

    def may_see_work_of(run: str) -> bool:
        fingerprint = details.clip.fingerprint if details.clip else ""
        with create_session(scoped=False) as session:
            tasks = clips.tasks_with_clip(session, fingerprint)
            makers = {task.dag_id for task in tasks if run in storage.runs_of(task)}
            return bool(access.readable_dags(user, makers, session))

    try:
        url = await asyncio.wait_for(
            _in_thread(_link_threads, storage.link, details, may_see_work_of), _LINK_PATIENCE
        )
    except TimeoutError:
        return _no_link(storage.NoLink(storage.Problem.UNREACHABLE))
    except storage.NoLink as error:
        return _no_link(error)
    return _json({"url": url, "seconds": storage.LINK_SECONDS})


def _no_link(error: storage.NoLink) -> Response:
    return _json({"problem": error.problem.name, "words": error.words}, status=error.problem.value)


def _places(choice: Choice) -> Collection[tuple[ConnId, str]]:
    with create_session(scoped=False) as session:
        return clips.places(session, choice.page(session).cards)


def _card(card: Card) -> dict[str, Any]:
    return {
        "task": asdict(card.task),
        "model": card.clip.model,
        "bytes": card.clip.bytes,
        "reused": card.clip.reused,
        "fingerprint": card.clip.fingerprint,
        "stored": _iso(card.stored),
        "prompt": card.prompt,
        "aspect_ratio": card.aspect_ratio,
    }


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


# S3.


def _in_thread(
    threads: ThreadPoolExecutor, function: Callable[..., Result], *args: Any
) -> asyncio.Future[Result]:
    return asyncio.get_running_loop().run_in_executor(threads, function, *args)


async def _origins(places: Collection[tuple[ConnId, str]], patience: float) -> list[str]:
    """The origins of links into these places, as far as they can be told in ``patience`` seconds."""
    if not places:
        return []
    asked = [_in_thread(_origin_threads, storage.media_origin, *place) for place in places]
    told, late = await asyncio.wait(asked, timeout=patience)
    for each in late:
        each.cancel()
    return sorted({origin for each in told if (origin := each.result())})


# Answers.


def _json(content: Any, *, status: int = 200) -> Response:
    # Escaped to ASCII: half a surrogate in somebody's prompt is no reason to fail.
    return Response(json.dumps(content), status, media_type="application/json")


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


async def _refuse(request: Request, error: HTTPException) -> Response:
    """To a script the status in JSON; to a person a page, or the way to log in."""
    path = request.url.path
    if path.removeprefix(request.scope["root_path"]) not in ("/clip", "/clips"):
        return _json({"detail": error.detail}, status=error.status_code)
    if error.status_code == 401:
        # Relative: behind a proxy, nobody here knows under which name the viewer came.
        here = quote(f"{path}?{request.url.query}", safe="")
        return RedirectResponse(f"{_airflow_root(request)}/api/v2/auth/login?next={here}")
    return _html("refused.html", status=error.status_code)


def _airflow_root(request: Request) -> str:
    return str(request.scope["root_path"]).removesuffix(URL_PREFIX)


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    is_static = request.url.path.startswith(f"{request.scope['root_path']}/static/")
    response = await call_next(request)
    headers = {**_HEADERS, "Content-Security-Policy": _policy()}
    if is_static:
        headers["Cache-Control"] = "no-cache"  # asked for anew, and answered by its ETag
    for name, value in headers.items():
        response.headers.setdefault(name, value)
    return response
