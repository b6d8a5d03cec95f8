"""The main path: refuse for free → claim → buy → keep the receipt → transfer → settle.

The order of the steps is the promise. ``render`` is the whole of it; its stretches may also run one by one,
each in another process than the one before:

- ``clip_in_place``: whether there is anything to buy at all.
- ``acquire``: from the ledger to a receipt; the only place where money is spent.
- ``deliver``: from the receipt to a clip in S3; free, and repeated at will.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from airflow_provider_codegateway import ledger as ledgers
from airflow_provider_codegateway._s3 import (
    ACCESS_DENIED,
    CREDENTIALS,
    DEFAULT_LEDGER_PREFIX,
    NO_SUCH_BUCKET,
    NOT_FOUND,
    S3Location,
    error_code,
    metadata_of,
    split_uri,
    storage_error,
)
from airflow_provider_codegateway._threads import to_the_end
from airflow_provider_codegateway._upload import check_extra_args, upload_target
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    InvalidRequest,
    InvalidTarget,
    RenderOutcomeUnknown,
    StorageUnavailable,
)
from airflow_provider_codegateway.gateway import Buyer, LoadContent, Receipt
from airflow_provider_codegateway.ledger import Claim, Gone, Ledger, Take, Wait
from airflow_provider_codegateway.metrics import MeteredBuyer
from airflow_provider_codegateway.transfer import transfer_clip

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

    from airflow_provider_codegateway.models import VideoRequest

log = logging.getLogger(__name__)

MAX_KEY_BYTES = 1024
"""S3's limit."""

IfExists = Literal["reuse", "replace", "fail"]

POLL_INTERVAL = 2.0
"""Seconds between two looks at a ledger entry that another run is working on."""

CLAIM_MARGIN = 30.0
"""Seconds that a claim outlasts the gateway's deadline: time to write the receipt."""

RECEIPT_PATIENCE = 60.0
"""Seconds for which the writing of a receipt is repeated while S3 fails."""

_FACTS = ("fingerprint", "run", "model", "created", "render-seconds", "renders-bought")
_ENCRYPTION = ("ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext", "BucketKeyEnabled")
_METADATA_PREFIX = "codegateway-"
_PASSING = frozenset({"RequestTimeout", "RequestTimeTooSkewed"})
_NO_SUCH_UPLOAD = frozenset({"NoSuchUpload", "404"})

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip in S3: what the XCom ``clip`` holds.

    :param bytes: size in bytes.
    :param sha256: of the content, in hex; None for a reused clip, which is not read again.
    :param created: Unix seconds at which the gateway produced the clip.
    :param render_seconds: how long the gateway's call took.
    :param renders_bought: how many renders were, or may have been, bought for it.
    :param reused: whether this run found the clip in place and called nobody.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for XCom."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One clip that somebody wants: what, where, and on which terms. Nothing in it is secret or large.

    :param fingerprint: of the request, its media resolved; see ``VideoRequest.fingerprint``.
    :param target: where the clip goes.
    :param run: who wants it: the same for every try of one task instance.
    :param extra_args: boto3's further arguments for uploads, such as encryption.
    :raises InvalidRequest: the key is too long for its ledger entry, or a customer's own encryption key is
        among the arguments: it could not be kept out of Airflow's database.
    """

    model: str
    fingerprint: str
    target: S3Location
    run: str
    if_exists: IfExists = "reuse"
    max_renders: int = 2
    ledger_prefix: str = DEFAULT_LEDGER_PREFIX
    extra_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if secret := sorted(name for name in self.extra_args if name.startswith("SSECustomer")):
            raise InvalidRequest(
                f"s3_extra_args {', '.join(secret)}: a customer's own key is not supported: use a KMS key."
            )
        longest = len(ledgers.entry_location(self.target, self.ledger_prefix).key.encode()) + len(
            "99.abandoned"
        )
        if longest > MAX_KEY_BYTES:
            raise InvalidRequest(
                f"s3_key and ledger_prefix are together {longest - MAX_KEY_BYTES} bytes too long for S3: "
                "shorten one of them."
            )

    def ledger(self, s3: S3Client) -> Ledger:
        """The ledger entry of this clip."""
        return Ledger(
            s3,
            ledgers.entry_location(self.target, self.ledger_prefix),
            fingerprint=self.fingerprint,
            run=self.run,
            put_args={name: self.extra_args[name] for name in _ENCRYPTION if name in self.extra_args},
        )


def clip_target(s3_key: str, s3_bucket: str | None) -> S3Location:
    """Where the clip goes: ``s3_key`` in ``s3_bucket``, or a whole ``s3://bucket/key``.

    :raises InvalidRequest: neither, both, or something that S3 takes for no key.
    """
    if not isinstance(s3_key, str) or not s3_key.strip():
        raise InvalidRequest(
            f"s3_key={s3_key!r} is no key: use 'path/clip.mp4' or 's3://bucket/path/clip.mp4'."
        )
    location = split_uri(s3_key)
    if location and s3_bucket:
        raise InvalidRequest(
            f"s3_key={s3_key!r} names a bucket, and s3_bucket={s3_bucket!r} another: leave one out."
        )
    if location is None:
        if not s3_bucket:
            raise InvalidRequest(
                f"s3_key={s3_key!r} names no bucket: set s3_bucket, or use 's3://bucket/key'."
            )
        location = S3Location(s3_bucket, s3_key)
    if not location.bucket or not location.key or location.key.endswith("/"):
        raise InvalidRequest(f"{location.uri} is not where a clip can go: use a key such as 'path/clip.mp4'.")
    return location


# The whole path.


async def render(
    order: Order, request: VideoRequest, *, s3: S3Client, gateway: Buyer, claim_seconds: float
) -> Clip:
    """The clip of ``order``, bought at most once by this call.

    :param request: what is to be rendered, its media resolved.
    :param claim_seconds: how long one call of ``gateway`` may take at the very most.
    """
    while True:
        opened = await to_the_end("ledger", open_entry, order, request, s3=s3)
        if isinstance(opened, Clip):
            return opened
        clip = await render_open_entry(
            order, s3=s3, gateway=gateway, claim_seconds=claim_seconds, request=request, fresh=opened
        )
        if clip is not None:
            return clip
        # Somebody else settled it: have a new look at the key.


def open_entry(order: Order, request: VideoRequest, *, s3: S3Client) -> Clip | bool:
    """Refuse for free; then write the request to the ledger, which is where every render starts from.

    :return: the clip, if it is in place already; else whether this call opened the entry.
    """
    try:
        check_extra_args(s3, order.extra_args)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    ledger = order.ledger(s3)
    clip = clip_in_place(order, ledger, s3=s3)
    if clip is not None:
        return clip
    # The ledger's first write proves bucket and permission before anything is bought, but for these; and once
    # something was bought, its transfer tells.
    is_unproven = order.extra_args or ledger.location.bucket != order.target.bucket
    if is_unproven and not ledger.read().attempts:
        _prove_upload(order, s3=s3)
    if ledger.open(request.body()):
        return True
    entry = ledger.read()
    if entry.open and not entry.attempts and entry.fingerprint != order.fingerprint:
        log.info("Nothing was begun for the request that the ledger held: it gives way to this one.")
        ledger.withdraw()
        return ledger.open(request.body())
    return False


async def render_open_entry(
    order: Order,
    *,
    s3: S3Client,
    gateway: Buyer,
    claim_seconds: float,
    request: VideoRequest | None = None,
    fresh: bool = False,
    wanted: Callable[[], bool] = lambda: True,
) -> Clip | None:
    """The clip of an order whose request is in the ledger. None if it is not, or no longer.

    :param request: what is to be rendered; read from the ledger when it is to be sent, if not given.
    :param fresh: whether the entry was just opened, so that there is nothing else in it.
    :param wanted: whether the clip is still waited for. If not, no render is asked for any more; one that is
        under way or paid is brought to its end, as that costs nothing.
    """
    ledger = order.ledger(s3)
    while True:
        acquired = await acquire(
            ledger,
            MeteredBuyer(gateway, order.model),
            request=request,
            max_renders=order.max_renders,
            claim_seconds=claim_seconds,
            in_place=lambda: clip_in_place(order, ledger, s3=s3) is not None,
            fresh=fresh,
            wanted=wanted,
        )
        if acquired is None:
            return None
        fresh = False
        try:
            stop = threading.Event()
            return await to_the_end(
                "transfer", deliver, order, ledger, acquired, s3=s3, cancelled=stop, on_cancel=stop.set
            )
        except ClipExpired as error:
            await to_the_end(
                "ledger", _note, ledger.abandon, acquired.number, str(error), receipt=acquired.receipt
            )
            if acquired.bought_here:  # one try buys at most once: Airflow's retries decide on the next
                raise


# 1. Refuse for free.


def clip_in_place(order: Order, ledger: Ledger, *, s3: S3Client) -> Clip | None:
    """The clip, if it is in S3 already and shall be reused; None if the way is free to buy one.

    :raises InvalidTarget: the key is taken, or the bucket is closed to us.
    :raises StorageUnavailable: S3 did not answer.
    """
    head = _head(s3, order.target)
    if head is None:
        return None
    metadata = metadata_of(head)
    facts = {fact: metadata.get(_METADATA_PREFIX + fact) for fact in _FACTS}
    same_request = facts["fingerprint"] == ledger.fingerprint
    # Another try of this very task instance stored it: its own work is in nobody's way.
    same_run = same_request and facts["run"] == order.run
    if same_run or (same_request and order.if_exists == "reuse"):
        log.info("The clip of this request is at %s already: reusing it.", order.target.uri)
        try:
            _clear_what_a_crash_left(order, ledger, created=_float(facts["created"]), s3=s3)
        except CodeGatewayError as error:
            log.warning("The clip is stored, but its ledger entry remains: %s", error)
        return Clip(
            bucket=order.target.bucket,
            key=order.target.key,
            uri=order.target.uri,
            model=order.model,
            bytes=head["ContentLength"],
            sha256=None,
            created=_float(facts["created"]),
            render_seconds=_float(facts["render-seconds"]),
            renders_bought=int(_float(facts["renders-bought"]) or 0),
            fingerprint=ledger.fingerprint,
            reused=True,
        )
    if order.if_exists == "replace":
        return None
    if order.if_exists == "fail":
        raise InvalidTarget(f"{order.target.uri} is taken, and if_exists='fail': choose another s3_key.")
    owner = (
        f"the clip of another request (fingerprint {facts['fingerprint'][: ledgers.SHOWN]}…)"
        if facts["fingerprint"]
        else "an object that is no clip of this provider"
    )
    raise InvalidTarget(
        f"{order.target.uri} is taken by {owner}: choose another s3_key, or set if_exists='replace'."
    )


def _head(s3: S3Client, target: S3Location) -> HeadObjectOutputTypeDef | None:
    try:
        return s3.head_object(Bucket=target.bucket, Key=target.key)
    except Exception as error:
        # 404 may mean the bucket as well: what comes next tells which.
        if error_code(error) in NOT_FOUND:
            return None
        raise storage_error(
            error, doing="look for the clip", at=target, permission="s3:GetObject and s3:ListBucket"
        ) from error


def _prove_upload(order: Order, *, s3: S3Client) -> None:
    """Begin an upload of the clip, and abort it: for free, that tells whether S3 will take it on these terms.

    :raises InvalidTarget: it will not.
    :raises StorageUnavailable: S3 did not answer.
    """
    try:
        target = upload_target(s3, order.target.bucket, order.target.key, {}, order.extra_args)
        upload_id = target.create()
    except ClipTransferError as error:
        cause = error.__cause__
        problem: CodeGatewayError = InvalidTarget(error.args[0])
        if isinstance(cause, Exception) and not _is_refusal(cause):
            problem = storage_error(
                cause, doing="begin an upload", at=order.target, permission="s3:PutObject"
            )
        raise problem from cause
    try:
        target.abort(upload_id)
    except ClipTransferError as error:
        log.warning("The upload that was begun as a proof remains: %s", error.args[0])


def _is_refusal(error: Exception) -> bool:
    """Whether S3 refused a request for what is in it, and will again, by a code that has no words of ours."""
    code = error_code(error)
    if code in ACCESS_DENIED | NO_SUCH_BUCKET | CREDENTIALS | _PASSING or "Throttl" in code:
        return False
    answer = getattr(error, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in (400, 403, 404)


def _clear_what_a_crash_left(order: Order, ledger: Ledger, *, created: float | None, s3: S3Client) -> None:
    """Settle the entry of a clip that was stored by a run which died before it could."""
    entry = ledger.read()
    if not entry or entry.fingerprint != ledger.fingerprint:
        return
    for attempt in entry.attempts:
        # A run with if_exists="replace" may be buying the clip anew: its entry has another receipt, or none.
        receipt = ledger.receipt(attempt.number) if attempt.rendered else None
        if receipt and receipt.created == created:
            _abort_uploads(s3, order.target, _open_uploads(s3, order.target))
            ledger.settle(attempt.number, receipt)
            return
    if not entry.attempts:
        # Somebody may be about to claim: that claim is not ours to delete.
        ledger.withdraw()


# 2. Claim, 3. buy, 4. keep the receipt.


@dataclass(frozen=True)
class Acquired:
    """A paid render: its number in the ledger, its receipt, and whether this call bought it."""

    number: int
    receipt: Receipt
    bought_here: bool


async def acquire(
    ledger: Ledger,
    gateway: Buyer,
    *,
    request: VideoRequest | None,
    max_renders: int,
    claim_seconds: float,
    in_place: Callable[[], bool],
    fresh: bool,
    wanted: Callable[[], bool] = lambda: True,
) -> Acquired | None:
    """A receipt for the clip of ``ledger``: an earlier one, another run's, or one bought now.

    :param request: what is to be rendered; None: read it from the ledger.
    :param in_place: looks whether the clip is in S3 by now.
    :param fresh: whether the ledger entry was just opened, so that there is nothing to read in it.
    :param wanted: see ``render_open_entry``.
    :return: None if the entry is gone: the clip was settled, or somebody deleted the entry. Also if nothing was
        bought yet, and the clip is not wanted any more.
    :raises RenderLimitReached, LedgerConflict: see ``ledger.next_step``.
    :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see ``Gateway.generate``.
    """
    step: Claim | Wait | Take | Gone = Claim(1)
    said = ""
    while True:
        if not fresh:
            entry = await to_the_end("ledger", ledger.read)
            step = ledgers.next_step(
                entry,
                fingerprint=ledger.fingerprint,
                max_renders=max_renders,
                location=ledger.location,
            )
        fresh = False
        match step:
            case Gone():
                return None
            case Take(number):
                if receipt := await to_the_end("ledger", ledger.receipt, number):
                    log.info("Render %d is paid already: fetching its clip.", number)
                    return Acquired(number, receipt, bought_here=False)
            case _ if not wanted():
                return None
            case Wait(seconds, reason):
                if reason != said:
                    log.info("Waiting for another try or run, for at most %.0f s: %s.", seconds, reason)
                    said = reason
                await asyncio.sleep(min(seconds, POLL_INTERVAL))
            case Claim(number):
                # A claim can be had again once an entry is settled, and what we know of it is older than
                # the claim. A clip is in S3 before its entry is settled: so this look, after it, is the
                # one that decides.
                try:
                    claimed_at, settled = await to_the_end(
                        "ledger", _claim, ledger, number, claim_seconds + CLAIM_MARGIN, in_place
                    )
                    if claimed_at is None:
                        continue
                except BaseException:
                    # Also where only the answer to the claim was lost: then it may have been made.
                    await to_the_end("ledger", _note, ledger.release, number)
                    raise
                # A claim that was held up until its margin is gone would not outlast the render.
                if settled or time.monotonic() - claimed_at > CLAIM_MARGIN:
                    await to_the_end("ledger", ledger.release, number)
                    if settled:
                        return None
                    continue
                content = request.content if request else _load_from(ledger, wanted)
                receipt = await _buy(ledger, number, gateway, content)
                return Acquired(number, receipt, bought_here=True)


def _claim(
    ledger: Ledger, number: int, seconds: float, in_place: Callable[[], bool]
) -> tuple[float | None, bool]:
    """When the claim was asked for, None if it was not had; and whether the clip is in S3 by now."""
    asked_at = time.monotonic()  # in this thread: the wait for it makes no claim older
    if not ledger.claim(number, claim_seconds=seconds):
        return None, False
    return asked_at, in_place()


def _load_from(ledger: Ledger, wanted: Callable[[], bool]) -> LoadContent:
    def load() -> bytes:
        body = ledger.request()
        if body is None:
            raise StorageUnavailable(f"The ledger entry at {ledger.location.uri} was deleted meanwhile.")
        return json.dumps(body).encode()

    async def load_if_wanted() -> bytes:
        content = await to_the_end("ledger", load)
        if not wanted():
            raise RenderOutcomeUnknown(
                "The task moved on before a render was asked for, and none was.", bought=Bought.NO
            )
        return content

    return load_if_wanted


async def _buy(ledger: Ledger, number: int, gateway: Buyer, content: LoadContent) -> Receipt:
    log.info("Asking for render %d; it takes about two minutes.", number)
    try:
        receipt = await gateway.generate(content)
    except CodeGatewayError as error:
        if error.bought is Bought.NO:
            # A failure that provably bought nothing leaves no trace and does not count.
            await to_the_end("ledger", _note, ledger.release, number)
        else:
            await to_the_end("ledger", _note, ledger.abandon, number, str(error))
        raise
    except BaseException as error:  # cancelled: an orderly exit, for which no successor need wait
        await to_the_end(
            "ledger",
            _note,
            ledger.abandon,
            number,
            f"the run was stopped while rendering ({type(error).__name__})",
        )
        raise
    # Nothing comes before this: from here on a crash costs a download and never a render.
    await to_the_end("receipt", _keep, ledger, number, receipt)
    log.info("Render %d took %.1f s; its receipt is kept.", number, receipt.render_seconds)
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError  # the gateway put it off for the answer; see `Gateway.generate`
    return receipt


def _keep(ledger: Ledger, number: int, receipt: Receipt) -> None:
    give_up_at = time.monotonic() + RECEIPT_PATIENCE
    pause = 0.5
    while True:
        try:
            ledger.keep(number, receipt)
            return
        except CodeGatewayError as error:
            if time.monotonic() + pause > give_up_at:
                log.exception(
                    "The receipt of render %d, which is PAID, could not be written to %s. Going on with the "
                    "transfer; should this run die before the clip is stored, the render is lost.",
                    number,
                    ledger.location.uri,
                )
                return
            log.error("The receipt of render %d could not be written yet: %s", number, error)
        time.sleep(pause)
        pause = min(2 * pause, 8.0)


def _note(write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write how a render ended. If that fails it is logged: the way it ended is the error to be raised."""
    try:
        write(*args, **kwargs)
    except CodeGatewayError as error:
        log.error("The ledger could not be told how this render ended, and counts it as bought: %s", error)


# 5. Transfer, 6. settle.


def deliver(
    order: Order,
    ledger: Ledger,
    acquired: Acquired,
    *,
    s3: S3Client,
    cancelled: threading.Event | None = None,
) -> Clip:
    """Bring a paid clip to S3, verify it there, and delete the ledger entry.

    :param cancelled: set from outside to stop, leaving nothing half done.
    :raises ClipTransferError: the receipt is kept; trying again is free.
    :raises ClipExpired: the link is of no more use.
    """
    number, receipt = acquired.number, acquired.receipt
    facts = {
        "fingerprint": ledger.fingerprint,
        "run": order.run,
        "model": quote(order.model, safe="/.:-_ "),  # metadata is ASCII
        "created": receipt.created,
        "render-seconds": round(receipt.render_seconds, 3),
        "renders-bought": number,
    }
    # A transfer of this clip that was killed could not abort its upload.
    orphans = [] if acquired.bought_here and number == 1 else _open_uploads(s3, order.target)
    stored = transfer_clip(
        receipt.url,
        s3=s3,
        bucket=order.target.bucket,
        key=order.target.key,
        metadata={_METADATA_PREFIX + fact: str(value) for fact, value in facts.items() if value is not None},
        extra_args=order.extra_args,
        expires_at=receipt.expires_at,
        cancelled=cancelled,
    )
    _abort_uploads(s3, order.target, orphans)
    try:
        ledger.settle(number, receipt)
    except CodeGatewayError as error:
        # The clip is where it should be: that is worth more than a tidy ledger.
        log.warning("The clip is stored, but its ledger entry remains: %s", error)
    return Clip(
        bucket=order.target.bucket,
        key=order.target.key,
        uri=order.target.uri,
        model=order.model,
        bytes=stored.bytes,
        sha256=stored.sha256,
        created=receipt.created,
        render_seconds=receipt.render_seconds,
        renders_bought=number,
        fingerprint=ledger.fingerprint,
        reused=False,
    )


def _open_uploads(s3: S3Client, target: S3Location) -> list[str]:
    """The ids of the multipart uploads to exactly this key that nobody completed or aborted yet."""
    try:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=target.bucket, Prefix=target.key)
        return [
            upload["UploadId"]
            for page in pages
            for upload in page.get("Uploads", [])
            if upload["Key"] == target.key
        ]
    except Exception as error:
        log.warning("%s", _upload_error(error, target, "look for", "s3:ListBucketMultipartUploads"))
        return []


def _abort_uploads(s3: S3Client, target: S3Location, upload_ids: list[str]) -> None:
    """Abort what a killed transfer left. One that is alive after all fails, and is repeated for free."""
    for upload_id in upload_ids:
        try:
            s3.abort_multipart_upload(Bucket=target.bucket, Key=target.key, UploadId=upload_id)
        except Exception as error:
            if error_code(error) not in _NO_SUCH_UPLOAD:
                log.warning("%s", _upload_error(error, target, "abort", "s3:AbortMultipartUpload"))


def _upload_error(error: Exception, target: S3Location, doing: str, permission: str) -> CodeGatewayError:
    return storage_error(
        error, doing=f"{doing} uploads that a killed transfer left", at=target, permission=permission
    )


def _float(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
