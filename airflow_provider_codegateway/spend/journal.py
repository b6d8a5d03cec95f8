"""The journal: one numbered, create-only log in S3, and whatever it adds up to.

::

    <journal>/2026-11/00000042.jsonl    rows, created only if absent: one winner for each number
    <journal>/checkpoint.json           the state up to some number, so that a new process reads few objects

Who wants to write object 42 must have read all before it, so whoever gets it decided on all there is: checking a budget
and recording a render are one step. Numbers run on over the months. The last object of a month says that the next one
is in another folder, so that all writers agree on where to go on.

Losing the checkpoint, or an older one in its place, costs time only. Rows that wait in one process go into one object.
All times are the store's.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import (
    BudgetExceeded,
    CodeGatewayError,
    InvalidTarget,
    StorageUnavailable,
)
from airflow_provider_codegateway.foreign import safe_text
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.s3 import (
    Problem,
    access_args,
    problem_of,
    require_list,
    storage_error,
)
from airflow_provider_codegateway.spend.budgets import Budget, has_room, refusal
from airflow_provider_codegateway.spend.fold import (
    Kind,
    Row,
    State,
    decode_rows,
    due_at,
    encode_rows,
    moment_of,
    timestamp,
)
from airflow_provider_codegateway.spend.prices import Cost

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.json"
_MONTH, _OBJECT = re.compile(r"\d{4}-\d{2}"), re.compile(r"\d{8,}\.jsonl")
"""Another journal may be below this one."""
_PROOF = "conditional-writes.txt"
_PROOF_TEXT = b"This object exists so that the journal can prove that the store refuses to create it again.\n"


class Change(Protocol):
    """What somebody wants to write."""

    def row(self, state: State, now: datetime) -> Row | None:
        """The row, by all that is in the journal before it; None if it is there already.

        :raises BudgetExceeded: a budget has no room for it.
        """


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """A render that is about to be requested.

    :param render: what is known of it; its times are set here.
    :param cost: at its worst.
    :param seconds: for how long it may be under way.
    """

    render: Row
    cost: Cost | None
    budgets: Sequence[Budget]
    seconds: float

    def row(self, state: State, now: datetime) -> Row | None:
        """See ``Change``."""
        if self.render.id in state.open:
            return None
        at = timestamp(now)
        row = replace(self.render, kind="reserved", written=at, day=at[:10], due=due_at(now, self.seconds))
        full = [
            budget for budget in self.budgets if not has_room(budget, state.tally(budget, row), self.cost)
        ]
        if full:
            used = [(budget, state.used(budget, row, now=now)) for budget in full]
            raise refusal(used, self.cost, now=now)
        return row


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a reserved render ended.

    :param note: why, in a few words.
    :param by: the person who says so.
    """

    kind: Kind
    id: str
    note: str | None = None
    by: str | None = None

    def row(self, state: State, now: datetime) -> Row | None:
        """See ``Change``."""
        at = timestamp(now)
        if reserved := state.open.get(self.id):
            is_news = reserved.kind != self.kind
            return (
                replace(reserved, kind=self.kind, written=at, note=self.note, released_by=self.by)
                if is_news
                else None
            )
        # What may have been bought counts as bought, also after somebody gave it back.
        if self.kind in ("bought", "unknown") and (released := state.given_back.get(self.id)):
            return replace(released, kind="corrected", written=at, note=self.note, released_by=None)
        return None


class Journal:
    """A journal in S3. Any number of threads may use one object, and any number of processes one journal.

    :param s3: a boto3 client.
    :param location: bucket and prefix.
    :param extra_args: boto3's further arguments for its objects.
    """

    def __init__(
        self,
        s3: S3Client,
        location: S3Location,
        limits: Limits = LIMITS,
        *,
        extra_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.location = S3Location(location.bucket, location.key.strip("/"))
        self._s3 = s3
        self._limits = limits
        self._extra_args = dict(extra_args or {})
        self._state: State | None = None
        self._clock: tuple[datetime, float] | None = None
        self._is_proven = False
        self._queue: list[_Ticket] = []
        self._queueing = threading.Lock()
        self._committing = threading.Lock()
        self._owed: list[Change] = []

    def write(self, change: Change) -> None:
        """Write one change, together with whatever else waits in this process.

        :raises BudgetExceeded: see ``Change``; nothing was written.
        :raises InvalidTarget: the journal cannot be used.
        :raises StorageUnavailable: it could not be written. Should it have been written all the same, a reservation is
            given back with the next change; until then it counts.
        """
        ticket = _Ticket(change)
        with self._queueing:
            self._queue.append(ticket)
        with self._committing:
            if not ticket.is_done:
                with self._queueing:
                    tickets, self._queue = self._queue, []
                self._commit(tickets)
        if ticket.error is not None:
            raise ticket.error

    def try_out(self, change: Change) -> None:
        """Decide on a change by all that is in the journal now, and write nothing.

        :raises BudgetExceeded: see ``Change``.
        """
        state, now = self.state()
        change.row(state, now)

    def state(self) -> tuple[State, datetime]:
        """All that the journal adds up to now, and the store's clock."""
        with self._committing:
            state = self._caught_up()
            return state.copy(), self._now()

    def objects(self, months: Callable[[str], bool] = lambda month: True) -> Iterator[str]:
        """The keys of all objects in the folders of these months, in their order."""
        prefix = f"{self.location.key}/"
        with self._errors("list the journal", "s3:ListBucket"):
            for page in self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.location.bucket, Prefix=f"{prefix}2", **self._access("ListObjectsV2")
            ):
                require_list(page, self.location)
                for item in page.get("Contents", []):
                    month, _, name = item["Key"].removeprefix(prefix).partition("/")
                    if _MONTH.fullmatch(month) and _OBJECT.fullmatch(name) and months(month):
                        yield item["Key"]

    def rows(self, key: str) -> list[Row]:
        """The rows of one object."""
        return self._rows(self._get(key) or b"", key)

    # Group commit.

    def _commit(self, tickets: list[_Ticket]) -> None:
        try:
            self._write(tickets)
        except CodeGatewayError as error:
            for ticket in tickets:
                ticket.fail(error)
            self._put_right_later(tickets)
        except BaseException as error:
            for ticket in tickets:
                ticket.fail(
                    StorageUnavailable(f"Writing the journal was interrupted ({type(error).__name__}).")
                )
            self._put_right_later(tickets)
            raise

    def _put_right_later(self, tickets: list[_Ticket]) -> None:
        """The rows may have been written, for all we know: nobody will use what they reserved."""
        self._owed += [owed for ticket in tickets if (owed := _put_right(ticket.change))]

    def _write(self, tickets: list[_Ticket]) -> None:
        is_latest = self._state is None
        state = self._caught_up() if is_latest else self._known()
        lost = 0
        while True:
            plan = _plan(state, self._owed, tickets, self._now())
            # What others wrote since may be the reason to say no, or the reason to write nothing.
            if plan.is_negative and not is_latest:
                state, is_latest = self._caught_up(), True
                continue
            if plan.rows:
                self._prove_conditions()
                body = encode_rows(plan.rows)
                winner = self._settle(self._key(state), body)
                is_latest = False
                if winner != body:
                    state.take(self._rows(winner, self._key(state)))
                    lost += 1
                    if lost % 3 == 0:  # many are ahead of us
                        state = self._caught_up()
                    continue
                state.take(plan.rows)
                self._keep_checkpoint(state)
                if plan.begins_month:
                    continue
            for ticket in tickets:
                ticket.is_done = True
                ticket.error = plan.refused.get(id(ticket))
            self._owed.clear()
            return

    def _settle(self, key: str, body: bytes) -> bytes:
        """Create an object, and return what it holds: our own rows, or those of a faster writer."""
        give_up_at = time.monotonic() + self._limits.journal_patience
        pause = 0.05
        while True:
            try:
                # The client repeats a PUT whose answer was lost, and is then told that the object exists.
                if self._create(key, body):
                    return body
                if (content := self._get(key)) is not None:
                    return content
                if time.monotonic() + pause > give_up_at:
                    raise StorageUnavailable(
                        f"Other writers of the journal {self.location.uri} are in the way."
                    )
            except StorageUnavailable:
                if time.monotonic() + pause > give_up_at:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, 1.0)

    # What is known.

    def _known(self) -> State:
        assert self._state is not None
        return self._state

    def _caught_up(self) -> State:
        """The state after the last object."""
        is_new = self._state is None
        if self._state is None:
            self._state = self._load()
        steps = 0
        while (content := self._get(self._key(self._state))) is not None:
            self._state.take(self._rows(content, self._key(self._state)))
            steps += 1
            if steps == self._limits.checkpoint_every and not is_new:
                newer = self._load()
                if newer.number > self._state.number:
                    self._state = newer
        if is_new and steps > self._limits.checkpoint_every:
            self._write_checkpoint(self._state)  # whose turn it was has crashed
        return self._state

    def _load(self) -> State:
        """The last checkpoint; the first one, of an empty journal; or all objects, if it is lost."""
        while True:
            content = self._get(self._path(_CHECKPOINT))
            if content is not None:
                try:
                    return State.from_json(content)
                except ValueError as error:
                    raise self._unreadable(self._path(_CHECKPOINT), error) from None
            state = State()
            for key in self.objects():
                month, name = key.removeprefix(f"{self.location.key}/").split("/")
                if int(name.partition(".")[0]) != state.number + 1:
                    raise InvalidTarget(
                        f"{self.location.uri}/{_CHECKPOINT} is missing, and so are objects of the journal, from number "
                        f"{state.number + 1} up to {month}/{name}. Put back the one or the others, or choose another "
                        "place for the journal."
                    )
                state.month = state.month or month
                state.take(self.rows(key))
            if state.number:
                log.warning(
                    "%s/%s is missing: all %d objects were read.",
                    self.location.uri,
                    _CHECKPOINT,
                    state.number,
                )
            else:
                state.month = timestamp(self._now())[:7]
            # Two processes that begin the journal at the turn of a month must agree on its first folder.
            self._create(self._path(_CHECKPOINT), state.as_json().encode())

    def _keep_checkpoint(self, state: State) -> None:
        if state.number % self._limits.checkpoint_every == 0:
            self._write_checkpoint(state)

    def _write_checkpoint(self, state: State) -> None:
        """Unconditional: an older one that comes late only makes the next reader read more."""
        try:
            with self._errors("write the journal", "s3:PutObject", self._path(_CHECKPOINT)):
                self._put(self._path(_CHECKPOINT), state.as_json().encode())
        except CodeGatewayError as error:
            log.warning(
                "The journal's checkpoint could not be written, which costs time only: %s", error.args[0]
            )

    def _key(self, state: State) -> str:
        """The key of the next object."""
        return self._path(f"{state.month}/{state.number + 1:08d}.jsonl")

    def _path(self, name: str) -> str:
        return f"{self.location.key}/{name}"

    def _rows(self, content: bytes, key: str) -> list[Row]:
        try:
            return decode_rows(content)
        except ValueError as error:
            raise self._unreadable(key, error) from None

    def _unreadable(self, key: str, error: ValueError) -> InvalidTarget:
        return InvalidTarget(
            f"s3://{self.location.bucket}/{key} was not written by this journal ({_words(error)}). Move it away, or "
            "choose another place for the journal."
        )

    def _now(self) -> datetime:
        """The store's clock, as of its last answer."""
        assert self._clock is not None
        at, asked = self._clock
        return at + timedelta(seconds=time.monotonic() - asked)

    # S3.

    def _get(self, key: str) -> bytes | None:
        with self._errors("read the journal", "s3:GetObject and s3:ListBucket", key):
            try:
                answer = self._s3.get_object(
                    Bucket=self.location.bucket, Key=key, **self._access("GetObject")
                )
                self._look_at_clock(answer)
                return answer["Body"].read()
            except Exception as error:
                if problem_of(error) is not Problem.NOT_FOUND:
                    raise
                self._look_at_clock(getattr(error, "response", {}))
                return None

    def _create(self, key: str, body: bytes) -> bool:
        """Create an object; whether it was absent."""
        with self._errors("write the journal", "s3:PutObject", key):
            try:
                self._put(key, body, IfNoneMatch="*")
            except Exception as error:
                match problem_of(error):
                    case Problem.EXISTS:
                        return False
                    case Problem.UNSUPPORTED:
                        raise self._no_conditions() from error
                raise
            return True

    def _put(self, key: str, body: bytes, **condition: Any) -> None:
        answer = self._s3.put_object(
            Bucket=self.location.bucket,
            Key=key,
            Body=body,
            ContentType="application/json" if key.endswith(".json") else "application/x-ndjson",
            **self._extra_args,
            **condition,
        )
        self._look_at_clock(answer)

    def _access(self, operation: str) -> dict[str, Any]:
        return access_args(self._s3, operation, self._extra_args)

    def _look_at_clock(self, answer: Mapping[str, Any]) -> None:
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if date is not None:
            self._clock = parsedate_to_datetime(date), time.monotonic()
        elif self._clock is None:
            raise InvalidTarget(
                f"The S3 server behind {self.location.uri} sends no Date header, so its clock is not known. Use "
                "another store for the journal."
            )

    def _prove_conditions(self) -> None:
        """Prove once a process that the store refuses to create what exists: all budgets hang on that."""
        if self._is_proven:
            return
        proof = self._path(_PROOF)
        if self._create(proof, _PROOF_TEXT) and self._create(proof, _PROOF_TEXT):
            raise self._no_conditions()
        self._is_proven = True

    def _no_conditions(self) -> InvalidTarget:
        return InvalidTarget(
            f"The S3 server behind {self.location.uri} ignores If-None-Match, so budgets would not hold. Keep the "
            "journal on a store with conditional writes, in a bucket without versioning and object lock."
        )

    @contextmanager
    def _errors(self, doing: str, permission: str, key: str = "") -> Iterator[None]:
        try:
            yield
        except CodeGatewayError:
            raise
        except Exception as error:
            at = S3Location(self.location.bucket, key or self.location.key)
            raise storage_error(error, doing=doing, at=at, permission=permission) from error


@dataclass(eq=False)
class _Ticket:
    change: Change
    is_done: bool = False
    error: CodeGatewayError | None = None

    def fail(self, error: CodeGatewayError) -> None:
        if not self.is_done:
            self.is_done = True
            self.error = type(error)(error.args[0])  # one for each thread that raises it


@dataclass
class _Plan:
    """What one object would hold.

    :param refused: the refusal, by the ``id`` of a ticket.
    :param is_negative: whether something is refused, or not to be written.
    """

    rows: list[Row] = field(default_factory=list)
    refused: dict[int, BudgetExceeded] = field(default_factory=dict)
    is_negative: bool = False
    begins_month: bool = False


def _plan(state: State, owed: Sequence[Change], tickets: Sequence[_Ticket], now: datetime) -> _Plan:
    """Decide on all changes, each after the ones before it."""
    plan = _Plan()
    if state.at:
        now = max(now, moment_of(state.at))  # the clocks of a store's servers differ
    at = timestamp(now)
    if at[:7] > state.month:
        plan.rows.append(Row(kind="month", written=at, day=at[:10]))
        plan.begins_month = True
        return plan
    ahead = state.copy()
    for change, ticket in (*((each, None) for each in owed), *((each.change, each) for each in tickets)):
        try:
            row = change.row(ahead, now)
        except BudgetExceeded as refused:
            plan.refused[id(ticket)] = refused
            row = None
        if row is None:
            plan.is_negative = True
        else:
            ahead.add(row)
            plan.rows.append(row)
    return plan


def _words(error: ValueError) -> str:
    """What is wrong, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return safe_text(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": "), _LONGEST_WORDS)
    return safe_text(str(error), _LONGEST_WORDS)


_LONGEST_WORDS = 200


def _put_right(change: Change) -> Change | None:
    match change:
        case Reserve():
            return Outcome(kind="released", id=change.render.id, note="the reservation was given up")
        case Outcome():
            return change
    return None


def open_journal(
    s3: S3Client, location: S3Location, extra_args: Mapping[str, str | bool], limits: Limits = LIMITS
) -> Journal:
    """The journal at a location; all threads of a process share one for each client."""
    return _shared_journal(s3, location, tuple(sorted(extra_args.items())), limits, os.getpid())


@functools.lru_cache(maxsize=16)
def _shared_journal(
    s3: S3Client,
    location: S3Location,
    extra_args: tuple[tuple[str, str | bool], ...],
    limits: Limits,
    pid: int,
) -> Journal:
    # By process: a fork in the middle of a commit would copy a lock that nobody gives back.
    return Journal(s3, location, limits, extra_args=dict(extra_args))
