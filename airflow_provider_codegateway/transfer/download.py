"""A clip's bytes in order, over as many connections as it takes."""

from __future__ import annotations

import http.client
import logging
import random
import re
import socket
import string
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NoReturn, Protocol
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_codegateway.exceptions import ClipExpired, ClipTransferError
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.redaction import redact_url, redact_urls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from email.message import Message
    from typing import Self


log = logging.getLogger(__name__)

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What a presigned link that has run out is answered with: S3 and CloudFront 403, Google Cloud Storage 400,
# Azure 403, gateways of their own 401, 404 or 410.
_REFUSALS = frozenset({400, 401, 403, 404, 410})
_EXPIRED = rb"(?i)\bexpired\b|Signature not valid in the specified time frame"


class Stopped(ClipTransferError):
    """The transfer that this belongs to is given up."""

    def __init__(self) -> None:
        super().__init__("The transfer was stopped.")


class _Broken(Exception):
    """This connection will bring no more; another one may."""

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Sink(Protocol):
    """Where a download goes."""

    def room(self) -> memoryview:
        """Return where the next bytes go, at least one. May wait."""

    def filled(self, count: int) -> None:
        """Take up so many bytes, which lie at the start of the room."""

    def restart(self) -> None:
        """Forget all bytes: the stream begins anew."""


class Download:
    """The clip's bytes in order, over as many connections as it takes.

    It is the standard library's HTTP, not httpx: that takes more CPU time a byte (benchmarks/README.md) and
    logs whole URLs. The proxies of the environment and httpx's certificates apply.
    """

    def __init__(self, url: str, *, expires_at: float | None = None, limits: Limits = LIMITS) -> None:
        self._url = _require_http(url)
        self._shown = redact_url(url)
        self._expires_at = expires_at
        self._limits = limits
        self._deadline = time.monotonic() + self._limits.transfer_timeout
        self._socket: socket.socket | None = None
        self._stopped = threading.Event()
        self._offset = 0
        self._total: int | None = None
        self._etag: str | None = None
        self._validator: str | None = None
        self._opener = _opener(self._connected)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the download, from any thread."""
        self._stopped.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def into(self, sink: Sink) -> None:
        """Bring the whole clip."""
        failures, best = 0, 0
        while True:
            try:
                self._one_connection(sink, self._limits.read_size >> 4 * failures)
            except _Broken as broken:
                failures = 1 if self._offset > best else failures + 1
                best = max(best, self._offset)
                if failures > self._limits.max_failures or time.monotonic() > self._deadline:
                    self._give_up(broken, failures)
                log.info("The download of %s broke at byte %d: %s.", self._shown, self._offset, broken)
                jitter = random.uniform(0.5, 1)  # noqa: S311
                self._pause(
                    max(self._limits.first_backoff * 2 ** (failures - 1) * jitter, broken.retry_after)
                )
            else:
                return

    def _one_connection(self, sink: Sink, read_size: int) -> None:
        """Bring what one connection brings.

        :param read_size: at most so many bytes at a time. A reset takes the bytes of the unfinished read with
            it, so each failure in a row makes it smaller: what little a connection brings counts at last.
        """
        with self._network():
            response = self._open()
        with response:
            self._begin(response, sink)
            while self._offset != self._total:
                room = sink.room()[: max(1, read_size)]
                with self._network():
                    count = response.readinto(room)
                self._require_live()
                if not count:
                    break
                self._offset += count
                sink.filled(count)
        if self._total is not None and self._offset != self._total:
            raise _Broken(f"ended at byte {self._offset} of {self._total}")

    @contextmanager
    def _network(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: no host name
            self._require_live()
            reason = error.reason if isinstance(error, URLError) else error
            raise _Broken(redact_urls(f"{type(reason).__name__}: {reason}")) from None

    def _open(self) -> http.client.HTTPResponse:
        url = self._url
        for _ in range(self._limits.max_redirects + 1):
            self._require_live()
            request = urllib.request.Request(url, headers=self._headers())  # noqa: S310
            response: http.client.HTTPResponse = self._opener.open(
                request, timeout=self._limits.connect_timeout
            )
            if response.status not in _REDIRECTS:
                return response
            with response:
                url = self._redirected(url, response)
        raise ClipTransferError(f"{self._shown} redirected more than {self._limits.max_redirects} times.")

    def _headers(self) -> dict[str, str]:
        headers = {
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": "airflow-provider-codegateway",
        }
        if self._offset and self._validator:
            headers |= {"Range": f"bytes={self._offset}-", "If-Range": self._validator}
        return headers

    def _redirected(self, url: str, response: http.client.HTTPResponse) -> str:
        location = response.headers.get("Location")
        if not location:
            raise ClipTransferError(f"{self._shown} answered {response.status} without a Location.")
        target = _require_http(urljoin(url, location))
        if url.startswith("https:") and not target.startswith("https:"):
            raise ClipTransferError(f"{self._shown} redirected from https to {redact_url(target)}: refused.")
        return target

    def _begin(self, response: http.client.HTTPResponse, sink: Sink) -> None:
        """Find out what this answer brings: the whole clip, or the rest of it."""
        if response.status not in (200, 206, 416):
            self._refuse(response)
        if response.status == 206 and self._continues(response):
            return
        if self._offset:
            self._restart(sink)
        if response.status != 200:
            raise _Broken(f"answered {response.status} with another range than asked for")
        self._total = response.length
        self._etag = response.headers.get("ETag")
        self._validator = _strong_validator(response.headers)

    def _continues(self, response: http.client.HTTPResponse) -> bool:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not self._offset or not match or int(match[1]) != self._offset:
            return False
        if response.headers.get("ETag", self._etag) != self._etag:
            return False
        total = None if match[2] == "*" else int(match[2])
        if None not in (total, self._total) and total != self._total:
            return False
        self._total = self._total if total is None else total
        return True

    def _restart(self, sink: Sink) -> None:
        log.info(
            "The download of %s starts again: its host did not go on from byte %d.", self._shown, self._offset
        )
        self._offset, self._total, self._etag, self._validator = 0, None, None, None
        sink.restart()

    def _refuse(self, response: http.client.HTTPResponse) -> NoReturn:
        status, shown = response.status, redact_url(response.url)
        if status in _RETRIED:
            raise _Broken(f"answered {status}", retry_after=_retry_after(response.headers))
        if status in _REFUSALS and self._is_expired(response):
            raise ClipExpired(
                f"The link to the clip at {shown} has run out: its host answered {status}. "
                "It cannot be renewed; only another render gives another clip."
            )
        raise ClipTransferError(
            f"{shown} answered {status} where the clip was expected. Retrying the task asks again and buys "
            f"nothing; if it goes on, ask CodeGateway about this clip."
        )

    def _is_expired(self, response: http.client.HTTPResponse) -> bool:
        now = _date(response.headers.get("Date")) or time.time()
        if self._expires_at is not None and now >= self._expires_at:
            return True
        return bool(re.search(_EXPIRED, self._words(response)))

    def _words(self, response: http.client.HTTPResponse) -> bytes:
        with suppress(OSError, http.client.HTTPException):
            return response.read(4096)
        return b""

    def _give_up(self, broken: _Broken, failures: int) -> NoReturn:
        of = "" if self._total is None else f" of {self._total}"
        raise ClipTransferError(
            f"The download of {self._shown} broke {failures} times in a row, the last time at byte "
            f"{self._offset}{of}: {broken}. Retrying the task downloads again and buys nothing, while "
            "the link lives."
        ) from None

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(min(seconds, self._limits.max_backoff))
        self._require_live()

    def _require_live(self) -> None:
        if self._stopped.is_set():
            raise Stopped
        if time.monotonic() > self._deadline:
            raise ClipTransferError(
                f"The download of {self._shown} took more than {self._limits.transfer_timeout:.0f} s and had come to "
                f"byte {self._offset}. Retry the task: it downloads again, for free, while the link lives."
            )

    def _connected(self, sock: socket.socket) -> None:
        sock.settimeout(self._limits.read_timeout)
        self._socket = sock


def _opener(connected: Callable[[socket.socket], None]) -> urllib.request.OpenerDirector:
    """Return an opener that knows http, https and proxies, and no files, redirects, cookies or passwords."""

    class Http(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    class Https(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Http, req)

    class HttpsHandler(urllib.request.HTTPSHandler):
        context: ssl.SSLContext | None = None

        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            import httpx

            # Certificates are read once for all resumes, and not at all for http.
            self.context = self.context or httpx.create_ssl_context()
            return self.do_open(Https, req, context=self.context)

    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), HttpHandler(), HttpsHandler()):
        opener.add_handler(handler)
    return opener


def _require_http(url: str) -> str:
    """Return the URL in ASCII, as HTTP wants it."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        usable = usable and parts.port != 0  # reading the port checks it
    except ValueError:
        usable = False
    if not usable:
        raise ClipTransferError(f"The clip's URL, {redact_url(url)}, is not an http or https URL of a host.")
    return quote(url, safe=string.punctuation)


def _strong_validator(headers: Message) -> str | None:
    """Return what If-Range may hold (RFC 9110, 13.1.5): a strong ETag, or a date that is a second old."""
    etag = headers.get("ETag")
    if etag is not None:
        return etag if etag.startswith('"') else None
    modified, now = _date(headers.get("Last-Modified")), _date(headers.get("Date"))
    return headers["Last-Modified"] if modified and now and now - modified >= 1 else None


def _date(value: str | None) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp() if value else None
    except ValueError:
        return None


def _retry_after(headers: Message) -> float:
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    date = _date(value)
    return max(0.0, date - time.time()) if date else 0.0
