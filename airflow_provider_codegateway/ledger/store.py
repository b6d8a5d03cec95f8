"""The ledger entry of one clip: write-once markers in S3.

One entry is a handful of objects under ``<ledger_prefix><clip's key>/``::

    request.json   what is to be rendered, fallbacks included; gone when the clip is settled
    n.started      whoever created it may POST render number n, and nobody else; of a chain, with which model
    n.rendered     the gateway's answer as it came: from here on the render is never bought again
    n.delivering   written again and again while a run stores the clip; its age tells whether that run lives
    n.abandoned    render n ended without a clip, so that a successor need not wait for it

Nothing is decided by overwriting: compare-and-swap is not portable across S3 servers, creating an
object only if it is absent (``If-None-Match: *``) is. Ages are by the store's clock, never by ours.
What cannot be read is an error, and never "nothing was bought".
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from airflow_provider_codegateway.clip import FINGERPRINT, MAX_KEY_BYTES, ClipSpec, Marks, S3Location
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    InvalidRequest,
    InvalidTarget,
    LedgerConflict,
    StorageUnavailable,
)
from airflow_provider_codegateway.gateway import Answer
from airflow_provider_codegateway.ledger.entry import (
    MARKER_NAME,
    SHOWN,
    Attempt,
    Entry,
    Turn,
    entry_location,
    forget_command,
    is_ledger_name,
)
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.s3 import (
    CHECKSUM_ADVICE,
    ENCRYPTION,
    Problem,
    Proofs,
    access_args,
    demanded_args,
    error_text,
    head_object,
    not_s3,
    problem_of,
    quick_client,
    require_list,
    storage_error,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef

log = logging.getLogger(__name__)

_LARGE = ("body", "fallbacks", "answer", "receipt")
"""Fields of markers that are not kept in memory."""

_KINDS = ("rendered", "delivering", "abandoned", "started")

_honours_conditions: set[tuple[str, str]] = set()
_deletes_one_by_one: WeakSet[S3Client] = WeakSet()
_access = Proofs()
_probing = threading.Lock()


class Ledger:
    """The ledger entry of one clip.

    Every method is a few S3 requests and may be called from any thread.

    :param s3: a boto3 client.
    :param location: see ``entry_location``.
    :param fingerprint: of the request; see ``VideoRequest.fingerprint``. "" reads an entry whatever its request is.
    :param requester: who is asking; see ``clip.task_identity``.
    :param put_args: boto3's further arguments for writing a marker, such as encryption.
    """

    def __init__(
        self,
        s3: S3Client,
        location: S3Location,
        *,
        fingerprint: str = "",
        requester: str = "",
        put_args: Mapping[str, Any] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.s3 = s3
        self.location = location
        self.fingerprint = fingerprint
        self.requester = requester
        self.put_args = put_args or {}
        self._limits = limits
        self._etags: dict[str, str] = {}
        self._markers: dict[tuple[str, str], dict[str, Any]] = {}
        self._owner = ""  # of the last claim
        self._kept_at: float | None = None
        self._failed: S3Client | None = None  # which could not write a receipt
        self.is_ours = False
        """Whether ``open`` began the entry, rather than found it open."""

    @classmethod
    def of_clip(cls, s3: S3Client, spec: ClipSpec, limits: Limits = LIMITS) -> Self:
        """The ledger entry of a clip.

        :raises InvalidRequest: ``s3_key`` and ``ledger_prefix`` are too long together.
        """
        location = entry_location(spec.target, spec.ledger_prefix)
        excess = len(f"{location.key}99.abandoned".encode()) - MAX_KEY_BYTES
        if excess > 0:
            raise InvalidRequest(
                f"s3_key and ledger_prefix are together {excess} bytes too long for S3. Shorten one of them."
            )
        return cls(
            s3,
            location,
            fingerprint=spec.fingerprint,
            requester=spec.requester,
            put_args=_put_args(spec, location),
            limits=limits,
        )

    def open(self, body: Mapping[str, Any], *fallbacks: Mapping[str, Any]) -> bool:
        """Write ``request.json``, if there is none yet. A request for which nothing was begun gives way.

        :param body: what will be sent to the gateway, media included.
        :param fallbacks: what will be sent instead, in this order, if that provably sells nothing.
        :return: whether nothing has been begun for the entry.
        """
        marker = {"fingerprint": self.fingerprint, "model": body.get("model"), "body": dict(body)}
        if fallbacks:
            marker["fallbacks"] = [dict(each) for each in fallbacks]
        entry = self._open(marker)
        if entry is None:
            return True
        if entry.open and not entry.attempts and entry.fingerprint != self.fingerprint:
            log.info("The ledger held another request, for which nothing was begun. This one replaces it.")
            self.withdraw()
            self._open(marker)
        return not entry.attempts

    def _open(self, marker: Mapping[str, Any]) -> Entry | None:
        """Write ``request.json``; the entry, if there is one already."""
        bought = Bought.NO if self.is_ours else Bought.PERHAPS
        give_up_at = time.monotonic() + self._limits.list_patience
        while True:
            self.is_ours = self._create("request.json", marker, Metadata={FINGERPRINT: self.fingerprint})
            if self.is_ours:
                return None
            try:
                entry = self.read()
            except CodeGatewayError as error:
                error.bought = bought
                raise
            if entry.open or entry.attempts:
                return entry
            # Settled since by another run; or lists are late, and an entry that cannot be seen cannot be trusted.
            if time.monotonic() > give_up_at:
                raise StorageUnavailable(
                    f"The S3 server behind {self.location.uri} refuses to create request.json, as if it were there, "
                    "and does not list it. Run the task again when its lists are current.",
                    bought=bought,
                )
            time.sleep(0.1)

    def requests(self) -> list[dict[str, Any]]:
        """The request bodies that ``open`` wrote; none if the entry is gone, or is another's."""
        request = self._get("request.json")
        if request is None or self.fingerprint not in ("", request["fingerprint"]):
            return []
        return [request["body"], *request.get("fallbacks", [])]

    def claim(self, number: int, *, claim_seconds: float, turn: Turn | None = None) -> bool:
        """Create ``number.started``: whoever gets True may POST once, within ``claim_seconds``.

        :param turn: which model of a chain it is for; None if the request has no fallbacks.
        """
        self._owner = uuid.uuid4().hex
        marker: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "run": self.requester,
            "owner": self._owner,
            "claim_seconds": claim_seconds,
        }
        if turn is not None:
            marker["turn"] = asdict(turn)
        name = f"{number}.started"
        # botocore repeats a PUT whose answer was lost, and is then told that the object exists.
        if not self._create(name, marker) and not self._owns(number):
            return False
        self._require_conditional_writes(name, marker)
        return True

    @property
    def owner(self) -> str:
        """The id of our last claim."""
        return self._owner

    def release(self, number: int, *, keep_request: bool = False) -> None:
        """Take back our claim, which provably bought nothing. The last one takes the entry with it.

        :param keep_request: leave the request, as the next claim for it is made at once.
        """
        # While we were held up, others may have settled the entry, and the marker may be another's.
        if not self._owns(number):
            return
        # The request goes first: a claim that somebody else makes in between must not lose its request.
        name = f"{number}.started"
        is_last = not keep_request and self._list()[1].keys() <= {"request.json", name}
        for each in ["request.json", name] if is_last else [name]:
            self._delete([each])

    def abandon(
        self, number: int, outcome: str, *, answer: Answer | None = None, is_unread: bool = False
    ) -> None:
        """Write ``number.abandoned``: a successor need not wait for this render, nor use its answer.

        :param answer: the one that is of no more use; None if our claim ended without one.
        :param is_unread: this version cannot read it. Another one may.
        """
        if self._owns(number) if answer is None else self._is_current(number, answer):
            marker = {"fingerprint": self.fingerprint, "outcome": outcome}
            self._create(f"{number}.abandoned", marker | ({"unread": True} if is_unread else {}))

    def keep(self, number: int, answer: Answer) -> None:
        """Write ``number.rendered``. Unconditional: only the owner of the claim writes it.

        One attempt, and a short one. The next has a client of its own: the credentials may have run out, or a
        firewall may have forgotten the connection.
        """
        name, begun, s3 = f"{number}.rendered", time.monotonic(), self._failed
        try:
            with self._errors("write the receipt", "s3:PutObject", name):
                s3 = quick_client(self.s3, after=self._failed)
                self._put(name, {"fingerprint": self.fingerprint, "answer": answer.as_dict()}, through=s3)
        except CodeGatewayError as error:
            self._failed = s3
            # Error trackers show the local variables of every frame, and those of boto3 hold the link.
            error.__context__ = None
            raise error.with_traceback(None) from None
        self._kept_at = begun  # an answer that was slow to come makes the receipt no younger

    def keep_late(self, number: int, answer: Answer) -> None:
        """As ``keep``, once our claim may have run out: nothing is left in an entry that is another's by now."""
        if self._owns(number):
            self.keep(number, answer)
            if not self._owns(number):  # settled by another run since the look before
                self._delete([f"{number}.rendered"])

    def show_life(self, number: int) -> None:
        """Write ``number.delivering``: a run is storing the clip of this render."""
        name = f"{number}.delivering"
        with self._errors("write the ledger", "s3:PutObject", name):
            self._put(name, {"fingerprint": self.fingerprint})

    def answer(self, number: int) -> Answer | None:
        """What ``keep`` wrote; None if the clip has been settled meanwhile.

        :raises LedgerConflict: it is for another request.
        """
        name = f"{number}.rendered"
        marker = self._get(name)
        if marker is None:
            return None
        if self.fingerprint not in ("", marker["fingerprint"]):
            raise LedgerConflict(
                f"The receipt {self.location.uri}{name} is for another request (fingerprint "
                f"{marker['fingerprint'][:SHOWN]}…): it was bought, and cannot be used for this one. Run that request "
                f"again to get its clip, or delete the ledger entry: {forget_command(self.location)}"
            )
        try:
            if "answer" in marker:
                return Answer.from_dict(marker["answer"])
            return Answer.of_receipt(marker.get("receipt", {}))
        except ValueError as error:
            why = ValueError(*error.args)
        # Here, and without the link: error trackers show the local variables of every frame.
        del marker
        raise self._unreadable(name, why)

    def read(self) -> Entry:
        """The whole entry, and the store's clock.

        :raises StorageUnavailable: the store goes on listing what is gone.
        """
        give_up_at = time.monotonic() + self._limits.list_patience
        while True:
            now, written = self._list()
            content = {name: marker for name in written if (marker := self._seen(name)) is not None}
            if len(content) == len(written):
                break
            # One that vanished between the list and the read was taken back, or settled: look again.
            if time.monotonic() > give_up_at:
                gone = ", ".join(sorted(written.keys() - content.keys()))
                raise StorageUnavailable(
                    f"The S3 server behind {self.location.uri} lists {gone}, but has no such object. Run the task "
                    "again when its lists are current."
                )
            time.sleep(0.1)
        found = [match for name in content if (match := MARKER_NAME.fullmatch(name))]
        # A sign of life that was written after its entry was settled is not a render.
        numbers = sorted({int(match[1]) for match in found if match[2] != "delivering"})
        attempts = []
        for number in numbers:
            names = {kind: f"{number}.{kind}" for kind in _KINDS}
            started, ended = content.get(names["started"], {}), content.get(names["abandoned"], {})
            attempts.append(
                Attempt(
                    number,
                    **{kind: written.get(name) for kind, name in names.items()},
                    claim_seconds=float(started.get("claim_seconds", 0)),
                    outcome=str(ended.get("outcome", "")),
                    unread=ended.get("unread") is True,
                    requester=str(started.get("run", "")),
                    owner=str(started.get("owner", "")),
                    turn=_turn(started.get("turn")),
                )
            )
        request = content.get("request.json")
        first = request or next(iter(content.values()), {})
        turn = attempts[-1].turn if attempts else None
        return Entry(
            now=now,
            fingerprint=first.get("fingerprint"),
            model=turn.model if turn else first.get("model"),
            open=request is not None,
            attempts=tuple(attempts),
        )

    def settle(self, number: int, answer: Answer) -> None:
        """Delete the entry up to render ``number``: its clip is where it should be."""
        # Once others were let in to fetch the clip, one may have settled this entry and begun another.
        alone = self._kept_at is not None and time.monotonic() - self._kept_at < self._limits.settle_grace
        if not alone and not self._is_current(number, answer):
            return
        self._delete(_names_up_to(number))

    def clear_delivered(self, number: int, owner: str) -> None:
        """Delete an entry whose render ``number``, claimed by ``owner``, is the clip at its key.

        Only when no run can still be storing that clip; see ``entry.left_to_its_owner``.
        """
        if (self._get(f"{number}.started") or {}).get("owner") == owner:
            self._delete(_names_up_to(number))

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
        """Whether ``number.started`` is our own claim."""
        return (self._get(f"{number}.started") or {}).get("owner") == self._owner

    def _is_current(self, number: int, answer: Answer) -> bool:
        """Whether render ``number`` is still the one of this answer, or of our claim if none was kept."""
        kept = self.answer(number)
        return self._owns(number) if kept is None else kept == answer

    # S3.

    def _list(self) -> tuple[datetime, dict[str, datetime]]:
        """The store's clock, and the ledger's own names below the entry, with the time of each."""
        skip = len(self.location.key)
        found: dict[str, ObjectTypeDef] = {}
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.location.bucket,
            Prefix=self.location.key,
            Delimiter="/",
            **access_args(self.s3, "ListObjectsV2", self.put_args),
        )
        with self._errors("read the ledger", "s3:ListBucket"):
            for answer in pages:
                require_list(answer, self.location)
                names = {item.get("Key", "")[skip:]: item for item in answer.get("Contents", [])}
                found |= {name: item for name, item in names.items() if is_ledger_name(name)}
        for name, item in found.items():
            if missing := [each for each in ("ETag", "LastModified") if each not in item]:
                raise not_s3(self.location, f"lists {name} without {' and '.join(missing)}")
        self._etags = {name: item["ETag"] for name, item in found.items()}
        return self._clock(answer), {name: item["LastModified"] for name, item in found.items()}

    def _clock(self, answer: ListObjectsV2OutputTypeDef) -> datetime:
        try:
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError):
            raise InvalidTarget(
                f"The S3 server behind {self.location.uri} sends no Date header, so the age of a claim is not known. "
                "Keep the ledger on another store: set ledger_conn_id and an s3:// ledger_prefix."
            ) from None

    def _seen(self, name: str) -> dict[str, Any] | None:
        """A marker that was listed, less the request's bodies. Each is read once."""
        etag = self._etags[name]
        if (name, etag) in self._markers:
            return self._markers[name, etag]
        marker = self._get(name)
        return None if marker is None else self._remember(name, etag, marker)

    def _get(self, name: str) -> dict[str, Any] | None:
        with self._errors("read the ledger", "s3:GetObject", name):
            try:
                answer = self.s3.get_object(
                    Bucket=self.location.bucket,
                    Key=self.location.key + name,
                    **access_args(self.s3, "GetObject", self.put_args),
                )
                content: dict[str, Any] = json.loads(answer["Body"].read())
                if not isinstance(content, dict) or not isinstance(content.get("fingerprint"), str):
                    raise ValueError("it has no fingerprint")
            except (ValueError, RecursionError) as error:
                content = {}  # error trackers show it, and there may be a link in it
                raise self._unreadable(name, error) from None
            except Exception as error:
                if problem_of(error) is Problem.NOT_FOUND:
                    return None
                raise
        return content

    def _unreadable(self, name: str, error: Exception) -> LedgerConflict:
        return LedgerConflict(
            f"{self.location.uri}{name} was not written by this ledger ({error}). Move it away, or choose another "
            "ledger_prefix."
        )

    def _put(
        self, name: str, content: Mapping[str, Any], through: S3Client | None = None, **args: Any
    ) -> None:
        written = (through or self.s3).put_object(
            Bucket=self.location.bucket,
            Key=self.location.key + name,
            Body=json.dumps(content).encode(),
            ContentType="application/json",
            **self.put_args,
            **args,
        )
        if "ETag" not in written:
            raise not_s3(self.location, "is not S3's: it has no ETag")
        self._remember(name, written["ETag"], content)

    def _remember(self, name: str, etag: str, marker: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a marker, less its bodies: an entry is read every two seconds while another run is at work."""
        kept = {field: value for field, value in marker.items() if field not in _LARGE}
        self._markers[name, etag] = kept
        return kept

    def _create(self, name: str, content: Mapping[str, Any], **args: Any) -> bool:
        with self._errors("write the ledger", "s3:PutObject", name):
            try:
                self._put(name, content, IfNoneMatch="*", **args)
            except Exception as error:
                if problem_of(error) is Problem.EXISTS:
                    return False
                if problem_of(error) is Problem.UNSUPPORTED:
                    raise self._unsupported(error) from error
                raise
        return True

    def _delete(self, names: list[str]) -> None:
        """Delete markers, in this order where the store deletes one by one."""
        with self._errors("clear the ledger", "s3:DeleteObject"):
            if self.s3 not in _deletes_one_by_one:
                try:
                    self._delete_together(names)
                except Exception as error:
                    # Google's store has no DeleteObjects, others refuse its checksum; a policy may allow the one only.
                    if problem_of(error) not in _NO_BATCH:
                        raise
                    _deletes_one_by_one.add(self.s3)
                else:
                    return
            for name in names:
                self._delete_one(name)

    def _delete_together(self, names: list[str]) -> None:
        answer = self.s3.delete_objects(
            Bucket=self.location.bucket,
            Delete={"Objects": [{"Key": self.location.key + name} for name in names], "Quiet": True},
            **access_args(self.s3, "DeleteObjects", self.put_args),
        )
        for failed in answer.get("Errors", []):
            error = _PartialDelete(failed)
            if problem_of(error) is not Problem.NOT_FOUND:
                raise error

    def _delete_one(self, name: str) -> None:
        try:
            self.s3.delete_object(
                Bucket=self.location.bucket,
                Key=self.location.key + name,
                **access_args(self.s3, "DeleteObject", self.put_args),
            )
        except Exception as error:
            if problem_of(error) is not Problem.NOT_FOUND:
                raise

    def prove_access(self) -> None:
        """Prove, before anything is bought, that what is written here can be listed, read back and deleted.

        Four requests, every ten minutes for each client and ledger. What is deleted does not exist.

        :raises InvalidTarget: naming the permission that is missing.
        """
        place = f"{self.location.bucket}/{self.location.key.partition('/')[0]}"
        if _access.hold(self.s3, place, self._limits.proof_seconds):
            return
        self._list()
        with self._errors("read the ledger", "s3:GetObject", "request.json"):
            try:
                self.s3.get_object(
                    Bucket=self.location.bucket,
                    Key=f"{self.location.key}request.json",
                    Range="bytes=0-0",
                    **access_args(self.s3, "GetObject", self.put_args),
                )["Body"].close()
            except Exception as error:
                if problem_of(error) is not Problem.NOT_FOUND:
                    raise
        self._prove_head()
        self._delete(["proof"])
        quick_client(self.s3)  # made before the purchase, so that the receipt does not wait for it
        _access.add(self.s3, place)

    def _prove_head(self) -> None:
        """Look at ``request.json`` as at the clip later: it must show its metadata, by which a clip is known again."""
        at = S3Location(self.location.bucket, self.location.key + "request.json")
        with self._errors("read the ledger", "s3:GetObject", "request.json"):
            try:
                head = head_object(self.s3, at, **access_args(self.s3, "HeadObject", self.put_args))
            except Exception as error:
                if problem_of(error) is not Problem.NOT_FOUND:
                    raise
                return
        # An entry that an earlier version began has none.
        if self.is_ours and Marks.from_metadata(head.get("Metadata", {})).fingerprint is None:
            raise InvalidTarget(
                f"The S3 server behind {self.location.uri}, or a proxy before it, drops the metadata of objects "
                "(x-amz-meta-*). A clip is known again by it, so a later run would take this one for somebody else's. "
                "Use another store."
            )

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
            f"The S3 server behind {self.location.uri} ignores If-None-Match, so two runs could buy the same clip. Set "
            "ledger_prefix to an s3:// location on a store with conditional writes, and ledger_conn_id to its AWS "
            "connection."
        )

    def _unsupported(self, error: Exception) -> InvalidTarget:
        return InvalidTarget(
            f"The S3 server behind {self.location.uri} does not support a header of our requests "
            f"({error_text(error)}): the checksum that boto3 sends, or If-None-Match. {CHECKSUM_ADVICE} If that does "
            "not help, set ledger_prefix to an s3:// location on a store with conditional writes, and ledger_conn_id "
            "to its AWS connection."
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


def _turn(written: Mapping[str, Any] | None) -> Turn | None:
    if written is None:
        return None
    return Turn(written["index"], written["model"], tuple(written.get("passed_over", ())))


def _names_up_to(number: int) -> list[str]:
    return ["request.json", *(f"{n}.{kind}" for n in range(1, number + 1) for kind in _KINDS)]


_NO_BATCH = frozenset(
    {
        *(Problem.UNSUPPORTED, Problem.CHECKSUM, Problem.REFUSED),
        *(Problem.DENIED, Problem.NOT_FOUND, Problem.NOT_S3),
    }
)


def _put_args(spec: ClipSpec, location: S3Location) -> dict[str, Any]:
    """Of the clip's own; encryption alone, where the ledger is in another bucket."""
    given = spec.upload_args
    if location.bucket != spec.target.bucket:
        return {name: given[name] for name in ENCRYPTION if name in given}
    return demanded_args(given)


class _PartialDelete(Exception):
    """An object of a batch that was not deleted, in the form of botocore's errors."""

    def __init__(self, failed: Mapping[str, Any]) -> None:
        super().__init__(failed.get("Message", ""))
        self.response = {"Error": {"Code": failed.get("Code", "")}}
