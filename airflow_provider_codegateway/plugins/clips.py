"""What Airflow's database knows of clips.

A clip is an XCom ``clip`` with the facts of a clip of ours. Whoever may write XComs may write those, so each
value is checked for its form here, and against the object itself before the object is shown (``storage``).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from airflow.models.renderedtifields import RenderedTaskInstanceFields as Rendered
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.xcom import XComModel
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Text, and_, case, cast, false, func, or_, select

from airflow_provider_codegateway.clip import MAX_KEY_BYTES, Clip, S3Location, clip_location
from airflow_provider_codegateway.exceptions import InvalidRequest

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

PAGE_SIZE = 24
MAX_VALUE_CHARACTERS = 16_384
"""A longer XCom is no clip of ours, and is not loaded."""
MAX_MODELS = 100
MAX_MODEL_CHARACTERS = 250
MAX_BATCHES = 5
"""A page is read in so many batches at most, should much of what is there be no clips."""
_OPERATOR = "GenerateVideoOperator"
_REQUEST_FIELDS = ("prompt", "image", "aspect_ratio", "duration", "resolution", "generate_audio", "seed")
_BUCKET = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:aws[a-z-]*:s3:[a-z0-9-]+:[0-9]{12}:accesspoint[:/][a-z0-9-]{1,63}"
)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_CLIP = TypeAdapter(Clip)


class Unknown(Enum):
    """What nobody can tell any more."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN
ConnId = str | None | Literal[Unknown.UNKNOWN]
"""A task's connection to S3. None: boto3's own credentials."""


@dataclass(frozen=True)
class TaskRef:
    """One task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True)
class Card:
    """A clip in the gallery. ``prompt`` and ``aspect_ratio`` are None where Airflow keeps them no more."""

    task: TaskRef
    clip: Clip
    stored: datetime
    prompt: str | None
    aspect_ratio: str | None


@dataclass(frozen=True)
class Page:
    """Some clips, newest first, and the cursor for those after them; None at the end."""

    cards: Sequence[Card]
    next: str | None


@dataclass(frozen=True)
class Try:
    """One try of a task instance. Seconds, and times with a time zone."""

    number: int
    state: str | None
    start: datetime | None
    end: datetime | None
    seconds: float | None


@dataclass(frozen=True)
class Details:
    """What there is to say of a task instance and its clip.

    :param clip: None while there is none.
    :param request: the task's rendered arguments, media hidden and secrets masked by whoever stored them; None
        if Airflow keeps them no more.
    :param target: where the task's own arguments put its clip, if they are still known.
    """

    task: TaskRef
    state: str | None
    clip: Clip | None
    stored: datetime | None
    request: dict[str, str] | None
    tries: Sequence[Try]
    aws_conn_id: ConnId
    target: S3Location | None


def parse_clip(value: str) -> Clip | None:
    """The facts of a clip, or None if the JSON is none of ours. Its URI is derived, not believed."""
    try:
        clip = _CLIP.validate_json(value, strict=True)
    except ValidationError:
        return None
    numbers = [clip.bytes, clip.render_seconds or 0, clip.renders_bought]
    if (
        _BUCKET.fullmatch(clip.bucket) is None
        or not 1 <= len(clip.key.encode(errors="surrogatepass")) <= MAX_KEY_BYTES
        or _FINGERPRINT.fullmatch(clip.fingerprint) is None
        or not (clip.model and clip.model.isprintable())
        or not all(0 <= number < 2**53 for number in numbers)  # what a browser can count
        or not 0 <= (clip.created or 0) < 1e11
    ):
        return None
    return Clip(**{**asdict(clip), "uri": S3Location(clip.bucket, clip.key).uri})


# The gallery.


def dags_with_clips(session: Session) -> list[str]:
    """The DAGs that have an XCom ``clip``: who asks must still be allowed to know of them."""
    return list(session.scalars(select(XComModel.dag_id).where(XComModel.key == "clip").distinct()))


def models_of(session: Session, dag_ids: Collection[str]) -> list[str]:
    """The models of the clips of these DAGs."""
    model = _fact("model", session)
    names = (
        select(model)
        .where(*_are_clips(session, dag_ids), func.length(model) <= MAX_MODEL_CHARACTERS)
        .distinct()
        .order_by(model)
        .limit(MAX_MODELS)
    )
    return [name for name in session.scalars(names) if name and name.isprintable()]


def recent(
    session: Session,
    dag_ids: Collection[str],
    *,
    model: str | None = None,
    before: str | None = None,
    limit: int = PAGE_SIZE,
) -> Page:
    """The clips of these DAGs, newest first.

    Finds its page by narrow rows, in the order of (time, primary key), and loads the values of those only.

    :param before: the ``next`` of the page before; one that is none of ours starts anew.
    """
    key = (XComModel.timestamp, XComModel.dag_run_id, XComModel.task_id, XComModel.map_index)
    are_wanted = _are_clips(session, dag_ids)
    if model:
        are_wanted.append(_fact("model", session) == model)
    cards: list[Card] = []
    position = _from_cursor(before)
    for _ in range(MAX_BATCHES):
        are_next = [] if position is None else [_is_before(key, position)]
        rows = session.execute(
            select(*key, XComModel.dag_id, XComModel.run_id)
            .where(*are_wanted, *are_next)
            .order_by(*(column.desc() for column in key))
            .limit(limit + 1)
        ).all()
        refs = [TaskRef(row.dag_id, row.run_id, row.task_id, row.map_index) for row in rows]
        clips, requests = _clips_of(session, refs), _rendered_of(session, refs)
        for ref, row in zip(refs, rows, strict=True):
            if len(cards) == limit:
                return Page(cards, _to_cursor(position))
            position = row.timestamp, row.dag_run_id, row.task_id, row.map_index
            if clip := clips.get(ref):
                cards.append(_card(ref, clip, row.timestamp, requests.get(ref, {})))
        if len(rows) <= limit:
            return Page(cards, None)
    return Page(cards, _to_cursor(position))


def _card(ref: TaskRef, clip: Clip, stored: datetime, fields: dict[str, Any]) -> Card:
    return Card(
        task=ref,
        clip=clip,
        stored=stored,
        prompt=_text(fields, "prompt"),
        aspect_ratio=_text(fields, "aspect_ratio"),
    )


def places(session: Session, cards: Sequence[Card]) -> set[tuple[ConnId, str]]:
    """Where the videos of these cards are: their connections to S3, and buckets."""
    refs = [card.task for card in cards]
    conn_ids = _aws_conn_ids(session, refs, _rendered_of(session, refs))
    return {(conn_ids[card.task], card.clip.bucket) for card in cards}


def tasks_with_clip(session: Session, fingerprint: str) -> Iterator[TaskRef]:
    """The task instances of all DAGs that made or reused a clip of this fingerprint."""
    rows = session.execute(
        select(*_identity(XComModel)).where(
            XComModel.key == "clip", _fact("fingerprint", session) == fingerprint
        )
    )
    return (TaskRef(*row) for row in rows)


def _are_clips(session: Session, dag_ids: Collection[str]) -> list[ColumnElement[bool]]:
    return [
        XComModel.key == "clip",
        XComModel.dag_id.in_(dag_ids),
        _fact("fingerprint", session).is_not(None),
    ]


def _fact(name: str, session: Session) -> ColumnElement[str]:
    fact: ColumnElement[str] = XComModel.value[name].as_string()
    if session.get_bind().dialect.name == "sqlite":
        # There, one NaN in anybody's XCom would be an error for the whole query.
        return case((func.json_valid(XComModel.value) == 1, fact), else_=None)
    return fact


def _is_before(key: Sequence[Any], position: Sequence[Any]) -> ColumnElement[bool]:
    # Written out: not every database compares whole rows by an index.
    return or_(
        *(
            and_(
                *(column == value for column, value in zip(key[:n], position, strict=False)),
                key[n] < position[n],
            )
            for n in range(len(key))
        )
    )


def _to_cursor(position: tuple[datetime, int, str, int] | None) -> str | None:
    if position is None:
        return None
    timestamp, *rest = position
    return base64.urlsafe_b64encode(json.dumps([timestamp.isoformat(), *rest]).encode()).decode()


def _from_cursor(cursor: str | None) -> tuple[datetime, int, str, int] | None:
    try:
        timestamp, dag_run_id, task_id, map_index = json.loads(base64.urlsafe_b64decode(cursor or ""))
        moment = datetime.fromisoformat(timestamp)
        position = moment.astimezone(UTC), int(dag_run_id), str(task_id), int(map_index)
        position[2].encode()  # half a surrogate is no text to a database
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    fits = moment.tzinfo is not None and all(abs(number) < 2**31 for number in (position[1], position[3]))
    return position if fits and "\0" not in position[2] else None


def _clips_of(session: Session, refs: Sequence[TaskRef]) -> dict[TaskRef, Clip]:
    as_text = cast(XComModel.value, Text)
    rows = session.execute(
        select(*_identity(XComModel), as_text.label("value")).where(
            XComModel.key == "clip",
            _is_one_of(XComModel, refs),
            func.length(as_text) <= MAX_VALUE_CHARACTERS,
        )
    )
    clips = {TaskRef(*row[:4]): parse_clip(row.value) for row in rows}
    return {ref: clip for ref, clip in clips.items() if clip}


def _rendered_of(session: Session, refs: Sequence[TaskRef]) -> dict[TaskRef, dict[str, Any]]:
    rows = session.execute(
        select(*_identity(Rendered), Rendered.rendered_fields).where(_is_one_of(Rendered, refs))
    )
    return {TaskRef(*row[:4]): fields for row in rows if isinstance(fields := row.rendered_fields, dict)}


def _identity(model: Any) -> tuple[Any, Any, Any, Any]:
    return model.dag_id, model.run_id, model.task_id, model.map_index


def _is_one_of(model: Any, refs: Sequence[TaskRef]) -> ColumnElement[bool]:
    # Not `(a, b) IN (…)`: SQLite would scan the table for it.
    return or_(false(), *(and_(*_is(model, ref)) for ref in refs))


def _key(ref: TaskRef) -> tuple[str, str, str, int]:
    return ref.dag_id, ref.run_id, ref.task_id, ref.map_index


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


# One clip.


def details(session: Session, ref: TaskRef) -> Details | None:
    """All about one task instance; None if there is none, or it is no task of ours."""
    row = session.execute(
        select(
            TaskInstance.state,
            TaskInstance.try_number,
            TaskInstance.start_date,
            TaskInstance.end_date,
            TaskInstance.duration,
            TaskInstance.operator,
        ).where(*_is(TaskInstance, ref))
    ).one_or_none()
    if row is None:
        return None
    clip = _clips_of(session, [ref]).get(ref)
    rendered = _rendered_of(session, [ref])
    fields = rendered.get(ref)
    if clip is None and not _is_ours(row.operator, fields):
        return None
    return Details(
        task=ref,
        state=row.state,
        clip=clip,
        stored=session.scalar(
            select(XComModel.timestamp).where(*_is(XComModel, ref), XComModel.key == "clip")
        )
        if clip
        else None,
        request=None if fields is None else _request(fields),
        tries=_tries(session, ref, row),
        aws_conn_id=_aws_conn_ids(session, [ref], rendered)[ref],
        target=_target(fields or {}),
    )


def _is(model: Any, ref: TaskRef) -> list[ColumnElement[bool]]:
    return [column == value for column, value in zip(_identity(model), _key(ref), strict=True)]


def _is_ours(operator: str | None, fields: dict[str, Any] | None) -> bool:
    # A subclass, and the decorator's operator, render the same fields.
    return operator == _OPERATOR or {"model", "ledger_prefix", "codegateway_conn_id"} <= (fields or {}).keys()


def _request(fields: dict[str, Any]) -> dict[str, str]:
    values = {name: fields.get(name) for name in _REQUEST_FIELDS}
    parameters = fields.get("parameters")
    values |= parameters if isinstance(parameters, dict) else {"parameters": parameters}
    return {str(name): _shown(value) for name, value in values.items() if value not in (None, "")}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tries(session: Session, ref: TaskRef, current: Any) -> list[Try]:
    """Every try, the newest first. The history holds those before the current one."""
    history = TaskInstanceHistory
    rows = session.execute(
        select(history.try_number, history.state, history.start_date, history.end_date, history.duration)
        .where(*_is(history, ref))
        .order_by(history.try_number.desc())
        .limit(100)
    ).all()
    earlier = [Try(*row) for row in rows]
    # Until the next try is scheduled, its row has the number of the one before, which is in the history.
    if current.try_number < 1 or any(attempt.number == current.try_number for attempt in earlier):
        return earlier
    return [
        Try(current.try_number, current.state, current.start_date, current.end_date, current.duration),
        *earlier,
    ]


def _aws_conn_ids(
    session: Session, refs: Sequence[TaskRef], rendered: dict[TaskRef, dict[str, Any]]
) -> dict[TaskRef, ConnId]:
    """The connection to S3 of each task: as it was rendered, or as its version of the DAG has it."""
    conn_ids: dict[TaskRef, ConnId] = {
        ref: _text(fields, "aws_conn_id") for ref, fields in rendered.items() if "aws_conn_id" in fields
    }
    if forgotten := [ref for ref in refs if ref not in conn_ids]:
        rows = session.execute(
            select(*_identity(TaskInstance), TaskInstance.dag_version_id).where(
                _is_one_of(TaskInstance, forgotten)
            )
        ).all()
        versions = {row.dag_version_id for row in rows}
        written = {version: _conn_ids_as_written(session, version) for version in versions}
        for row in rows:
            conn_ids[TaskRef(*row[:4])] = written[row.dag_version_id].get(row.task_id, UNKNOWN)
    return {ref: conn_ids.get(ref, UNKNOWN) for ref in refs}


def _conn_ids_as_written(session: Session, dag_version_id: Any) -> dict[str, ConnId]:
    """The ``aws_conn_id`` of each task of a DAG's version, as far as its file says."""
    stored = session.scalar(
        select(SerializedDagModel).where(SerializedDagModel.dag_version_id == dag_version_id)
    )
    # Read as JSON: to build the whole DAG of it would take long.
    dag = stored.data["dag"] if stored and stored.data else {}
    tasks = [task["__var"] for task in dag.get("tasks", [])]
    return {task["task_id"]: _conn_id_as_written(task, dag) for task in tasks}


def _conn_id_as_written(task: dict[str, Any], dag: dict[str, Any]) -> ConnId:
    expanded = task.get("expand_input") or {}
    if "partial_kwargs" not in task:
        written = task.get("aws_conn_id")  # None is left out
    elif "aws_conn_id" in (arguments := _plain(task["partial_kwargs"])):
        written = arguments["aws_conn_id"]
    elif expanded.get("type") == "list-of-dicts" or "aws_conn_id" in json.dumps(expanded):
        return UNKNOWN
    else:
        # Defaults are added when a mapped task is unmapped. Those of a task group are not stored.
        written = _plain(dag.get("default_args")).get("aws_conn_id", "aws_default")
    is_plain = written is None or (isinstance(written, str) and "{" not in written)
    return written if is_plain else UNKNOWN


def _plain(serialized: Any) -> dict[str, Any]:
    """A dict as Airflow serializes it, or none."""
    value = serialized.get("__var", serialized) if isinstance(serialized, dict) else {}
    return value if isinstance(value, dict) else {}


def _target(fields: dict[str, Any]) -> S3Location | None:
    key, bucket = _text(fields, "s3_key"), _text(fields, "s3_bucket")
    try:
        return None if key is None else clip_location(key, bucket)
    except InvalidRequest:
        return None
