"""Airflow's public REST API, asked inside the API server with the viewer's own login.

Airflow decides what the viewer may see: whatever it refuses is not there. Only ``/api/v2`` is used, and only what it
has had since Airflow 3.1, so the pages need no tables of Airflow's and no adapter for a version.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

import httpx

log = logging.getLogger(__name__)

BATCH_OPERATORS = ("GenerateVideosOperator", "_GenerateVideosDecoratedOperator")
OPERATORS = ("GenerateVideoOperator", "_GenerateVideoDecoratedOperator", *BATCH_OPERATORS)
"""The class names of the operators whose tasks make clips, as Airflow stores them."""
PAGE = 100
"""The most that one answer of the API lists."""
MAX_CALLS = 4
"""So many calls at a time, of all viewers together. Each takes one of the 15 connections to its database that Airflow's
API server has by default, and a thread: were all taken by calls that wait for each other, it would answer nobody."""
MAX_DAGS = 200
"""A viewer who may not ask for all DAGs at once is shown the clips of so many."""
# A task that has begun: one that has not has no time to be sorted by.
_BEGUN = ("running", "deferred", "success", "failed", "up_for_retry", "restarting")


class NotLoggedIn(Exception):
    """Airflow does not know the viewer."""


class NoAnswer(Exception):
    """Airflow failed to answer."""


class NotAllowed(Exception):
    """There is no such thing, or the viewer may not see it."""


@dataclass(frozen=True)
class TaskRef:
    """One task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True)
class Instance:
    """What Airflow tells of a task instance.

    :param label: of a mapped one, if its author named it.
    :param number: of its latest try.
    :param fields: its rendered arguments; None if Airflow keeps them no more, or the list leaves them out.
    """

    id: str
    task: TaskRef
    state: str | None
    operator: str | None
    label: str | None
    number: int
    start: datetime | None
    end: datetime | None
    seconds: float | None
    fields: dict[str, Any] | None

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Self:
        """Of a task instance as the API has it, or of one of its tries."""
        return cls(
            id=str(answer.get("id", "")),
            task=TaskRef(answer["dag_id"], answer["dag_run_id"], answer["task_id"], answer["map_index"]),
            state=answer["state"],
            operator=answer["operator"],
            label=answer.get("rendered_map_index"),
            number=answer["try_number"],
            start=_moment(answer["start_date"]),
            end=_moment(answer["end_date"]),
            seconds=answer["duration"],
            fields=answer.get("rendered_fields") or None,
        )


@dataclass(frozen=True)
class Position:
    """A place in the list of task instances, which is sorted by their start, newest first.

    :param start: of the instance before it.
    :param taken: how many with that very start come before it.
    """

    start: datetime
    taken: int


class AirflowApi:
    """The API as one viewer may use it.

    :param app: Airflow's own web app.
    :param headers: of the viewer's request, for their login.
    :param calls: held for each call, see ``MAX_CALLS``.
    """

    def __init__(self, app: Any, headers: Mapping[str, str], calls: asyncio.Semaphore) -> None:
        self._calls = calls
        self._readable: dict[str, bool] = {}
        login = {name: headers[name] for name in ("cookie", "authorization") if name in headers}
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://airflow/api/v2",
            headers={**login, "accept": "application/json"},
            trust_env=False,
        )

    async def instance(self, task: TaskRef) -> Instance:
        """One task instance.

        :raises NotAllowed: it does not exist, or is hidden from the viewer.
        """
        return Instance.from_answer(await self._get(f"{_path(task)}/{task.map_index}"))

    async def with_fields(self, instance: Instance) -> Instance:
        """A task instance of a list with its rendered arguments, which the lists of Airflow 3.1 and 3.2 leave out."""
        if instance.fields is not None:
            return instance
        try:
            return await self.instance(instance.task)
        except (NotAllowed, NoAnswer):
            return instance

    async def tries(self, task: TaskRef) -> list[Instance]:
        """Its tries, the newest first."""
        answer = await self._get(f"{_path(task)}/{task.map_index}/tries")
        tries: dict[int, Instance] = {}
        for each in map(Instance.from_answer, answer["task_instances"]):
            # Until the next try begins, the task has the number of the one before, which is listed as well.
            if each.number > 0 and not (each.number in tries and tries[each.number].end):
                tries[each.number] = each
        return sorted(tries.values(), key=lambda attempt: -attempt.number)

    async def xcom(self, task: TaskRef, key: str) -> tuple[str, datetime] | None:
        """The JSON of an XCom, and when it was written; None if there is none.

        :raises NotAllowed: the viewer may not read the DAG's XComs.
        """
        try:
            answer = await self._get(
                f"{_path(task)}/xcomEntries/{key}", map_index=task.map_index, deserialize=False
            )
        except _NotFound:
            return None
        value = answer["value"]
        stored = datetime.fromisoformat(answer["timestamp"])
        return value if isinstance(value, str) else json.dumps(value), stored

    async def readable(self, instances: Sequence[Instance]) -> list[Instance]:
        """Those of the instances whose DAGs' XComs the viewer may read: a clip is one."""
        unknown = {each.task.dag_id for each in instances} - self._readable.keys()
        answers = await asyncio.gather(*map(self._may_read_xcoms, unknown))
        self._readable |= zip(unknown, answers, strict=True)
        return [each for each in instances if self._readable[each.task.dag_id]]

    async def _may_read_xcoms(self, dag_id: str) -> bool:
        try:
            await self._get(f"/dags/{_quoted(dag_id)}/dagRuns/~/taskInstances/~/xcomEntries", limit=1)
        except NotAllowed:
            return False
        return True

    async def begun(
        self, *, dag_id: str = "", after: Position | None = None, **filters: Any
    ) -> Sequence[Instance]:
        """Up to ``PAGE`` task instances of our operators that have begun, newest first.

        :param dag_id: only of this DAG.
        :param after: those after this position only.
        :param filters: further parameters of the API's list.
        """
        if after is not None:
            filters["start_date_lte"] = after.start.isoformat()
        taken = after.taken if after else 0
        found = await self._list(dag_id or "~", taken, filters)
        if found is None and not dag_id:
            # Some may ask for each of their DAGs, and not for all at once.
            of_each = (self._list(each, taken, filters) for each in await self._dag_ids())
            found = [instance for each in await asyncio.gather(*of_each) for instance in each or ()]
        found = sorted(found or (), key=lambda each: (_seconds(each.start), each.id), reverse=True)
        skipped = min(after.taken, sum(each.start == after.start for each in found)) if after else 0
        return found[skipped:][:PAGE]

    async def _list(self, dag_id: str, taken: int, filters: Mapping[str, Any]) -> list[Instance] | None:
        """The newest of a DAG, or of all; None if the viewer may not ask."""
        path = f"/dags/{_quoted(dag_id)}/dagRuns/~/taskInstances"
        chosen = {"operator": OPERATORS, "state": _BEGUN, "order_by": "-start_date", **filters}
        try:
            # More than a page can have the very same start.
            answers = await self._pages(path, "task_instances", taken + PAGE, **chosen)
        except NotAllowed:
            return None
        return [instance for instance in map(Instance.from_answer, answers) if instance.start]

    async def _dag_ids(self) -> list[str]:
        try:
            dags = await self._pages("/dags", "dags", MAX_DAGS, exclude_stale=False)
        except NotAllowed:
            return []
        return [dag["dag_id"] for dag in dags]

    async def _pages(self, path: str, name: str, most: int, **parameters: Any) -> list[Any]:
        """What a list has, from its first page up to the one with number ``most``."""
        found: list[Any] = []
        while len(found) < most:
            answer = await self._get(path, limit=PAGE, offset=len(found), **parameters)
            found += answer[name]
            if len(answer[name]) < PAGE:
                break
        return found

    async def require_login(self) -> None:
        """:raises NotLoggedIn: Airflow does not know the viewer."""
        try:
            await self._get("/dags", limit=1)
        except NotAllowed:
            return

    async def _get(self, path: str, **parameters: Any) -> Any:
        async with self._calls:
            answer = await self._client.get(path, params=parameters)
        if answer.status_code == 401:
            raise NotLoggedIn
        if answer.status_code == 404:
            raise _NotFound
        if answer.status_code >= 500:
            log.warning("Airflow's API answered %d to %s.", answer.status_code, path)
            raise NoAnswer
        if answer.status_code != 200:
            raise NotAllowed
        return answer.json()


class _NotFound(NotAllowed):
    pass


def _path(task: TaskRef) -> str:
    """Of a task instance, less its map index."""
    parts = task.dag_id, task.run_id, task.task_id
    if any(part == "~" or "\0" in part for part in parts):  # all of them; what no database takes
        raise NotAllowed
    dag_id, run_id, task_id = map(_quoted, parts)
    return f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"


def _quoted(part: str) -> str:
    if part in ("", ".", ".."):
        raise NotAllowed
    return quote(part, safe="~", errors="replace")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
