"""The manifest of a batch, and how far one is that is under way: read from S3, for the page of a batch.

Both are shown only if their own metadata say that a run of this task wrote them: whoever may edit an XCom could name
any object. However large or wrong a manifest is, one answer takes bounded memory and time.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Marks, S3Location
from airflow_provider_codegateway.plugins.batches import COUNTS, Progress, below, object_at
from airflow_provider_codegateway.plugins.clips import CLOCKS_APART, UNKNOWN, runs_of, says
from airflow_provider_codegateway.plugins.storage import (
    Found,
    NoLink,
    Problem,
    client_for,
    find,
    no_link,
)

if TYPE_CHECKING:
    from airflow_provider_codegateway.plugins.clips import Entry

ROWS = 50
"""On a page."""
_SCAN = 4 * 1024 * 1024
"""Bytes of a manifest that are looked through for one page."""
_LONGEST_LINE = 64 * 1024
"""A longer line is not one of ours."""
_LONGEST_PROGRESS = 16 * 1024
_CHUNK = 64 * 1024
_MOST = 2**53
WITHOUT_CLIP = "without_clip"
"""A choice of rows: those that should have a clip and have none."""


@dataclass(frozen=True)
class Row:
    """A line of a manifest, with values that a page can show.

    :param at: the byte of the manifest at which the line begins.
    """

    at: int
    index: int | None
    id: str | None
    status: str
    uri: str | None
    model: str | None
    cost: dict[str, str | None] | None
    renders_bought: int | None
    facts: dict[str, Any] | None
    error: dict[str, str | None] | None

    @property
    def place(self) -> S3Location | None:
        """Where its clip is, if it has one. After a ``ClipMismatch`` a clip is kept that counts as failed."""
        is_kept = self.status == "failed" and (self.error or {}).get("class") == "ClipMismatch"
        return object_at(self.uri or "") if is_kept or self.status in ("stored", "reused") else None

    def says(self, words: str) -> bool:
        """Whether all of these words are in its id, URI, model or error, in whatever case."""
        return says(words, self.id, self.uri, self.model, (self.error or {}).get("message"))


def read_rows(entry: Entry, *, status: str, words: str, at: int) -> dict[str, Any]:
    """The rows of a batch from a byte of its manifest on, in their order; and the byte to go on at, None at the end.

    :param status: one of ``COUNTS``, ``WITHOUT_CLIP``, or "" for all.
    :param words: see ``Row.says``.
    :raises NoLink: the manifest cannot be shown.
    """
    wanted = {WITHOUT_CLIP: COUNTS[2:], "": COUNTS}.get(status, (status,))
    found: list[dict[str, Any]] = []
    answer = _manifest(entry, f"bytes={at}-{at + _SCAN - 1}")
    if answer is None:
        return {"rows": [], "next": None}
    end = at + answer["ContentLength"]
    size = int(answer.get("ContentRange", "").rpartition("/")[2] or end)
    position = at
    with closing(answer["Body"]) as body:
        for line in body.iter_lines(_CHUNK, keepends=True):
            if position + len(line) == end < size and not line.endswith(b"\n"):
                break  # the rest of this line is in the next part
            row = _row(line, position)
            position += len(line)
            if row is not None and row.status in wanted and row.says(words):
                found.append({**asdict(row), "has_clip": row.place is not None})
            if len(found) == ROWS:
                break
    if position == at:  # not even one line is whole: it is not ours, and neither is its rest
        position = end
    return {"rows": found, "next": position if position < size else None}


def read_row(entry: Entry, at: int) -> Row:
    """The row whose line begins at a byte of the manifest.

    :raises NoLink: there is none, or the manifest cannot be shown.
    """
    answer = _manifest(entry, f"bytes={at}-{at + _LONGEST_LINE}")
    if answer is not None:
        with closing(answer["Body"]) as body:
            if row := _row(next(body.iter_lines(_CHUNK, keepends=True), b""), at):
                return row
    raise NoLink(Problem.GONE)


def look_at_clip(entry: Entry, row: Row) -> Found:
    """The object of a row.

    :raises NoLink: the row has no clip, S3 does not answer, or what is there is not a clip.
    """
    if row.place is None:
        raise NoLink(Problem.GONE)
    found = find(entry, row.place, place_is_known=True)  # by a manifest that the operator wrote
    if not found.marks.fingerprint or not found.marks.requester:
        raise NoLink(Problem.NOT_THE_CLIP)
    return found


def read_progress(entry: Entry) -> dict[str, Any] | None:
    """How far a batch is that is under way, and since when; None if it has not said so in this attempt."""
    at = below(entry.text("result_path") or "", "progress.json")
    if at is None:
        return None
    try:
        answer = _own(entry, at)
        with closing(answer["Body"]) as body:
            progress = Progress.model_validate_json(body.read(_LONGEST_PROGRESS))
    except Exception:  # it is a nicety, and S3 may say anything
        return None
    written, begun = answer["LastModified"], entry.instance.start
    if begun is None or written < begun - CLOCKS_APART:
        return None
    return {**progress.model_dump(), "at": written}


def _manifest(entry: Entry, part: str) -> Any:
    """S3's answer with a part of the manifest; None if there is no such part."""
    at = entry.manifest
    if at is None:
        raise NoLink(Problem.GONE)
    try:
        return _own(entry, at, Range=part)
    except NoLink:
        raise
    except Exception as error:
        if getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
            return None
        raise no_link(error, place_is_known=at == entry.own_manifest) from None


def _own(entry: Entry, at: S3Location, **arguments: Any) -> Any:
    """S3's answer with an object that says that a run of this task wrote it.

    :raises NoLink: it says something else, or nobody knows where to ask.
    """
    if entry.aws_conn_id is UNKNOWN:
        raise NoLink(Problem.FORGOTTEN)
    answer = client_for(entry.aws_conn_id, at.bucket).get_object(Bucket=at.bucket, Key=at.key, **arguments)
    if Marks.from_metadata(answer["Metadata"]).requester not in runs_of(entry.task):
        answer["Body"].close()
        raise NoLink(Problem.NOT_THE_CLIP)
    return answer


def _row(line: bytes, at: int) -> Row | None:
    """A line of a manifest; None if it is not one."""
    try:
        values = json.loads(line) if len(line) <= _LONGEST_LINE else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("status") not in COUNTS:
        return None
    error, facts, cost = (values.get(name) for name in ("error", "facts", "cost"))
    return Row(
        at=at,
        index=_count(values.get("index")),
        id=_text(values.get("id")),
        status=values["status"],
        uri=_text(values.get("uri")),
        model=_text(values.get("model")),
        cost=_texts(cost, "amount", "at_most", "currency"),
        renders_bought=_count(values.get("renders_bought")),
        facts=_facts(facts) if isinstance(facts, dict) else None,
        error=_texts(error, "class", "message", "bought"),
    )


def _facts(values: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: _number(values.get(name)) for name in ("width", "height", "duration", "fps")}
    audio = values.get("audio") if isinstance(values.get("audio"), bool) else None
    return {**numbers, "codec": _text(values.get("codec")), "audio": audio}


def _texts(value: object, *names: str) -> dict[str, str | None] | None:
    return {name: _text(value.get(name)) for name in names} if isinstance(value, dict) else None


def _text(value: object) -> str | None:
    return value[:4000] if isinstance(value, str) else None


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _number(value: object) -> float | None:
    """What a browser can count; NaN and infinity are no such numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < _MOST else None
