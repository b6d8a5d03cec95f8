"""What Airflow knows of clips, as far as the viewer may see it.

A clip is an XCom ``clip`` with the facts of a clip of ours. Whoever may write XComs may write those, so each
value is checked for its form here, and against the object itself before the object is shown (``storage``).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from airflow_provider_codegateway.clip import (
    MAX_KEY_BYTES,
    Clip,
    Facts,
    Marks,
    S3Location,
    clip_location,
    identities,
)
from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.plugins.airflow_api import (
    BATCH_OPERATORS,
    OPERATORS,
    PAGE,
    AirflowApi,
    Instance,
    NoAnswer,
    NotAllowed,
    Position,
    TaskRef,
)
from airflow_provider_codegateway.plugins.batches import Batch, below, cost_of, parse_batch

PAGE_SIZE = 24
MAX_VALUE_CHARACTERS = 16_384
"""A longer XCom is not one of ours."""
MAX_PAGES = 5
"""So many pages of Airflow's list are read at most for one page of the gallery, if little of it is wanted."""
_REQUEST_FIELDS = ("prompt", "image", "aspect_ratio", "duration", "resolution", "generate_audio", "seed")
_FIELDS = {"model", "ledger_prefix", "codegateway_conn_id"}
"""Of every task of ours."""
_BUCKET = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:aws[a-z-]*:s3:[a-z0-9-]+:[0-9]{12}:accesspoint[:/][a-z0-9-]{1,63}"
)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_CLIP = TypeAdapter(Clip)
_ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
_LATEST = 1e11
"""Unix seconds: a time after this is none."""
CLOCKS_APART = timedelta(minutes=5)
"""By how much the clocks of Airflow and S3 may differ."""


class Unknown(Enum):
    """What nobody can tell any more."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN
ConnId = str | None | Literal[Unknown.UNKNOWN]
"""A task's connection to S3. None: boto3's own credentials."""


@dataclass(frozen=True)
class Entry:
    """A task instance and the clip or the batch that it made, if it did.

    :param stored: when the XCom was written.
    :param error: what the latest try failed of, where that was asked for; see ``error_of``.
    """

    instance: Instance
    clip: Clip | None = None
    batch: Batch | None = None
    stored: datetime | None = None
    aws_conn_id: ConnId = UNKNOWN
    error: Mapping[str, Any] | None = None

    @property
    def task(self) -> TaskRef:
        """The task instance."""
        return self.instance.task

    @property
    def is_batch(self) -> bool:
        """Whether it makes many clips."""
        return self.instance.operator in BATCH_OPERATORS or "result_path" in (self.instance.fields or {})

    @property
    def model(self) -> str | None:
        """Of the clip, or as it was asked for."""
        return self.clip.model if self.clip else self.text("model")

    @property
    def request(self) -> dict[str, str] | None:
        """The rendered arguments, media hidden and secrets masked by whoever stored them."""
        fields = self.instance.fields
        if fields is None:
            return None
        values = {name: fields.get(name) for name in _REQUEST_FIELDS}
        parameters = fields.get("parameters")
        values |= parameters if isinstance(parameters, dict) else {"parameters": parameters}
        return {str(name): _shown(value) for name, value in values.items() if value not in (None, "")}

    @property
    def target(self) -> S3Location | None:
        """Where the task's own arguments put its clip, if they are still known."""
        fields = self.instance.fields or {}
        bucket = fields.get("s3_bucket")
        try:
            # A key that is no text is refused, too.
            return clip_location(fields.get("s3_key", ""), bucket if isinstance(bucket, str) else None)
        except InvalidRequest:
            return None

    @property
    def has_ended(self) -> bool:
        """Whether Airflow does nothing more with the task by itself."""
        return self.instance.state in _ENDED

    @property
    def manifest(self) -> S3Location | None:
        """Of a batch: where the XCom has it. A task that was killed leaves a manifest and no XCom."""
        if self.batch:
            return self.batch.location
        return self.own_manifest if self.has_ended else None

    @property
    def own_manifest(self) -> S3Location | None:
        """Where the task's own arguments put its manifest, if they are still known."""
        return below(self.text("result_path") or "", "manifest.jsonl")

    def text(self, name: str) -> str | None:
        """A rendered argument, if it is a text."""
        value = (self.instance.fields or {}).get(name)
        return value if isinstance(value, str) and value else None

    def says(self, words: str) -> bool:
        """Whether all of these words are in its prompt or its key, in whatever case; a batch's key is its folder."""
        key = self.clip.key if self.clip else self.text("result_path" if self.is_batch else "s3_key")
        return says(words, self.text("prompt"), key)


def says(words: str, *texts: str | None) -> bool:
    """Whether all of these words are in one of the texts or another, in whatever case."""
    text = " ".join(filter(None, texts)).casefold()
    return all(word in text for word in words.casefold().split())


@dataclass(frozen=True)
class Choice:
    """Which clips somebody asks for. An empty text is no choice.

    :param words: must be in the prompt or the key.
    :param before: the cursor of the page before; one that is none of ours starts anew.
    """

    dag_id: str = ""
    model: str = ""
    state: str = ""
    words: str = ""
    before: str = ""


def parse_clip(value: str) -> Clip | None:
    """The facts of a clip, or None if the JSON is none of ours. Its URI is derived, not believed."""
    try:
        clip = _CLIP.validate_json(value, strict=True)
    except ValidationError:
        return None
    numbers = [clip.bytes, clip.render_seconds or 0, clip.renders_bought]
    if (
        len(value) > MAX_VALUE_CHARACTERS
        or _BUCKET.fullmatch(clip.bucket) is None
        or not 1 <= len(clip.key.encode(errors="surrogatepass")) <= MAX_KEY_BYTES
        or _FINGERPRINT.fullmatch(clip.fingerprint) is None
        or not (clip.model and clip.model.isprintable())
        or not all(0 <= number < 2**53 for number in numbers)  # what a browser can count
        or not 0 <= (clip.created or 0) < _LATEST
    ):
        return None
    uri = S3Location(clip.bucket, clip.key).uri
    return replace(clip, uri=uri, cost=cost_of(clip.cost), facts=_facts_of(clip.facts))


def _facts_of(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Facts that a page can show."""
    facts = Facts.from_dict(values or {})
    numbers = [] if facts is None else [facts.width, facts.height, facts.duration or 0, facts.fps or 0]
    return facts.as_dict() if facts and all(0 <= number < 1e9 for number in numbers) else None


# The gallery.


async def recent(api: AirflowApi, choice: Choice) -> tuple[list[Entry], str | None]:
    """Some clips that the viewer may see, newest first; failed tasks and those under way, too.

    And the cursor for those after them; None at the end.
    """
    entries: list[Entry] = []
    filters = {"state": [choice.state]} if choice.state else {}
    async for instances, before, after in _lists(
        api, _from_cursor(choice.before), dag_id=choice.dag_id, **filters
    ):
        wanted = [each for each in await api.readable(instances) if _may_be_wanted(each, choice)]
        while wanted and (missing := PAGE_SIZE - len(entries)):
            asked, wanted = wanted[:missing], wanted[missing:]
            found = await asyncio.gather(*(_listed(api, each, choice) for each in asked))
            entries += [entry for entry in found if entry is not None and _is_wanted(entry, choice)]
            last = asked[-1]
        if len(entries) == PAGE_SIZE and (wanted or after):
            return entries, _to_cursor(_position_of(last, instances, before))
    return entries, _to_cursor(after)


async def _lists(
    api: AirflowApi, after: Position | None, **filters: Any
) -> AsyncIterator[tuple[Sequence[Instance], Position | None, Position | None]]:
    """Some pages of Airflow's list from a place on, each with the places before and after it; None at the end."""
    for _ in range(MAX_PAGES):
        before, instances = after, await api.begun(after=after, **filters)
        after = _position_of(instances[-1], instances, before) if len(instances) == PAGE else None
        yield instances, before, after
        if after is None:
            return


def _may_be_wanted(instance: Instance, choice: Choice) -> bool:
    """What its arguments already say of it, before its XCom is asked for."""
    if instance.fields is None:
        return True
    entry = Entry(instance)
    return (not choice.model or entry.model in (choice.model, None)) and entry.says(choice.words)


def _is_wanted(entry: Entry, choice: Choice) -> bool:
    if entry.clip is None and entry.batch is None and entry.instance.state == "success":
        return False  # its XCom is of another kind
    return (not choice.model or entry.model == choice.model) and entry.says(choice.words)


async def choices(api: AirflowApi) -> dict[str, list[str]]:
    """The DAGs and models of the newest clips."""
    instances = await api.readable(await api.begun())
    shown = [Entry(instance) for instance in await asyncio.gather(*map(api.with_fields, instances))]
    models = {entry.model for entry in shown}
    return {
        "dags": sorted({entry.task.dag_id for entry in shown}),
        "models": sorted(name for name in models if name and name.isprintable()),
    }


async def _listed(api: AirflowApi, instance: Instance, choice: Choice) -> Entry | None:
    # To read an XCom among 10,000 of a mapped task takes Airflow ten times as long as the instance.
    instance = await api.with_fields(instance)
    entry = await _entry(api, instance) if _may_be_wanted(instance, choice) else None
    if entry and instance.state in FAILED:
        entry = replace(entry, error=await error_of(api, instance.task))
    return entry


async def _entry(api: AirflowApi, instance: Instance) -> Entry | None:
    """None if the viewer may not read the XComs."""
    is_batch = Entry(instance).is_batch
    try:
        found = await api.xcom(instance.task, "batch" if is_batch else "clip")
    except NotAllowed:
        return None
    except NoAnswer:  # a value that its JSON cannot hold, such as NaN in some versions
        found = None
    value, stored = found or ("", None)
    clip = None if is_batch else parse_clip(value)
    batch = parse_batch(value) if is_batch else None
    is_known = clip is not None or batch is not None
    return Entry(
        instance=instance,
        clip=clip,
        batch=batch,
        stored=stored if is_known else None,
        aws_conn_id=_aws_conn_id(instance, value if is_known else "{}"),
    )


def _aws_conn_id(instance: Instance, clip: str) -> ConnId:
    """As it was rendered; or as the clip has it, for Airflow keeps the arguments of the last runs only."""
    known = {**json.loads(clip), **(instance.fields or {})}
    if "aws_conn_id" not in known:
        return UNKNOWN
    value = known["aws_conn_id"]
    return value if isinstance(value, str) and value else None


# One clip.


async def look_up(api: AirflowApi, task: TaskRef) -> Entry:
    """A task instance and its clip.

    :raises NotAllowed: there is none, it is not a task of ours, or the viewer may not see it.
    """
    instance = await api.instance(task)
    entry = await _entry(api, instance)
    # A subclass renders the same fields.
    is_ours = instance.operator in OPERATORS or (instance.fields or {}).keys() >= _FIELDS
    if entry is None or not (entry.clip or entry.batch or is_ours):
        raise NotAllowed
    return entry


FAILED = ("failed", "up_for_retry")


async def error_of(api: AirflowApi, task: TaskRef) -> dict[str, Any] | None:
    """The error of the task's latest try, if it left one: class, message, what was bought, and its cost."""
    try:
        found = await api.xcom(task, "clip_error")
        error = json.loads(found[0]) if found else None
    except (NoAnswer, ValueError):
        return None
    if not isinstance(error, dict):
        return None
    texts = {name: str(error.get(name, ""))[:MAX_VALUE_CHARACTERS] for name in ("class", "message", "bought")}
    return {**texts, "cost": cost_of(error.get("cost"))}


async def may_see_work_of(api: AirflowApi, marks: Marks) -> bool:
    """Whether the viewer may see the clips of the task instance that stored an object.

    A batch's task does not tell the fingerprints of its clips: that it may be seen is enough.

    :param marks: what the object's metadata say of it.
    """
    filters, after = {}, None
    if marks.created and 0 < marks.created < _LATEST:
        made = datetime.fromtimestamp(marks.created, UTC)
        filters, after = {"end_date_gte": made.isoformat()}, Position(made + CLOCKS_APART, 0)
    async for instances, _, _ in _lists(api, after, **filters):
        for instance in instances:
            if marks.requester in runs_of(instance.task):
                maker = await _entry(api, instance)
                if maker and (maker.batch or (maker.clip and maker.clip.fingerprint == marks.fingerprint)):
                    return True
    return False


def runs_of(task: TaskRef) -> tuple[str, str]:
    """What the metadata of a task instance's clips may say of who stored them: hashes."""
    return identities(task.dag_id, task.task_id, task.run_id, task.map_index)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Cursors.


def _position_of(instance: Instance, listed: Sequence[Instance], after: Position | None) -> Position | None:
    """The place after an instance of a list that began after another place."""
    if instance.start is None:
        return None
    before = listed[: listed.index(instance) + 1]
    taken = sum(each.start == instance.start for each in before)
    if after and after.start == instance.start:
        taken += after.taken
    return Position(instance.start, taken)


def _to_cursor(position: Position | None) -> str | None:
    if position is None:
        return None
    text = json.dumps([position.start.isoformat(), position.taken])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _from_cursor(cursor: str) -> Position | None:
    try:
        text, taken = json.loads(base64.urlsafe_b64decode(cursor))
        start = datetime.fromisoformat(text).astimezone(UTC) if "+" in text or text.endswith("Z") else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    if start is None or not isinstance(taken, int) or not 0 <= taken <= 10_000:
        return None
    return Position(start, taken)
