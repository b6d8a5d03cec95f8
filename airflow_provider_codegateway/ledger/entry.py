"""A ledger entry as it was read at one moment, and what it allows next. Nothing here does I/O."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from airflow_provider_codegateway.clip import DEFAULT_LEDGER_PREFIX, PassedOver, S3Location, split_uri
from airflow_provider_codegateway.exceptions import Bought, LedgerConflict, RenderLimitReached
from airflow_provider_codegateway.limits import LIMITS, Limits

MARKER_NAME = re.compile(r"([1-9][0-9]*)\.(started|rendered|delivering|abandoned)")


def is_ledger_name(name: str) -> bool:
    """Whether an object of this name, below a clip's entry, is the ledger's own."""
    return name == "request.json" or MARKER_NAME.fullmatch(name) is not None


SHOWN = 8
"""Characters of a fingerprint in a message: the whole of it lets a viewer of the clip page see the clip."""


@dataclass(frozen=True)
class Turn:
    """Whose turn a render is, in a chain of models."""

    index: int
    model: str
    passed_over: Sequence[PassedOver] = ()
    """The models before it, which provably sold nothing."""


@dataclass(frozen=True)
class Attempt:
    """One render that was begun. The times are when each marker was written, by the store's clock."""

    number: int
    started: datetime | None = None
    rendered: datetime | None = None
    delivering: datetime | None = None
    """The last sign of life of a run that is storing the clip."""
    abandoned: datetime | None = None
    claim_seconds: float = 0.0
    """For how long after ``started`` its owner may still be rendering."""
    outcome: str = ""
    """Why it was abandoned."""
    unread: bool = False
    """It was abandoned for an answer that the version of that run could not read."""
    requester: str = ""
    """Who asked for it; see ``clip.task_identity``."""
    owner: str = ""
    """The id of its claim: that of its reservation in the journal, too."""
    turn: Turn | None = None
    """None if the request has no fallbacks."""


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one clip at one moment."""

    now: datetime
    """The store's clock."""
    fingerprint: str | None
    """Of the request that the entry is for; None if the entry is empty."""
    model: str | None
    """Of the request. In a chain: the model that the entry stays with, or the first while nothing was begun."""
    open: bool
    """Whether ``request.json`` is there, that is, whether some task still waits for the clip."""
    attempts: tuple[Attempt, ...]

    def __bool__(self) -> bool:
        return self.open or bool(self.attempts)


def entry_location(clip: S3Location, ledger_prefix: str = DEFAULT_LEDGER_PREFIX) -> S3Location:
    """Where the ledger entry of a clip is.

    :param ledger_prefix: a prefix in the clip's bucket, or a whole ``s3://bucket/prefix``.
    """
    elsewhere = split_uri(ledger_prefix)
    if elsewhere is None:
        prefix = ledger_prefix.strip("/")
        return S3Location(clip.bucket, f"{prefix}/{clip.key}/" if prefix else f"{clip.key}/")
    # One ledger may serve several buckets, and the same key may be in each of them.
    parts = [part for part in (elsewhere.key.strip("/"), clip.bucket, clip.key) if part]
    return S3Location(elsewhere.bucket, "/".join(parts) + "/")


# What to do next.


@dataclass(frozen=True)
class Claim:
    """Nobody is rendering: try to create ``number.started``."""

    number: int


@dataclass(frozen=True)
class Wait:
    """Another run is at work, or died; for at most ``seconds`` nobody can tell which."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Take:
    """Render ``number`` is paid for, and its clip not delivered: fetch it with the receipt."""

    number: int


@dataclass(frozen=True)
class Gone:
    """There is no ``request.json``: the clip was settled, or the entry deleted."""


def next_step(
    entry: Entry, *, fingerprint: str, max_renders: int, location: S3Location, limits: Limits = LIMITS
) -> Claim | Wait | Take | Gone:
    """What the ledger allows to a run that wants the clip with this fingerprint.

    :raises LedgerConflict: the entry is for another request, for which money was or may have been spent.
    :raises RenderLimitReached: ``max_renders`` were begun, and none of them can still become a clip.
    """
    if entry.open and not entry.attempts and entry.fingerprint != fingerprint:
        return Gone()  # another request took its place, and has begun nothing
    if entry and entry.fingerprint != fingerprint:
        raise _conflict(entry, location)
    if not entry.open:
        return Gone()
    if not entry.attempts:
        return Claim(1)
    for attempt in reversed(entry.attempts):
        if attempt.rendered and not attempt.abandoned:
            if (left := left_to_its_owner(attempt, entry.now, limits)) > 0:
                return Wait(left, f"Render {attempt.number} is paid for; another run is storing its clip.")
            return Take(attempt.number)
    last = entry.attempts[-1]
    if last.started and not last.rendered and not last.abandoned:
        left = last.claim_seconds - (entry.now - last.started).total_seconds()
        if left > 0:
            return Wait(
                left,
                f"Render {last.number} was started at {last.started.astimezone(UTC):%H:%M:%S} UTC by a run that is "
                "still at work, or was restarted or killed.",
            )
    if last.number >= max_renders:
        raise RenderLimitReached(
            f"max_renders={max_renders} is used up. {describe_attempts(entry)}{_where_answers_are(entry, location)} To "
            f"buy another render, raise max_renders, or delete the ledger entry: {forget_command(location)}"
        ).count(*renders(entry))
    return Claim(last.number + 1)


def left_to_its_owner(attempt: Attempt, now: datetime, limits: Limits) -> float:
    """Seconds for which the clip of a paid render is left to the run that bought it, or that is storing it."""
    ends = [
        since + timedelta(seconds=patience)
        for since, patience in (
            (attempt.rendered, limits.settle_grace),
            (attempt.delivering, limits.beat_patience),
        )
        if since is not None
    ]
    return (max(ends) - now).total_seconds()


def _conflict(entry: Entry, location: S3Location) -> LedgerConflict:
    is_rendering = bool(entry.attempts) and is_live(entry.attempts[-1], entry.now)
    advice = (
        "Give each clip a key of its own."
        if is_rendering and not entry.attempts[-1].abandoned
        else "Run that request again to get its clip, give this clip another key, or delete the ledger entry so that "
        f"this one can be bought: {forget_command(location)}"
    )
    return LedgerConflict(
        f"The ledger at {location.uri} belongs to another request (model {entry.model}, fingerprint "
        f"{str(entry.fingerprint)[:SHOWN]}…) whose clip is not delivered yet. {describe_attempts(entry)} {advice}"
    ).count(*renders(entry))


def _where_answers_are(entry: Entry, location: S3Location) -> str:
    if not any(attempt.rendered for attempt in entry.attempts):
        return ""
    return (
        " What the gateway answered is kept: python -m airflow_provider_codegateway.ledger show --answer "
        f"{shlex.quote(location.uri)}"
    )


# An entry in words.


def situation(entry: Entry) -> str:
    """An entry in a few words, for a list."""
    if not entry.attempts:
        return "nothing bought yet"
    if any(attempt.rendered and not attempt.abandoned for attempt in entry.attempts):
        return "paid, not delivered"
    last = entry.attempts[-1]
    if last.started and not last.abandoned and is_live(last, entry.now):
        return "rendering"
    return "outcome unknown"


def is_live(attempt: Attempt, now: datetime) -> bool:
    """Whether the owner of the claim may still be rendering."""
    return attempt.started is not None and now - attempt.started < timedelta(seconds=attempt.claim_seconds)


def describe_attempts(entry: Entry) -> str:
    """One sentence for each render that was begun: when, and with what outcome."""
    if not entry.attempts:
        return "Nothing was bought for it yet."
    return " ".join(
        f"Render {attempt.number}{_by(attempt.turn)}, started {_when(attempt.started or attempt.rendered)}, "
        f"{_fate(attempt, entry.now)}."
        for attempt in entry.attempts
    )


def _by(turn: Turn | None) -> str:
    return f" ({turn.model})" if turn else ""


def _fate(attempt: Attempt, now: datetime) -> str:
    why = f" ({attempt.outcome.rstrip('.')})" if attempt.outcome else ""
    if attempt.rendered:
        return f"was bought and is lost{why}" if attempt.abandoned else "was bought and is not delivered yet"
    if attempt.abandoned:
        return f"may have been bought{why}"
    if is_live(attempt, now):
        return "may still be rendering"
    return "may have been bought: its run ended without reporting"


def _when(at: datetime | None) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at else "at an unknown time"


def money(entry: Entry) -> Bought:
    """Whether anything was, or may have been, bought for the clip of this entry."""
    if not entry.attempts:
        return Bought.NO
    return Bought.YES if any(attempt.rendered for attempt in entry.attempts) else Bought.PERHAPS


def renders(entry: Entry) -> tuple[int, int]:
    """How many renders were bought for the clip of this entry, and how many more may have been."""
    bought = sum(attempt.rendered is not None for attempt in entry.attempts)
    return bought, len(entry.attempts) - bought


def forget_command(location: S3Location) -> str:
    """The command that deletes an entry."""
    return f"python -m airflow_provider_codegateway.ledger forget {shlex.quote(location.uri)}"
