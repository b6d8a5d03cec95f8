"""Many purchases side by side, and the manifest of what became of each.

Whatever stops a batch, what its rows have bought is in their ledgers: another run of the same batch fetches it, and
buys what is missing.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.batch.lines import LineFile
from airflow_provider_codegateway.batch.pace import Pace, Stopped
from airflow_provider_codegateway.batch.result import Progress, Status, Summary, progress_beside, status_of
from airflow_provider_codegateway.batch.rows import Row, look_at_each
from airflow_provider_codegateway.clip import MADE_BY, Asker, Clip, ClipSpec, S3Location
from airflow_provider_codegateway.exceptions import (
    Bought,
    BudgetExceeded,
    ClipTransferError,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidConnection,
    InvalidRequest,
    RenderOutcomeUnknown,
    RequestRejected,
    StorageUnavailable,
)
from airflow_provider_codegateway.gateway import StoppedUnsent
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.purchase import Purchase
from airflow_provider_codegateway.s3 import access_args, error_words, head_object, storage_error
from airflow_provider_codegateway.spec import clip_mismatch, clip_spec, with_media
from airflow_provider_codegateway.spend import Account, Cost
from airflow_provider_codegateway.spend.prices import cost_of_chain, show_amount
from airflow_provider_codegateway.threads import to_the_end

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.models import VideoRequest

log = logging.getLogger(__name__)

_BATCH = "codegateway-batch"
"""Metadata of a manifest: which batch wrote it."""

_OF_THE_ACCOUNT = (401, 403)
"""Answers that every further request would get as well."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What all purchases of a batch share.

    :param s3: a boto3 client for the clips, their ledgers and inputs, and the manifest.
    :param purchase: makes the purchase of one clip. Its gateway repeats nothing by itself, but for a clip with
        fallbacks: they come after its retries.
    :param max_active: how many rows may be under way at a time.
    :param retries: how often a refusal for now is followed by another attempt.
    :param deadline: seconds for one call of the gateway.
    :param on_clip: is told of each clip that is there.
    """

    s3: S3Client
    purchase: Callable[[ClipSpec], Purchase]
    account: Account
    retries: int
    deadline: float
    on_clip: Callable[[Clip], None]
    max_active: int
    limits: Limits


class Batch:
    """The clips of all rows.

    :param rows: checked, as ``check_rows`` has them.
    :param manifest: where the result goes.
    :param put_args: boto3's further arguments for the manifest, such as encryption.
    """

    def __init__(
        self,
        rows: LineFile,
        means: Means,
        *,
        asker: Asker,
        manifest: S3Location,
        put_args: Mapping[str, Any],
    ) -> None:
        self._rows = rows
        self._means = means
        self._asker = asker
        self._manifest = manifest
        self._put_args = put_args
        self._limits = means.limits
        self._pace: Pace | None = None
        self._id = uuid.uuid4().hex
        self._active: dict[int, Purchase | None] = {}
        self._results = LineFile()
        self._result_of = array("q", [-1]) * len(rows)
        self._tally = _Tally(means.account)
        self._stopped: CodeGatewayError | None = None
        self._begun_at = time.monotonic()
        self._is_left = False
        self._progress_failed = False
        self._digest: str | None = None  # of the manifest as it was written last
        self._first_errors: list[str] = []

    async def run(self) -> Summary:
        """Render what is missing, and write the manifest, however it ends.

        :raises StorageUnavailable, InvalidTarget: the manifest could not be written.
        """
        _name_rows_in_logs()
        try:
            await self._render_all()
        except BaseException:
            await to_the_end("receipt", self._write_manifest_quietly)
            raise
        await to_the_end("receipt", self._write_manifest)
        return self.summary

    @property
    def summary(self) -> Summary:
        """What came of it so far; what has no result yet is not begun, or not known."""
        counts = Counter(self._tally.counts)
        under_way = sum(self._status_without_result(index) == "unknown" for index in self._active)
        counts["unknown"] += under_way
        counts["not_begun"] = len(self._rows) - counts.total()
        return Summary(
            manifest=self._manifest.uri,
            requests=len(self._rows),
            **counts,
            skipped=self._tally.skipped,
            renders_bought=self._tally.bought,
            renders_unknown=self._tally.perhaps,
            cost=self._tally.cost(),
            stopped=None if self._stopped is None else str(self._stopped.args[0]),
            errors=tuple(self._first_errors),
            digest=self._digest,
        )

    def stop(self, reason: CodeGatewayError) -> None:
        """Begin no more rows. Renders that are under way or paid are brought to their end."""
        if self._stopped is None:
            self._stopped = reason
            log.warning("No more rows are begun: %s", reason.args[0])
        for purchase in self._active.values():
            if purchase is not None:
                purchase.stop_buying()
        if self._pace is not None:
            self._pace.stop()

    async def write_manifest_so_far(self) -> None:
        """Write what is known while the rows that are under way go on. ``run`` writes it again in the end."""
        await to_the_end("receipt", self._write_manifest_quietly)
        self._is_left = True

    # All rows.

    async def _render_all(self) -> None:
        self._pace = Pace(
            self._means.max_active,
            retries=self._means.retries,
            patience=self._means.deadline,
            limits=self._limits,
        )
        if self._stopped:
            return
        slots = asyncio.Semaphore(self._means.max_active)
        under_way: set[asyncio.Task[None]] = set()
        reporting = asyncio.create_task(self._report_progress())
        try:
            for row in map(Row.from_dict, self._rows):
                if row.problems:
                    self._tally.skipped += 1
                    self._keep(row, "refused", error=InvalidRequest(list(row.problems)))
                    continue
                await slots.acquire()
                if self._stopped:
                    break
                task = asyncio.create_task(self._one(row.without_request()))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                task.add_done_callback(lambda _: slots.release())
                await asyncio.sleep(0)  # a thousand rows at once would hold up the loop
            while under_way:
                await asyncio.wait(set(under_way))
        finally:
            reporting.cancel()
            for task in under_way:
                task.cancel()
            while under_way:  # each writes to its ledger how it ended
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(set(under_way))
        log.info("%s", self._progress())

    # One row.

    async def _one(self, row: Row) -> None:
        _current_row.set(row.name)
        self._active[row.index] = None
        try:
            clip = await self._clip(row)
            self._keep_clip(row, clip)
        except Stopped:
            pass
        except CodeGatewayError as error:
            await self._fail(row, error)
        except asyncio.CancelledError as stopped:
            is_unsent = isinstance(stopped, StoppedUnsent)
            if not is_unsent and self._status_without_result(row.index) == "unknown":
                self._keep(row, "unknown", error=_interrupted(), perhaps=1)
            raise
        except Exception as error:  # a fault of ours in one row must not end the others
            log.exception("It failed in an unexpected way.")
            await self._fail(
                row, RenderOutcomeUnknown(f"It failed in an unexpected way ({type(error).__name__}).")
            )
        finally:
            self._active.pop(row.index, None)

    async def _clip(self, row: Row) -> Clip:
        assert self._pace is not None
        transfers = 0
        while True:
            await self._pace.begin()
            try:
                clip = await self._attempt(row)
            except (GatewayUnavailable, StorageUnavailable) as error:
                if not self._pace.pause(error):
                    self.stop(error)
                    raise
                self._active[row.index] = None  # it has given its claim back
                continue
            except ClipTransferError:
                transfers += 1
                if transfers == self._limits.transfer_attempts or self._stopped:
                    raise
                continue
            finally:
                self._pace.end()
            self._pace.progress()
            if clip is not None:
                return clip
            if self._stopped:
                raise Stopped

    async def _attempt(self, row: Row) -> Clip | None:
        """The clip; None if another run settled its entry, or nothing more may be bought."""
        try:
            purchase, clip = await to_the_end("inputs", self._open, row)
            if clip is not None:
                return clip
            self._active[row.index] = purchase
            if self._stopped:
                purchase.stop_buying()
            return await purchase.resume()
        except BudgetExceeded as error:
            if await to_the_end("journal", self._is_full_for, row):
                self.stop(error)
            raise
        except RequestRejected as error:
            if error.status in _OF_THE_ACCOUNT:
                self.stop(error)
            raise
        except InvalidConnection as error:
            self.stop(error)
            raise
        except RenderOutcomeUnknown as error:
            if self._stopped and error.bought is Bought.NO:
                return None
            raise

    def _open(self, row: Row) -> tuple[Purchase, Clip | None]:
        """Refuse for free, and open the ledger entry. The request, with its media, is not kept after that."""
        purchase, requests = _purchase(Row.from_dict(self._rows[row.index]), self._means, self._asker)
        return purchase, purchase.begin(*requests)

    def _is_full_for(self, row: Row) -> bool:
        """Whether it is a budget of the connection that has no room, and not the row's own ``max_cost``."""
        try:
            self._means.account.require_room(row.priced_body, asked_by=self._asker.task)
        except CodeGatewayError as error:
            return isinstance(error, BudgetExceeded)
        return False

    # Results.

    def _keep_clip(self, row: Row, clip: Clip) -> None:
        self._tally.add_clip(clip, row)
        # What another run made of a key where one of ours may have been bought, too, is not ours.
        status: Status = "stored" if clip.renders_bought_here > clip.renders_unknown_here else "reused"
        error = None
        if clip.mismatches:
            log.warning("The clip at %s is not what was asked for. %s", clip.uri, " ".join(clip.mismatches))
            if row.on_mismatch == "fail":
                status, error = "failed", clip_mismatch(clip)
        self._keep(row, status, clip=clip, error=error)
        self._means.on_clip(clip)

    async def _fail(self, row: Row, error: CodeGatewayError) -> None:
        log.warning("%s", error)
        bought, perhaps, model = await to_the_end("ledger", self._count_renders, row, error.bought)
        self._keep(row, status_of(error), error=error, bought=bought, perhaps=perhaps, model=model)

    def _count_renders(self, row: Row, said: Bought) -> tuple[int, int, str | None]:
        """What this run has begun for a row that has no clip, by the row's ledger entry; else by the error.

        :return: renders that are known to be paid, those that perhaps are, and of which model, if it is not the first.
        """
        purchase = self._active.get(row.index)
        if purchase is not None:
            try:
                attempts = [each for each in purchase.ledger.read().attempts if self._is_ours(each.requester)]
            except CodeGatewayError:
                attempts = []
            else:
                if attempts or said is Bought.NO or not purchase.ledger.owner:
                    bought = sum(each.rendered is not None for each in attempts)
                    turn = attempts[-1].turn if attempts else None
                    return bought, len(attempts) - bought, turn.model if turn else None
        return int(said is Bought.YES), int(said is Bought.PERHAPS), None

    def _is_ours(self, requester: str) -> bool:
        return requester in (self._asker.requester, self._asker.former_requester)

    def _keep(
        self,
        row: Row,
        status: Status,
        *,
        clip: Clip | None = None,
        error: CodeGatewayError | None = None,
        bought: int = 0,
        perhaps: int = 0,
        model: str | None = None,
    ) -> None:
        """Write the row's line of the manifest."""
        cost: Any = None
        if clip is not None:
            cost = clip.cost
        elif bought or perhaps:
            cost = self._tally.add_renders(row.body_of(model), bought, perhaps)
        line = _line(row, status, _told(error))
        if model is not None:
            line["model"] = model
        if clip is not None:
            line |= {"model": clip.model, "uri": clip.uri}
        line |= {
            "cost": cost if cost is None else dict(cost),
            "renders_bought": bought + perhaps if clip is None else clip.renders_bought,
            "facts": None if clip is None else clip.facts,
        }
        if error is not None and len(self._first_errors) < self._limits.errors_shown:
            self._first_errors.append(f"{row.name}: {type(error).__name__}: {error.args[0]}"[:500])
        self._tally.counts[status] += 1
        self._result_of[row.index] = self._results.append(line)

    def _status_without_result(self, index: int) -> Status:
        """Of a row that is under way: once it has claimed a render, that render may have been bought."""
        if self._result_of[index] >= 0 or index not in self._active:
            return "not_begun"
        purchase = self._active[index]
        return "unknown" if purchase is not None and purchase.ledger.owner else "not_begun"

    # The manifest.

    def _write_manifest(self) -> None:
        give_up_at = time.monotonic() + self._limits.manifest_patience
        pause = 0.5
        while True:
            try:
                self._write_manifest_once()
                return
            except CodeGatewayError as error:
                if not isinstance(error, StorageUnavailable) or time.monotonic() + pause > give_up_at:
                    if self._tally.bought or self._tally.perhaps:
                        error.count(self._tally.bought, self._tally.perhaps)
                    raise
                log.error("The manifest could not be written yet: %s", error.args[0])
            time.sleep(pause)
            pause = min(2 * pause, 8.0)

    def _write_manifest_quietly(self) -> None:
        try:
            self._write_manifest_once()
        except CodeGatewayError as error:
            log.error("The manifest could not be written: %s", error.args[0])

    def _write_manifest_once(self) -> None:
        if self._is_left and not self._is_own_manifest():
            log.info("%s is that of another attempt by now.", self._manifest.uri)
            return
        with LineFile() as lines:
            for row in map(Row.from_dict, self._rows):
                number = self._result_of[row.index]
                if number >= 0:
                    lines.append(self._results[number])
                elif self._status_without_result(row.index) == "unknown":
                    lines.append(_line(row, "unknown", _told(_interrupted())))
                else:
                    lines.append(_line(row, "not_begun", self._why_not_begun()))
            metadata = {_BATCH: self._id, MADE_BY: self._asker.requester}
            lines.upload(self._means.s3, self._manifest, put_args=self._put_args, metadata=metadata)
            self._digest = lines.digest()

    def _is_own_manifest(self) -> bool:
        at = self._manifest
        try:
            head = head_object(
                self._means.s3, at, **access_args(self._means.s3, "HeadObject", self._put_args)
            )
        except Exception as error:
            raise storage_error(
                error, doing="look at the manifest", at=at, permission="s3:GetObject"
            ) from error
        return head["Metadata"].get(_BATCH) == self._id

    def _why_not_begun(self) -> dict[str, Any] | None:
        told = _told(self._stopped)
        return told and {**told, "message": f"Not begun: {told['message']}", "bought": Bought.NO.name}

    # Progress.

    async def _report_progress(self) -> None:
        while True:
            await to_the_end("inputs", self._write_progress)  # never before a receipt
            await asyncio.sleep(self._limits.progress_interval)
            log.info("%s", self._progress())

    def _write_progress(self) -> None:
        """For the batch's page. It is a nicety: if it cannot be written, the batch goes on without."""
        if self._is_left:  # the page shows another attempt by now
            return
        at = progress_beside(self._manifest)
        try:
            self._means.s3.put_object(
                Bucket=at.bucket,
                Key=at.key,
                Body=json.dumps(asdict(self._progress())).encode(),
                ContentType="application/json",
                Metadata={MADE_BY: self._asker.requester},
                **self._put_args,
            )
        except Exception as error:
            log.log(
                logging.DEBUG if self._progress_failed else logging.WARNING,
                "How far the batch is could not be written to %s (%s). The batch goes on; its page is out of date.",
                at.uri,
                error_words(error),
            )
            self._progress_failed = True

    def _progress(self) -> Progress:
        counts = self._tally.counts
        there = counts["stored"] + counts["reused"]
        ended = counts.total()
        rest = len(self._rows) - ended
        is_known = ended and rest and not self._stopped
        return Progress(
            stored=there,
            failed=ended - there,
            in_flight=len(self._active),
            waiting=rest - len(self._active),
            spent=self._tally.spent(),
            seconds_left=(time.monotonic() - self._begun_at) * rest / ended if is_known else None,
        )


class _Tally:
    """Counts and costs of what this DAG run has bought."""

    def __init__(self, account: Account) -> None:
        self.counts: Counter[str] = Counter()
        self.skipped = 0
        self.bought = 0
        self.perhaps = 0
        self._account = account
        self._amount = Decimal(0)
        self._at_most = Decimal(0)
        self._unpriced = 0
        self._currency = account.settings.currency

    def add_clip(self, clip: Clip, row: Row) -> None:
        """Count what this run bought of a clip, and what it may have bought."""
        here, perhaps = clip.renders_bought_here, clip.renders_unknown_here
        if not here:
            return
        self.bought += here - perhaps
        self.perhaps += perhaps
        if clip.cost is not None and here == clip.renders_bought:
            self._add(Cost.from_dict(clip.cost))
        else:
            unit = self._unit(row.body_of(clip.model))
            self._add(None if unit is None else unit.of_renders(bought=here - perhaps, perhaps=perhaps))

    def add_renders(self, body: Mapping[str, Any], bought: int, perhaps: int) -> dict[str, Any] | None:
        """Count renders that brought no clip; what they cost."""
        self.bought += bought
        self.perhaps += perhaps
        unit = self._unit(body)
        cost = None if unit is None else unit.of_renders(bought=bought, perhaps=perhaps)
        self._add(cost)
        return None if cost is None else cost.as_dict()

    def cost(self) -> dict[str, Any] | None:
        """Of everything, amounts as strings; None without prices."""
        if self._currency is None:
            return None
        known = not self._unpriced
        return {
            "amount": show_amount(self._amount) if known else None,
            "at_most": show_amount(self._at_most) if known else None,
            "currency": self._currency,
        }

    def spent(self) -> str:
        """The same in words."""
        renders = f"{self.bought:,} renders"
        if self._currency is None or self._unpriced:
            return renders
        return f"{show_amount(self._at_most)} {self._currency}"

    def _unit(self, body: Mapping[str, Any]) -> Cost | None:
        return self._account.cost(body) if self._currency is not None else None

    def _add(self, cost: Cost | None) -> None:
        if cost is None or cost.amount is None or cost.at_most is None:
            self._unpriced += 1
        else:
            self._amount += cost.amount
            self._at_most += cost.at_most


def _line(row: Row, status: Status, error: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row of the manifest."""
    return {
        "index": row.index,
        "id": row.id,
        "status": status,
        "uri": row.uri,
        "model": row.model,
        "cost": None,
        "renders_bought": 0,
        "facts": None,
        "error": error,
    }


def _told(error: CodeGatewayError | None) -> dict[str, Any] | None:
    """An error in a manifest."""
    if error is None:
        return None
    return {"class": type(error).__name__, "message": str(error.args[0]), "bought": error.bought.name}


def _interrupted() -> RenderOutcomeUnknown:
    return RenderOutcomeUnknown(
        "The batch was stopped while this row was under way. Its ledger entry says what was begun."
    )


def _purchase(row: Row, means: Means, asker: Asker) -> tuple[Purchase, tuple[VideoRequest, ...]]:
    """The purchase of a row's clip, and the requests that it is of, with their media."""
    requests = with_media(row.requests(), means.s3, row.upload_args)
    return means.purchase(clip_spec(requests, row.arguments, asker)), requests


def count_missing(rows: LineFile, means: Means, asker: Asker) -> tuple[int, Decimal | None]:
    """How many renders are still to be bought, and what they cost at most; see ``Purchase.is_paid``."""

    def missing(row: Row) -> Row | None:
        purchase, _ = _purchase(row, means, asker)
        return None if purchase.is_paid() else row

    renders = 0
    at_most: Decimal | None = Decimal(0)
    valid = (row for row in map(Row.from_dict, rows) if not row.problems)
    for row in look_at_each(missing, valid):
        if row is not None:
            renders += 1
            cost = cost_of_chain([means.account.cost(body) for body in row.chain or [row.priced_body]])
            if at_most is not None:
                at_most = None if cost is None or cost.at_most is None else at_most + cost.at_most
    return renders, at_most


# Logs: what a purchase says of itself, of a thousand at a time.

_current_row: contextvars.ContextVar[str | None] = contextvars.ContextVar("codegateway_row", default=None)


class _NameRow(logging.Filter):
    """Says which row a warning is about, and drops what a row says while all goes well."""

    def filter(self, record: logging.LogRecord) -> bool:
        name = _current_row.get()
        if name is None:
            return True
        if record.levelno < logging.WARNING:
            return False
        record.msg, record.args = f"{name}: {record.getMessage()}", ()
        return True


_name_row = _NameRow()


def _name_rows_in_logs() -> None:
    package = __name__.partition(".")[0]
    for name in list(logging.root.manager.loggerDict):
        if name == package or name.startswith(f"{package}."):
            logging.getLogger(name).addFilter(_name_row)
