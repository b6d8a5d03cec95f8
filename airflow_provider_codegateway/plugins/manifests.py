"""The manifest of a batch, and how far one is that is under way: read from S3, for the page of a batch.

Both are shown only if their own metadata say that a run of this task wrote them: whoever may edit an XCom could name
any object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Marks, S3Location, split_uri
from airflow_provider_codegateway.plugins.batches import COUNTS, progress_location
from airflow_provider_codegateway.plugins.clips import UNKNOWN
from airflow_provider_codegateway.plugins.storage import (
    NoLink,
    Problem,
    client_for,
    no_link,
    runs_of,
    sign,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.plugins.clips import Entry

ROWS = 50
"""On a page."""
_SCAN = 4 * 1024 * 1024
"""Bytes of a manifest that are looked through for one page."""
_LONGEST_LINE = 64 * 1024
_LONGEST_PROGRESS = 16 * 1024
_CHUNK = 64 * 1024
WITHOUT_CLIP = "without_clip"
"""A choice of rows: those that should have a clip and have none."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a manifest, each with the byte ``at`` which its line begins; ``next`` is where to go on."""

    rows: list[dict[str, Any]]
    next: int | None


@dataclass(frozen=True)
class RowClip:
    """The object of a row.

    :param stored_by: the run that stored it, as its metadata has it.
    :param is_own: whether that is the run of the batch itself.
    """

    at: S3Location
    marks: Marks
    is_own: bool
    s3: S3Client

    def sign(self) -> str:
        """See ``storage.Found.sign``."""
        return sign(self.s3, self.at)


def read_rows(entry: Entry, *, status: str, words: str, at: int) -> Rows:
    """The rows of a batch from a byte of its manifest on, in their order.

    :param status: one of ``COUNTS``, ``WITHOUT_CLIP``, or "" for all.
    :param words: must be in a row's id, URI, model or error, in whatever case.
    :raises NoLink: the manifest cannot be shown.
    """
    wanted = {WITHOUT_CLIP: COUNTS[2:], "": COUNTS}.get(status, (status,))
    found: list[dict[str, Any]] = []
    answer = _manifest(entry, f"bytes={at}-")
    if answer is None:
        return Rows([], None)
    size = at + answer["ContentLength"]
    position = at
    for line in answer["Body"].iter_lines(chunk_size=_CHUNK, keepends=True):
        start, position = position, position + len(line)
        row = _row(line)
        if row is not None and row["status"] in wanted and _says(row, words):
            found.append({**row, "at": start})
        if len(found) == ROWS or position - at >= _SCAN:
            return Rows(found, position if position < size else None)
    return Rows(found, None)


def read_progress(entry: Entry) -> dict[str, Any] | None:
    """How far a batch is that is under way; None if nothing is known, or it was left by another run."""
    at = progress_location(entry.text("result_path") or "")
    if at is None or entry.aws_conn_id is UNKNOWN:
        return None
    try:
        s3 = client_for(entry.aws_conn_id, at.bucket)
        answer = s3.get_object(Bucket=at.bucket, Key=at.key)
        content = answer["Body"].read(_LONGEST_PROGRESS)
        is_ours = Marks.from_metadata(answer["Metadata"]).requester in runs_of(entry.task)
        progress = json.loads(content) if is_ours else None
    except Exception:  # it is a nicety, and S3 may say anything
        return None
    return progress if isinstance(progress, dict) else None


def look_at_row(entry: Entry, at: int) -> RowClip:
    """The object of the row whose line begins at a byte of the manifest.

    :raises NoLink: there is no such row, it has no clip, or S3 does not answer.
    """
    answer = _manifest(entry, f"bytes={at}-{at + _LONGEST_LINE}")
    row = None if answer is None else _row(answer["Body"].read().partition(b"\n")[0])
    place = split_uri(row["uri"] or "") if row and row["status"] in ("stored", "reused", "failed") else None
    if place is None or entry.aws_conn_id is UNKNOWN:
        raise NoLink(Problem.GONE)
    try:
        s3 = client_for(entry.aws_conn_id, place.bucket)
        marks = Marks.from_metadata(s3.head_object(Bucket=place.bucket, Key=place.key)["Metadata"])
    except Exception as error:
        raise no_link(error, place_is_known=True) from None  # by a manifest that the operator wrote
    if not marks.fingerprint or not marks.requester:
        raise NoLink(Problem.NOT_THE_CLIP)
    return RowClip(place, marks, marks.requester in runs_of(entry.task), s3)


def _manifest(entry: Entry, part: str) -> Any:
    """S3's answer with a part of the manifest; None if there is no such part."""
    at = None if entry.batch is None else entry.batch.location
    if at is None:
        raise NoLink(Problem.GONE)
    if entry.aws_conn_id is UNKNOWN:
        raise NoLink(Problem.FORGOTTEN)
    try:
        answer = client_for(entry.aws_conn_id, at.bucket).get_object(Bucket=at.bucket, Key=at.key, Range=part)
    except Exception as error:
        if getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
            return None
        raise no_link(error, place_is_known=False) from None
    if Marks.from_metadata(answer["Metadata"]).requester not in runs_of(entry.task):
        answer["Body"].close()
        raise NoLink(Problem.NOT_THE_CLIP)
    return answer


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of a manifest, with values that a page can show; None if it is not one."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or values.get("status") not in COUNTS:
        return None
    error, facts, cost = (_object(values.get(name)) for name in ("error", "facts", "cost"))
    return {
        "index": values.get("index"),
        "id": _text(values.get("id")),
        "status": values["status"],
        "uri": _text(values.get("uri")),
        "model": _text(values.get("model")),
        "cost": {name: _text(cost.get(name)) for name in ("amount", "at_most", "currency")} if cost else None,
        "renders_bought": values.get("renders_bought"),
        "duration": facts.get("duration"),
        "error": {name: _text(error.get(name)) for name in ("class", "message", "bought")} if error else None,
    }


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value[:4000] if isinstance(value, str) else None


def _says(row: dict[str, Any], words: str) -> bool:
    message = (row["error"] or {}).get("message")
    text = " ".join(filter(None, (row["id"], row["uri"], row["model"], message))).casefold()
    return all(word in text for word in words.casefold().split())
