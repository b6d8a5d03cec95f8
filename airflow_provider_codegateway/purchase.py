"""The main path: check for free → claim → reserve → buy → keep the receipt → deliver → settle.

``Purchase.complete`` is the whole of it. In deferrable mode its two halves run in different processes: ``begin`` in
the worker, ``resume`` in the triggerer.

Why a crash never repeats a render, and costs at most the render that it interrupts:

1. Only whoever created the claim ``n.started`` may POST render ``n``, and S3 lets one run create it.
2. A claim is taken back only if its render provably bought nothing. A run that dies leaves its claim, and the claim
   counts as a render from then on, against ``max_renders``: also one that dies between the gateway's answer and
   the receipt, so the next one may be bought then.
3. The gateway's answer is written to the ledger whole before it is read. From then on every run fetches
   that clip, for free, while its link lives.
4. The receipt is deleted only once the clip is at its key, and a run that has a claim looks at the key before it
   POSTs.
5. Another model is asked only where no other render was begun, and ours provably sold nothing: its claim is deleted
   first. Whoever finds a render that was begun stays with its model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Clip, ClipSpec, Facts, Marks, PassedOver
from airflow_provider_codegateway.exceptions import (
    Bought,
    BudgetExceeded,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidTarget,
    LedgerConflict,
    RenderLimitReached,
    RenderOutcomeUnknown,
    RequestRejected,
    StorageUnavailable,
)
from airflow_provider_codegateway.facts import differences, read_stored_facts
from airflow_provider_codegateway.gateway import (
    Answer,
    Buyer,
    Receipt,
    link_over_https,
    read_receipt,
    reason_to_fall_back,
)
from airflow_provider_codegateway.ledger import (
    Claim,
    Entry,
    Gone,
    Ledger,
    Take,
    Turn,
    Wait,
    describe_attempts,
    money,
    next_step,
)
from airflow_provider_codegateway.ledger.entry import SHOWN, Attempt, left_to_its_owner
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.s3 import Problem, access_args, head_object, problem_of, storage_error
from airflow_provider_codegateway.spend import Account, Cost
from airflow_provider_codegateway.threads import to_the_end
from airflow_provider_codegateway.transfer import (
    StoredClip,
    Transfer,
    abort_uploads,
    clear_uploads,
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
    :param s3: a boto3 client, for the clip.
    :param ledger_s3: one for the ledger, if that is on another store or account.
    :param buyer: what buys a render.
    :param claim_seconds: how long one call of ``buyer`` may take at the very most.
    :param fallback_buyers: what buys a render of each fallback; ``buyer``, if left out.
    :param account: prices, budgets and journal; without one, everything may be bought.
    :param allows_http_links: whether a clip may come over plain http where the gateway is reached by https.
    :raises InvalidRequest: ``s3_key`` and ``ledger_prefix`` are too long together.
    """

    def __init__(
        self,
        spec: ClipSpec,
        *,
        s3: S3Client,
        ledger_s3: S3Client | None = None,
        buyer: Buyer,
        claim_seconds: float,
        fallback_buyers: Sequence[Buyer] = (),
        account: Account | None = None,
        allows_http_links: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self.spec = spec
        self._account = account or Account()
        self._max_cost = None if spec.max_cost is None else Decimal(spec.max_cost)
        self.ledger = Ledger.of_clip(ledger_s3 or s3, spec, limits)
        self._s3 = s3
        self._buyers = (buyer, *(fallback_buyers or [buyer] * len(spec.fallbacks)))
        self._claim_seconds = claim_seconds
        self._allows_http_links = allows_http_links
        self._limits = limits
        self._buys = True
        self._read_again: set[int] = set()
        self._said = ""
        self._losing_since: float | None = None
        self._attempts: tuple[Attempt, ...] = ()  # of the entry as it was read last
        self._passed_over: list[PassedOver] = []  # by us, before anything may have been bought
        self._turned_down: list[CodeGatewayError] = []  # what they said
        self._turn = Turn(0, spec.model)
        self._is_fresh = False  # nothing was begun when the entry was opened here
        self._is_kept = False  # the answer to the render that was bought here

    async def complete(self, request: VideoRequest, *fallbacks: VideoRequest) -> Clip:
        """The clip: found, or bought and stored.

        :param request: what is to be rendered, its media resolved.
        :param fallbacks: what is to be rendered instead, in this order; see ``ClipSpec.fallbacks``.
        :raises CodeGatewayError: see ``exceptions``; ``bought`` says whether money was spent.
        """
        while True:
            clip = await to_the_end("ledger", self.begin, request, *fallbacks) or await self.resume()
            if clip is not None:
                return clip
            # Another run settled the entry: look at the key again.

    # 1. Check for free, and open the ledger entry.

    def begin(self, request: VideoRequest, *fallbacks: VideoRequest) -> Clip | None:
        """Refuse for free what can be refused. If nothing is refused, the request is in the ledger afterwards.

        :return: the clip, if it is in place already; else None.
        """
        try:
            return self._begin(request, *fallbacks)
        except (InvalidTarget, StorageUnavailable) as error:
            if error.bought is Bought.NO:
                error.bought = self._bought_before()
            raise

    def _bought_before(self) -> Bought:
        """Whether an earlier run bought what is not delivered yet, as far as S3 says."""
        try:
            entry = self.ledger.read()
        except CodeGatewayError:
            return Bought.NO
        return money(entry) if entry.fingerprint == self.spec.fingerprint else Bought.NO

    def _begin(self, request: VideoRequest, *fallbacks: VideoRequest) -> Clip | None:
        require_upload_args(self._s3, self.spec.upload_args)
        if clip := self.find():
            # Until the run that stored it must be done with its entry, `resume` waits for that.
            return None if self._is_being_settled(clip) else clip
        bodies = [each.body() for each in (request, *fallbacks)]
        self._require_affordable(bodies)
        # Once something was bought, its transfer will show what S3 allows.
        self._is_fresh = self.ledger.open(*bodies)
        if self._is_fresh:
            try:
                if not self.ledger.is_ours:  # whoever began the entry may have left an upload of its proof
                    clear_uploads(self._s3, self.spec.target, self.spec.upload_args)
                self._prove_access()
            except StorageUnavailable:  # of the proof, an upload may be open: the next run looks for it
                raise
            except CodeGatewayError:
                self._withdraw()
                raise
        return None

    def _withdraw(self) -> None:
        try:
            self.ledger.withdraw()
        except CodeGatewayError as error:
            log.warning("A ledger entry remains for which nothing was bought: %s", error.args[0])

    def _prove_access(self) -> None:
        """Prove every permission that is needed once a render is bought, in the process that buys it."""
        self.ledger.prove_access()
        prove_upload(self._s3, self.spec.target, self.spec.upload_args, self._limits)

    def preview(self, request: VideoRequest, *fallbacks: VideoRequest) -> Preview:
        """What ``complete`` would do now, with all its free refusals. Nothing is written.

        :raises CodeGatewayError: it would refuse.
        """
        require_upload_args(self._s3, self.spec.upload_args)
        clip = self.find()
        number = None if clip else self._next_render()
        bodies = [each.body() for each in (request, *fallbacks)]
        if number is not None:
            for body in bodies:
                self._account.check(body, max_cost=self._max_cost, renders=number)
            self._account.require_room(bodies[0], asked_by=self.spec.asked_by)
        offers = tuple(Offer(str(body["model"]), self._account.cost(body)) for body in bodies)
        return Preview(clip=clip, is_paid=number is None, offers=offers)

    def is_paid(self) -> bool:
        """Whether ``complete`` would buy nothing now: the clip is in place or paid for, or would be refused."""
        try:
            return self.find() is not None or self._next_render() is None
        except (InvalidTarget, LedgerConflict, RenderLimitReached):
            return True

    def _next_render(self) -> int | None:
        """The number of the render that would be bought next; None if the clip is paid for.

        :raises LedgerConflict, RenderLimitReached: none may be bought; see ``ledger.next_step``.
        """
        entry = self.ledger.read()
        if entry.attempts and self._delivered(entry):
            return 1  # of a clip that is to be replaced
        match self._next_step(entry):
            case Claim(number):
                return number
            case Gone():
                return 1
            case Take():
                return None
        last = entry.attempts[-1]  # somebody is at work
        return None if last.rendered or last.number >= self.spec.max_renders else last.number + 1

    def _next_step(self, entry: Entry) -> Claim | Wait | Take | Gone:
        return next_step(
            entry,
            fingerprint=self.spec.fingerprint,
            max_renders=self.spec.max_renders,
            location=self.ledger.location,
            limits=self._limits,
        )

    def _require_affordable(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        try:
            for body in bodies:
                self._account.check(body, max_cost=self._max_cost)
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
        is_same_request = self.spec.is_request_of(marks)
        # What this DAG run stored before is its own work, also with if_exists="replace".
        is_own = is_same_request and self.spec.is_requested_by(marks.requester)
        if is_own or (is_same_request and self.spec.if_exists == "reuse"):
            facts = marks.facts or read_stored_facts(
                self._s3,
                target,
                size=head["ContentLength"],
                upload_args=self.spec.upload_args,
                limits=self._limits,
            )
            return Clip(
                bucket=target.bucket,
                key=target.key,
                uri=target.uri,
                model=marks.model if self.spec.fallbacks and marks.model else self.spec.model,
                bytes=head["ContentLength"],
                sha256=None,
                created=marks.created,
                render_seconds=marks.render_seconds,
                renders_bought=marks.renders_bought,
                renders_bought_here=self._count_own(marks.buyers),
                fingerprint=marks.fingerprint or self.spec.fingerprint,
                reused=True,
                cost=marks.cost,
                facts=None if facts is None else facts.as_dict(),
                mismatches=self._differences(facts, marks),
                fallback=self._fallback(marks),
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
            return head_object(self._s3, target, **access_args(self._s3, "HeadObject", self.spec.upload_args))
        except CodeGatewayError:
            raise
        except Exception as error:
            # A 404 may mean the bucket as well: the next request tells.
            if problem_of(error) is Problem.NOT_FOUND:
                return None
            raise storage_error(
                error, doing="look for the clip", at=target, permission="s3:GetObject and s3:ListBucket"
            ) from error

    def _is_being_settled(self, clip: Clip) -> bool:
        """Whether the run that stored this clip may still be about to settle its entry.

        The entry of a run that died before it could is deleted here. Of one that lives it is not: that run deletes the
        entry without a further look, so nobody may begin another in between.
        """
        log.info("%s already holds the clip of this request: reusing it.", clip.uri)
        try:
            entry = self.ledger.read()
            if not entry or entry.fingerprint != self.spec.fingerprint:
                return False
            if delivered := self._delivered(entry):
                if left_to_its_owner(delivered, entry.now, self._limits) > 0:
                    return entry.open
                self._clear_quietly(delivered)
            elif not entry.attempts:
                # Another run may be about to claim: that claim is not ours to delete.
                self.ledger.withdraw()
        except CodeGatewayError as error:
            log.warning("The clip is stored, but its ledger entry remains: %s", error.args[0])
        return False

    def _clear_quietly(self, delivered: Attempt) -> None:
        try:
            self._clear(delivered)
        except CodeGatewayError as error:
            log.warning("The clip is stored, but its ledger entry remains: %s", error.args[0])

    # 2. Ask the ledger what to do, until there is a clip.

    async def resume(self) -> Clip | None:
        """The clip of an open ledger entry. None if there is no such entry, or no longer one.

        :raises RenderLimitReached, LedgerConflict: see ``ledger.next_step``.
        :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see ``Gateway.generate``.
        :raises ClipTransferError: the receipt is kept; trying again is free.
        :raises ClipExpired: the render that was bought here can no longer be fetched.
        """
        while True:
            entry = await to_the_end("ledger", self._read_ledger)
            self._attempts = entry.attempts
            if clip := await self._fetch_unread(entry):
                return clip
            try:
                step = self._next_step(entry)
            except LedgerConflict:
                delivered = await to_the_end("ledger", self._delivered, entry)
                if delivered is None:
                    raise
                if (left := left_to_its_owner(delivered, entry.now, self._limits)) > 0:
                    await self._wait(Wait(left, "Another run has stored its clip here just now."), entry.now)
                    continue
                await to_the_end("ledger", self._clear, delivered)
                return None
            clip = None
            match step:
                case Gone():
                    return None
                case Take(number):
                    clip = await self._fetch(entry, number)
                case _ if not self._buys:
                    return None
                case Wait():
                    self._losing_since = None
                    await self._wait(step, entry.now)
                case Claim(number):
                    self._say_what_is_lost(entry)
                    self._turn = self._turn_after(entry.attempts)
                    try:
                        clip = await self._claim_and_buy(number)
                    except (GatewayUnavailable, RequestRejected, BudgetExceeded) as error:
                        if not self._turned_down or entry.attempts:
                            raise
                        if (unavailable := self._of_chain(error)) is None:
                            raise
                        raise unavailable from error
            if clip is not None:
                return clip

    def _read_ledger(self) -> Entry:
        try:
            return self.ledger.read()
        except CodeGatewayError as error:
            # An earlier run, or a triggerer, may have bought what cannot be seen here.
            if error.bought is Bought.NO and not self._is_fresh:
                error.bought = Bought.PERHAPS
            raise

    def _delivered(self, entry: Entry) -> Attempt | None:
        """The render whose clip is at the key although its entry remained; None if there is no such one.

        A run that stored its clip and could not delete the entry, or died before it could, leaves such a one.
        """
        head = self._head()
        if head is None:
            return None
        marks = Marks.from_metadata(head["Metadata"])
        paid = [attempt for attempt in entry.attempts if attempt.rendered and attempt.owner]
        if marks.claim:
            return next((attempt for attempt in paid if attempt.owner == marks.claim), None)
        # Earlier versions did not write the claim. Without a time, two clips of one request cannot be told apart.
        if marks.created is None or {marks.fingerprint, entry.fingerprint} != {self.spec.fingerprint}:
            return None
        return next((attempt for attempt in paid if self._created(attempt.number) == marks.created), None)

    def _created(self, number: int) -> float | None:
        answer = self.ledger.answer(number)
        try:
            return None if answer is None else read_receipt(answer).created
        except RenderOutcomeUnknown:
            return None

    def _clear(self, delivered: Attempt) -> None:
        """Delete the entry of a clip that was stored by a run which died before it could."""
        log.info("The clip of render %d is stored: clearing its ledger entry.", delivered.number)
        self._abort_uploads(self._open_uploads())
        self.ledger.clear_delivered(delivered.number, delivered.owner)

    def unknown_before(self, clip: Clip) -> int:
        """How many renders this run began for the clip, before the one that became it, and may have bought."""
        return sum(
            each.rendered is None
            and each.number < clip.renders_bought
            and self.spec.is_requested_by(each.requester)
            for each in self._attempts
        )

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
                    self._turn = attempt.turn or self._turn
                    log.info("The answer to render %d can be read now: fetching its clip.", attempt.number)
                    try:
                        return await self._deliver(attempt.number, answer, receipt, may_have_leftovers=True)
                    except ClipExpired as error:
                        log.warning("Render %d is lost: %s", attempt.number, error.args[0])
        return None

    async def _fetch(self, entry: Entry, number: int) -> Clip | None:
        """The clip of a render that is paid for; None if it was settled meanwhile, or is lost."""
        try:
            delivered = await to_the_end("ledger", self._delivered, entry)
            if found := await to_the_end("ledger", self._find_quietly):
                if delivered:
                    await to_the_end("ledger", self._clear_quietly, delivered)
                return found
            if delivered:
                await to_the_end("ledger", self._clear, delivered)
                return None
        except CodeGatewayError as error:
            error.bought = money(entry)
            raise
        answer = await to_the_end("ledger", self.ledger.answer, number)
        if answer is None:
            return None
        log.info("Render %d is already paid for: fetching its clip.", number)
        for attempt in self._attempts:
            if attempt.number == number:  # its run may have died before it could say so
                self._turn = attempt.turn or self._turn
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
        await to_the_end("ledger", self._prove_access)
        try:
            claim = await to_the_end("ledger", self._claim, number)
        except BaseException:
            # Also where only the answer to the claim was lost: then it may have been made.
            await to_the_end("ledger", _note, self.ledger.release, number)
            raise
        if claim is None:
            await self._lose_claim(number)
            return None
        self._losing_since = None
        if claim.found:
            await to_the_end("ledger", self.ledger.release, number)
            return claim.found
        # A claim that was held up for long would end before the render does. Its request stays, for the next claim.
        if time.monotonic() - claim.asked_at > self._limits.look_patience:
            await to_the_end("ledger", self.ledger.pass_on, number)
            return None
        try:
            await to_the_end("journal", self._reserve, number)
        except CodeGatewayError:
            await to_the_end("ledger", _note, self.ledger.release, number)
            raise
        except BaseException as error:
            await self._give_back(number, type(error).__name__)
            raise
        if time.monotonic() - claim.asked_at > self._limits.look_patience:
            await to_the_end("ledger", _note, self.ledger.pass_on, number)
            await to_the_end(
                "journal", self._account.released, self.ledger.owner, "the claim had become too old"
            )
            return None
        self._is_fresh = False
        answer = await self._buy(number)
        if answer is None:
            return None
        receipt = await self._read(number, answer)
        try:
            return await self._deliver(number, answer, receipt, may_have_leftovers=number > 1)
        except ClipExpired as error:
            # One task try buys at most once: whether to buy another is for Airflow's retries to decide.
            await to_the_end("ledger", _note, self.ledger.abandon, number, error.args[0], answer=answer)
            raise
        except BaseException:  # also stopped
            if not self._is_kept:  # S3 may answer by now, and the clip is paid for
                await to_the_end("ledger", _note, self.ledger.keep_late, number, answer)
            raise

    async def _lose_claim(self, number: int) -> None:
        """Pause, and look again: another run has the claim, or S3 refuses to create anything.

        :raises StorageUnavailable: the claim is refused for long, and nobody has it.
        """
        self._losing_since = self._losing_since or time.monotonic()
        if time.monotonic() - self._losing_since > self._limits.list_patience:
            raise StorageUnavailable(
                f"The S3 server behind {self.ledger.location.uri} refuses to create {number}.started, as if it were "
                "there, and has no such object. Run the task again later.",
                bought=Bought.PERHAPS if self._attempts else Bought.NO,
            )
        await asyncio.sleep(min(0.5, self._limits.poll_interval))

    def _claim(self, number: int) -> _Claimed | None:
        """Create the claim, then look at the key: what we knew of it is older than the claim.

        A clip is at its key before its entry is deleted, and with the entry gone a claim can be had again. So this
        look is the one that decides.
        """
        asked_at = time.monotonic()
        claim_seconds = self._claim_seconds + self._limits.claim_margin
        turn = self._turn if self.spec.fallbacks else None
        if not self.ledger.claim(number, claim_seconds=claim_seconds, turn=turn):
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
        member = self.spec.members[self._turn.index]
        if member.priced_by is None:
            return self._body() or {"model": member.model}
        return {"model": member.model, **member.priced_by}

    def _body(self) -> dict[str, Any] | None:
        bodies = self.ledger.requests()
        return bodies[self._turn.index] if self._turn.index < len(bodies) else None

    async def _give_back(self, number: int, why: str) -> None:
        """Take back a claim and its reservation: nothing was bought."""
        reservation = self.ledger.owner
        await to_the_end("ledger", _note, self.ledger.release, number)
        await to_the_end("journal", self._account.released, reservation, why)

    async def _buy(self, number: int) -> Answer | None:
        """The answer to render ``number``; None if it bought nothing, and another model is to be asked."""
        log.info(
            "Requesting render %d of at most %d from %s for %s; usually about two minutes.",
            number,
            self.spec.max_renders,
            self._turn.model,
            self.spec.target.uri,
        )
        try:
            answer = await self._buyers[self._turn.index].generate(self._load_request)
        except CodeGatewayError as error:
            if error.bought is Bought.NO:
                if reason := self._reason_to_fall_back(error):
                    await self._pass_over(number, reason, error)
                    return None
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
        body = self._body()
        if body is None:
            raise StorageUnavailable(f"The ledger entry at {self.ledger.location.uri} was deleted meanwhile.")
        return json.dumps(body).encode()

    def _keep(self, number: int, answer: Answer) -> None:
        """Write the receipt; again and again, while S3 fails, for as long as the claim keeps others away."""
        give_up_at = time.monotonic() + self._limits.receipt_patience
        pause = 0.5
        while True:
            try:
                self.ledger.keep(number, answer)
                self._is_kept = True
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

    # Of a chain of models: which one, and when the next.

    def _turn_after(self, attempts: Sequence[Attempt]) -> Turn:
        """Whose turn it is: the model of the renders that were begun; while there are none, the next one of ours."""
        if attempts:
            return attempts[-1].turn or Turn(0, self.spec.model)
        index = len(self._passed_over)
        return Turn(index, self.spec.members[index].model, tuple(self._passed_over))

    def _reason_to_fall_back(self, error: CodeGatewayError) -> str | None:
        is_last = self._turn.index + 1 == len(self.spec.members)
        # Of what was begun before, some may have been bought: it stays with its model.
        return None if is_last or self._attempts else reason_to_fall_back(error, self.spec.fallback_on)

    async def _pass_over(self, number: int, reason: str, error: CodeGatewayError) -> None:
        """Take back the claim of a model that provably sold nothing, so that the next one may be asked.

        :raises CodeGatewayError: it could not be taken back, and now counts as a render of this model.
        """
        try:
            await to_the_end("ledger", self.ledger.pass_on, number)
        except CodeGatewayError as problem:
            log.error("No fallback is tried, as the claim could not be taken back: %s", problem.args[0])
            await self._give_back(number, reason)
            raise error from problem
        await to_the_end("journal", self._account.released, self.ledger.owner, reason)
        self._passed_over.append({"model": self._turn.model, "reason": reason})
        self._turned_down.append(error)
        log.warning(
            "Falling back from %s to %s for %s: %s",
            self._turn.model,
            self.spec.members[len(self._passed_over)].model,
            self.spec.target.uri,
            error.args[0],
        )

    def _of_chain(self, error: CodeGatewayError) -> GatewayUnavailable | None:
        """What to raise instead where no model of a chain could be used; None: the error, which says so now."""
        passed = "; ".join(f"{each['model']}: {each['reason']}" for each in self._passed_over)
        words = f"No model could be used. {passed}; {self._turn.model}: {error.args[0]}"
        busy = [each for each in (*self._turned_down, error) if isinstance(each, GatewayUnavailable)]
        is_for_all = isinstance(error, RequestRejected) and error.status in (401, 403)
        if busy and not is_for_all:
            # A retry may find it free. Without its fallbacks the task would be retried, too.
            waits = [each.retry_after for each in busy if each.retry_after is not None]
            return GatewayUnavailable(words, retry_after=min(waits, default=None), status=busy[0].status)
        error.args = (words,)
        return None

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
            metadata=lambda facts: replace(marks, facts=facts).as_metadata(),
            upload_args=self.spec.upload_args,
            expires_at=self._runs_out(number, receipt),
            allows_http=self._allows_http_links,
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

    def _runs_out(self, number: int, receipt: Receipt) -> float | None:
        """Until when the link may be refused and live all the same; None if that is not known."""
        if receipt.expires_at is not None:
            return receipt.expires_at
        rendered = next((each.rendered for each in self._attempts if each.number == number), None)
        return None if rendered is None else rendered.timestamp() + self._limits.link_patience

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
        leftovers = self._open_uploads() if may_have_leftovers else []
        stored = transfer.run()
        if stored.may_leave_uploads:
            leftovers = self._open_uploads()
        self._abort_uploads(leftovers)
        return stored

    def _open_uploads(self) -> list[str]:
        return open_uploads(self._s3, self.spec.target, self.spec.upload_args)

    def _abort_uploads(self, upload_ids: list[str]) -> None:
        abort_uploads(self._s3, self.spec.target, upload_ids, self.spec.upload_args)

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
            model=self._turn.model,
            created=receipt.created,
            render_seconds=receipt.render_seconds,
            renders_bought=number,
            buyers=buyers,
            claim=next((each.owner for each in self._attempts if each.number == number), self.ledger.owner)
            or None,
            cost=None if cost is None else cost.as_dict(),
            member=self.spec.members[self._turn.index].fingerprint if self.spec.fallbacks else None,
            fallback=self._turn.passed_over,
        )

    def _clip(self, stored: StoredClip, marks: Marks) -> Clip:
        target = self.spec.target
        return Clip(
            bucket=target.bucket,
            key=target.key,
            uri=target.uri,
            model=self._turn.model,
            bytes=stored.bytes,
            sha256=stored.sha256,
            created=marks.created,
            render_seconds=marks.render_seconds,
            renders_bought=marks.renders_bought,
            renders_bought_here=self._count_own(marks.buyers),
            fingerprint=self.spec.fingerprint,
            reused=False,
            cost=marks.cost,
            facts=None if stored.facts is None else stored.facts.as_dict(),
            mismatches=self._differences(stored.facts, marks),
            fallback=self._fallback(marks),
        )

    def _differences(self, facts: Facts | None, marks: Marks) -> tuple[str, ...]:
        wanted = self.spec.wanted_of(marks)
        return () if facts is None or wanted is None else differences(facts, wanted, self._limits)

    def _fallback(self, marks: Marks) -> list[PassedOver] | None:
        return [*marks.fallback] if self.spec.fallbacks else None

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
    :param offers: one render of each model that may be asked.
    """

    clip: Clip | None
    is_paid: bool
    offers: tuple[Offer, ...]

    @property
    def cheapest(self) -> Offer | None:
        """The one that costs least; None if it is not known what one of them costs."""
        priced = [
            (each.cost.amount, each) for each in self.offers if each.cost and each.cost.amount is not None
        ]
        return min(priced, key=itemgetter(0))[1] if len(priced) == len(self.offers) else None

    @property
    def dearest(self) -> Offer | None:
        """The one that may cost most; None if it is not known what one of them may cost."""
        priced = [
            (each.cost.at_most, each) for each in self.offers if each.cost and each.cost.at_most is not None
        ]
        return max(priced, key=itemgetter(0))[1] if len(priced) == len(self.offers) else None


@dataclass(frozen=True)
class Offer:
    """One render of one model.

    :param cost: None if no price is known.
    """

    model: str
    cost: Cost | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for XCom."""
        return {"model": self.model, "cost": None if self.cost is None else self.cost.as_dict()}


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


def _note(write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write how a render ended. If that fails it is logged: the way it ended is the error to be raised."""
    try:
        write(*args, **kwargs)
    except CodeGatewayError as error:
        log.error(
            "How this render ended could not be written to the ledger, which now counts it as bought: %s",
            error.args[0],
        )
