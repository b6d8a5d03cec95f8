"""The main path: check for free → claim → reserve → buy → keep the receipt → deliver → settle.

``Purchase.complete`` is the whole of it. In deferrable mode its two halves run in different processes: ``begin`` in
the worker, ``resume`` in the triggerer.

Render ``n`` is POSTed at most once, and there are at most ``max_renders`` renders. A crash can cost a render, after
which ``n + 1`` may be bought. That is so because:

1. Only whoever created the claim ``n.started`` may POST render ``n``, and S3 lets one run create it.
2. A claim is taken back only if its render provably bought nothing. A run that dies leaves its claim, and that counts
   as a render. (The costly case: it dies after the gateway billed and before step 3. The clip is lost, and the next
   run buys render ``n + 1``, if ``max_renders`` allows it.)
3. The gateway's answer is written to the ledger whole, before it is read: the receipt. From then on every run fetches
   that clip, for free, while its link lives.
4. The entry is deleted only once the clip is at its key. That frees its numbers, so whoever has just claimed looks at
   the key again before the POST. What this DAG run stored is found there even if the clip is to be replaced.
5. Another model is asked only if no render was begun before, and ours provably sold nothing and its claim is deleted.
   Whoever finds a render that was begun stays with its model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Clip, ClipSpec, Marks, PassedOver
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
from airflow_provider_codegateway.gateway import (
    Answer,
    Buyer,
    Receipt,
    StoppedUnsent,
    error_of_chain,
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
    next_step,
)
from airflow_provider_codegateway.ledger.entry import Attempt, left_to_its_owner
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.place import Place
from airflow_provider_codegateway.preview import Offer, Preview
from airflow_provider_codegateway.spend import Account
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

    from airflow_provider_codegateway.models import VideoRequest

log = logging.getLogger(__name__)


class _Stage(IntEnum):
    """How far the render is that this run claimed. What it gives back is none."""

    NONE = 0
    RESERVED = 1
    REQUESTED = 2
    ANSWERED = 3
    KEPT = 4


class Purchase:
    """One clip, from the free checks to its place in S3.

    S3 is spoken to in threads, a few for each kind of work, which ``to_the_end`` names. What runs there ends, also if
    we are cancelled meanwhile.

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
        self.ledger = Ledger.of_clip(ledger_s3 or s3, spec, limits)
        self._account = account or Account()
        self._max_cost = None if spec.max_cost is None else Decimal(spec.max_cost)
        self._s3 = s3
        self._place = Place(spec, s3, limits)
        self._buyers = (buyer, *(fallback_buyers or [buyer] * len(spec.fallbacks)))
        self._claim_lasts = claim_seconds + limits.claim_margin
        self._allows_http_links = allows_http_links
        self._limits = limits
        self._may_buy = True
        self._knows_earlier_renders = False  # all of them, until others may have gone on
        self._stage = _Stage.NONE
        self._attempts: tuple[Attempt, ...] = ()  # as read before our claim: without the render that we begin
        self._turn = Turn(0, spec.model)
        self._turned_down: list[tuple[PassedOver, CodeGatewayError]] = []  # models that we asked in vain
        self._is_readable: dict[int, bool] = {}  # answers that an earlier version could not read
        self._losing_since: float | None = None  # since when every claim of ours was refused
        self._claims_too_old = 0
        self._last_logged = ""

    async def complete(self, request: VideoRequest, *fallbacks: VideoRequest) -> Clip:
        """The clip: found, or bought and stored.

        :param request: what is to be rendered, its media resolved.
        :param fallbacks: what is to be rendered instead, in this order; see ``ClipSpec.fallbacks``.
        :raises CodeGatewayError: see ``exceptions``; ``bought`` says whether money was spent.
        """
        while True:  # another run may settle the entry between the two: then the key is looked at again
            if clip := await to_the_end("ledger", self.begin, request, *fallbacks):
                return clip
            if clip := await self.resume():
                return clip
            self._require_may_buy()

    # 1. Check for free, and open the ledger entry.

    def begin(self, request: VideoRequest, *fallbacks: VideoRequest) -> Clip | None:
        """Refuse for free what can be refused.

        :return: the clip, if it is in place already; else None, and the request is in the ledger.
        """
        try:
            return self._begin(request, *fallbacks)
        except (InvalidTarget, StorageUnavailable) as error:
            if error.bought is Bought.NO:
                self._look_at_earlier_renders()
                self._tell_money(error)
            raise

    def _begin(self, request: VideoRequest, *fallbacks: VideoRequest) -> Clip | None:
        require_upload_args(self._s3, self.spec.upload_args)
        if clip := self.find():
            log.info("%s already holds the clip of this request: reusing it.", clip.uri)
            # The run that stored it may still be about to delete its entry. `resume` waits until it had the time.
            return clip if self._clear_leftover() else None
        bodies = [each.body() for each in (request, *fallbacks)]
        self._require_affordable(bodies)
        self._knows_earlier_renders = is_fresh = self.ledger.open(*bodies)
        if is_fresh:  # otherwise the transfer of what was bought will show what S3 allows
            self._prove_or_withdraw()
        return None

    def _prove_or_withdraw(self) -> None:
        try:
            # Another run that opened it may have died with an upload of its proof open.
            if not self.ledger.is_ours:
                clear_uploads(self._s3, self.spec.target, self.spec.upload_args)
            self._prove_access()
        except StorageUnavailable:
            # Our own proof may have left an upload. The entry stays, so that the next run looks for it.
            raise
        except CodeGatewayError:
            try:
                self.ledger.withdraw()
            except CodeGatewayError as error:
                log.warning("A ledger entry remains for which nothing was bought: %s", error.args[0])
            raise

    def _prove_access(self) -> None:
        """Prove every permission that is needed once a render is bought, in the process that buys it."""
        self.ledger.prove_access()
        prove_upload(self._s3, self.spec.target, self.spec.upload_args, self._limits)

    def _look_at_earlier_renders(self) -> None:
        """What earlier runs have begun, as far as S3 says."""
        try:
            entry = self.ledger.read()
        except CodeGatewayError:
            return
        if entry.fingerprint == self.spec.fingerprint:
            self._attempts = entry.attempts

    def _require_affordable(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        try:
            for body in bodies:
                self._account.check(body, max_cost=self._max_cost)
        except BudgetExceeded:
            # Not refused if something was begun: it may be paid for, and is fetched whatever it cost.
            if not self.ledger.read().attempts:
                raise

    def find(self) -> Clip | None:
        """The clip, if it is stored already and may be reused; None if one may be bought. Only looks.

        :raises InvalidTarget, StorageUnavailable: see ``Place.find``.
        """
        return self._place.find()

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
        entry = self._read()
        if entry.attempts and self._delivered(entry):
            return 1  # of a clip that is to be replaced
        match self._step(entry):
            case Claim(number):
                return number
            case Gone():
                return 1
            case Take():
                return None
        if any(each.rendered and not each.abandoned for each in entry.attempts):
            return None  # somebody is storing it
        last = entry.attempts[-1]
        return None if last.number >= self.spec.max_renders else last.number + 1

    # 2. Ask the ledger what to do, until there is a clip.

    async def resume(self) -> Clip | None:
        """The clip of an open ledger entry. None if there is none, or no longer one; or if nothing more may be bought.

        :raises RenderLimitReached, LedgerConflict: see ``ledger.next_step``.
        :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see ``Gateway.generate``.
        :raises ClipTransferError: the receipt is kept; trying again is free.
        :raises ClipExpired: the render that was bought here can no longer be fetched.
        """
        try:
            return await self._resume()
        except LedgerConflict:  # what it says is of another request
            raise
        except CodeGatewayError as error:
            if isinstance(error, StorageUnavailable | InvalidTarget) and error.bought is Bought.NO:
                # An earlier run, or a triggerer, may have bought what cannot be seen now.
                error.bought = Bought.NO if self._knows_earlier_renders else Bought.PERHAPS
            self._tell_money(error)
            raise

    def _tell_money(self, error: CodeGatewayError) -> None:
        """Say what was bought for the clip so far, by earlier runs too, and what it cost."""
        is_requested = self._stage >= _Stage.REQUESTED
        paid = sum(each.rendered is not None for each in self._attempts)
        paid += is_requested and (self._stage >= _Stage.ANSWERED or error.bought is Bought.YES)
        perhaps = len(self._attempts) + is_requested - paid
        if not paid + perhaps:
            return
        if error.bought is Bought.YES and not paid:
            paid, perhaps = 1, perhaps - 1
        if not error.renders + error.perhaps:
            error.count(paid, perhaps)
        turn = self._turn if is_requested else self._turn_after(self._attempts)
        member = self.spec.members[turn.index]
        if member.priced_by is not None and not self._account.is_idle:
            unit = self._account.cost({"model": member.model, **member.priced_by})
            error.cost = None if unit is None else unit.of_renders(bought=paid, perhaps=perhaps).as_dict()

    async def _resume(self) -> Clip | None:
        clip = None
        while clip is None:
            entry = await to_the_end("ledger", self._read)
            is_ours = entry.fingerprint == self.spec.fingerprint
            self._attempts, self._knows_earlier_renders = entry.attempts if is_ours else (), True
            match await to_the_end("ledger", self._step_or_clear, entry):
                case Gone():
                    return None
                case Take(number):
                    clip = await self._fetch(entry, number)
                case Wait() | Claim() if not self._may_buy:
                    return None
                case Wait() as step:
                    await self._wait(step, entry.now)
                case Claim(number):
                    self._warn_of_earlier_renders(entry)
                    try:
                        clip = await self._claim_and_buy(number)
                    except (GatewayUnavailable, RequestRejected, BudgetExceeded) as error:
                        if not self._turned_down or self._attempts:
                            raise
                        told = error_of_chain(self._turned_down, self._turn.model, error)
                        if told is error:
                            raise
                        raise told from error
        return clip

    def stop_buying(self) -> None:
        """The clip is no longer waited for: begin no render. One that is under way or paid is brought to its end."""
        self._may_buy = False

    def _require_may_buy(self) -> None:
        if not self._may_buy:
            raise RenderOutcomeUnknown(
                "The task was cleared or stopped before the render was requested.", bought=Bought.NO
            )

    def _step(self, entry: Entry) -> Claim | Wait | Take | Gone:
        return next_step(
            entry,
            fingerprint=self.spec.fingerprint,
            max_renders=self.spec.max_renders,
            location=self.ledger.location,
            limits=self._limits,
        )

    def _step_or_clear(self, entry: Entry) -> Claim | Wait | Take | Gone:
        """The next step. The entry of another request whose clip is delivered is cleared, once its run had the time."""
        try:
            return self._step(entry)
        except LedgerConflict:
            delivered = self._delivered(entry)
            if delivered is None:
                raise
        if (left := left_to_its_owner(delivered, entry.now, self._limits)) > 0:
            return Wait(left, "Another run has stored its clip here just now.")
        self._clear(delivered)
        return Gone()

    async def _wait(self, step: Wait, now: datetime) -> None:
        self._losing_since, self._knows_earlier_renders = None, False
        if step.reason != self._last_logged:
            self._last_logged = step.reason
            until = (now + timedelta(seconds=step.seconds)).astimezone(UTC)
            log.info("%s Waiting up to %.0f s, until %s UTC.", step.reason, step.seconds, f"{until:%H:%M:%S}")
        await asyncio.sleep(min(step.seconds, self._limits.poll_interval))

    def _warn_of_earlier_renders(self, entry: Entry) -> None:
        words = describe_attempts(entry)
        if entry.attempts and words != self._last_logged:
            self._last_logged = words
            log.warning("%s", words)

    # Clips that are paid for.

    async def _fetch(self, entry: Entry, number: int) -> Clip | None:
        """The clip of a render that is paid for. None: look at the ledger again, which is another now."""
        if found := await to_the_end("ledger", self._found_or_cleared, entry):
            return found
        answer = await to_the_end("ledger", self.ledger.answer, number)
        if answer is None:
            return None
        log.info("Render %d is already paid for: fetching its clip.", number)
        for attempt in entry.attempts:
            if attempt.number == number:
                self._turn = attempt.turn or self._turn
                # Its run may have died before it could say so.
                await to_the_end("journal", self._account.bought, attempt.owner)
        try:
            return await self._deliver(number, answer, may_have_leftovers=True)
        except (RenderOutcomeUnknown, ClipExpired) as error:
            # Of an earlier try. So the next render may be bought in this one.
            if not await self._abandon(number, answer, error):
                raise  # it would be fetched again, without end
            log.warning("Render %d is lost: %s", number, error.args[0])
            return None

    def _found_or_cleared(self, entry: Entry) -> Clip | None:
        """The clip, if a run stored it and left its entry. The entry of a clip that is to be replaced is cleared."""
        delivered = self._delivered(entry)
        try:
            found = self.find()
        except InvalidTarget as error:
            raise InvalidTarget(
                f"{error.args[0]} Rather, as a clip for this key is paid for and waits in the ledger: move the object "
                "away, and run the task again while the clip's link lives."
            ) from error
        if delivered and found:
            self._tidy(self._clear, delivered)
        elif delivered:
            self._clear(delivered)
        return found

    def _read(self) -> Entry:
        """The entry. An answer that an earlier version could not read, and this one can, is there to be fetched."""
        entry = self.ledger.read()
        if any(each.rendered and not each.abandoned for each in entry.attempts):
            return entry
        attempts = [
            replace(each, abandoned=None) if self._can_read_now(entry, each) else each
            for each in entry.attempts
        ]
        return replace(entry, attempts=tuple(attempts))

    def _can_read_now(self, entry: Entry, attempt: Attempt) -> bool:
        if not (attempt.rendered and attempt.unread and entry.fingerprint == self.spec.fingerprint):
            return False
        number = attempt.number
        if number not in self._is_readable:
            answer = self.ledger.answer(number)
            self._is_readable[number] = answer is not None and _is_readable(answer)
        return self._is_readable[number]

    async def _abandon(self, number: int, answer: Answer, error: CodeGatewayError) -> bool:
        """Write that no clip will come of this answer; whether it could be written."""
        self._is_readable[number] = False
        write, is_unread = self.ledger.abandon, isinstance(error, RenderOutcomeUnknown)
        return await to_the_end(
            "ledger", _note, write, number, error.args[0], answer=answer, is_unread=is_unread
        )

    # 3. Claim.

    async def _claim_and_buy(self, number: int) -> Clip | None:
        """The clip of render ``number``, bought under our claim. None: look at the ledger again."""
        await to_the_end("ledger", self._prove_access)
        asked_at = time.monotonic()
        self._turn = self._turn_after(self._attempts)
        try:
            is_ours = await to_the_end("ledger", self._claim, number)
            # What we knew of the key is older than the claim. A clip is at its key before its entry is deleted, and
            # with the entry gone a claim can be made again. So this look is the one that decides.
            found = await to_the_end("ledger", self.find) if is_ours else None
            if is_ours and not found:
                await to_the_end("journal", self._reserve, number)
        except BaseException as error:
            # The claim may be there, although it failed for us: its answer may be lost. Only our own is taken back.
            await self._give_back(number, type(error).__name__)
            raise
        if not is_ours:
            await self._pause_after_lost_claim(number)
            return None
        self._losing_since = None
        if found:
            await self._give_back(number, "its clip was there")
            return found
        # A claim is dated from when it was asked for. This one would lapse while its render is under way.
        if time.monotonic() - asked_at > self._limits.look_patience:
            await self._give_back(number, "the claim had become too old", keep_request=True)
            self._claims_too_old += 1
            if self._claims_too_old == self._limits.claims_too_old:
                raise StorageUnavailable(
                    f"S3, or the journal, is too slow: {self._claims_too_old} times in a row, more than "
                    f"{self._limits.look_patience:g} s went by between the claim at {self.ledger.location.uri} and the "
                    "request. Run the task again later."
                )
            return None
        return await self._buy_and_deliver(number)

    def _claim(self, number: int) -> bool:
        turn = self._turn if self.spec.fallbacks else None
        return self.ledger.claim(number, claim_seconds=self._claim_lasts, turn=turn)

    async def _pause_after_lost_claim(self, number: int) -> None:
        """Another run has the claim, or S3 refuses to create anything.

        :raises StorageUnavailable: the claim is refused for long, and nobody has it.
        """
        self._knows_earlier_renders = False
        self._losing_since = self._losing_since or time.monotonic()
        if time.monotonic() - self._losing_since > self._limits.list_patience:
            raise StorageUnavailable(
                f"The S3 server behind {self.ledger.location.uri} refuses to create {number}.started, as if it were "
                "there, and has no such object. Run the task again later."
            )
        await asyncio.sleep(min(0.5, self._limits.poll_interval))

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
            seconds=self._claim_lasts,
            max_cost=self._max_cost,
        )
        self._stage = _Stage.RESERVED

    def _priced_body(self) -> dict[str, Any]:
        """As much of the request as its price depends on."""
        member = self.spec.members[self._turn.index]
        if member.priced_by is None:
            return self._body() or {"model": member.model}
        return {"model": member.model, **member.priced_by}

    def _body(self) -> dict[str, Any] | None:
        bodies = self.ledger.requests()
        return bodies[self._turn.index] if self._turn.index < len(bodies) else None

    async def _give_back(self, number: int, why: str, *, keep_request: bool = False) -> bool:
        """Take back our claim, and what is reserved for it: nothing was bought. Whether the claim could be taken back.

        :param keep_request: leave the request, as the next claim for it is made at once.
        """
        is_reserved, self._stage = self._stage >= _Stage.RESERVED, _Stage.NONE
        try:
            return await to_the_end("ledger", _note, self.ledger.release, number, keep_request=keep_request)
        finally:  # also if we are cancelled in between
            if is_reserved:
                await to_the_end("journal", self._account.released, self.ledger.owner, why)

    async def _buy_and_deliver(self, number: int) -> Clip | None:
        """The clip of render ``number``; None if it bought nothing, and another model is to be asked."""
        answer = await self._buy(number)
        if answer is None:
            return None
        try:
            # First of all the receipt. Once it is written, a crash costs a download, and not a render.
            try:
                await to_the_end("receipt", self._keep, number, answer)
            finally:  # also if we are cancelled in between
                await to_the_end("journal", self._account.bought, self.ledger.owner)
            _raise_if_cancelled()  # the gateway put it off for the answer; see `Gateway.generate`
            return await self._deliver(number, answer, may_have_leftovers=number > 1)
        except BaseException as error:  # also stopped
            # One task try buys at most once: whether to buy another is for Airflow's retries to decide.
            if isinstance(error, RenderOutcomeUnknown | ClipExpired):
                await self._abandon(number, answer, error)
            if self._stage < _Stage.KEPT:  # S3 may take it by now, and the clip is paid for
                await to_the_end("ledger", _note, self.ledger.keep_late, number, answer)
            raise

    async def _buy(self, number: int) -> Answer | None:
        """The answer to render ``number``; None if it bought nothing, and another model is to be asked."""
        log.info(
            "Requesting render %d of at most %d from %s for %s; usually about two minutes.",
            number,
            self.spec.max_renders,
            self._turn.model,
            self.spec.target.uri,
        )
        self._stage = _Stage.REQUESTED
        try:
            answer = await self._buyers[self._turn.index].generate(self._load_request)
            self._stage = _Stage.ANSWERED
            return answer
        except CodeGatewayError as error:
            if error.bought is not Bought.NO:
                is_bought = error.bought is Bought.YES
                await self._give_up(number, error.args[0], type(error).__name__, is_bought=is_bought)
                raise
            if reason := self._reason_to_fall_back(error):
                await self._pass_over(number, reason, error)
                return None
            # It provably bought nothing: it leaves no trace, and does not count.
            await self._give_back(number, type(error).__name__)
            raise
        except StoppedUnsent:
            await self._give_back(number, "stopped before it was sent")
            raise
        except BaseException as error:
            log.warning(
                "Stopped while render %d was under way. It cannot be cancelled, and may be billed.", number
            )
            # Written down, so that no other run waits for this claim to lapse.
            outcome = f"the run was stopped while rendering ({type(error).__name__})"
            await self._give_up(number, outcome, outcome)
            raise

    async def _give_up(self, number: int, outcome: str, note: str, *, is_bought: bool = False) -> None:
        """Write that our render ended without an answer, and counts."""
        try:
            await to_the_end("ledger", _note, self.ledger.abandon, number, outcome)
        finally:  # also if we are cancelled in between
            if is_bought:
                await to_the_end("journal", self._account.bought, self.ledger.owner)
            else:
                await to_the_end("journal", self._account.unknown, self.ledger.owner, note)

    async def _load_request(self) -> bytes:
        content = await to_the_end("ledger", self._read_request)
        self._require_may_buy()
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
                self._stage = _Stage.KEPT
                log.info(
                    "Render %d finished in %.1f s and is paid for; retries will not buy it again.",
                    number,
                    answer.render_seconds,
                )
                return
            except Exception as error:  # whatever it is: the answer is worth more
                if time.monotonic() + pause > give_up_at:
                    log.exception(
                        "The receipt of render %d, which is PAID FOR, could not be written to %s. The transfer goes "
                        "on; if this run dies before the clip is stored, the render is lost.",
                        number,
                        self.ledger.location.uri,
                    )
                    return
                why = error.args[0] if isinstance(error, CodeGatewayError) else type(error).__name__
                log.error("The receipt of render %d could not be written yet: %s", number, why)
            time.sleep(pause)
            pause = min(2 * pause, 8.0)

    # Of a chain of models: which one, and when the next.

    def _turn_after(self, attempts: Sequence[Attempt]) -> Turn:
        """Whose turn it is: the model of the renders that were begun; while there are none, the next one of ours."""
        if attempts:
            return attempts[-1].turn or Turn(0, self.spec.model)
        index = len(self._turned_down)
        return Turn(index, self.spec.members[index].model, [passed for passed, _ in self._turned_down])

    def _reason_to_fall_back(self, error: CodeGatewayError) -> str | None:
        is_last = self._turn.index + 1 == len(self.spec.members)
        # Of what was begun before, some may have been bought: it stays with its model.
        return None if is_last or self._attempts else reason_to_fall_back(error, self.spec.fallback_on)

    async def _pass_over(self, number: int, reason: str, error: CodeGatewayError) -> None:
        """Take back the claim of a model that provably sold nothing, so that the next one may be asked.

        :raises CodeGatewayError: it could not be taken back, and now counts as a render of this model.
        """
        if not await self._give_back(number, reason, keep_request=True):
            log.error("No fallback is tried, as the claim could not be taken back.")
            raise error
        self._turned_down.append(({"model": self._turn.model, "reason": reason}, error))
        log.warning(
            "Falling back from %s to %s for %s: %s",
            self._turn.model,
            self.spec.members[len(self._turned_down)].model,
            self.spec.target.uri,
            error.args[0],
        )

    # 5. Deliver, and settle.

    async def _deliver(self, number: int, answer: Answer, *, may_have_leftovers: bool) -> Clip:
        """Bring a paid clip to S3, verify it there, and delete the ledger entry.

        :raises RenderOutcomeUnknown: no clip can be had by this answer.
        """
        receipt = read_receipt(answer)
        marks = await to_the_end("ledger", self._marks, number, receipt)
        is_http = receipt.url[:5].lower() == "http:"
        asks_https_instead = is_http and answer.is_secure and not self._allows_http_links
        transfer = Transfer(
            link_over_https(receipt.url) if asks_https_instead else receipt.url,
            s3=self._s3,
            target=self.spec.target,
            metadata=lambda facts: replace(marks, facts=facts).as_metadata(),
            upload_args=self.spec.upload_args,
            expires_at=self._expires_at(number, receipt),
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
            # Another run may have stored the same clip meanwhile, and aborted our upload. Or ours was not confirmed.
            if found := await to_the_end("ledger", self._found_after_all, number, answer, marks):
                return found
            if asks_https_instead:
                raise ClipTransferError(
                    f"{error.args[0]} The gateway is reached by https, and links to the clip by http: https was "
                    'asked instead. To allow http, set {"http_links": "allow"} in the connection\'s extra.'
                ) from None
            raise
        finally:
            # A sign of life that is written after the entry is deleted would be an orphan.
            showing_life.cancel()
            await asyncio.wait({showing_life})
        await to_the_end("ledger", self._tidy, self.ledger.settle, number, answer)
        return self._place.stored(stored, marks)

    def _expires_at(self, number: int, receipt: Receipt) -> float | None:
        """After which a link that is refused counts as expired: a refusal before that may pass. None: not known."""
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
        before = [each for each in self._attempts if each.number < number]
        ours = Attempt(number, requester=self.spec.requester, owner=self.ledger.owner)
        this = next((each for each in self._attempts if each.number == number), ours)
        unit = None if self._account.is_idle else self._account.cost(self._priced_body())
        paid = sum(each.rendered is not None for each in before) + 1
        cost = None if unit is None else unit.of_renders(bought=paid, perhaps=number - paid)
        return Marks(
            fingerprint=self.spec.fingerprint,
            requester=self.spec.requester,
            model=self._turn.model,
            created=receipt.created,
            render_seconds=receipt.render_seconds,
            renders_bought=number,
            buyers=tuple(each.requester for each in (*before, this)),
            unknown=tuple(each.requester for each in before if each.rendered is None),
            claim=this.owner or None,
            cost=None if cost is None else cost.as_dict(),
            member=self.spec.members[self._turn.index].fingerprint if self.spec.fallbacks else None,
            fallback=self._turn.passed_over,
        )

    def _found_after_all(self, number: int, answer: Answer, marks: Marks) -> Clip | None:
        """The clip, if it is at its key although our transfer failed."""
        try:
            found, head = self.find(), self._place.head()
        except CodeGatewayError:
            return None
        if found and head and Marks.from_metadata(head["Metadata"]).claim == marks.claim:
            self._tidy(self.ledger.settle, number, answer)
        return found

    # Entries of clips that are delivered.

    def _clear_leftover(self) -> bool:
        """Clear what a dead run left beside the clip that it stored; False if that run may still be about to do so.

        A run that lives deletes whatever is there. That must not be the entry of the next one.
        """
        try:
            entry = self.ledger.read()
            delivered = self._delivered(entry)
        except CodeGatewayError as error:
            log.warning("The clip is stored, but its ledger entry remains: %s", error.args[0])
            return True
        if not entry or entry.fingerprint != self.spec.fingerprint:
            return True
        if delivered and left_to_its_owner(delivered, entry.now, self._limits) > 0:
            return not entry.open
        if delivered:
            self._tidy(self._clear, delivered)
        elif not entry.attempts:
            # Of the request alone: a claim that another run makes just now stays.
            self._tidy(self.ledger.withdraw)
        return True

    def _delivered(self, entry: Entry) -> Attempt | None:
        """The render whose clip is at the key although its entry remained, or None.

        A run that stored its clip and could not delete the entry, or died before it could, leaves such a one.
        """
        head = self._place.head()
        if head is None:
            return None
        marks = Marks.from_metadata(head["Metadata"])
        paid = [attempt for attempt in entry.attempts if attempt.rendered and attempt.owner]
        if marks.claim:
            return next((attempt for attempt in paid if attempt.owner == marks.claim), None)
        # Earlier versions did not write the claim. Without a time, two clips of one request cannot be told apart.
        if marks.created is None or not marks.fingerprint == entry.fingerprint == self.spec.fingerprint:
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

    def _tidy(self, write: Callable[..., None], *args: Any) -> None:
        """Delete an entry whose clip is where it should be: that is worth more than a tidy ledger."""
        try:
            write(*args)
        except CodeGatewayError as error:
            log.warning("The clip is stored, but its ledger entry remains: %s", error.args[0])


def _is_readable(answer: Answer) -> bool:
    try:
        read_receipt(answer)
    except RenderOutcomeUnknown:
        return False
    return True


def _raise_if_cancelled() -> None:
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError


def _note(write: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
    """Write how a render ended; whether that could be done. The way it ended is the error to be raised."""
    try:
        write(*args, **kwargs)
    except CodeGatewayError as error:
        log.error(
            "How this render ended could not be written to the ledger, which may count it as bought: %s",
            error.args[0],
        )
        return False
    return True
