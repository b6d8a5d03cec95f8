"""What was bought for one clip: write-once markers in S3.

One entry is a handful of objects under ``<ledger_prefix><clip's key>/``::

    request.json   what is to be rendered; gone when the clip is settled
    n.started      who created it may POST render number n, and nobody else
    n.rendered     the gateway's answer, the receipt: from here on the render is never bought again
    n.abandoned    render n is over without a clip, so that a successor need not wait for it

Objects are only ever created and deleted: compare-and-swap is not portable across S3 servers, creating an
object only if it is absent (``If-None-Match: *``) is. Ages are by the store's clock, never by ours.
What cannot be read is an error and never "nothing was bought".
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway._s3 import (
    DEFAULT_LEDGER_PREFIX,
    NOT_FOUND,
    S3Location,
    error_code,
    split_uri,
    storage_error,
)
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    InvalidTarget,
    LedgerConflict,
    RenderLimitReached,
)
from airflow_provider_codegateway.gateway import Receipt

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

SETTLE_GRACE = 15.0
"""Seconds for which a fresh receipt is left to whoever bought it; then another may fetch the clip."""

SHOWN = 8
"""Characters of a fingerprint that a message has: the whole of it lets a viewer of the clip page see the clip."""

# 412: the object exists. 409: somebody else is just creating it.
_EXISTS = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_NOT_IMPLEMENTED = frozenset({"NotImplemented", "501"})
MARKER_NAME = re.compile(r"([1-9][0-9]*)\.(started|rendered|abandoned)")

_honours_conditions: set[tuple[str, str]] = set()
_probing = threading.Lock()


@dataclass(frozen=True)
class Attempt:
    """One render that was begun. The times are when each marker was written, by the store's clock."""

    number: int
    started: datetime | None = None
    rendered: datetime | None = None
    abandoned: datetime | None = None
    claim_seconds: float = 0.0
    """For how long after ``started`` its owner may still be rendering."""
    outcome: str = ""
    """Why it was abandoned."""
    run: str = ""
    """Whose it is; see ``Ledger``."""


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one clip at one moment."""

    now: datetime
    """The store's clock."""
    fingerprint: str | None
    """Of the request that the entry is for; None if the entry is empty."""
    model: str | None
    open: bool
    """Whether ``request.json`` is there, that is, whether some task still waits for the clip."""
    attempts: tuple[Attempt, ...]

    def __bool__(self) -> bool:
        return self.open or bool(self.attempts)


# What to do next: decided here once, driven by `render`.


@dataclass(frozen=True)
class Claim:
    """Nobody is rendering: try to create ``number.started``."""

    number: int


@dataclass(frozen=True)
class Wait:
    """Somebody else is at it, or died; for at most ``seconds`` nobody can tell."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Take:
    """Render ``number`` is paid, its clip not delivered: fetch it with the receipt."""

    number: int


@dataclass(frozen=True)
class Gone:
    """There is no ``request.json``: the clip was settled, or the entry deleted."""


def next_step(
    entry: Entry, *, fingerprint: str, max_renders: int, location: S3Location
) -> Claim | Wait | Take | Gone:
    """What the ledger allows to whoever wants the clip with this fingerprint.

    :raises LedgerConflict: the entry is for another request, for which money was or may have been spent.
    :raises RenderLimitReached: ``max_renders`` were begun, and none of them can be had any more.
    """
    if entry.open and not entry.attempts and entry.fingerprint != fingerprint:
        return Gone()  # another request took the place, and has not begun
    if entry and entry.fingerprint != fingerprint:
        if entry.attempts and _is_live(entry.attempts[-1], entry.now) and not entry.attempts[-1].abandoned:
            what_would_do = "Give each clip a key of its own."
        else:
            what_would_do = (
                "Run that request again to have its clip, give this clip a key of its own, or delete the ledger "
                f"entry to let this one be bought ({_forget_command(location)})."
            )
        raise LedgerConflict(
            f"The ledger at {location.uri} is for another request (model {entry.model}, fingerprint "
            f"{str(entry.fingerprint)[:SHOWN]}…) whose clip is not delivered yet: {describe_attempts(entry)} "
            f"{what_would_do}",
            bought=money(entry),
        )
    if not entry.open:
        return Gone()
    if not entry.attempts:
        return Claim(1)
    last = entry.attempts[-1]
    for attempt in reversed(entry.attempts):
        if attempt.rendered and not attempt.abandoned:
            fresh_for = SETTLE_GRACE - (entry.now - attempt.rendered).total_seconds()
            if fresh_for > 0:
                return Wait(fresh_for, "it has just rendered the clip")
            return Take(attempt.number)
    if last.started and not last.rendered and not last.abandoned:
        left = last.claim_seconds - (entry.now - last.started).total_seconds()
        if left > 0:
            return Wait(left, f"it has started render {last.number}")
    if last.number >= max_renders:
        raise RenderLimitReached(
            f"max_renders={max_renders} is used up: {describe_attempts(entry)} "
            f"The ledger is at {location.uri}; to buy another render, raise max_renders or delete the entry "
            f"({_forget_command(location)}).",
            bought=money(entry),
        )
    return Claim(last.number + 1)


def situation(entry: Entry) -> str:
    """An entry in a word or two, for a list."""
    if not entry.attempts:
        return "nothing bought yet"
    last = entry.attempts[-1]
    if any(attempt.rendered and not attempt.abandoned for attempt in entry.attempts):
        return "paid, not delivered"
    if last.started and not last.abandoned and _is_live(last, entry.now):
        return "rendering"
    return "outcome unknown"


def _is_live(attempt: Attempt, now: datetime) -> bool:
    return attempt.started is not None and now - attempt.started < timedelta(seconds=attempt.claim_seconds)


def describe_attempts(entry: Entry) -> str:
    """One sentence for each render that was begun: when, and with what outcome."""
    if not entry.attempts:
        return "nothing was bought for it yet."
    return " ".join(
        f"Render {attempt.number}, begun {_when(attempt.started or attempt.rendered)}, "
        f"{_fate(attempt, entry.now)}."
        for attempt in entry.attempts
    )


def _fate(attempt: Attempt, now: datetime) -> str:
    lost = f" ({attempt.outcome.rstrip('.')})" if attempt.outcome else ""
    if attempt.rendered:
        return f"was bought{f', and is lost{lost}' if attempt.abandoned else ', and not delivered'}"
    if attempt.abandoned:
        return f"may have been bought{lost}"
    if _is_live(attempt, now):
        return "may still be rendering"
    return "may have been bought: its run died without a word"


def money(entry: Entry) -> Bought:
    """Whether anything was, or may have been, bought for the clip of this entry."""
    if not entry.attempts:
        return Bought.NO
    return Bought.YES if any(attempt.rendered for attempt in entry.attempts) else Bought.PERHAPS


def _when(at: datetime | None) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at else "at an unknown time"


def _forget_command(location: S3Location) -> str:
    return f"python -m airflow_provider_codegateway.ledger forget {location.uri}"


def entry_location(clip: S3Location, ledger_prefix: str = DEFAULT_LEDGER_PREFIX) -> S3Location:
    """Where the ledger entry of a clip is.

    :param ledger_prefix: a prefix in the clip's bucket, or a whole ``s3://bucket/prefix``.
    """
    elsewhere = split_uri(ledger_prefix)
    if elsewhere is None:
        prefix = ledger_prefix.strip("/")
        return S3Location(clip.bucket, f"{prefix}/{clip.key}/" if prefix else f"{clip.key}/")
    # One ledger may serve several buckets, in which the same key may stand.
    parts = [part for part in (elsewhere.key.strip("/"), clip.bucket, clip.key) if part]
    return S3Location(elsewhere.bucket, "/".join(parts) + "/")


class Ledger:
    """The ledger entry of one clip.

    Every method is one or two S3 requests and may be called from any thread.

    :param s3: a boto3 client.
    :param location: see ``entry_location``.
    :param fingerprint: of the request; see ``VideoRequest.fingerprint``.
    :param run: who is asking: the same for every try of one task instance.
    :param put_args: boto3's further arguments for writing a marker, such as encryption.
    """

    def __init__(
        self,
        s3: S3Client,
        location: S3Location,
        *,
        fingerprint: str,
        run: str,
        put_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.s3 = s3
        self.location = location
        self.fingerprint = fingerprint
        self.run = run
        self.put_args = put_args or {}
        self._etags: dict[str, str] = {}
        self._markers: dict[tuple[str, str], dict[str, Any]] = {}
        self._owner = ""  # of the last claim
        self._kept_at: float | None = None

    def open(self, body: Mapping[str, Any]) -> bool:
        """Write ``request.json``, if there is none yet.

        :param body: what will be sent to the gateway, media included.
        :return: True if this call created the entry; False if there is something in it to be read.
        """
        created = self._create(
            "request.json", {"fingerprint": self.fingerprint, "model": body.get("model"), "body": dict(body)}
        )
        # A run that was held up for long may have left a receipt behind after its entry was settled.
        return created and self._list()[1].keys() == {"request.json"}

    def request(self) -> dict[str, Any] | None:
        """The request body that ``open`` wrote; None if the entry is gone, or is another's."""
        request = self._get("request.json")
        if request is None or self.fingerprint not in ("", request["fingerprint"]):
            return None
        body: dict[str, Any] = request["body"]
        return body

    def claim(self, number: int, *, claim_seconds: float) -> bool:
        """Create ``number.started``: whoever gets True may POST once, within ``claim_seconds``."""
        self._owner = uuid.uuid4().hex
        marker = {
            "fingerprint": self.fingerprint,
            "run": self.run,
            "owner": self._owner,
            "claim_seconds": claim_seconds,
        }
        name = f"{number}.started"
        # botocore repeats a PUT whose answer was lost, and is then told that the object exists.
        if not self._create(name, marker) and not self._owns(number):
            return False
        self._require_conditional_writes(name, marker)
        return True

    def release(self, number: int) -> None:
        """Take back our claim, which provably bought nothing; the last one takes the entry with it."""
        # While we were held up, others may have settled the entry, and the marker may be another's.
        if not self._owns(number):
            return
        # The request goes first: a claim that somebody else makes in between must not lose its request.
        name = f"{number}.started"
        alone = self._list()[1].keys() <= {"request.json", name}
        for each in ["request.json", name] if alone else [name]:
            self._delete([each])

    def abandon(self, number: int, outcome: str, *, receipt: Receipt | None = None) -> None:
        """Write ``number.abandoned``: a successor need not wait for this render, nor use its receipt.

        :param receipt: the one that is of no more use; None if our claim ended without one.
        """
        if self._owns(number) if receipt is None else self._is_current(number, receipt):
            self._create(f"{number}.abandoned", {"fingerprint": self.fingerprint, "outcome": outcome})

    def keep(self, number: int, receipt: Receipt) -> None:
        """Write ``number.rendered``. Unconditional: only the owner of the claim writes it."""
        name, begun = f"{number}.rendered", time.monotonic()
        with self._errors("write the receipt", "s3:PutObject", name):
            self._put(name, {"fingerprint": self.fingerprint, "receipt": asdict(receipt)})
        self._kept_at = begun  # an answer that was slow to come makes the receipt no younger

    def receipt(self, number: int) -> Receipt | None:
        """What ``keep`` wrote; None if the clip has been settled meanwhile.

        :raises LedgerConflict: it is for another request.
        """
        name = f"{number}.rendered"
        marker = self._get(name)
        if marker is None:
            return None
        if marker["fingerprint"] != self.fingerprint:
            raise LedgerConflict(
                f"The receipt {self.location.uri}{name} is for another request (fingerprint "
                f"{marker['fingerprint'][:SHOWN]}…): it was bought, and is not used for this one. Run that request "
                f"again to have its clip, or delete the ledger entry ({_forget_command(self.location)})."
            )
        try:
            return Receipt(**marker["receipt"])
        except (KeyError, TypeError) as error:
            raise self._unreadable(name, error) from None

    def read(self) -> Entry:
        """The whole entry, and the store's clock."""
        while True:
            now, written = self._list()
            listed = [name for name in written if name == "request.json" or MARKER_NAME.fullmatch(name)]
            content = {name: marker for name in listed if (marker := self._seen(name)) is not None}
            if len(content) == len(listed):
                break
            # One that vanished between the list and the read was taken back, or settled: look again.
            time.sleep(0.1)
        numbers = sorted({int(match[1]) for name in content if (match := MARKER_NAME.fullmatch(name))})
        attempts = []
        for number in numbers:
            names = {kind: f"{number}.{kind}" for kind in ("started", "rendered", "abandoned")}
            started, ended = content.get(names["started"], {}), content.get(names["abandoned"], {})
            attempts.append(
                Attempt(
                    number,
                    **{kind: written.get(name) for kind, name in names.items()},
                    claim_seconds=float(started.get("claim_seconds", 0)),
                    outcome=str(ended.get("outcome", "")),
                    run=str(started.get("run", "")),
                )
            )
        request = content.get("request.json")
        first = request or next(iter(content.values()), {})
        return Entry(
            now=now,
            fingerprint=first.get("fingerprint"),
            model=first.get("model"),
            open=request is not None,
            attempts=tuple(attempts),
        )

    def settle(self, number: int, receipt: Receipt) -> None:
        """Delete the entry up to render ``number``: its clip is where it should be."""
        # Once others were let in to fetch the clip, one may have settled this entry and begun another.
        alone = self._kept_at is not None and time.monotonic() - self._kept_at < SETTLE_GRACE
        if not alone and not self._is_current(number, receipt):
            return
        self._delete(
            [
                "request.json",
                *(
                    f"{n}.{kind}"
                    for n in range(1, number + 1)
                    for kind in ("rendered", "abandoned", "started")
                ),
            ]
        )

    def withdraw(self) -> None:
        """Delete ``request.json`` alone: the clip is there, and nothing was bought for this entry."""
        self._delete(["request.json"])

    def forget(self) -> list[str]:
        """Delete the entry, whatever it holds; the names of what was deleted."""
        _, written = self._list()
        # The request goes first: a trigger that finds none does nothing.
        names = sorted(written, key=lambda name: (name != "request.json", name))
        self._delete(names)
        return names

    def _owns(self, number: int) -> bool:
        """Whether ``number.started`` is our last claim."""
        return (self._get(f"{number}.started") or {}).get("owner") == self._owner

    def _is_current(self, number: int, receipt: Receipt) -> bool:
        """Whether render ``number`` is still the one of this receipt, or of our claim if none was kept."""
        kept = self.receipt(number)
        return self._owns(number) if kept is None else kept == receipt

    # S3.

    def _list(self) -> tuple[datetime, dict[str, datetime]]:
        with self._errors("read the ledger", "s3:ListBucket"):
            answer = self.s3.list_objects_v2(
                Bucket=self.location.bucket, Prefix=self.location.key, Delimiter="/"
            )
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        skip = len(self.location.key)
        contents = answer.get("Contents", [])
        self._etags = {item["Key"][skip:]: item["ETag"] for item in contents}
        return now, {item["Key"][skip:]: item["LastModified"] for item in contents}

    def _seen(self, name: str) -> dict[str, Any] | None:
        """A marker that was listed, less the request's body: read once, and looked at every two seconds."""
        version = (name, self._etags[name])
        if version not in self._markers:
            marker = self._get(name)
            if marker is None:
                return None
            self._markers[version] = {key: value for key, value in marker.items() if key != "body"}
        return self._markers[version]

    def _get(self, name: str) -> dict[str, Any] | None:
        with self._errors("read the ledger", "s3:GetObject", name):
            try:
                answer = self.s3.get_object(Bucket=self.location.bucket, Key=self.location.key + name)
                content: dict[str, Any] = json.loads(answer["Body"].read())
                if not isinstance(content, dict) or not isinstance(content.get("fingerprint"), str):
                    raise ValueError("it has no fingerprint")
            except ValueError as error:
                raise self._unreadable(name, error) from None
            except Exception as error:
                if error_code(error) in NOT_FOUND:
                    return None
                raise
        return content

    def _unreadable(self, name: str, error: Exception) -> LedgerConflict:
        return LedgerConflict(
            f"{self.location.uri}{name} is no marker of this ledger ({error}): move it away, "
            "or choose another ledger_prefix."
        )

    def _put(self, name: str, content: Mapping[str, Any], **condition: Any) -> None:
        self.s3.put_object(
            Bucket=self.location.bucket,
            Key=self.location.key + name,
            Body=json.dumps(content).encode(),
            ContentType="application/json",
            **self.put_args,
            **condition,
        )

    def _create(self, name: str, content: Mapping[str, Any]) -> bool:
        with self._errors("write the ledger", "s3:PutObject", name):
            try:
                self._put(name, content, IfNoneMatch="*")
            except Exception as error:
                if error_code(error) in _EXISTS:
                    return False
                if error_code(error) in _NOT_IMPLEMENTED:
                    raise self._no_conditions() from error
                raise
        return True

    def _delete(self, names: list[str]) -> None:
        with self._errors("clear the ledger", "s3:DeleteObject"):
            answer = self.s3.delete_objects(
                Bucket=self.location.bucket,
                Delete={"Objects": [{"Key": self.location.key + name} for name in names], "Quiet": True},
            )
            for failed in answer.get("Errors", []):
                if failed.get("Code") not in NOT_FOUND:
                    raise _PartialDelete(failed)

    def _require_conditional_writes(self, name: str, content: Mapping[str, Any]) -> None:
        """Prove once a process that the store refuses to create what exists, before anything is bought."""
        store = (self.s3.meta.endpoint_url, self.location.bucket)
        with _probing:
            if store in _honours_conditions:
                return
            if self._create(name, content):
                self._delete(["request.json", name])
                raise self._no_conditions()
            _honours_conditions.add(store)

    def _no_conditions(self) -> InvalidTarget:
        return InvalidTarget(
            f"The S3 server behind {self.location.uri} does not honour If-None-Match, so no claim on it is "
            "safe: set ledger_prefix to an s3:// location on a store with conditional writes."
        )

    @contextmanager
    def _errors(self, doing: str, permission: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except CodeGatewayError:
            raise
        except Exception as error:
            at = S3Location(self.location.bucket, self.location.key + name)
            raise storage_error(error, doing=doing, at=at, permission=permission) from error


class _PartialDelete(Exception):
    """An object of a batch that was not deleted, in the form of botocore's errors."""

    def __init__(self, failed: Mapping[str, Any]) -> None:
        super().__init__(failed.get("Message", ""))
        self.response = {"Error": {"Code": failed.get("Code", "")}}


if __name__ == "__main__":
    import sys

    from airflow_provider_codegateway.ledger_cli import main

    sys.exit(main())
