"""The main path: check for free → claim → reserve → buy → keep the receipt → deliver → settle.

``Purchase.complete`` is the whole of it. In deferrable mode its two halves run in different processes: ``begin`` in
the worker, ``resume`` in the triggerer.

Why no crash buys a clip twice:

1. Only whoever created the claim ``n.started`` may POST render ``n``, and S3 lets one run create it.
2. A claim is taken back only if its render provably bought nothing. A run that dies leaves its claim, and the claim
   counts as a render from then on, against ``max_renders``.
3. The gateway's answer is written to the ledger whole before it is read. From then on every run fetches
   that clip, for free.
4. The receipt is deleted only once the clip is at its key, and a run that has a claim looks at the key before it
   POSTs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Clip, ClipSpec, Marks
from airflow_provider_codegateway.exceptions import (
    Bought,
    BudgetExceeded,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    InvalidTarget,
    RenderOutcomeUnknown,
    StorageUnavailable,
)
from airflow_provider_codegateway.gateway import Answer, Buyer, Receipt, link_over_https, read_receipt
from airflow_provider_codegateway.ledger import (
    Claim,
    Entry,
    Gone,
    Ledger,
    Take,
    Wait,
    describe_attempts,
    next_step,
)
from airflow_provider_codegateway.ledger.entry import SHOWN, Attempt
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.s3 import Problem, problem_of, storage_error
from airflow_provider_codegateway.spend import Account, Cost
from airflow_provider_codegateway.threads import to_the_end
from airflow_provider_codegateway.transfer import (
    StoredClip,
    Transfer,
    abort_uploads,
    open_uploads,
    prove_upload,
    require_upload_args,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

    from airflow_provider_codegateway.models import VideoRequest

log = logging.getLogger(__name__)


class Purchase:
    """One clip, from the free checks to its place in S3.

    :param spec: the clip that is wanted.
    :param s3: a boto3 client.
    :param buyer: what buys a render.
    :param claim_seconds: how long one call of ``buyer`` may take at the very most.
    :param account: prices, budgets and journal; without one, everything may be bought.
    :param allows_http_links: whether a clip may come over plain http where the gateway is reached by https.
    :raises InvalidRequest: ``s3_key`` and ``ledger_prefix`` are too long together.
    """

    def __init__(
        self,
        spec: ClipSpec,
        *,
        s3: S3Client,
        buyer: Buyer,
        claim_seconds: float,
        account: Account | None = None,
        allows_http_links: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self.spec = spec
        self._account = account or Account()
        self._max_cost = None if spec.max_cost is None else Decimal(spec.max_cost)
        self.ledger = Ledger.of_clip(s3, spec, limits)
        self._s3 = s3
        self._buyer = buyer
        self._claim_seconds = claim_seconds
        self._allows_http_links = allows_http_links
        self._limits = limits
        self._buys = True
        self._read_again: set[int] = set()
        self._said = ""
        self._attempts: tuple[Attempt, ...] = ()  # of the entry as it was read last

    async def complete(self, request: VideoRequest) -> Clip:
        """The clip: found, or bought and stored.

        :param request: what is to be rendered, its media resolved.
        :raises CodeGatewayError: see ``exceptions``; ``bought`` says whether money was spent.
        """
        while True:
            clip = await to_the_end("ledger", self.begin, request) or await self.resume()
            if clip is not None:
                return clip
            # Another run settled the entry: look at the key again.

    # 1. Check for free, and open the ledger entry.

    def begin(self, request: VideoRequest) -> Clip | None:
        """Refuse for free what can be refused. If nothing is refused, the request is in the ledger afterwards.

        :return: the clip, if it is in place already; else None.
        """
        require_upload_args(self._s3, self.spec.upload_args)
        if clip := self.find():
            self._clear_what_a_crash_left(clip)
            return clip
        # The ledger's first write proves bucket and permission before anything is bought, but not for these; and
        # once something was bought, its transfer will show.
        is_unproven = self.spec.upload_args or self.ledger.location.bucket != self.spec.target.bucket
        if is_unproven and not self.ledger.read().attempts:
            prove_upload(self._s3, self.spec.target, self.spec.upload_args)
        self._require_affordable(request)
        self.ledger.open(request.body())
        return None

    def preview(self, request: VideoRequest) -> Preview:
        """What ``complete`` would do now, with all its free refusals. Nothing is written.

        :raises CodeGatewayError: it would refuse.
        """
        require_upload_args(self._s3, self.spec.upload_args)
        clip = self.find()
        paid = clip is not None or any(attempt.rendered for attempt in self.ledger.read().attempts)
        cost = self._account.cost(request.body())
        if not paid:
            self._account.check(request.body(), max_cost=self._max_cost)
            self._account.require_room(request.body(), asked_by=self.spec.asked_by)
        return Preview(clip=clip, is_paid=paid, cost=cost)

    def _require_affordable(self, request: VideoRequest) -> None:
        try:
            self._account.check(request.body(), max_cost=self._max_cost)
        except BudgetExceeded:
            # What was bought before the price list or max_cost changed is still fetched.
            if not self.ledger.read().attempts:
                raise

    def find(self) -> Clip | None:
        """The clip, if it is stored already and may be reused; None if one may be bought. Only looks.

        :raises InvalidTarget: the key is taken, or the bucket is closed to us.
        :raises StorageUnavailable: S3 did not answer.
        """
        target = self.spec.target
        head = self._head()
        if head is None:
            return None
        marks = Marks.from_metadata(head["Metadata"])
        is_same_request = marks.fingerprint == self.spec.fingerprint
        # What this DAG run stored before is its own work, also with if_exists="replace".
        is_own = is_same_request and self.spec.is_requested_by(marks.requester)
        if is_own or (is_same_request and self.spec.if_exists == "reuse"):
            return Clip(
                bucket=target.bucket,
                key=target.key,
                uri=target.uri,
                model=self.spec.model,
                bytes=head["ContentLength"],
                sha256=None,
                created=marks.created,
                render_seconds=marks.render_seconds,
                renders_bought=marks.renders_bought,
                renders_bought_here=self._count_own(marks.buyers),
                fingerprint=self.spec.fingerprint,
                reused=True,
                cost=marks.cost,
            )
        if self.spec.if_exists == "replace":
            return None
        if self.spec.if_exists == "fail":
            raise InvalidTarget(f"{target.uri} already exists, and if_exists='fail'. Choose another s3_key.")
        owner = (
            f"the clip of another request (fingerprint {marks.fingerprint[:SHOWN]}…)"
            if marks.fingerprint
            else "an object that this provider did not create"
        )
        raise InvalidTarget(
            f"{target.uri} already holds {owner}. Choose another s3_key, or set if_exists='replace'."
        )

    def _head(self) -> HeadObjectOutputTypeDef | None:
        target = self.spec.target
        try:
            return self._s3.head_object(Bucket=target.bucket, Key=target.key)
        except Exception as error:
            # A 404 may mean the bucket as well: the next request tells.
            if problem_of(error) is Problem.NOT_FOUND:
                return None
            raise storage_error(
                error, doing="look for the clip", at=target, permission="s3:GetObject and s3:ListBucket"
            ) from error

    def _clear_what_a_crash_left(self, clip: Clip) -> None:
        """Settle the entry of a clip that was stored by a run which died before it could."""
        log.info("%s already holds the clip of this request: reusing it.", clip.uri)
        try:
            entry = self.ledger.read()
            if not entry or entry.fingerprint != self.spec.fingerprint:
                return
            for attempt in entry.attempts:
                # A run with if_exists="replace" may be buying the clip anew: its receipt is another, or none.
                answer = self.ledger.answer(attempt.number) if attempt.rendered else None
                if answer and _created(answer) == clip.created:
                    abort_uploads(self._s3, self.spec.target, open_uploads(self._s3, self.spec.target))
                    self.ledger.settle(attempt.number, answer)
                    return
            if not entry.attempts:
                # Another run may be about to claim: that claim is not ours to delete.
                self.ledger.withdraw()
        except CodeGatewayError as error:
            log.warning("The clip is stored, but its ledger entry remains: %s", error)

    # 2. Ask the ledger what to do, until there is a clip.

    async def resume(self) -> Clip | None:
        """The clip of an open ledger entry. None if there is no such entry, or no longer one.

        :raises RenderLimitReached, LedgerConflict: see ``ledger.next_step``.
        :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see ``Gateway.generate``.
        :raises ClipTransferError: the receipt is kept; trying again is free.
        :raises ClipExpired: the render that was bought here can no longer be fetched.
        """
        while True:
            entry = await to_the_end("ledger", self.ledger.read)
            self._attempts = entry.attempts
            if clip := await self._fetch_unread(entry):
                return clip
            step = next_step(
                entry,
                fingerprint=self.spec.fingerprint,
                max_renders=self.spec.max_renders,
                location=self.ledger.location,
                limits=self._limits,
            )
            clip = None
            match step:
                case Gone():
                    return None
                case Take(number):
                    clip = await self._fetch(number)
                case _ if not self._buys:
                    return None
                case Wait():
                    await self._wait(step, entry.now)
                case Claim(number):
                    self._say_what_is_lost(entry)
                    clip = await self._claim_and_buy(number)
            if clip is not None:
                return clip

    def stop_buying(self) -> None:
        """The clip is no longer waited for: begin no render. One that is under way or paid is brought to its end."""
        self._buys = False

    async def _wait(self, step: Wait, now: datetime) -> None:
        if step.reason != self._said:
            self._said = step.reason
            until = (now + timedelta(seconds=step.seconds)).astimezone(UTC)
            log.info("%s Waiting up to %.0f s, until %s UTC.", step.reason, step.seconds, f"{until:%H:%M:%S}")
        await asyncio.sleep(min(step.seconds, self._limits.poll_interval))

    def _say_what_is_lost(self, entry: Entry) -> None:
        words = describe_attempts(entry)
        if entry.attempts and words != self._said:
            self._said = words
            log.warning("%s", words)

    async def _fetch_unread(self, entry: Entry) -> Clip | None:
        """The clip of an answer that an earlier run could not read, where this version can. Looks once at each."""
        if not entry.open or entry.fingerprint != self.spec.fingerprint:
            return None
        for attempt in entry.attempts:
            if attempt.rendered and attempt.unread and attempt.number not in self._read_again:
                self._read_again.add(attempt.number)
                answer = await to_the_end("ledger", self.ledger.answer, attempt.number)
                try:
                    receipt = None if answer is None else read_receipt(answer)
                except RenderOutcomeUnknown:
                    continue
                if answer and receipt:
                    log.info("The answer to render %d can be read now: fetching its clip.", attempt.number)
                    try:
                        return await self._deliver(attempt.number, answer, receipt, may_have_leftovers=True)
                    except ClipExpired as error:
                        log.warning("Render %d is lost: %s", attempt.number, error.args[0])
        return None

    async def _fetch(self, number: int) -> Clip | None:
        """The clip of a render that is paid for; None if it was settled meanwhile, or cannot be had any more."""
        answer = await to_the_end("ledger", self.ledger.answer, number)
        if answer is None:
            return None
        log.info("Render %d is already paid for: fetching its clip.", number)
        for attempt in self._attempts:
            if attempt.number == number:  # its run may have died before it could say so
                await to_the_end("journal", self._account.bought, attempt.owner)
        try:
            receipt = await self._read(number, answer)
            return await self._deliver(number, answer, receipt, may_have_leftovers=True)
        except RenderOutcomeUnknown as error:  # its run died before it could read it
            log.warning("Render %d is lost: %s", number, error.args[0])
            return None
        except ClipExpired as error:
            await to_the_end("ledger", _note, self.ledger.abandon, number, error.args[0], answer=answer)
            log.warning("Render %d is lost: %s", number, error.args[0])
            return None

    async def _read(self, number: int, answer: Answer) -> Receipt:
        """What a kept answer says of its clip.

        :raises RenderOutcomeUnknown: no clip can be had by it. It stays in the ledger.
        """
        try:
            return read_receipt(answer)
        except RenderOutcomeUnknown as error:
            self._read_again.add(number)
            await to_the_end("ledger", _note, self.ledger.leave_unread, number, error.args[0], answer=answer)
            raise

    # 3. Claim.

    async def _claim_and_buy(self, number: int) -> Clip | None:
        """The clip of render ``number``, bought under our claim; None if the claim was not to be had."""
        try:
            claim = await to_the_end("ledger", self._claim, number)
        except BaseException:
            # Also where only the answer to the claim was lost: then it may have been made.
            await to_the_end("ledger", _note, self.ledger.release, number)
            raise
        if claim is None:
            return None
        # A claim that was held up for long would end before the render does.
        if claim.found or time.monotonic() - claim.asked_at > self._limits.look_patience:
            await to_the_end("ledger", self.ledger.release, number)
            return claim.found
        try:
            await to_the_end("journal", self._reserve, number)
        except CodeGatewayError:
            await to_the_end("ledger", _note, self.ledger.release, number)
            raise
        except BaseException as error:
            await self._give_back(number, type(error).__name__)
            raise
        if time.monotonic() - claim.asked_at > self._limits.look_patience:
            await self._give_back(number, "the claim had become too old")
            return None
        answer = await self._buy(number)
        receipt = await self._read(number, answer)
        try:
            return await self._deliver(number, answer, receipt, may_have_leftovers=number > 1)
        except ClipExpired as error:
            # One task try buys at most once: whether to buy another is for Airflow's retries to decide.
            await to_the_end("ledger", _note, self.ledger.abandon, number, error.args[0], answer=answer)
            raise

    def _claim(self, number: int) -> _Claimed | None:
        """Create the claim, then look at the key: what we knew of it is older than the claim.

        A clip is at its key before its entry is deleted, and with the entry gone a claim can be had again. So this
        look is the one that decides.
        """
        asked_at = time.monotonic()
        if not self.ledger.claim(number, claim_seconds=self._claim_seconds + self._limits.claim_margin):
            return None
        return _Claimed(asked_at, self.find())

    # 4. Reserve, buy, and keep the receipt.

    def _reserve(self, number: int) -> None:
        if self._account.is_idle and self._max_cost is None:
            return
        self._account.reserve(
            self._priced_body(),
            reservation=self.ledger.owner,
            asked_by=self.spec.asked_by,
            uri=self.spec.target.uri,
            render=number,
            seconds=self._claim_seconds + self._limits.claim_margin,
            max_cost=self._max_cost,
        )

    def _priced_body(self) -> dict[str, Any]:
        """As much of the request as its price depends on."""
        if self.spec.priced_by is None:
            return self.ledger.request() or {"model": self.spec.model}
        return {"model": self.spec.model, **self.spec.priced_by}

    async def _give_back(self, number: int, why: str) -> None:
        """Take back a claim and its reservation: nothing was bought."""
        reservation = self.ledger.owner
        await to_the_end("ledger", _note, self.ledger.release, number)
        await to_the_end("journal", self._account.released, reservation, why)

    async def _buy(self, number: int) -> Answer:
        log.info(
            "Requesting render %d of at most %d from %s for %s; usually about two minutes.",
            number,
            self.spec.max_renders,
            self.spec.model,
            self.spec.target.uri,
        )
        try:
            answer = await self._buyer.generate(self._load_request)
        except CodeGatewayError as error:
            if error.bought is Bought.NO:
                # A failure that provably bought nothing leaves no trace and does not count.
                await self._give_back(number, type(error).__name__)
            else:
                await to_the_end("ledger", _note, self.ledger.abandon, number, error.args[0])
                if error.bought is Bought.YES:
                    await to_the_end("journal", self._account.bought, self.ledger.owner)
                else:
                    await to_the_end(
                        "journal", self._account.unknown, self.ledger.owner, type(error).__name__
                    )
            raise
        except BaseException as error:  # cancelled: an orderly end, for which no successor needs to wait
            log.warning(
                "Stopped while render %d was under way. It cannot be cancelled, and may be billed.", number
            )
            outcome = f"the run was stopped while rendering ({type(error).__name__})"
            await to_the_end("ledger", _note, self.ledger.abandon, number, outcome)
            await to_the_end("journal", self._account.unknown, self.ledger.owner, outcome)
            raise
        # Nothing comes before this: from here on a crash costs a download and never a render.
        await to_the_end("receipt", self._keep, number, answer)
        await to_the_end("journal", self._account.bought, self.ledger.owner)
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # the gateway put it off for the answer; see `Gateway.generate`
        return answer

    async def _load_request(self) -> bytes:
        content = await to_the_end("ledger", self._read_request)
        if not self._buys:
            raise RenderOutcomeUnknown(
                "The task was cleared or stopped before the render was requested.", bought=Bought.NO
            )
        return content

    def _read_request(self) -> bytes:
        body = self.ledger.request()
        if body is None:
            raise StorageUnavailable(f"The ledger entry at {self.ledger.location.uri} was deleted meanwhile.")
        return json.dumps(body).encode()

    def _keep(self, number: int, answer: Answer) -> None:
        """Write the receipt; again and again, while S3 fails and a claim keeps others away."""
        give_up_at = time.monotonic() + self._limits.receipt_patience
        pause = 0.5
        while True:
            try:
                self.ledger.keep(number, answer)
                log.info(
                    "Render %d finished in %.1f s and is paid for; retries will not buy it again.",
                    number,
                    answer.render_seconds,
                )
                return
            except CodeGatewayError as error:
                if time.monotonic() + pause > give_up_at:
                    log.exception(
                        "The receipt of render %d, which is PAID FOR, could not be written to %s. The transfer goes "
                        "on; if this run dies before the clip is stored, the render is lost.",
                        number,
                        self.ledger.location.uri,
                    )
                    return
                log.error("The receipt of render %d could not be written yet: %s", number, error.args[0])
            time.sleep(pause)
            pause = min(2 * pause, 8.0)

    # 5. Deliver, and settle.

    async def _deliver(
        self, number: int, answer: Answer, receipt: Receipt, *, may_have_leftovers: bool
    ) -> Clip:
        """Bring a paid clip to S3, verify it there, and delete the ledger entry."""
        marks = await to_the_end("ledger", self._marks, number, receipt)
        is_changed = answer.is_secure and _is_plain(receipt.url) and not self._allows_http_links
        transfer = Transfer(
            link_over_https(receipt.url) if is_changed else receipt.url,
            s3=self._s3,
            target=self.spec.target,
            metadata=marks.as_metadata(),
            upload_args=self.spec.upload_args,
            expires_at=receipt.expires_at,
            limits=self._limits,
        )
        showing_life = asyncio.create_task(self._show_life(number))
        try:
            stored = await to_the_end(
                "transfer",
                self._store,
                transfer,
                may_have_leftovers=may_have_leftovers,
                on_cancel=transfer.stop,
            )
        except (ClipTransferError, ClipExpired) as error:
            # Another run may have stored the same clip meanwhile, and aborted our upload.
            if found := await to_the_end("ledger", self._find_quietly):
                return found
            if is_changed:
                raise ClipTransferError(
                    f"{error.args[0]} The gateway is reached by https, and links to the clip by http: https was "
                    'asked instead. To allow http, set {"http_links": "allow"} in the connection\'s extra.'
                ) from None
            raise
        finally:
            # Before the entry is deleted: a sign of life must not come after that.
            showing_life.cancel()
            await asyncio.wait({showing_life})
        await to_the_end("ledger", self._settle, number, answer)
        return self._clip(stored, marks)

    async def _show_life(self, number: int) -> None:
        """Tell other runs that this transfer is alive, if it takes longer than most."""
        while True:
            await asyncio.sleep(self._limits.beat_interval)
            await to_the_end("ledger", self._write_sign_of_life, number)

    def _write_sign_of_life(self, number: int) -> None:
        try:
            self.ledger.show_life(number)
        except CodeGatewayError as error:
            log.warning("Other runs may take this transfer for dead: %s", error.args[0])

    def _store(self, transfer: Transfer, *, may_have_leftovers: bool) -> StoredClip:
        # A transfer of this clip that was killed could not abort its upload.
        leftovers = open_uploads(self._s3, self.spec.target) if may_have_leftovers else []
        stored = transfer.run()
        abort_uploads(self._s3, self.spec.target, leftovers)
        return stored

    def _marks(self, number: int, receipt: Receipt) -> Marks:
        asked_for = {attempt.number: attempt.requester for attempt in self._attempts}
        asked_for.setdefault(number, self.spec.requester)
        buyers = tuple(asked_for[each] for each in sorted(asked_for) if each <= number)
        rendered = sum(each.rendered is not None for each in self._attempts if each.number < number)
        unit = None if self._account.is_idle else self._account.cost(self._priced_body())
        cost = None if unit is None else unit.of_renders(bought=rendered + 1, perhaps=number - rendered - 1)
        return Marks(
            fingerprint=self.spec.fingerprint,
            requester=self.spec.requester,
            model=self.spec.model,
            created=receipt.created,
            render_seconds=receipt.render_seconds,
            renders_bought=number,
            buyers=buyers,
            cost=None if cost is None else cost.as_dict(),
        )

    def _clip(self, stored: StoredClip, marks: Marks) -> Clip:
        target = self.spec.target
        return Clip(
            bucket=target.bucket,
            key=target.key,
            uri=target.uri,
            model=self.spec.model,
            bytes=stored.bytes,
            sha256=stored.sha256,
            created=marks.created,
            render_seconds=marks.render_seconds,
            renders_bought=marks.renders_bought,
            renders_bought_here=self._count_own(marks.buyers),
            fingerprint=self.spec.fingerprint,
            reused=False,
            cost=marks.cost,
        )

    def _count_own(self, buyers: Iterable[str]) -> int:
        return sum(map(self.spec.is_requested_by, buyers))

    def _find_quietly(self) -> Clip | None:
        try:
            return self.find()
        except CodeGatewayError:
            return None

    def _settle(self, number: int, answer: Answer) -> None:
        try:
            self.ledger.settle(number, answer)
        except CodeGatewayError as error:
            # The clip is where it should be: that is worth more than a tidy ledger.
            log.warning("The clip is stored, but its ledger entry remains: %s", error.args[0])


@dataclass(frozen=True)
class Preview:
    """What a purchase would do.

    :param clip: the clip, if it is in place already.
    :param is_paid: whether nothing would be bought: the clip is in place, or paid for and not yet delivered.
    :param cost: of one render; None if no price is known.
    """

    clip: Clip | None
    is_paid: bool
    cost: Cost | None


@dataclass(frozen=True)
class _Claimed:
    """A claim of ours.

    :param asked_at: when it was asked for: the wait for a thread makes a claim no older.
    :param found: the clip, if it turned out to be in place.
    """

    asked_at: float
    found: Clip | None


def _is_plain(url: str) -> bool:
    return url[:5].lower() == "http:"


def _created(answer: Answer) -> float | None:
    try:
        return read_receipt(answer).created
    except RenderOutcomeUnknown:
        return math.nan  # no clip is of this answer


def _note(write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write how a render ended. If that fails it is logged: the way it ended is the error to be raised."""
    try:
        write(*args, **kwargs)
    except CodeGatewayError as error:
        log.error(
            "How this render ended could not be written to the ledger, which now counts it as bought: %s",
            error.args[0],
        )
