"""The one POST: deadline, keep-alive, and the class of every outcome.

What is decided stands in plain functions (``classify_answer``, ``classify_error``, ``retry_delay``);
``Gateway.generate`` only drives them. The blocking path is the same coroutine on a loop of its own
(``BlockingCall``), so there is one path to get right.

The rule behind the classes: only what *provably* bought nothing may be sent again. Unlisted means unknown.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import logging
import math
import random
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx

from airflow_provider_codegateway import __version__
from airflow_provider_codegateway._http import redact_url, redact_urls
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidConnection,
    RenderOutcomeUnknown,
    RequestRejected,
)

log = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://api.codegateway.dev"
GENERATE_PATH = "/v1/video/generate"

DEADLINE_FLOOR = 180.0
"""Seconds. The guide calls a read timeout of 180 s "a sensible floor": a render takes about two minutes."""

PROGRESS_INTERVAL = 30.0
"""Seconds between two log lines while a render is awaited."""

LONGEST_WAIT = 60.0
"""Seconds. A longer ``Retry-After`` is left to Airflow's retries, which hold no worker slot."""

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds: a day. What asks for more is mistaken."""

MAX_ANSWER_BYTES = 1024 * 1024
"""An answer is a few hundred bytes of JSON; more than this is not one."""

REJECTED = frozenset({400, 401, 403, 404, 413, 422})
"""The same request will be refused again. This try bought nothing."""

UNAVAILABLE = frozenset({429, 503})
"""No render was started. This try bought nothing."""

NEVER_SENT: tuple[type[httpx.TransportError], ...] = (
    httpx.ConnectError,  # TLS handshakes included: httpcore maps their failures to it
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,  # raised when the proxy refuses the tunnel, before the request
    httpx.UnsupportedProtocol,
)
"""Errors that httpx raises before a byte of the request has left. This try bought nothing."""


LoadContent = Callable[[], Awaitable[bytes]]
"""Loads the JSON body of a request. Its ``CodeGatewayError`` passes through; nothing is sent then."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Where the gateway is, and how long to wait for it.

    :param base_url: such as ``https://api.codegateway.dev``.
    :param api_key: sent as a bearer token; keys start with ``sk-cg-``.
    :param deadline: seconds for one whole POST. A render takes about 120 s.
    :param read_timeout: seconds of silence on the connection after which the answer is given up.
    :param connect_timeout: seconds to establish a connection.
    :param retries: how often one call repeats what provably bought nothing.
    """

    base_url: str = DEFAULT_BASE_URL
    api_key: str = field(repr=False)
    deadline: float = 300.0
    read_timeout: float = 300.0
    connect_timeout: float = 10.0
    retries: int = 3

    @property
    def render_time(self) -> float:
        """Seconds that a render must have left of the deadline to be worth sending."""
        return min(DEADLINE_FLOOR, 0.6 * self.deadline)

    @property
    def secure(self) -> bool:
        """Whether the gateway is reached by https; a clip's link may then not be less."""
        return self.base_url.lower().startswith("https://")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The gateway's answer to one paid render.

    :param url: where the clip is, for a while. A secret: whoever has it has the clip.
    :param expires_at: Unix seconds until which the link is good, if it expires.
    :param created: Unix seconds at which the gateway produced the clip.
    :param render_seconds: how long the POST took, in seconds.
    """

    url: str = field(repr=False)
    model: str
    render_seconds: float
    created: float | None = None
    serving: str | None = None
    expires_at: float | None = None


class Buyer(Protocol):
    """Whatever can buy one render, such as a ``Gateway``."""

    async def generate(self, content: LoadContent) -> Receipt:
        """Buy one render."""


class Gateway:
    """The gateway, for any number of renders at once, on any event loop.

    ::

        receipt = await Gateway(settings).generate(request.content)
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self._tls = _tls_context()
        self.proxy = _environment_proxy(settings.base_url)
        if settings.deadline < DEADLINE_FLOOR:
            log.warning(
                "The deadline of %g s is below %g s: a render takes about two minutes, "
                "and one that is cut off may be billed all the same.",
                settings.deadline,
                DEADLINE_FLOOR,
            )
        if self.proxy is not None:
            self._require_usable_proxy(self.proxy)

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
                delay = retry_delay(attempt, error.retry_after, left, self.settings)
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
                if elapsed >= PROGRESS_INTERVAL:
                    log.info("Rendering for %d s.", elapsed)
                await asyncio.wait({exchange}, timeout=min(PROGRESS_INTERVAL, left))
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
                    if len(answer) > MAX_ANSWER_BYTES:
                        break
            except httpx.HTTPError:
                # A status that says "nothing was bought" says so without its body.
                if response.status_code not in REJECTED | UNAVAILABLE:
                    raise
            return response.status_code, response.headers, bytes(answer)

    def _client(self) -> httpx.AsyncClient:
        """A client for one call.

        A pooled connection may be closed by the other side at any time, and a POST on it would then fail
        with an unknown outcome. And a pool looks through all of its connections at each call: with a
        thousand renders in flight, that holds up the event loop.
        """
        settings = self.settings
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                verify=self._tls,
                proxy=self.proxy,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
                socket_options=_KEEP_ALIVE,
            ),
            headers={
                "Authorization": f"Bearer {settings.api_key}",
                "Content-Type": "application/json",
                "User-Agent": f"airflow-provider-codegateway/{__version__}",
            },
            timeout=httpx.Timeout(
                settings.read_timeout,
                connect=settings.connect_timeout,
                write=settings.read_timeout,
                pool=None,
            ),
            follow_redirects=False,
        )

    def _require_usable_proxy(self, proxy: str) -> None:
        """Else it would fail at each call, where nobody could tell that nothing was sent."""
        try:
            self._client()
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            why = "it needs httpx[socks]" if isinstance(error, ImportError) else "not a URL that httpx knows"
            raise InvalidConnection(
                f"The proxy of the environment, {redact_url(proxy)}, cannot be used ({why}): give HTTPS_PROXY, "
                "HTTP_PROXY or ALL_PROXY an http:// URL, or name the gateway's host in NO_PROXY."
            ) from None


Result = TypeVar("Result")


class BlockingCall:
    """Runs one coroutine on a loop of its own, in a thread of its own.

    The caller's thread stays free for signals, and ``cancel`` may come from a signal handler: that is
    how ``on_kill`` closes the connection of a running render.
    """

    def __init__(self) -> None:
        self._is_cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; whatever interrupts the wait cancels it first."""
        loop = asyncio.new_event_loop()
        task = loop.create_task(main)
        self._loop, self._task = loop, task
        if self._is_cancelled:
            task.cancel()
        with ThreadPoolExecutor(1, thread_name_prefix="codegateway") as thread:
            future = thread.submit(loop.run_until_complete, task)
            try:
                return future.result()
            except BaseException:
                self.cancel()
                raise
            finally:
                thread.submit(loop.run_until_complete, loop.shutdown_asyncgens()).result()
                self._loop = self._task = None
                thread.submit(loop.close).result()

    def cancel(self) -> bool:
        """Cancel what runs, or what is about to; True if something ran."""
        self._is_cancelled = True
        loop, task = self._loop, self._task
        if loop is None or task is None or task.done():
            return False
        loop.call_soon_threadsafe(task.cancel)
        return True


def retry_delay(
    attempt: int, retry_after: float | None, left: float, settings: GatewaySettings
) -> float | None:
    """Seconds to wait after the failed attempt number ``attempt``, or None if the call should give up.

    The vendor asks for exponential backoff; ``Retry-After`` is honoured. One deadline holds for the whole
    call, retries included, so that others know until when a render may be under way: a retry that would
    not leave a render its time is not made, and Airflow's own retries, which hold no worker slot, take over.

    :param left: seconds until the deadline of the call.
    """
    if attempt > settings.retries:
        return None
    backoff = min(2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
    delay = backoff if retry_after is None else retry_after + random.uniform(0, 1)  # noqa: S311
    return delay if delay <= LONGEST_WAIT and left - delay >= settings.render_time else None


def classify_error(error: Exception) -> CodeGatewayError:
    """The class of an exchange that ended without an answer."""
    why = str(root_cause(error)) or str(error)
    reason = f"{type(error).__name__}: {redact_urls(why)}" if why else type(error).__name__
    if isinstance(error, NEVER_SENT):
        return GatewayUnavailable(f"The gateway could not be reached ({reason}).")
    return RenderOutcomeUnknown(f"The request was sent and no whole answer came back ({reason}).")


def root_cause(error: BaseException) -> BaseException:
    """What lies below httpx's "All connection attempts failed"."""
    below = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
    below = below or error.__cause__ or error.__context__
    # A handshake that waits for bytes is no failure of its own.
    return error if below is None or isinstance(below, ssl.SSLWantReadError) else root_cause(below)


def classify_answer(
    status: int,
    headers: Mapping[str, str],
    answer: bytes,
    *,
    settings: GatewaySettings,
    render_seconds: float,
) -> Receipt:
    """The receipt in an answer of the gateway, or the error that the answer is.

    :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see the table in ``exceptions``.
    """
    if 200 <= status < 300:
        return _receipt(answer, settings, render_seconds)
    said = f"The gateway answered {status}: {words_of(answer, settings.api_key)}."
    if status in REJECTED:
        raise RequestRejected(f"{said}{_ADVICE.get(status, '')}", status=status)
    if status in UNAVAILABLE:
        raise GatewayUnavailable(said, retry_after=_retry_after(headers.get("retry-after")))
    raise RenderOutcomeUnknown(said)


_ADVICE = {
    401: " Check the API key in the connection's password: keys start with sk-cg- and are managed in your "
    "CodeGateway account.",
    403: " Check the balance and the state of your CodeGateway account.",
    404: " Check the connection's base URL: it ends before /v1.",
    413: " Send a smaller image or video, or pass an https URL where the model takes one.",
}


def _receipt(answer: bytes, settings: GatewaySettings, render_seconds: float) -> Receipt:
    try:
        content = json.loads(answer)  # leading white space, sent to keep a connection alive, is no matter
        url = content["data"][0]["url"]
        usable = _usable_url(url, settings)
    except (ValueError, LookupError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise RenderOutcomeUnknown(
            f"The gateway answered 200 without a usable clip URL: {words_of(answer, settings.api_key)}.",
            bought=Bought.YES,
        )
    return Receipt(
        url=url,
        model=str(content.get("model", "")),
        created=_number(content.get("created")),
        serving=content["serving"] if isinstance(content.get("serving"), str) else None,
        expires_at=_number(content.get("expires_at")),
        render_seconds=render_seconds,
    )


def _usable_url(url: object, settings: GatewaySettings) -> bool:
    if not isinstance(url, str):
        return False
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    # A clip's link may be no less secure than the gateway's own.
    return bool(parsed.host) and (
        parsed.scheme == "https" or (parsed.scheme == "http" and not settings.secure)
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _retry_after(value: str | None) -> float | None:
    """``Retry-After`` is seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(seconds) else None


def words_of(answer: bytes, api_key: str) -> str:
    """What the gateway said, in one short line with nothing secret in it.

    The video endpoint's error is a plain string, elsewhere it is an object, and a proxy answers HTML.
    """
    text = answer.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text)
    else:
        error = content.get("error", content) if isinstance(content, dict) else content
        if isinstance(error, dict):
            parts = [error.get("type"), error.get("message")]
            text = ": ".join(str(part) for part in parts if part) or json.dumps(error)
        else:
            text = error if isinstance(error, str) else json.dumps(error)
    text = " ".join(redact_urls(text).replace(api_key, "***").split()).rstrip(".")
    text = re.sub(r"\?\S+", "?…", text)  # the query of a link without a scheme
    text = re.sub(r"[A-Za-z0-9+/_=-]{80,}", "…", text)  # an echoed image
    return (f"{text[:300]}…" if len(text) > 300 else text) or "(an empty body)"


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """One for the process: it takes most of a megabyte, and a while to make."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise InvalidConnection(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({error}): mend the "
            "variable on this machine, or unset it."
        ) from None


def _environment_proxy(base_url: str) -> str | None:
    """httpx reads the proxy variables only for a transport that it makes itself."""
    parsed = httpx.URL(base_url)
    if urllib.request.proxy_bypass(parsed.host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parsed.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


# Nothing passes over the connection for two minutes; a NAT forgets it sooner than that.
_KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)  # macOS names the first one otherwise
]


def checked_settings(
    *, api_key: str | None, base_url: str | None, where: str, **timeouts: float | int
) -> GatewaySettings:
    """Settings from what a person typed into a connection.

    :param where: how to name the connection in an error.
    :raises InvalidConnection: naming the field; the key itself is never shown.
    """
    # A trailing space in a pasted key is a common fault (the vendor's error guide).
    key = (api_key or "").strip()
    if not key:
        raise InvalidConnection(f"{where} has no API key: put it into the password field.")
    if not re.fullmatch(r"[!-~]+", key):
        raise InvalidConnection(
            f"The API key of {where} has white space or unprintable characters inside: paste it again."
        )
    if not key.startswith("sk-cg-"):
        log.warning("The API key of %s does not start with sk-cg-, as CodeGateway's keys do.", where)
    url = (base_url or "").strip() or DEFAULT_BASE_URL
    if "://" not in url:
        url = f"https://{url}"
    if not _is_base_url(url):
        raise InvalidConnection(
            f"The base URL of {where} is not usable: use a URL such as {DEFAULT_BASE_URL}, without a query."
        )
    url = url.rstrip("/")
    return GatewaySettings(api_key=key, base_url=url, **timeouts)  # type: ignore[arg-type]


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        return False
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and plain
