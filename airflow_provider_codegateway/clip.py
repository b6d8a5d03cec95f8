"""What a clip is: where it goes, how its object is marked, who asked for it. Nothing here does I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, Self
from urllib.parse import quote, unquote

from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.foreign import finite

MAX_KEY_BYTES = 1024
"""S3's limit."""

DEFAULT_LEDGER_PREFIX = "_codegateway/"
"""Where the ledger is kept in the clip's bucket."""

IfExists = Literal["reuse", "replace", "fail"]
OnMismatch = Literal["warn", "fail"]


@dataclass(frozen=True)
class S3Location:
    """A bucket and a key (or a prefix) in it."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """Such as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"


def split_uri(uri: str) -> S3Location | None:
    """The parts of an ``s3://`` URI, or None if it is not one. A key may hold ``?``, ``#`` and ``%``."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() not in {"s3", "s3a", "s3n"}:
        return None
    bucket, _, key = rest.partition("/")
    return S3Location(bucket, key)


def clip_location(s3_key: str, s3_bucket: str | None) -> S3Location:
    """Where a clip goes: ``s3_key`` in ``s3_bucket``, or a whole ``s3://bucket/key``.

    :raises InvalidRequest: neither names a bucket, both do, or S3 has no such key.
    """
    if not _is_key(s3_key):
        raise InvalidRequest(
            f"s3_key={s3_key!r} is not an S3 key. Use 'path/clip.mp4' or 's3://bucket/path/clip.mp4'."
        )
    if s3_bucket and not (isinstance(s3_bucket, str) and _BUCKET.fullmatch(s3_bucket)):
        raise InvalidRequest(
            f"s3_bucket={s3_bucket!r} is not the name of a bucket. Use a name such as 'acme-clips', without s3:// and "
            "without a slash."
        )
    location = split_uri(s3_key)
    if location and s3_bucket:
        raise InvalidRequest(
            f"s3_key={s3_key!r} already names a bucket, so s3_bucket={s3_bucket!r} must be left out."
        )
    if location is None:
        if not s3_bucket:
            raise InvalidRequest(
                f"s3_key={s3_key!r} does not name a bucket. Set s3_bucket, or use 's3://bucket/key'."
            )
        location = S3Location(s3_bucket, s3_key)
    if not _BUCKET.fullmatch(location.bucket) or not location.key or location.key.endswith("/"):
        raise InvalidRequest(f"{location.uri} is not an object. Use a key such as 'path/clip.mp4'.")
    return location


def location_beside(name: str, key: str, clip: S3Location) -> S3Location:
    """Where a file beside a clip goes: a key in the clip's bucket, ``s3://bucket/key``, or a suffix such as ``.jpg``.

    :param name: of the argument that says it.
    :raises InvalidRequest: S3 has no such key.
    """
    if not _is_key(key) or key.endswith("/"):
        raise InvalidRequest(
            f"{name}={key!r} is not an S3 key. Use 'path/name.jpg', 's3://bucket/name.jpg', or a suffix such as '.jpg'."
        )
    if key.startswith("."):
        place = S3Location(clip.bucket, clip.key + key)
    else:
        place = split_uri(key) or S3Location(clip.bucket, key)
    if not _BUCKET.fullmatch(place.bucket) or not place.key:
        raise InvalidRequest(f"{name}={key!r} lacks a bucket or a key. Use 's3://bucket/path/name.jpg'.")
    if (excess := len(place.key.encode()) - MAX_KEY_BYTES) > 0:
        raise InvalidRequest(f"{name} makes a key that is {excess} bytes too long for S3. Shorten it.")
    return place


def _is_key(text: object) -> bool:
    """Whether this can name an object, as a key or a URI of S3."""
    if not isinstance(text, str) or text.strip() in _EMPTY or _CONTROL.search(text):
        return False
    return not _SCHEME.match(text) or split_uri(text) is not None


def ledger_around(at: S3Location, ledger_prefix: str, clip_bucket: str) -> str | None:
    """The prefix of the ledger whose objects an object there could be taken for, or overwrite; None if there is none.

    The default one is that of other tasks, in every bucket.
    """
    given = split_uri(ledger_prefix) or S3Location(clip_bucket, ledger_prefix)
    for prefix in (DEFAULT_LEDGER_PREFIX, *([given.key] if given.bucket == at.bucket else [])):
        inside = prefix.strip("/") + "/"
        # A ledger of the whole bucket is told from everything else by the names of its objects.
        if at.key.lstrip("/").startswith(inside) or (inside == "/" and _LEDGER_NAME.search(at.key)):
            return prefix
    return None


# XML, in which S3 lists keys, has neither control characters nor halves of a character.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:aws[a-z-]*:s3[a-z-]*:.+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EMPTY = frozenset({"", "None", "nan", "null"})
"""What a template becomes that has nothing to show."""


def checked_target(target: S3Location, ledger_prefix: str, upload_args: Mapping[str, Any]) -> None:
    """Refuse where a clip must not go, and what cannot be a prefix or arguments. Makes no call.

    :raises InvalidRequest: naming it.
    """
    if not isinstance(ledger_prefix, str) or _CONTROL.search(ledger_prefix):
        raise InvalidRequest(
            f"ledger_prefix={ledger_prefix!r} is not a prefix. Use one such as {DEFAULT_LEDGER_PREFIX!r} or "
            "'s3://bucket/prefix', or leave it out."
        )
    elsewhere = split_uri(ledger_prefix)
    if elsewhere is not None and not _BUCKET.fullmatch(elsewhere.bucket):
        raise InvalidRequest(
            f"ledger_prefix={ledger_prefix!r} does not name a bucket. Use 's3://bucket/prefix'."
        )
    if not isinstance(upload_args, Mapping):
        raise InvalidRequest(
            f"s3_extra_args must be a dict such as {{'StorageClass': 'STANDARD_IA'}}, not {upload_args!r:.80}."
        )
    if secret := sorted(str(name) for name in upload_args if str(name).startswith("SSECustomer")):
        raise InvalidRequest(
            f"s3_extra_args has {', '.join(secret)}, but a customer-provided key (SSE-C) is not supported. "
            "Use a KMS key."
        )
    if (prefix := ledger_around(target, ledger_prefix, target.bucket)) is not None:
        raise InvalidRequest(
            f"{target.uri} is inside the ledger ({prefix!r}), whose objects it could overwrite. Choose another s3_key."
        )


_LEDGER_NAME = re.compile(r"(^|/)(request\.json|[0-9]+\.(started|rendered|delivering|abandoned))$")


def run_identity(dag_id: str, run_id: str) -> str:
    """Who asks for a clip: a DAG run, in characters that S3 metadata takes.

    Not the task's map index: a mapped list may have another order when it is cleared (apache/airflow#72725).
    """
    return hashlib.sha256(repr((dag_id, run_id)).encode()).hexdigest()[:32]


NO_RUN = run_identity("", "")
"""Who asks where there is no DAG run: always the same, so that a call finds what an earlier one has bought."""


def task_identity(dag_id: str, task_id: str, run_id: str, map_index: int | None) -> str:
    """Who asked for a clip in the first versions, which wrote it to objects and ledgers that are still read."""
    return hashlib.sha256(repr((dag_id, task_id, run_id, map_index)).encode()).hexdigest()[:32]


def identities(dag_id: str, task_id: str, run_id: str, map_index: int | None) -> tuple[str, str]:
    """The names under which a task instance may have stored a clip: today's, and that of the first versions."""
    return run_identity(dag_id, run_id), task_identity(dag_id, task_id, run_id, map_index)


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """The task instance that asks for a clip, for the journal. All of it is None outside of Airflow."""

    dag_id: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    map_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks for clips.

    :param requester: see ``run_identity``.
    :param former_requester: the same as the first versions named it; see ``task_identity``.
    :param task: the task instance, for the journal.
    """

    requester: str
    former_requester: str | None = None
    task: TaskRun = TaskRun()


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a chain: the first, or a fallback.

    :param priced_by: the parameters of its request that its price depends on; None if they are not known here.
    :param fingerprint: of its request alone.
    :param wanted: what the clip's facts are held against; see ``facts.wanted_of``.
    """

    model: str
    priced_by: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    wanted: Mapping[str, Any] | None = None


PassedOver = Mapping[str, str]
"""A model that provably sold nothing, and why the next one was asked: ``{"model": …, "reason": …}``."""


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """One clip to be made: where it goes, for whom, and on which terms. Nothing in it is secret or large.

    :param model: of the request.
    :param fingerprint: of the request, its media resolved; see ``models.chain_fingerprint``.
    :param target: where the clip goes.
    :param requester: who asks for it; see ``run_identity``.
    :param former_requester: the same as the first versions named it; see ``task_identity``. A trigger need not
        know it: what was stored or bought under that name, the task has found before it defers.
    :param if_exists: what to do if the target is taken.
    :param max_renders: how many renders may be begun at most.
    :param ledger_prefix: a prefix in the clip's bucket, or a whole ``s3://bucket/prefix``.
    :param ledger_conn_id: AWS connection of the ledger; None if it is the clip's.
    :param upload_args: boto3's further arguments for uploads, such as encryption.
    :param asked_by: the task instance, for the journal.
    :param priced_by: the parameters of the request that its price depends on; None if they are not known here.
    :param max_cost: what the clip may cost at most, in the price list's currency.
    :param wanted: what the clip's facts are held against; see ``facts.wanted_of``. None if that is not known here.
    :param first_fingerprint: of the first model's request alone; that of the whole, if left out.
    :param fallbacks: the models to ask, in this order, if the first provably sells nothing.
    :param fallback_on: for which reasons; see ``gateway.fallback``.
    :raises InvalidRequest: see ``checked_target``. A customer's own encryption key could not be kept out of Airflow's
        database.
    """

    model: str
    fingerprint: str
    target: S3Location
    requester: str
    former_requester: str | None = None
    if_exists: IfExists = "reuse"
    max_renders: int = 2
    ledger_prefix: str = DEFAULT_LEDGER_PREFIX
    ledger_conn_id: str | None = None
    upload_args: Mapping[str, Any] = field(default_factory=dict)
    asked_by: TaskRun = TaskRun()
    priced_by: Mapping[str, Any] | None = None
    max_cost: str | None = None
    wanted: Mapping[str, Any] | None = None
    first_fingerprint: str | None = None
    fallbacks: tuple[Member, ...] = ()
    fallback_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_target(self.target, self.ledger_prefix, self.upload_args)

    @property
    def members(self) -> tuple[Member, ...]:
        """The whole chain: the first model and its fallbacks."""
        fingerprint = self.first_fingerprint or self.fingerprint
        first = Member(
            model=self.model, priced_by=self.priced_by, fingerprint=fingerprint, wanted=self.wanted
        )
        return (first, *self.fallbacks)

    def is_request_of(self, marks: Marks) -> bool:
        """Whether an object is the clip of this request, or of one of its models alone.

        So a clip that is stored stays what it was when fallbacks are added, changed or removed.
        """
        ours = {self.fingerprint, *(each.fingerprint for each in self.members)}
        return not ours.isdisjoint({marks.fingerprint, marks.member} - {None})

    def wanted_of(self, marks: Marks) -> Mapping[str, Any] | None:
        """What the facts of an object are held against: the request of the model that made it."""
        for member in self.members:
            if member.fingerprint in (marks.member, marks.fingerprint):
                return member.wanted
        return self.wanted

    def is_requested_by(self, requester: str | None) -> bool:
        """Whether this name, of an object or a ledger's marker, is that of whoever asks for this clip."""
        return requester is not None and requester in (self.requester, self.former_requester)

    def as_arguments(self) -> dict[str, Any]:
        """Plain values, under the names that triggers are stored with."""
        chain = {
            "first_fingerprint": self.first_fingerprint,
            "fallbacks": [asdict(each) for each in self.fallbacks],
            "fallback_on": [*self.fallback_on],
        }
        return {
            "bucket": self.target.bucket,
            "key": self.target.key,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "run": self.requester,
            "if_exists": self.if_exists,
            "max_renders": self.max_renders,
            "ledger_prefix": self.ledger_prefix,
            "ledger_conn_id": self.ledger_conn_id,
            "extra_args": dict(self.upload_args),
            "asked_by": asdict(self.asked_by),
            "priced_by": None if self.priced_by is None else dict(self.priced_by),
            "max_cost": self.max_cost,
            "wanted": None if self.wanted is None else dict(self.wanted),
            **(chain if self.fallbacks else {}),
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The inverse of ``as_arguments``."""
        rest = dict(arguments)
        return cls(
            target=S3Location(rest.pop("bucket"), rest.pop("key")),
            requester=rest.pop("run"),
            upload_args=rest.pop("extra_args"),
            asked_by=TaskRun(**rest.pop("asked_by", {})),  # a trigger that an earlier version stored has none
            fallbacks=tuple(Member(**each) for each in rest.pop("fallbacks", ())),
            fallback_on=tuple(rest.pop("fallback_on", ())),
            **rest,
        )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was measured of a clip.

    :param width: in pixels, as shown: turned, and stretched where pixels are not square.
    :param duration: in seconds; None if the index does not say.
    :param fps: frames a second, on average.
    :param codec: of the picture, such as ``h264``.
    :param audio: whether there is sound, be it silence.
    """

    width: int
    height: int
    duration: float | None
    fps: float | None
    codec: str
    audio: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for XCom."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self | None:
        """The inverse of ``as_dict``; None if these are no facts."""
        try:
            width, height, codec, audio = (values[name] for name in ("width", "height", "codec", "audio"))
            seconds = [values[name] for name in ("duration", "fps")]
        except KeyError:
            return None
        is_right = all(type(each) is int for each in (width, height)) and isinstance(codec, str)
        is_right &= isinstance(audio, bool) and all(
            each is None or type(each) in (int, float) for each in seconds
        )
        if not is_right:
            return None
        return cls(width=width, height=height, duration=seconds[0], fps=seconds[1], codec=codec, audio=audio)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip in S3: what the XCom ``clip`` holds.

    :param bytes: size in bytes.
    :param sha256: of the content, in hex; None for a reused clip, which is not read again.
    :param created: Unix seconds at which the gateway produced the clip.
    :param render_seconds: how long the gateway's call took.
    :param renders_bought: how many renders were, or may have been, bought for it.
    :param renders_bought_here: how many of them by this DAG run, in whichever of its tries.
    :param renders_unknown_here: how many of those only may have been bought.
    :param reused: whether the clip was found in place.
    :param cost: what its renders cost together, as ``spend.Cost.as_dict``; None if no price is known.
    :param facts: what it measures, as ``Facts.as_dict``; None if that could not be read.
    :param mismatches: how it differs from what was asked for, a short sentence each.
    :param poster: the ``s3://`` URI of its first picture, where that was asked for.
    :param last_frame: the same of its last one.
    :param fallback: the models that were passed over for it, and why; None if its request has no fallbacks.
    """

    bucket: str
    key: str
    uri: str
    model: str
    bytes: int
    sha256: str | None
    created: float | None
    render_seconds: float | None
    renders_bought: int
    fingerprint: str
    reused: bool
    renders_bought_here: int = 0
    renders_unknown_here: int = 0
    cost: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] | None = None
    mismatches: Sequence[str] = ()
    poster: str | None = None
    last_frame: str | None = None
    fallback: Sequence[PassedOver] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for XCom."""
        return {**asdict(self), "mismatches": list(self.mismatches)}

    @classmethod
    def is_dict_of(cls, values: Mapping[str, Any]) -> bool:
        """Whether ``from_dict`` takes these values: all that have no default are there."""
        return all(each.name in values for each in fields(cls) if each.default is MISSING)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``. Values that this version does not know are left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


_PREFIX = "codegateway-"
MADE_BY = "codegateway-run"
"""Metadata of a clip and of a batch's files: the run that made it; see ``run_identity``."""
FINGERPRINT = f"{_PREFIX}fingerprint"
"""The metadata of a clip, and of its ledger entry's request, that names the request."""
BESIDE = f"{_PREFIX}beside"
"""The metadata of a picture or a document beside a clip that names the clip's fingerprint."""
_BUYERS_KEPT, _UNKNOWN_KEPT = 20, 4
"""S3 takes 2 KB of metadata."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the object of a clip says of itself in its metadata.

    :param requester: who stored it; see ``run_identity``.
    :param member: the fingerprint of the rendering model's request alone, if it is of a chain.
    :param buyers: who asked for each render, the last ones if they were many; those of the first versions are unknown.
    :param unknown: who asked for each render that only may have been bought.
    :param claim: the id of the claim in the ledger under which it was bought.
    """

    fingerprint: str | None
    requester: str | None
    model: str | None
    created: float | None
    render_seconds: float | None
    renders_bought: int
    buyers: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    claim: str | None = None
    cost: Mapping[str, Any] | None = None
    facts: Facts | None = None
    member: str | None = None
    fallback: Sequence[PassedOver] = ()

    def as_metadata(self) -> dict[str, str]:
        """The object's metadata, ASCII."""
        values = {
            "fingerprint": self.fingerprint,
            "run": self.requester,
            "model": None if self.model is None else quote(self.model, safe="/.:-_ "),
            "created": self.created,
            "render-seconds": None if self.render_seconds is None else round(self.render_seconds, 3),
            "renders-bought": self.renders_bought,
            "buyers": ",".join(self.buyers[-_BUYERS_KEPT:]) or None,
            "unknown": ",".join(self.unknown[-_UNKNOWN_KEPT:]) or None,
            "claim": self.claim,
            "cost": None if self.cost is None else _compact(self.cost),
            "facts": None if self.facts is None else _compact(self.facts.as_dict()),
            "member": self.member,
            "fallback": json.dumps([*self.fallback], separators=(",", ":")) if self.fallback else None,
        }
        return {_PREFIX + name: str(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """The inverse of ``as_metadata``. Names are headers, which some servers write with capitals."""
        found = {name.lower().removeprefix(_PREFIX): value for name, value in metadata.items()}
        return cls(
            fingerprint=found.get("fingerprint"),
            requester=found.get("run"),
            model=unquote(found["model"]) if "model" in found else None,
            created=_float(found.get("created")),
            render_seconds=_float(found.get("render-seconds")),
            renders_bought=int(_float(found.get("renders-bought")) or 0),
            buyers=tuple(filter(None, found.get("buyers", "").split(","))),
            unknown=tuple(filter(None, found.get("unknown", "").split(","))),
            claim=found.get("claim"),
            cost=_object(found.get("cost")),
            facts=Facts.from_dict(_object(found.get("facts")) or {}),
            member=found.get("member"),
            fallback=tuple(passed) if isinstance(passed := _json(found.get("fallback")), list) else (),
        )


def _compact(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), separators=(",", ":"))


def _object(text: str | None) -> dict[str, Any] | None:
    value = _json(text)
    return value if isinstance(value, dict) else None


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null", parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None


def _float(value: str | None) -> float | None:
    try:
        return None if value is None else finite(float(value))
    except ValueError:
        return None
