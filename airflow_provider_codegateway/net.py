"""What every HTTP client of this package shares: proxies, certificates, keep-alive; and the client for GETs.

Both speak through httpcore, httpx's own transport, whose network backends can be replaced. The POST is asynchronous,
and keeps what comes as it came. The clip and the input images are read in threads, by ``Client``: with a deadline that
also holds against a host that sends a byte now and then, and to addresses that were checked.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import functools
import ipaddress
import logging
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import anyio.abc
import httpcore
import httpx

from airflow_provider_codegateway import __version__, http_heads
from airflow_provider_codegateway.exceptions import InvalidConnection
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.redaction import redact_url, redact_urls

USER_AGENT = f"airflow-provider-codegateway/{__version__}"

# Nothing passes over the connection for two minutes; a NAT forgets it sooner than that.
_KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)  # macOS names the first one otherwise
]


# Certificates.


@functools.cache
def tls_context() -> ssl.SSLContext:
    """One for the process: it takes most of a megabyte, and a while to make.

    :raises InvalidConnection: SSL_CERT_FILE or SSL_CERT_DIR cannot be read.
    """
    try:
        if (file := os.environ.get("SSL_CERT_FILE")) and not Path(file).is_file():
            raise FileNotFoundError(f"{file} is not a file")  # httpx before 0.28 passes over it
        return httpx.create_ssl_context()
    except OSError as error:
        raise InvalidConnection(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({error}). Correct the "
            "variable on this machine, or unset it."
        ) from None


# Proxies.


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment names for a URL: one rule for the POST, the clip and input images.

    HTTPS_PROXY, HTTP_PROXY, then ALL_PROXY; NO_PROXY as curl reads it: hosts with their subdomains, addresses,
    networks, each with or without a port, or ``*``.
    """
    proxies = urllib.request.getproxies()
    if _is_exempt(url, proxies.get("no", "")):
        return None
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def require_usable_proxy(url: httpx.URL) -> None:
    """Refuse a proxy through which no request could go.

    :raises InvalidConnection: it is malformed, or needs a package that is not installed.
    """
    if (proxy := proxy_for(url)) is None:
        return
    try:
        if (httpx.Proxy(proxy).url.port or 1) > 65_535:
            raise httpx.InvalidURL("its port is too large")
        _pool(_SYNC, proxy, None, httpcore.SyncBackend())
    except (ImportError, RuntimeError, ValueError, httpx.InvalidURL) as error:
        is_socks = proxy.lower().startswith("socks") and not isinstance(error, ValueError)
        why = "a SOCKS proxy needs httpx[socks]" if is_socks else "not a URL of a proxy"
        raise InvalidConnection(
            f"The proxy of the environment, {redact_url(proxy)}, cannot be used ({why}). Give HTTPS_PROXY, HTTP_PROXY "
            f"or ALL_PROXY an http://, https:// or socks5:// URL, or name {url.host} in NO_PROXY."
        ) from None


class Wire:
    """What came over the connection of one POST, as it came: what no parser of HTTP reads may be a paid answer.

    The connection stays open until ``aclose``, so that one can read on where a parser gave up.

    :param limit: bytes that are kept.
    """

    def __init__(self, limit: int = LIMITS.max_answer_bytes) -> None:
        self.received = bytearray()
        self._limit = limit
        self._stream: httpcore.AsyncNetworkStream | None = None

    @property
    def is_full(self) -> bool:
        """Whether as much has come as is kept."""
        return len(self.received) >= self._limit

    def open(self, stream: httpcore.AsyncNetworkStream) -> None:
        """Forget what came before: it was of the proxy's tunnel, or of the TLS handshake."""
        self.received.clear()
        self._stream = stream

    def keep(self, data: bytes) -> bytes:
        """Take note of what came."""
        self.received += data[: self._limit - len(self.received)]
        return data

    async def more(self) -> bool:
        """Read on. Whether something came; False at the end, however the connection ended."""
        try:
            return self._stream is not None and bool(await self._stream.read(BODY_CHUNK))
        except NETWORK_ERRORS:
            return False

    async def aclose(self) -> None:
        """End the connection."""
        if (stream := self._stream) is not None:
            self._stream = None
            await stream.aclose()

    def is_open(self, stream: httpcore.AsyncNetworkStream) -> bool:
        """Whether this connection is to stay open."""
        return stream is self._stream


@asynccontextmanager
async def post(
    url: httpx.URL,
    content: AsyncIterator[bytes],
    headers: Mapping[str, str],
    *,
    timeouts: Mapping[str, float | None],
    wire: Wire,
) -> AsyncIterator[httpcore.Response]:
    """One POST, on a connection of its own.

    A pooled connection may be closed by the other side at any time, and a POST on it would then fail with an unknown
    outcome. And a pool looks through all of its connections at each call: with a thousand renders in flight, that
    holds up the event loop.

    :param timeouts: as httpcore's extension ``timeout``.
    :param wire: takes what comes. Whoever hands it in closes it.
    :raises NETWORK_ERRORS: the connection broke.
    """
    with _quiet():
        async with (
            _pool(_ASYNC, proxy_for(url), tls_context(), _PostBackend(wire)) as pool,
            pool.stream(
                "POST",
                _core_url(url),
                headers=[("Host", url.netloc), *headers.items()],
                content=content,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            yield response


class _PostBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream: Any = await self._backend.connect_tcp(host, port, timeout, socket_options=_KEEP_ALIVE)
        stream._stream = _ResetStream(stream._stream)  # below TLS
        return _PostStream(stream, self._wire)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _ResetStream(anyio.abc.ByteStream):
    """A connection of which one can still read what came before it was reset.

    asyncio closes a connection to which it cannot write, and what the kernel holds of an answer is lost with it.
    """

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._spare: socket.socket | None = None

    async def send(self, item: bytes) -> None:
        if self._spare is None and len(item) >= BODY_CHUNK:
            connection: Any = self.extra_attributes[anyio.abc.SocketAttribute.raw_socket]()
            self._spare = connection.dup()
        await self._stream.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            with suppress(OSError):
                if self._spare is not None and (left := self._spare.recv(max_bytes)):
                    return left
            raise

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


class _PostStream(httpcore.AsyncNetworkStream):
    """A connection that is read while a body is written to it (RFC 9112, section 9.5).

    A server that refuses a large body answers at once and closes. Who writes on without reading is reset, and never
    sees the answer.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, wire: Wire) -> None:
        self._stream = stream
        self._wire = wire
        self._early: asyncio.Task[bytes] | None = None
        wire.open(self)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if len(buffer) < BODY_CHUNK:  # a head, or the end of a body: too little to be held up
            await self._stream.write(buffer, timeout)
            return
        if self._early is None:
            self._early = asyncio.create_task(self._stream.read(BODY_CHUNK, None))
        writing = asyncio.create_task(self._stream.write(buffer, timeout))
        try:
            await asyncio.wait({self._early, writing}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() and not _is_refusal(self._early):
                await asyncio.wait({writing})
            if not writing.done():
                raise httpcore.WriteError("it was answered before it was sent")
            writing.result()
        finally:
            await _cancelled(writing)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._early is None:
            return self._wire.keep(await self._stream.read(max_bytes, timeout))
        await asyncio.wait({self._early}, timeout=timeout)
        if not self._early.done():
            raise httpcore.ReadTimeout
        early, self._early = self._early, None
        return self._wire.keep(early.result())

    async def aclose(self) -> None:
        if self._wire.is_open(self):
            return
        if self._early is not None:
            await _cancelled(self._early)
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _PostStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._wire)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


BODY_CHUNK = 64 * 1024
"""Bytes of a POST's body that are handed to the network at a time: what counts as sent is known that exactly."""


def _is_refusal(early: asyncio.Task[bytes]) -> bool:
    """Whether what came early is an error, or a redirect, or the end of the connection."""
    if not early.done():
        return False
    if early.cancelled() or early.exception():
        return True
    return re.match(rb"HTTP/1\.[01] [345]|$", early.result()) is not None


async def _cancelled(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # seen


def _is_exempt(url: httpx.URL, no_proxy: str) -> bool:
    # An international name may be spelled either way.
    hosts = {url.host.lower().rstrip("."), url.raw_host.decode("ascii").lower().rstrip(".")}
    port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        if entry == "*":
            return True
        match = re.fullmatch(
            r"(\[[0-9a-f:.%]+\](?:/[0-9]+)?|[^:]+|[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:./]*)(?::([0-9]+))?", entry
        )
        if match is None or (match[2] and int(match[2]) != port):
            continue
        name = re.sub(r"[\[\]]", "", match[1]).lstrip("*").lstrip(".").rstrip(".")
        if name and any(
            host == name or host.endswith(f".{name}") or _is_within(host, name) for host in hosts
        ):
            return True
    return False


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


# The client for GETs.


class Stopped(Exception):
    """Another thread stopped the client."""


class TooSlow(httpcore.ReadTimeout):
    """The host sends bytes, and none of the body."""


class RedirectRefused(Exception):
    """A redirect that is not followed. The message says why, without the query of any URL."""


_OF_THE_PARSER = re.compile(
    r"(Server disconnected|[Pp]eer closed connection|[Rr]eceived body larger)[\w .,()]*"
)


def network_reason(error: Exception, cause: BaseException | None = None) -> str:
    """What broke, for a message, without what a stranger may have put into it.

    A parser quotes the line that it could not read, and a proxy its own words: a header with a key in it, for one.
    """
    name, text = type(error).__name__, str(cause or "") or str(error)
    if isinstance(error, httpcore.ProtocolError):
        text = text if _OF_THE_PARSER.fullmatch(text) else "not HTTP as it is specified"
    elif isinstance(error, httpcore.ProxyError):
        status = re.match(r"\d{3}\b", text)
        text = f"the proxy answered {status[0]}" if status else "the proxy refused"
    return f"{name}: {redact_urls(text)}".rstrip(".") if text else name


def root_cause(error: BaseException) -> BaseException:
    """What lies below "All connection attempts failed"."""
    below = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
    below = below or error.__cause__ or error.__context__
    # A handshake that waits for bytes has not failed by itself.
    return error if below is None or isinstance(below, ssl.SSLWantReadError) else root_cause(below)


_TRUST = (
    " If a proxy of your network re-signs TLS traffic, name its CA in SSL_CERT_FILE on this machine: "
    "REQUESTS_CA_BUNDLE and the like are not read."
)


def network_advice(error: Exception) -> str:
    """What to do about it, as a sentence with a blank before it; nothing where there is nothing to say."""
    if isinstance(root_cause(error), ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(
        error
    ):
        return _TRUST
    if isinstance(error, httpcore.ProxyError):
        if str(error).startswith("407"):
            return " The proxy asks for a user and a password: put them into HTTPS_PROXY or HTTP_PROXY."
        return (
            " Let the proxy of HTTPS_PROXY, HTTP_PROXY or ALL_PROXY pass this host, or name it in NO_PROXY."
        )
    return ""


NETWORK_ERRORS: tuple[type[Exception], ...] = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    OSError,
    UnicodeError,  # a host name that cannot be one
)
"""What a request fails of when the network, or the other side, is at fault."""


@dataclass(frozen=True)
class Response:
    """An answer whose body is read as it comes.

    :param length: of the body in bytes, as announced; None if it is not.
    :param chunks: the body, as it came over the wire. One that ends early raises one of ``NETWORK_ERRORS``.
    """

    # Not shown: error trackers report the local variables of whatever fails, and a link is a secret.
    url: httpx.URL = field(repr=False)
    status: int
    headers: httpx.Headers = field(repr=False)
    length: int | None
    chunks: Iterator[bytes]


Addresses = Callable[[str, int], list[str]]


class Client:
    """GETs, one after the other, until a deadline. Another thread may stop it.

    :param seconds: from now until the deadline.
    :param addresses: host and port → the addresses that may be connected to; by default any that DNS knows.
        A host is looked up once: what was checked is what is connected to. A proxy looks up by itself.
    :param ssl_context: verifies the host's certificate.
    """

    def __init__(
        self,
        *,
        seconds: float,
        limits: Limits = LIMITS,
        addresses: Addresses | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.deadline = time.monotonic() + seconds
        self._limits = limits
        self._addresses = addresses
        self._ssl_context = ssl_context
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._useless_since: float | None = None

    def stop(self) -> None:
        """End the request in flight, and allow no other. From any thread."""
        self._stopped.set()
        for each in list(self._sockets):
            with suppress(OSError):  # it is closed already
                # Of the socket below TLS: its own shutdown would take the TLS state from the thread that reads.
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        """Wait, unless the client is stopped meanwhile.

        :raises Stopped: it is.
        """
        if self._stopped.wait(seconds):
            raise Stopped

    @contextmanager
    def get(
        self,
        url: httpx.URL,
        headers: Mapping[str, str],
        *,
        check_redirect: Callable[[httpx.URL, httpx.URL], None],
    ) -> Iterator[Response]:
        """One GET, redirects followed as browsers do.

        :param check_redirect: from which URL, to which; raises what it does not allow.
        :raises RedirectRefused: there are too many, or one leads nowhere.
        :raises Stopped: ``stop`` was called.
        :raises NETWORK_ERRORS: the network or the host failed.
        """
        for _ in range(self._limits.max_redirects + 1):
            with self._request(url, headers) as response:
                if response.status not in (301, 302, 303, 307, 308):
                    yield response
                    return
                following = _redirect_of(response)
                check_redirect(url, following)
                url = following
        raise RedirectRefused(f"{redact_url(url)} redirects more than {self._limits.max_redirects} times")

    @contextmanager
    def _request(self, url: httpx.URL, headers: Mapping[str, str]) -> Iterator[Response]:
        proxy = proxy_for(url)
        if proxy and self._addresses:
            # The proxy looks the host up by itself. Where DNS knows it here as well, it is checked here as well.
            with suppress(OSError):
                self._addresses(url.host, url.port or 443)
        backend = _Backend(self, None if proxy else self._addresses)
        context = self._ssl_context or (tls_context() if url.scheme == "https" or proxy else None)
        sent: dict[bytes | str, bytes | str] = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        if url.userinfo:
            user, _, password = url.userinfo.partition(b":")
            credentials = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
            sent["Authorization"] = b"Basic " + base64.b64encode(credentials)
        sent.update(headers)
        self._useless_since = None
        with (
            self._translated(),
            _quiet(),
            _pool(_SYNC, proxy, context, backend) as pool,
            pool.stream(
                "GET",
                _core_url(url),
                headers=sent,
                extensions={"timeout": self._timeouts()},
            ) as answer,
        ):
            answer_headers = httpx.Headers(answer.headers)
            length = answer_headers.get("content-length", "")
            yield Response(
                url=url,
                status=answer.status,
                headers=answer_headers,
                length=int(length) if re.fullmatch(r"[0-9]{1,15}", length) else None,
                chunks=self._passed_on(answer.iter_stream()),
            )

    def _passed_on(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self._useless_since = None

    def _timeouts(self) -> dict[str, float]:
        connect, read = self._limits.connect_timeout, self._limits.read_timeout
        return {"connect": connect, "read": read, "write": read, "pool": connect}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """A connection that broke because it was stopped, was stopped."""
        self.require_live()
        try:
            yield
        except NETWORK_ERRORS:
            self.require_live()
            raise

    def require_live(self) -> None:
        """:raises Stopped: ``stop`` was called."""
        if self._stopped.is_set():
            raise Stopped

    # What the network backend asks.

    def left(self, timeout: float | None) -> float:
        """Seconds that one wait may take: ``timeout``, or less."""
        self.require_live()
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("it took too long")
        return left if timeout is None else min(timeout, left)

    def require_progress(self) -> None:
        """:raises TooSlow: for long, all bytes that came were of a head, or of the frame around chunks."""
        since = self._useless_since
        if since is not None and time.monotonic() - since > self._limits.speed_window:
            raise TooSlow("it sends, and nothing of the body comes")

    def came(self) -> None:
        """Bytes came, of whatever they are. Until the first of them a host may take its time."""
        if self._useless_since is None:
            self._useless_since = time.monotonic()

    def opened(self, sock: socket.socket) -> None:
        """A connection was opened."""
        self._sockets.add(sock)
        self.require_live()

    def closed(self, sock: socket.socket) -> None:
        """A connection was closed."""
        self._sockets.discard(sock)


def _redirect_of(response: Response) -> httpx.URL:
    location = response.headers.get("location")
    if not location:
        raise RedirectRefused(f"{redact_url(response.url)} answered {response.status} without a Location")
    try:
        # As browsers: what is percent-encoded stays so, and raw UTF-8 is encoded.
        return response.url.join(location.strip())
    except httpx.InvalidURL:
        del location
        raise RedirectRefused(f"{redact_url(response.url)} redirects to a malformed URL") from None


def _core_url(url: httpx.URL, target: bytes | None = None) -> httpcore.URL:
    target = target or url.raw_path or b"/"
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=target)


Pool = TypeVar("Pool")
_Pools = tuple[Callable[..., Pool], Callable[..., Pool], Callable[..., Pool]]
_SYNC: _Pools[httpcore.ConnectionPool] = (httpcore.ConnectionPool, httpcore.HTTPProxy, httpcore.SOCKSProxy)
_ASYNC: _Pools[httpcore.AsyncConnectionPool] = (
    httpcore.AsyncConnectionPool,
    httpcore.AsyncHTTPProxy,
    httpcore.AsyncSOCKSProxy,
)
"""Without a proxy, and with one of either kind."""


def _pool(pools: _Pools[Pool], proxy: str | None, context: ssl.SSLContext | None, backend: object) -> Pool:
    """A pool for one request: a connection that is used again may be closed by the other side at any time."""
    direct, http_proxy, socks_proxy = pools
    options: dict[str, Any] = {
        "ssl_context": context,
        "network_backend": backend,
        "max_keepalive_connections": 0,
    }
    if proxy is None:
        return direct(**options)
    parsed = httpx.Proxy(proxy)
    if not parsed.url.host:
        raise ValueError("a proxy without a host")
    options |= {"proxy_url": _core_url(parsed.url, b"/"), "proxy_auth": parsed.raw_auth}
    if parsed.url.scheme.startswith("socks"):
        return socks_proxy(**options)
    return http_proxy(proxy_ssl_context=tls_context() if parsed.url.scheme == "https" else None, **options)


class _Backend(httpcore.NetworkBackend):
    """Connects to checked addresses, with streams that know the client's deadline."""

    def __init__(self, client: Client, addresses: Addresses | None) -> None:
        self._client = client
        self._addresses = addresses
        self._connect = httpcore.SyncBackend().connect_tcp

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = [host] if self._addresses is None else self._addresses(host, port)
        for address in addresses[:-1]:
            try:
                return self._stream(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # the next may answer
        return self._stream(addresses[-1], port, timeout)

    def _stream(self, address: str, port: int, timeout: float | None) -> _Stream:
        return _Stream(self._client, self._connect(address, port, timeout=self._client.left(timeout)))


_READ_SIZE = 256 * 1024
_LONGEST_HEAD = 64 * 1024


class _Stream(httpcore.NetworkStream):
    """A connection of which no wait goes past the client's deadline."""

    def __init__(self, client: Client, stream: httpcore.NetworkStream) -> None:
        self._client = client
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._head: bytes | None = b""
        """What came of the answer's head; None once it is whole."""
        client.opened(self._socket)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            self._client.require_progress()
            # httpcore asks for 64 KiB at a time. More at once takes less of the processor for a clip.
            data = self._stream.read(max(max_bytes, _READ_SIZE), self._client.left(timeout))
            self._client.came()
            if self._head is None:
                return data
            self._head += data
            if not b"HTTP/".startswith(self._head[:5]):  # a SOCKS proxy says how it goes, before the head
                said, self._head = self._head, b""
                return said
            if not data or len(self._head) > _LONGEST_HEAD or http_heads.END.search(self._head):
                return self._mended()
            del data  # error trackers show the local variables of whatever fails, and a head may have a link

    def _mended(self) -> bytes:
        """The heads that are whole, as a parser takes them, and what follows."""
        heads, left = b"", self._head or b""
        while end := http_heads.END.search(left):
            head, left = left[: end.end()], left[end.end() :]
            read = http_heads.read(head)
            heads += head if read is None else read.as_bytes()
            if read is None or not read.is_interim:
                self._head = None
                return heads + left
        self._head = left if heads else None
        return heads or left

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._client.left(timeout))

    def close(self) -> None:
        self._client.closed(self._socket)
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._client.left(timeout))
        self._client.closed(self._socket)
        return _Stream(self._client, secured)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


_is_quiet = contextvars.ContextVar("_is_quiet", default=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """At level DEBUG, httpcore logs the headers of answers: a Location may be a presigned link, and any may be long."""
    before = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(before)


for _name in ("connection", "http11", "proxy", "socks"):
    logging.getLogger(f"httpcore.{_name}").addFilter(lambda record: not _is_quiet.get())
