"""The one POST: deadline, keep-alive, bounded repetition of what bought nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import httpcore
import httpx

from airflow_provider_codegateway.exceptions import GatewayUnavailable
from airflow_provider_codegateway.gateway.answers import Answer, names_a_clip
from airflow_provider_codegateway.gateway.outcomes import (
    classify_error,
    classify_refusal,
    classify_silence,
    retry_delay,
)
from airflow_provider_codegateway.gateway.raw import raw_answer
from airflow_provider_codegateway.gateway.settings import DEADLINE_FLOOR, GENERATE_PATH, GatewaySettings
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.net import (
    BODY_CHUNK,
    NETWORK_ERRORS,
    USER_AGENT,
    Wire,
    post,
    proxy_for,
    require_usable_proxy,
    tls_context,
)

log = logging.getLogger(__name__)

_LONG_KEY = 16
"""A shorter key may be an ordinary word, and part of a link."""


def _without_key(answer: bytes, api_key: str) -> bytes:
    return answer.replace(api_key.encode(), b"***") if len(api_key) >= _LONG_KEY else answer


def _take(wire: Wire, seen: Exchange) -> None:
    """Take over an answer that HTTP made nothing of, or a success of which it has not all."""
    status, body = raw_answer(bytes(wire.received)) or (0, b"")
    is_more = 200 <= status < 300 and len(body.strip()) > len(seen.body.strip())
    if is_more or not seen.status:
        seen.status, seen.body = status, bytearray(body)
        seen.answered_at = seen.answered_at or time.monotonic()


class StoppedUnsent(asyncio.CancelledError):
    """Cancelled before a request was sent whole: nothing was bought."""


@contextmanager
def _nothing_sent() -> Iterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        raise StoppedUnsent from None


LoadContent = Callable[[], Awaitable[bytes]]
"""Loads the JSON body of a request. Its ``CodeGatewayError`` passes through; nothing is sent then."""


@dataclass
class Exchange:
    """What is known of one POST while it is under way."""

    sent_at: float | None = None
    """When the last bytes of the body were handed to the network (monotonic). A render needs all of them."""
    answered_at: float | None = None
    """When an answer began."""
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers, repr=False)
    body: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def is_sent(self) -> bool:
        """Whether the body was sent whole."""
        return self.sent_at is not None

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def has_answer(self) -> bool:
        """Whether a success has brought more than the white space that keeps a connection alive."""
        return self.is_success and bool(self.body.strip())

    @property
    def seconds(self) -> float | None:
        """From the end of the request to the beginning of the answer; None if it was not sent whole."""
        if self.sent_at is None or self.answered_at is None:
            return None
        return max(self.answered_at - self.sent_at, 0.0)


async def _send_and_forget(unsent: list[bytes], seen: Exchange) -> AsyncIterator[bytes]:
    content = memoryview(unsent.pop())
    last = (max(len(content) - 1, 0)) // BODY_CHUNK * BODY_CHUNK
    for start in range(0, last, BODY_CHUNK):
        yield bytes(content[start : start + BODY_CHUNK])
    # The next chunk is asked for when the one before was handed on.
    seen.sent_at = time.monotonic()
    yield bytes(content[last:])


class Buyer(Protocol):
    """Whatever can buy one render, such as a ``Gateway``."""

    async def generate(self, content: LoadContent) -> Answer:
        """Buy one render."""


class Gateway:
    """The gateway, for any number of renders at once, on any event loop.

    ::

        answer = await Gateway(settings).generate(request.content)
    """

    def __init__(self, settings: GatewaySettings, *, limits: Limits = LIMITS) -> None:
        self.settings = settings
        self._limits = limits
        self._tls = tls_context()
        url = httpx.URL(settings.base_url)
        require_usable_proxy(url)
        self.proxy = proxy_for(url)
        if settings.deadline < DEADLINE_FLOOR:
            log.warning(
                "The deadline of %g s is below %g s: a render takes about two minutes, "
                "and one that is cut off may be billed all the same.",
                settings.deadline,
                DEADLINE_FLOOR,
            )

    async def generate(self, content: LoadContent) -> Answer:
        """Buy one render.

        :param content: loads the encoded JSON body each time that it is to be sent, as
            ``VideoRequest.content`` does: it is not kept in memory for the two minutes of a render.
        :raises RequestRejected: the gateway refused it; nothing was bought.
        :raises GatewayUnavailable: not reached or busy, also after the retries; nothing was bought.
        :return: a success as it came. One render was bought.
        :raises RenderOutcomeUnknown: sent, and no answer; perhaps bought.
        :raises StoppedUnsent: cancelled, and nothing was bought. Cancelled later, it may have been.
        """
        deadline = time.monotonic() + self.settings.deadline
        attempt = 1
        while True:
            with _nothing_sent():
                unsent = [await content()]
            try:
                return await self._post(unsent, deadline)
            except GatewayUnavailable as error:
                left = deadline - time.monotonic()
                delay = retry_delay(attempt, error.retry_after, left, self.settings, self._limits)
                if delay is None:
                    raise
                log.warning(
                    "%s Trying again in %.1f s (%d of %d).", error, delay, attempt, self.settings.retries
                )
            finally:
                unsent.clear()  # error trackers show the local variables of whatever fails
            with _nothing_sent():
                await asyncio.sleep(delay)
            attempt += 1

    async def _post(self, unsent: list[bytes], deadline: float) -> Answer:
        started = time.monotonic()
        if deadline - started < self.settings.render_time:
            raise GatewayUnavailable(
                f"The request was ready {deadline - started:.0f} s before the deadline, too late for a render, "
                "and was not sent."
            )
        seen, stopped = Exchange(), None
        exchange = asyncio.create_task(self.exchange(unsent, seen))
        try:
            # Not `asyncio.timeout`: its cancellation could throw away an answer that has just come.
            while not exchange.done():
                elapsed = time.monotonic() - started
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                if elapsed >= self._limits.progress_interval:
                    log.info("Rendering for %d s.", elapsed)
                await asyncio.wait({exchange}, timeout=min(self._limits.progress_interval, left))
        except asyncio.CancelledError as error:
            stopped = error
        finally:
            # However this coroutine is left, the connection must not outlive it.
            if not exchange.done():
                exchange.cancel()
                await asyncio.wait({exchange})
        # Asked for in any case: else asyncio logs it, and a parser's error quotes what it could not read.
        failure = None if exchange.cancelled() else exchange.exception()
        # What came may be whole, though HTTP says that more should come.
        if not seen.has_answer:
            if exchange.cancelled():
                # An answer that has come would be worth more: the caller keeps it, and then stops.
                if stopped and not seen.is_sent:
                    raise StoppedUnsent from None
                raise stopped or classify_silence(self.settings, is_sent=seen.is_sent)
            if failure is not None:
                if not isinstance(failure, Exception):
                    raise failure
                if stopped:  # just then
                    raise stopped if seen.is_sent else StoppedUnsent()
                raise classify_error(failure, is_sent=seen.is_sent) from None
        if not seen.is_success or not (seen.is_sent or names_a_clip(bytes(seen.body))):
            raise classify_refusal(
                seen.status,
                seen.headers,
                bytes(seen.body),
                settings=self.settings,
                seconds=seen.seconds,
                limits=self._limits,
            )
        return Answer(
            status=seen.status,
            # It goes to the ledger as it is, but for a key that the gateway may have echoed.
            body=_without_key(bytes(seen.body), self.settings.api_key),
            render_seconds=time.monotonic() - started,
            received_at=time.time(),
            is_secure=self.settings.secure,
            base_url=self.settings.base_url,
        )

    async def exchange(self, unsent: list[bytes], seen: Exchange) -> None:
        """POST the one item of ``unsent``, which is not kept for the two minutes of the wait.

        :param seen: takes what is answered, as it comes.
        :raises net.NETWORK_ERRORS: the connection broke; ``seen`` has what came of a success.
        """
        settings = self.settings
        headers = {
            "Authorization": f"Bearer {settings.api_key}",
            "Content-Type": "application/json",
            "Content-Length": str(len(unsent[0])),
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        timeouts = {
            "connect": settings.connect_timeout,
            "read": settings.read_timeout,
            "write": settings.read_timeout,
        }
        url = httpx.URL(settings.base_url + GENERATE_PATH)
        wire = Wire(self._limits.max_answer_bytes)
        try:
            async with post(
                url, _send_and_forget(unsent, seen), headers, timeouts=timeouts, wire=wire
            ) as response:
                seen.answered_at = time.monotonic()
                seen.status, seen.headers = response.status, httpx.Headers(response.headers)
                try:
                    await self._read(response.aiter_stream(), seen)
                except NETWORK_ERRORS:
                    # The status of a refusal says enough.
                    if seen.is_success:
                        raise
            if seen.is_success and not names_a_clip(bytes(seen.body)):
                await self._read_wire(wire, seen, is_over=True)
        except (httpcore.RemoteProtocolError, httpcore.ReadError):
            await self._read_wire(wire, seen, is_over=False)
            if seen.is_success or not seen.status:
                raise
        finally:
            await wire.aclose()

    async def _read_wire(self, wire: Wire, seen: Exchange, *, is_over: bool) -> None:
        """Look for an answer in what HTTP does not allow.

        :param is_over: whether the answer is whole, as HTTP has it.
        """
        coming = None
        try:
            while not wire.is_full:
                coming = coming or asyncio.ensure_future(wire.more())
                await asyncio.wait({coming}, timeout=self._limits.answer_silence)
                if not coming.done():
                    _take(wire, seen)
                    if is_over or not seen.is_success or names_a_clip(bytes(seen.body)):
                        return
                    continue
                if not coming.result():
                    return
                coming = None
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
            _take(wire, seen)

    async def _read(self, chunks: AsyncIterator[bytes], seen: Exchange) -> None:
        """Read an answer until it ends, or is too long, or is whole and nothing more comes."""
        limit = self._limits.max_answer_bytes if seen.is_success else self._limits.max_error_bytes
        while len(seen.body) < limit:
            coming = asyncio.ensure_future(anext(chunks, b""))
            try:
                patience = self._limits.answer_silence if seen.is_success else self._limits.refusal_silence
                await asyncio.wait({coming}, timeout=patience)
                if not coming.done():
                    if not seen.is_success or names_a_clip(bytes(seen.body)):
                        return
                    await asyncio.wait({coming})
                chunk = coming.result()
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait({coming})
            if not chunk:
                return
            # The white space that keeps a connection alive is no part of an answer, however much it is.
            chunk = chunk if seen.body else chunk.lstrip()
            seen.body += chunk[: limit - len(seen.body)]
            del chunk  # error trackers show the local variables of whatever fails, and there is a link in it
