"""The one POST: deadline, keep-alive, bounded repetition of what bought nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import httpx

from airflow_provider_codegateway.exceptions import (
    GatewayUnavailable,
    RenderOutcomeUnknown,
)
from airflow_provider_codegateway.gateway.outcomes import (
    REJECTED,
    UNAVAILABLE,
    Receipt,
    classify_answer,
    classify_error,
    retry_delay,
)
from airflow_provider_codegateway.gateway.settings import DEADLINE_FLOOR, GatewaySettings
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.net import (
    USER_AGENT,
    post_transport,
    proxy_for,
    require_usable_proxy,
    tls_context,
)

log = logging.getLogger(__name__)

GENERATE_PATH = "/v1/video/generate"

LoadContent = Callable[[], Awaitable[bytes]]
"""Loads the JSON body of a request. Its ``CodeGatewayError`` passes through; nothing is sent then."""


class Buyer(Protocol):
    """Whatever can buy one render, such as a ``Gateway``."""

    async def generate(self, content: LoadContent) -> Receipt:
        """Buy one render."""


class Gateway:
    """The gateway, for any number of renders at once, on any event loop.

    ::

        receipt = await Gateway(settings).generate(request.content)
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

    async def generate(self, content: LoadContent) -> Receipt:
        """Buy one render.

        :param content: loads the encoded JSON body each time that it is to be sent, as
            ``VideoRequest.content`` does: it is not kept in memory for the two minutes of a render.
        :raises RequestRejected: the gateway refused it; nothing was bought.
        :raises GatewayUnavailable: not reached or busy, also after the retries; nothing was bought.
        :raises RenderOutcomeUnknown: sent, and no whole, usable answer; perhaps bought.
        """
        deadline = time.monotonic() + self.settings.deadline
        attempt = 1
        while True:
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
            await asyncio.sleep(delay)
            attempt += 1

    async def _post(self, unsent: list[bytes], deadline: float) -> Receipt:
        started = time.monotonic()
        if deadline - started < self.settings.render_time:
            raise GatewayUnavailable(
                f"The request was ready {deadline - started:.0f} s before the deadline, too late for a render, "
                "and was not sent."
            )
        exchange = asyncio.create_task(self.exchange(unsent))
        try:
            # Not `asyncio.timeout`: its cancellation could throw away an answer that has just come.
            while not exchange.done():
                elapsed = time.monotonic() - started
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RenderOutcomeUnknown(
                        f"The gateway gave no whole answer within the deadline of "
                        f"{self.settings.deadline:g} s."
                    )
                if elapsed >= self._limits.progress_interval:
                    log.info("Rendering for %d s.", elapsed)
                await asyncio.wait({exchange}, timeout=min(self._limits.progress_interval, left))
        except asyncio.CancelledError:
            # An answer that has come is worth more: the caller keeps the receipt, and then stops.
            if not exchange.done():
                raise
        finally:
            # However this coroutine is left, the connection must not outlive it.
            if not exchange.done():
                exchange.cancel()
                await asyncio.wait({exchange})
        try:
            status, headers, answer = exchange.result()
        except Exception as error:
            raise classify_error(error) from error
        return classify_answer(
            status, headers, answer, settings=self.settings, render_seconds=time.monotonic() - started
        )

    async def exchange(self, unsent: list[bytes]) -> tuple[int, httpx.Headers, bytes]:
        """POST the one item of ``unsent``, which is not kept for the two minutes of the wait.

        :return: status, headers and body of whatever was answered, or of its first MiB.
        """
        length = {"Content-Length": str(len(unsent[0]))}

        async def send_and_forget() -> AsyncIterator[bytes]:
            yield unsent.pop()

        url = self.settings.base_url + GENERATE_PATH
        async with (
            self._client() as client,
            client.stream("POST", url, content=send_and_forget(), headers=length) as response,
        ):
            answer = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    answer += chunk
                    if len(answer) > self._limits.max_answer_bytes:
                        break
            except httpx.HTTPError:
                # A status that says "nothing was bought" says so without its body.
                if response.status_code not in REJECTED | UNAVAILABLE:
                    raise
            return response.status_code, response.headers, bytes(answer)

    def _client(self) -> httpx.AsyncClient:
        settings = self.settings
        return httpx.AsyncClient(
            transport=post_transport(httpx.URL(settings.base_url)),
            headers={
                "Authorization": f"Bearer {settings.api_key}",
                "Content-Type": "application/json",
                "User-Agent": USER_AGENT,
            },
            timeout=httpx.Timeout(
                settings.read_timeout,
                connect=settings.connect_timeout,
                write=settings.read_timeout,
                pool=None,
            ),
            follow_redirects=False,
        )
